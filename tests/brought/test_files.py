"""K5. Files of today's exporters, measured by `measure FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from proxylessnas.cli.main import main
from proxylessnas.errors import MeasurementError
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.runtimes.files import FileInput, full_shapes

QUICK = ("--measure.network-rounds", "1", "--measure.runs", "1", "--measure.warmup", "0")


def saved(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, tuple[Any, ...]]],
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """An ONNX file with the output `out`; inputs: name -> type and shape, with names where open."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info("out")],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def convolution(path: Path, shape: tuple[Any, ...], dtype: str = "float32") -> Path:
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    weight = np.ones((2, 3, 3, 3), dtype)
    node = helper.make_node("Conv", ["images", "w"], ["conv"])
    cast = helper.make_node("Cast", ["conv"], ["out"], to=TensorProto.FLOAT)
    return saved(path, [node, cast], {"images": (kinds[dtype], shape)}, {"w": weight})


def measured(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["measure", *map(str, words), *QUICK]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["measure", *map(str, words), *QUICK]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_open_height_and_width_are_refused_with_what_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = convolution(tmp_path / "open.onnx", ("batch", 3, "height", "width"))
    line = refused(capsys, file)
    assert "images ?x3x?x? f32; say them, as --shape images=1x3x224x224" in line


def test_an_input_without_any_shape_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A runtime takes it for one number."""
    nodes = [helper.make_node("Relu", ["images"], ["out"])]
    file = saved(tmp_path / "x.onnx", nodes, {"images": (TensorProto.FLOAT, None)})  # type: ignore[dict-item]
    assert "says no shape of its input images: export it with one" in refused(capsys, file)


def test_open_dimensions_are_given_by_shape_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = convolution(tmp_path / "open.onnx", ("batch", 3, "height", "width"))
    out = measured(capsys, file, "--shape", "images=1x3x40x32")
    assert "images 1x3x40x32 f32, weights f32" in out


def test_the_shape_given_is_the_shape_computed(tmp_path: Path) -> None:
    file = convolution(tmp_path / "open.onnx", ("batch", 3, "height", "width"))
    session = make("onnxruntime").load_file(file, batch=2, shapes={"images": (2, 3, 40, 32)})
    (output,) = session.outputs()
    assert output.shape == (2, 2, 38, 30)


def test_an_open_batch_alone_is_the_batch_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = convolution(tmp_path / "batch.onnx", ("N", 3, 8, 8))
    out = measured(capsys, file, "--measure.batch", 4)
    assert "images 4x3x8x8 f32" in out and "batch 4" in out


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("images=1x3x40", "cannot be of the shape 1x3x40"),
        ("images=1x4x40x40", "cannot be of the shape 1x4x40x40"),
        ("image=1x3x40x40", "has no input 'image'; did you mean images?"),
        ("images=2x3x40x40", "is given the shape 2x3x40x40, of a batch of 2 and not 1"),
        ("images=1x3x0x40", "write NAME=SIZES, as --shape images=1x3x224x224"),
        ("1x3x40x40", "write NAME=SIZES"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str, words: str
) -> None:
    file = convolution(tmp_path / "open.onnx", ("batch", 3, "height", "width"))
    assert words in refused(capsys, file, "--shape", shape)


def test_shapes_are_for_files_and_given_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ("--shape", "images=1x3x8x8", "--shape", "images=1x3x9x9")
    file = convolution(tmp_path / "open.onnx", ("batch", 3, "height", "width"))
    assert "given twice" in refused(capsys, file, *twice)
    assert "--shape" in refused(capsys, "--space", "macro", "--out", tmp_path / "t.json", *twice)


def test_a_text_model_whose_first_dimension_is_no_batch() -> None:
    ids = FileInput(name="ids", shape=("sequence", "batch"), dtype="int64")
    mask = FileInput(name="mask", shape=("N", "sequence"), dtype="float32")
    with pytest.raises(MeasurementError, match="--shape ids=128x128 --shape mask=1x128"):
        full_shapes([ids, mask], 1, {}, "text.onnx")
    given = {"ids": (1, 9), "mask": (1, 9)}
    assert full_shapes([ids, mask], 1, given, "text.onnx") == given


def test_a_fixed_batch_that_is_not_the_one_asked_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Cast", ["ids"], ["out"], to=TensorProto.FLOAT)]
    file = saved(tmp_path / "ids.onnx", nodes, {"ids": (TensorProto.INT64, (1, 16))})
    assert "takes a batch of 1, not 8" in refused(capsys, file, "--measure.batch", 8)


def test_external_data_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(convolution(tmp_path / "whole.onnx", (1, 3, 8, 8)))
    file, data = tmp_path / "parts.onnx", tmp_path / "parts.data"
    options = {"save_as_external_data": True, "location": data.name, "size_threshold": 0}
    onnx.save_model(model, file, **options)
    assert "images 1x3x8x8 f32, weights f32" in measured(capsys, file)
    data.unlink()
    assert "parts.data" in refused(capsys, file)


def test_float16_is_labelled_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = convolution(tmp_path / "half.onnx", (1, 3, 8, 8), "float16")
    out = measured(capsys, half)
    assert "images 1x3x8x8 f16, weights f16" in out
    assert ", f16, 1 thread" in out and ", f32, 1 thread" not in out


@pytest.mark.parametrize(
    ("kind", "name"),
    [(TensorProto.INT8, "i8"), (TensorProto.UINT8, "u8"), (TensorProto.INT16, "i16")],
)
def test_integer_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: int, name: str
) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["out"], to=TensorProto.FLOAT)]
    file = saved(tmp_path / "int.onnx", nodes, {"x": (kind, (1, 16))})
    assert f"x 1x16 {name}" in measured(capsys, file)


def test_int8_weights_are_labelled_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a quantised network has them: int8, dequantised where they are used."""
    weights = {
        "w": np.ones((2, 3, 3, 3), np.int8),
        "scale": np.ones((), np.float32),
        "zero": np.zeros((), np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dw"]),
        helper.make_node("Conv", ["x", "dw"], ["out"]),
    ]
    file = saved(tmp_path / "q.onnx", nodes, {"x": (TensorProto.FLOAT, (1, 3, 8, 8))}, weights)
    assert ", int8, 1 thread" in measured(capsys, file)


def test_a_failing_first_run_in_the_runtimes_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["out"])]
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, (1, 4))}
    file = saved(tmp_path / "bad.onnx", nodes, inputs, {"shape": np.array([3, 5])})
    line = refused(capsys, file)
    assert "onnxruntime cannot run" in line and "requested shape:{3,5}" in line


