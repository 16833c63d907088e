"""Latency tables that others published for phones, as a cost of the `mobile` space.

Two dialects of one YAML: `KEY: {count: runs, mean: ms, var or std: spread}` with keys as

    Pixel 1     expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1
    Note10      …-expand:144-kernel:3-stride:2-idskip:0-se:0-hs:0

Shapes are height x width x channels, batch 1. The Pixel 1's `expand` is the ratio, the
Note10's the number of expanded channels; `se` and `hs` are squeeze-excite and h-swish,
which no space here has. A whole network is the sum of its layers (paper, section 3.3).
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import nn

from proxylessnas.core.costs import Costs
from proxylessnas.core.mixed import MixedOp, Residual, Zero
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, MeasurementError, MissingEntry
from proxylessnas.io.files import read_bytes
from proxylessnas.io.yaml_files import decode_yaml
from proxylessnas.schema import checked, from_plain
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network

MAX_FILE_BYTES = 4 << 20
SHAPE = r"\d+(?:x\d+x\d+)?"
BLOCK = r"-expand:\d+-kernel:\d+-stride:\d+-idskip:[01](?P<note10>-se:[01]-hs:[01])?"
KEY = re.compile(
    rf"(Conv|Conv_1|Conv_2|AvgPool2D|Logits)-input:{SHAPE}-output:{SHAPE}"
    rf"|(?P<block>expanded_conv)-input:{SHAPE}-output:{SHAPE}{BLOCK}"
)
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedTable:
    """device: whose latencies. entries: key -> mean milliseconds, as published, batch 1.

    channels: whether `expand` in the keys counts channels (Note10) or is a ratio (Pixel 1).
    """

    device: str
    entries: Mapping[str, float]
    channels: bool

    def __getitem__(self, key: str) -> float:
        """Milliseconds of a key.

        Raises:
            MissingEntry: the table does not have it; there is no default.
        """
        if key in self.entries:
            return self.entries[key]
        near = difflib.get_close_matches(key, self.entries, n=3, cutoff=0.5)
        raise MissingEntry(
            f"the published latency table of the {self.device} has no entry for {key}; nearest: "
            f"{', '.join(near) or 'none'}; it prices networks of the widths, the input size and "
            "the classes it was made for, and nothing else"
        )


def is_published(path: str | Path) -> bool:
    """Whether a table is one of the authors' YAML files, by its name."""
    return Path(path).suffix in (".yaml", ".yml")


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class _Entry:
    """count: runs. mean: milliseconds. var, std: the spread, in one of the two forms."""

    count: Annotated[float, Ge(0)]
    mean: Annotated[float, Gt(0)]
    var: Annotated[float, Ge(0)] | None = None
    std: Annotated[float, Ge(0)] | None = None

    def __post_init__(self) -> None:
        if (self.var is None) == (self.std is None):
            raise ValueError("it must have var or std, and only one of the two")


def read_published_table(path: str | Path) -> PublishedTable:
    """Read `mobile_trim.yaml` (Pixel 1) or a `note10_*_lookup_table.yaml`; at most 4 MiB.

    Raises:
        MeasurementError: the file cannot be read, or an entry is not of either dialect.
    """
    text = read_bytes(path, MAX_FILE_BYTES, MeasurementError)
    try:
        plain = decode_yaml(text, str(path))
        entries: dict[str, _Entry] = from_plain(dict[str, _Entry], plain, error=MeasurementError)
        return _table(entries)
    except ConfigError as error:  # not YAML
        raise MeasurementError(str(error)) from None
    except MeasurementError as error:
        raise MeasurementError(f"{path}: {error}") from None


def _table(entries: Mapping[str, _Entry]) -> PublishedTable:
    dialects = set()
    for key in entries:
        match = KEY.fullmatch(key)
        if match is None:
            raise MeasurementError(f"the key {reprlib.repr(key)} is not a layer's and its shapes")
        if match["block"]:
            dialects.add(match["note10"] is not None)
    if len(dialects) != 1:
        raise MeasurementError("its expanded_conv keys must all end in -se:…-hs:…, or none of them")
    note10 = dialects == {True}
    device = "Samsung Note10" if note10 else "Pixel 1"
    means = {key: entry.mean for key, entry in entries.items()}
    return PublishedTable(device=device, entries=means, channels=note10)


# --- a supernet of the mobile space, layer by layer ---


def published_cost(supernet: Supernet, table: PublishedTable) -> Costs:
    """The latency cost of a `mobile` supernet at its own input shape, on the table's phone.

    Zero costs nothing; the fixed part is stem, first block, head convolution and classifier, of
    other channels or classes than the table has at the price of the nearest, with a warning.

    Raises:
        MissingEntry: the table lacks a layer of the space; its key is named.
        MeasurementError: the supernet is not one of the `mobile` space, or of another image size.
    """
    model = supernet.model
    check_suits(table, supernet.space, supernet.settings.get("input_shape", (0, 0))[1])
    assert isinstance(model, Network)
    per_candidate = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    row = {mixed: m for m, positions in enumerate(supernet.positions) for mixed in positions}
    fixed = 0.0
    for place, keys in _layers(model, tuple(supernet.settings["input_shape"][1:]), table.channels):
        for j, key in enumerate(keys):
            if place is None:
                fixed += table[_nearest(table, key)]
            elif key:
                per_candidate[row[place], j] += table[key]
    return Costs.one("latency", per_candidate, fixed=fixed, unit="ms")


