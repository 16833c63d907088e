"""K2. Tensors by position: inputs are matched by name, whatever a candidate leaves unread."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proxylessnas
from proxylessnas import MixedOp, SearchSettings
from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.export.compare import eager_outputs
from proxylessnas.export.lite_names import lite_inputs, lite_name
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.hardware.examples import plain_call
from proxylessnas.hardware.kit import export_kit
from proxylessnas.hardware.kit_results import import_kit
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.trace import trace

QUICK = MeasureSettings(rounds=1, network_rounds=1, networks=3, validation=0, runs=1, warmup=0)
RUNTIMES = [
    "onnxruntime",
    "torch",
    pytest.param("openvino", marks=pytest.mark.skipif("not _has('openvino')")),
    pytest.param("litert", marks=pytest.mark.skipif("not _has('litert_torch')")),
]


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


class ReadsSecond(nn.Module):
    """Ignores its first input, of another shape than the second."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.linear(b)
        return out


class ReadsThird(ReadsSecond):
    """Of twelve inputs it reads two in the middle: by their order as texts, 10 comes before 2."""

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.linear(inputs[2]) + inputs[10]
        return out


class Masked(nn.Module):
    """Integer ids beside a float mask; reads: which of the two, the other is ignored."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.embedding, self.reads = nn.Embedding(10, 8), reads

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.reads == "mask":
            return mask[..., None].expand(-1, -1, 8) * 2.0
        embedded: Tensor = self.embedding(ids)
        return embedded * mask[..., None] if self.reads == "both" else embedded


class Pooled(nn.Module):
    """Reads its second input's mask, and returns a tensor and None."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        assert mask is not None
        return mask.cumsum(1), None


class Attends(nn.Module):
    """Attention and a whole layer, whose fast paths in evaluation mode no exporter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(self.layer(x), x, x, need_weights=False)


class Named(NamedTuple):
    z: Tensor
    a: Tensor


class Returns(nn.Module):
    """f of the inputs: what is returned counts here, not what is computed."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f, self.weight = f, nn.Parameter(torch.arange(4.0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)


def called(f: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """The call as the runtimes get it: tensors alone, by position."""
    return plain_call(Returns(f), args, kwargs)


A, B = torch.randn(2, 4), torch.randn(2, 4)
IDS, MASK = torch.arange(10).reshape(2, 5), torch.rand(2, 5)
MODULES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "a first input that is not read": (ReadsSecond(), (torch.randn(2, 4), torch.randn(2, 8))),
    "twelve inputs of which two are read": (
        ReadsThird(),
        tuple(torch.randn(2, {2: 8, 10: 3}.get(i, 5)) for i in range(12)),
    ),
    "ids without the mask": (Masked("ids"), (IDS, MASK)),
    "a mask without the ids": (Masked("mask"), (IDS, MASK)),
    "ids and a mask": (Masked("both"), (IDS, MASK)),
    "a tensor and None": (Pooled(), (torch.randn(2, 3), MASK)),
    "attention": (Attends(), (torch.randn(2, 5, 8),)),
    "outputs by keys that are not sorted": called(lambda x: {"z": x * 2, "a": x - 1}, A),
    "outputs by name": called(lambda x: Named(x * 2, x - 1), A),
    "outputs in outputs": called(lambda x: [x + 1, (x * 3, {"q": x - 1, "b": x * 5})], A),
    "one output twice": called(lambda x: (x, x), A),
    "inputs as outputs, swapped": called(lambda x, y: (y, x), A, B),
    "an output that is no function of any": called(lambda x: (torch.arange(3.0), x + 1), A),
    "integers and truths out": called(lambda x: (x.argmax(1), x > 0, x * 2), A),
    "keywords alone, in another order": called(lambda *, b, a: a - 2 * b, b=B, a=A),
    "a keyword left out": called(lambda x, scale=None, bias=None: x + 3 * bias, A, bias=B),
    "a dict in": called(lambda d: d["z"] - 2 * d["a"], {"z": B, "a": A}),
    "tensors by name in": called(lambda o: o.z - 2 * o.a, Named(A, B)),
    "a number and None between": called(lambda a, n, none, b: b - n * a, A, 3, None, B),
    "the shape of the first alone": called(lambda x, y: y * x.shape[1], IDS, B),
    "truths beside floats": called(lambda m, w: torch.where(m, w, -w), MASK > 0.5, MASK),
    "a scalar": called(lambda x, t: x * t, A, torch.tensor(2.0)),
    "half beside whole": called(lambda a, b: b + a.float(), A.half(), B),
}


@pytest.mark.parametrize("what", MODULES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_computes_what_eager_computes(runtime: str, what: str) -> None:
    module, inputs = MODULES[what][0].eval(), MODULES[what][1]
    session = make(runtime).load(module, inputs)
    expected, outputs = eager_outputs(module, inputs), session.outputs()
    assert len(expected) == len(outputs)
    for one, other in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    session.close()


@pytest.mark.parametrize("what", MODULES)
def test_an_export_is_compared_with_eager_by_name(what: str) -> None:
    module, inputs = MODULES[what][0].eval(), MODULES[what][1]
    assert compare(module, to_onnx(module, inputs), inputs).relative < 1e-5


def test_inputs_of_a_tflite_file_are_known_by_their_numbers() -> None:
    names = [f"serving_default_args_{i}:0" for i in (10, 2)]
    assert [lite_name({"name": name}) for name in names] == ["args_10", "args_2"]
    assert lite_name({"name": "images"}) == "images"
    assert list(lite_inputs([np.zeros(1)] * 11))[10] == "args_10"


class TextNet(nn.Module):
    """Keyword inputs to a mixed operation; the model itself takes one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = MixedOp({reads: Masked(reads) for reads in ("both", "ids", "mask")})
        self.head = nn.Linear(8, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.head(self.mixed(mask=batch["mask"], ids=batch["ids"])).mean(1)
        return out


def test_a_whole_search_with_keyword_inputs_and_a_dict() -> None:
    inputs = {"ids": IDS, "mask": MASK}
    batches = [((inputs,), torch.randn(2, 3))] * 2
    result = proxylessnas.search(
        TextNet(),
        train=batches,
        valid=batches,
        loss=nn.functional.mse_loss,
        example_inputs=(inputs,),
        target_latency="5x",
        measure=QUICK,
        settings=SearchSettings(warmup_epochs=1, epochs=1),
        quiet=True,
    )
    table = result.session.table
    assert table is not None
    assert (table.device["batch"], table.device["input_shapes"]) == (2, "2x5, 2x5")
    assert result.measured_ms is not None


def test_a_kit_feeds_by_name(tmp_path: Path) -> None:
    """The kit is run as a program of its own; it fails where shapes or types are mixed up."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = MixedOp({reads: Masked(reads) for reads in ("both", "ids", "mask")})

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = self.mixed(ids, mask)
            return out

    supernet, inputs = Supernet(Net()), (IDS, MASK)
    kit, results = tmp_path / "kit.zip", tmp_path / "results.json"
    export_kit(supernet, inputs, QUICK, kit, seed=0)
    subprocess.run([sys.executable, str(kit), "--out", str(results)], check=True, timeout=120)
    assert set(trace(supernet, inputs).units) == set(import_kit(results).table.entries)
