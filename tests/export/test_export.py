"""Exported files compute what eager computes, say what they carry, and fail in one line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from proxylessnas.core.supernet import Residual
from proxylessnas.errors import ConfigError, ExportError, MissingDependency, one_line
from proxylessnas.export import tflite
from proxylessnas.export.compare import difference
from proxylessnas.export.coreml import export_coreml
from proxylessnas.export.executorch import export_executorch
from proxylessnas.export.fold import fold
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.export.quiet import one_thread
from proxylessnas.export.tflite import to_tflite
from proxylessnas.export.torch_export import to_torch_export
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """BN statistics as after training, so that folding has something to do."""
    made = nn.Sequential(
        ConvBN(3, 8, 3, 2), Residual(MBConv(8, 8, kernel=5, expansion=3)), Head(8, 16, 5)
    )
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return made


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x)[0]


def test_onnx_computes_what_eager_computes() -> None:
    module = network().train()
    content = to_onnx(module, (X,))
    found = compare(module, content, (X,))
    assert 0 <= found.relative < 1e-5
    assert module.training  # and is left so
    ops = [node.op_type for node in onnx.load_model_from_string(content).graph.node]
    assert "BatchNormalization" not in ops


def test_onnx_file_and_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    content = to_onnx(
        network(),
        (X,),
        path,
        metadata={"input_size": [3, 16, 16], "mean": [0.5], "classes": ["cat", "dog"], "a": "b"},
    )
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load_model_from_string(content)
    assert {p.key: p.value for p in model.metadata_props} == {
        "input_size": "[3, 16, 16]",
        "mean": "[0.5]",
        "classes": '["cat", "dog"]',
        "a": "b",
    }
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("input", "output")


def test_a_network_that_onnx_lacks_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="Unsupported cannot be exported to ONNX") as caught:
        to_onnx(Unsupported(), (torch.randn(3, 3),))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ExportError, match="Sequential cannot be exported"):
        to_onnx(network(), (torch.randn(1, 4, 16, 16),))
    to_onnx(network(), (X,))
    assert capfd.readouterr() == ("", "")


def test_a_file_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ExportError, match="computes something else"):
        compare(network(), to_onnx(network(), (X,)), (X,))
    a = [np.array([1.0, 2.0])]
    assert difference(a, [np.array([1.0, 2.0001])]).relative == pytest.approx(5e-5)
    with pytest.raises(ExportError, match="tolerance 1e-04"):
        difference(a, [np.array([1.0, 2.1])])
    with pytest.raises(ExportError, match="something else"):
        difference(a, [np.array([1.0, np.nan])])
    with pytest.raises(ExportError, match="shapes"):
        difference(a, [np.array([1.0])])
    assert difference([np.zeros(3)], [np.zeros(3)]).relative == 0


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": x + y, "product": x * y}

    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    content = to_onnx(Two(), inputs)
    graph = onnx.load_model_from_string(content).graph
    assert [i.name for i in graph.input] == ["input_0", "input_1"]
    assert compare(Two(), content, inputs).absolute == 0


def test_torch_export(tmp_path: Path) -> None:
    module, path = network(), tmp_path / "net.pt2"
    assert to_torch_export(module, (X,), path).relative < 1e-5
    assert path.stat().st_size > 0

    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"cannot be exported by torch\.export"):
        to_torch_export(ByValue(), (X,), tmp_path / "no.pt2")
    assert not (tmp_path / "no.pt2").exists()


def test_tflite() -> None:
    for package in ("litert_torch", "ai_edge_litert"):
        pytest.importorskip(package, reason="the extra litert is not installed")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=to_tflite(network(), (X,)))
    assert interpreter.get_input_details()[0]["shape"].tolist() == [2, 16, 16, 3]
    with pytest.raises(ExportError, match="cannot be exported to tflite"):
        to_tflite(network(), (torch.randn(1, 4, 16, 16),))


def test_tflite_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingDependency, match=r"proxylessnas\[litert\]"):
        to_tflite(network(), (X,))


def test_tflite_leaves_the_module_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(nn.Linear):
        """Stands for one on a GPU: says whether it was moved."""

        moved = False

        def cpu(self) -> Elsewhere:
            self.moved = True
            return self

    monkeypatch.setattr(tflite, "_litert_torch", lambda: None)  # the conversion itself fails
    module = Elsewhere(2, 2).train()
    with pytest.raises(ExportError, match="to tflite"):
        to_tflite(module, (torch.zeros(1, 2),))
    assert not module.moved and module.training


def test_folding_changes_nothing_but_the_layers() -> None:
    module = network().eval()
    folded = fold(module)
    assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(X), module(X), rtol=1e-4, atol=1e-5)

    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert isinstance(fold(ByValue()), ByValue)


def test_one_thread_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_one_line() -> None:
    assert one_line(RuntimeError("a\n  b\tc")) == "a b c"
    assert one_line(AssertionError()) == "AssertionError"
    assert len(one_line(RuntimeError("x" * 999))) == 200


# --- extras ---


@pytest.mark.parametrize(
    ("package", "extra", "suffix"),
    [("executorch", "executorch", ".pte"), ("coremltools", "coreml", ".mlpackage")],
)
def test_formats_without_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, extra: str, suffix: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    export = {".pte": export_executorch, ".mlpackage": export_coreml}[suffix]
    with pytest.raises(MissingDependency, match=rf"{package}.*proxylessnas\[{extra}\]"):
        export(network(), (X,), tmp_path / f"net{suffix}")


def test_core_ml_is_given_the_names_and_shapes_of_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a module in coremltools' place: what it is called with, and what is kept of it."""

    class Model:
        def save(self, path: str) -> None:
            Path(path).mkdir()
            Path(path, "Manifest.json").write_text("{}")

    given: dict[str, Any] = {}

    def convert(model: Any, **options: Any) -> Model:
        given.update(options, output=model(X))
        return Model()

    fake = SimpleNamespace(
        convert=convert,
        TensorType=lambda **of_tensor: of_tensor,
        precision=SimpleNamespace(FLOAT32="float32"),
    )
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    path, module = tmp_path / "net.mlpackage", network().eval()
    for _ in range(2):  # one that is there is replaced
        export_coreml(module, (X,), path)
    assert given["inputs"] == [{"name": "input", "shape": tuple(X.shape)}]
    assert given["outputs"] == [{"name": "output"}] and given["convert_to"] == "mlprogram"
    torch.testing.assert_close(given["output"], module(X), rtol=1e-4, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["net.mlpackage"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"exists and is no \.mlpackage"):
        export_coreml(module, (X,), tmp_path / "mine")