def check_suits(table: PublishedTable, space: str, image_size: int | None) -> None:
    """Refuse what a table cannot price, as far as it is known.

    Raises:
        MeasurementError: another space than `mobile`, or images of another size.
    """
    if space != "mobile":
        raise MeasurementError(
            f"the published latency table of the {table.device} prices the space mobile, "
            f"not {space}"
        )
    stems = (re.match(r"Conv-input:(\d+)x", key) for key in table.entries)
    sizes = sorted({int(match[1]) for match in stems if match})
    if image_size is not None and sizes and image_size not in sizes:
        raise MeasurementError(
            f"the published latency table of the {table.device} prices images of "
            f"{' or '.join(map(str, sizes))} pixels, not {image_size}: --image-size {sizes[0]}, "
            "or leave the table out and measure here"
        )


def _nearest(table: PublishedTable, key: str) -> str:
    """The key itself, or that of the stem or the classifier that differs least in its width."""
    match = re.fullmatch(r"(Conv-input:\d+x\d+x)(\d+)(-.*)|(Logits-.*output:)(\d+)()", key)
    if key in table.entries or match is None:
        return key
    before, width, after = match.group(1, 2, 3) if match[1] else match.group(4, 5, 6)
    alike = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
    widths = [int(m[1]) for m in map(alike.fullmatch, table.entries) if m]
    if not widths:
        return key
    nearest = f"{before}{min(widths, key=lambda w: abs(w - int(width)))}{after}"
    warnings.warn(
        f"the published latency table of the {table.device} has no {key}: it counts as {nearest}, "
        f"{table[nearest]:.2g} ms",
        stacklevel=4,
    )
    return nearest


def _layers(
    model: Network, size: Size, channels: bool
) -> Iterator[tuple[MixedOp | None, list[str]]]:
    """Every layer in order: its mixed operation or None, and its key (one a candidate)."""
    stem, head = model.stem, model.head
    assert isinstance(stem, ConvBN) and isinstance(head, Head)
    out = _after(size, stem)
    yield None, [f"Conv{_shapes(size, stem, out)}"]
    for block in model.blocks:
        shortcut = isinstance(block, Residual)
        branch = block.branch if isinstance(block, Residual) else block
        size = out
        if isinstance(branch, MixedOp):
            candidates = list(branch.candidates.values())
            out = _after(size, next(c for c in candidates if not isinstance(c, Zero)))
            yield branch, [_block(c, size, out, shortcut, channels) for c in candidates]
        else:
            out = _after(size, branch)
            yield None, [_block(branch, size, out, shortcut, channels)]
    yield None, _head(head, out, channels)


def _head(head: Head, size: Size, note10: bool) -> list[str]:
    """The Note10's table has pooling apart, the Pixel 1's has it in `Logits`."""
    conv, linear = _convolutions(head)[0], next(m for m in head if isinstance(m, nn.Linear))
    width, at = linear.in_features, f"{size[0]}x{size[1]}"
    keys = [f"Conv_1-input:{at}x{conv.in_channels}-output:{at}x{width}"]
    if note10:
        keys.append(f"AvgPool2D-input:{at}x{width}-output:1x1x{width}")
        at = "1x1"
    return [*keys, f"Logits-input:{at}x{width}-output:{linear.out_features}"]


def _block(module: nn.Module, size: Size, out: Size, shortcut: bool, channels: bool) -> str:
    """The key of an inverted bottleneck; empty for Zero, which costs nothing."""
    if isinstance(module, Zero):
        return ""
    assert isinstance(module, MBConv)
    width = _convolutions(module)[0].in_channels
    stride = math.prod(c.stride[0] for c in _convolutions(module))
    expand = module.expansion * (width if channels else 1)
    return (
        f"expanded_conv{_shapes(size, module, out)}-expand:{expand}-kernel:{module.kernel}"
        f"-stride:{stride}-idskip:{int(shortcut)}{'-se:0-hs:0' if channels else ''}"
    )


def _shapes(size: Size, module: nn.Module, out: Size) -> str:
    convolutions = _convolutions(module)
    channels, width = convolutions[0].in_channels, convolutions[-1].out_channels
    return f"-input:{size[0]}x{size[1]}x{channels}-output:{out[0]}x{out[1]}x{width}"


def _after(size: Size, module: nn.Module) -> Size:
    """The resolution after a module's convolutions, which pad to "same"."""
    for c in _convolutions(module):
        size = (-(-size[0] // c.stride[0]), -(-size[1] // c.stride[1]))
    return size


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]
