"""Exported files: what goes into them, of which shapes, and the precision of their weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from proxylessnas.errors import MeasurementError, did_you_mean
from proxylessnas.export.precision import in_precision, is_quantised, noisy_feeds
from proxylessnas.hardware.host import needs_reduced_range
from proxylessnas.hardware.runtimes.base import Shape

MOST_NUMBERS = 1 << 28  # of one input, that are made up as float64 first
# Names of open dimensions that are no batch.
NO_BATCH = re.compile("seq|len|time|token|frame|sample|point|height|width", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FileInput:
    """An input of an exported file. shape: numbers, and whatever stands for an open dimension."""

    name: str
    shape: tuple[Any, ...]
    dtype: str

    def __str__(self) -> str:
        sizes = "x".join(str(size) if _is_fixed(size) else "?" for size in self.shape)
        return f"{self.name} {sizes or 'scalar'} {short(self.dtype)}"

    def allows(self, shape: Shape) -> bool:
        """Whether the file can be fed with this shape."""
        return len(shape) == len(self.shape) and all(
            own == size or not _is_fixed(own) for own, size in zip(self.shape, shape, strict=True)
        )

    def of_batch(self, batch: int) -> tuple[Any, ...]:
        """The shape with the batch as the leading dimension, where that one is open."""
        if not self.shape or _is_fixed(self.shape[0]) or NO_BATCH.search(str(self.shape[0])):
            return self.shape
        return (batch, *self.shape[1:])

    def example(self, batch: int) -> str:
        """How its shape can be said."""
        usual = "224" if len(self.shape) == 4 else "128"  # an image's side, a text's length
        sizes = [str(s) if _is_fixed(s) else usual for s in self.of_batch(batch)]
        return f"--shape {self.name}={'x'.join(sizes)}"


def full_shapes(
    inputs: Sequence[FileInput], batch: int, given: Mapping[str, Shape], file: str
) -> dict[str, Shape]:
    """The shapes that a file is measured with: its own, an open leading dimension the batch.

    given: shapes that the user said.

    Raises:
        MeasurementError: another dimension is open and not said, a shape that is said does not
            fit, or the file takes another batch.
    """
    names = [x.name for x in inputs]
    for name, shape in given.items():
        if name not in names:
            raise MeasurementError(f"{file} has no input {name!r}; {did_you_mean(name, names)}")
        x = inputs[names.index(name)]
        if not x.allows(shape):
            words = "x".join(map(str, shape))
            raise MeasurementError(f"{file}: the input {x} cannot be of the shape {words}")
    if not inputs:
        raise MeasurementError(f"{file} has no input: what it computes is a constant")
    if not given and not any(x.shape for x in inputs):
        raise MeasurementError(
            f"{file} says no shape of its input {', '.join(map(str, names))}: export it with one"
        )
    shapes = {x.name: given.get(x.name) or x.of_batch(batch) for x in inputs}
    unknown = [x for x in inputs if not all(map(_is_fixed, shapes[x.name]))]
    if unknown:
        raise MeasurementError(
            f"{file} leaves dimensions of its input open, on which its latency depends: "
            f"{', '.join(map(str, unknown))}; say them, as "
            f"{' '.join(x.example(batch) for x in unknown)}"
        )
    leading = next((shape for shape in shapes.values() if len(shape) > 1), None)
    if leading is not None and leading[0] != batch:
        if leading in given.values():
            raise MeasurementError(
                f"{file} is given the shape {'x'.join(map(str, leading))}, of a batch of "
                f"{leading[0]} and not {batch}: say --shape and --batch of one batch"
            )
        raise MeasurementError(
            f"{file} takes a batch of {leading[0]}, not {batch}: ask for that batch "
            f"(--measure.batch {leading[0]}), or export it anew"
        )
    for x in inputs:
        if prod(map(int, shapes[x.name])) > MOST_NUMBERS:
            words = "x".join(map(str, shapes[x.name]))
            raise MeasurementError(
                f"{file}: the input {x.name} of the shape {words} has more than {MOST_NUMBERS:,} "
                "numbers, too many to measure with"
            )
    return {name: tuple(map(int, shape)) for name, shape in shapes.items()}


def _is_fixed(size: object) -> bool:
    return isinstance(size, int) and size > 0


def checked_file(path: str | Path, suffix: str, runtime: str) -> Path:
    """The path of an exported file.

    Raises:
        MeasurementError: it is missing, cannot be read, or is of another kind.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise MeasurementError(f"{runtime} measures {suffix} files, not {path}")
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise MeasurementError(f"cannot read {path}: {error.strerror}") from None


def in_words(inputs: Sequence[FileInput], shapes: Mapping[str, Shape], precision: str) -> str:
    """What was measured of a file: every input with shape and type, and the weights' type."""
    words = [str(replace(x, shape=shapes[x.name])) for x in inputs]
    return ", ".join([*words, *([f"weights {precision}"] if precision else [])])


def converted_file(
    path: Path, precision: str, arrays: Mapping[str, Any]
) -> tuple[bytes | None, str]:
    """An ONNX file in a precision, None where it is as it stands, and what its weights are.

    arrays: inputs by name, which stand for those that int8 is calibrated on.

    Raises:
        MeasurementError: its weights are neither float32 nor of this precision.
    """
    import onnx

    weights = weights_of(path)
    if precision in ("f32", "bf16", weights):
        return None, weights
    if weights not in ("f32", ""):
        raise MeasurementError(f"{path} is a file of {weights}, of which {precision} is not made")
    content = onnx.load(path).SerializeToString()
    feeds, reduced = noisy_feeds(arrays), needs_reduced_range()
    return in_precision(content, precision, feeds, reduce_range=reduced), precision


def weights_of(path: Path) -> str:
    """The type of most weights of an ONNX file, as `f32`, `f16` or `int8` (quantised); empty where
    it has none.

    Weights in files beside it are not read.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    if is_quantised(model):
        return "int8"
    sizes: Counter[str] = Counter()
    for weight in model.graph.initializer:
        name = onnx.TensorProto.DataType.Name(weight.data_type).lower()
        known = {"float": "float32", "double": "float64", "int8": "int8", "uint8": "int8"}
        word = known.get(name, name)
        sizes[word if word == "int8" else short(word)] += prod(weight.dims)
    return sizes.most_common(1)[0][0] if sizes else ""


def short(dtype: str) -> str:
    """`f32` for float32, `i8` for int8, and so on."""
    for name, letter in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")):
        if dtype.startswith(name):
            return letter + dtype.removeprefix(name)
    return dtype
