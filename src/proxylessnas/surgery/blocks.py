"""Which layers may be narrowed, as `blocks=` says, and what was found of them as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.surgery.pairs import Pair, Refused


def wanted_by(model: nn.Module, blocks: Any) -> Callable[[str], bool]:
    """Whether a layer's path is one that `blocks` names.

    blocks: `auto` for all, or names of modules (`layer3`, `layer3.*`) and classes of modules, one
    or several: the layers of these modules.

    Raises:
        ConfigError: it is something else, or the model has no such module.
    """
    if blocks == "auto":
        return lambda path: True
    several = blocks if isinstance(blocks, list | tuple | set) else [blocks]
    if not several:
        raise ConfigError("blocks is empty: give 'auto', or names of modules and classes")
    roots: set[str] = set()
    modules = dict(model.named_modules())
    for block in several:
        if isinstance(block, type) and issubclass(block, nn.Module):
            found = {path for path, module in modules.items() if isinstance(module, block)}
            words = f"of the class {block.__name__}; its modules are of "
            remedy = did_you_mean(block.__name__, {type(m).__name__ for m in modules.values()})
        elif isinstance(block, str) and block:
            found = {path for path in modules if fnmatchcase(path, block)}
            words, remedy = f"called {block!r}; ", did_you_mean(block, filter(None, modules))
        else:
            raise ConfigError(
                f"blocks holds {block!r}: give 'auto', or names of modules ('layer3.*') and classes"
            )
        if not found:
            raise ConfigError(f"blocks: the model has no module {words}{remedy}")
        roots |= found
    return lambda path: any(path == r or path.startswith(f"{r}.") or not r for r in roots)


def too_narrow(pair: Pair) -> Refused:
    """A pair of so few channels that there is nothing between them and none."""
    reason = f"{pair.width} channels: none of its widths is narrower"
    return Refused(name=pair.name, kind=pair.kind, shape=pair.shape, reason=reason)


def table_of_layers(
    rows: Iterable[tuple[Pair, Sequence[int], Sequence[str]]],
    refused: Iterable[Refused],
    shares: Mapping[str, float] | None = None,
    ranks: Mapping[str, str] | None = None,
) -> str:
    """All layers as a table: name, kind, shape of the output, and candidates or why there are none.

    rows: pairs with their widths, and what else may be chosen with them.
    shares: of the model's latency, by the layer's path. ranks: of refused layers, in words.
    """
    known = {path: f"{100 * share:.1f} %" for path, share in (shares or {}).items()}
    lines = [("layer", "kind", "output", "latency", "candidates, or why not")]
    for pair, widths, others in rows:
        words = f"{pair.width} {_channels(pair)}"
        words += f", or {', '.join(map(str, widths))}" if widths else ""
        words = "; ".join((words + _others(pair.producers[1:]), *others))
        share = known.get(pair.name, "-")
        lines.append((pair.name, pair.kind, _shape(pair.shape), share, words))
    for layer in refused:
        share, words = known.get(layer.name, "-"), f"stays: {layer.reason}"
        words += f"; or {ranks[layer.name]}" if ranks and layer.name in ranks else ""
        lines.append((layer.name, layer.kind, _shape(layer.shape), share, words))
    wide = [max(len(line[k]) for line in lines) for k in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, wide, strict=False)), line[4]])
        for line in lines
    )


def _channels(pair: Pair) -> str:
    return "channels" if pair.unit == 1 else f"groups of {pair.unit} channels"


def _others(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f" (with {shown}{more})" if paths else ""


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:]))