def test_an_input_that_cannot_be_made_up_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("StringNormalizer", ["x"], ["out"])]
    file = saved(tmp_path / "text.onnx", nodes, {"x": (TensorProto.STRING, (1,))})
    model = onnx.load(file)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(model, file)
    assert "an input 'x' of the type tensor(string)" in refused(capsys, file)


@pytest.mark.parametrize("asked", [(), ("--precision", "int8")])
def test_integer_arithmetic_is_int8_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]
) -> None:
    """Operators on integers instead of operators that dequantise; uint8 in, uint8 out."""
    names = ["x", "scale", "zero", "w", "scale", "wzero", "scale", "zero"]
    weights = {
        **{"scale": np.float32(0.1), "zero": np.uint8(0), "wzero": np.int8(0)},
        "w": np.ones((2, 3, 3, 3), np.int8),
    }
    nodes = [helper.make_node("QLinearConv", names, ["q"])]
    nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["out"]))
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    file = saved(tmp_path / "q.onnx", nodes, {"x": (TensorProto.UINT8, (1, 3, 8, 8))}, arrays)
    out = measured(capsys, file, *asked)
    assert "x 1x3x8x8 u8, weights int8" in out and ", int8, 1 thread" in out


def test_weights_among_the_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As exporters before IR version 4 write them."""
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, (1, 4)), "w": (TensorProto.FLOAT, (4, 2))}
    node = helper.make_node("MatMul", ["x", "w"], ["out"])
    file = saved(tmp_path / "OLD.ONNX", [node], inputs, {"w": np.ones((4, 2), np.float32)})
    assert "OLD.ONNX: x 1x4 f32, weights f32" in measured(capsys, file)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no output", "At least one output"),
        ("no input", "has no input"),
        ("a sequence", "type seq(tensor(float)), which cannot be made up"),
        ("an optional", "type optional(tensor(float)), which cannot be made up"),
        ("cut short", "cannot load"),
        ("an operator of one's own", "is not a registered function/op"),
        ("weights cut short", "cannot load"),
    ],
)
def test_a_file_that_cannot_be_measured_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    node, inputs = helper.make_node("Relu", ["x"], ["out"]), {"x": (TensorProto.FLOAT, (1, 4))}
    if how == "no input":
        node, inputs = helper.make_node("Identity", ["w"], ["out"]), {}
    if how == "an operator of one's own":
        node.domain = "mine"
    if how == "weights cut short":
        node = helper.make_node("MatMul", ["x", "w"], ["out"])
    weights = {"w": np.ones((4, 2), np.float32)}
    file = saved(tmp_path / "x.onnx", [node], inputs, weights)
    model = onnx.load(file)
    if how == "no output":
        del model.graph.output[:]
    if how == "an operator of one's own":
        model.opset_import.append(helper.make_opsetid("mine", 1))
    if how in ("a sequence", "an optional"):
        tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, (1, 4))
        of = helper.make_sequence_type_proto if "seq" in how else helper.make_optional_type_proto
        model.graph.input[0].CopyFrom(helper.make_value_info("x", of(tensor)))
        kind = "SequenceAt" if "seq" in how else "OptionalGetElement"
        model.opset_import[0].version = 18
        model.graph.node[0].op_type = kind
        if kind == "SequenceAt":
            model.graph.node[0].input.append("zero")
            model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    onnx.save(model, file)
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-40])
    if how == "weights cut short":
        options = {"location": "w.data", "size_threshold": 0}
        onnx.save(model, file, save_as_external_data=True, **options)
        (tmp_path / "w.data").write_bytes(b"abc")
    assert main(["measure", str(file), *QUICK]) == 2
    lines = capfd.readouterr().err.splitlines()  # of the runtime's own log, too
    assert len(lines) == 1 and says in lines[0]


def test_an_absurd_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = convolution(tmp_path / "open.onnx", ("b", 3, "h", "w"))
    line = refused(capsys, file, "--shape", "images=1x3x999999x999999")
    assert "images of the shape 1x3x999999x999999 has more than 268,435,456 numbers" in line
