"""A network's file in int8: what it computes, of which it is calibrated, what stays in float."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from proxylessnas.errors import ExportError
from proxylessnas.export.compare import eager_outputs
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.precision import (
    Feed,
    costliest,
    in_precision,
    is_quantised,
    noisy_feeds,
    quantised,
)
from proxylessnas.hardware import host
from proxylessnas.hardware.networks import float_share
from proxylessnas.spaces.blocks import MBConv

IMAGES = torch.randn(8, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))


def network(activation: type[nn.Module] = nn.ReLU6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(MBConv(8, 16, kernel=3, expansion=4), activation()).eval()


def feeds(scale: float = 1.0) -> Iterator[Feed]:
    return ({"input": scale * x.numpy()} for x in IMAGES)


def error(content: bytes, module: nn.Module) -> float:
    """Root mean square of the difference to eager, as a share of eager's."""
    session, squares, scale = open_session(content), 0.0, 0.0
    for x in IMAGES:
        expected = eager_outputs(module, (x,))[0]
        got = session.run(None, {"input": x.numpy()})[0]
        squares += float(((got - expected) ** 2).sum())
        scale += float((expected**2).sum())
    return float((squares / scale) ** 0.5)


def test_int8_computes_nearly_what_eager_computes() -> None:
    module = network()
    plain = to_onnx(module, (IMAGES[0],))
    content = quantised(plain, feeds(), reduce_range=False)
    assert is_quantised(onnx.load_model_from_string(content))
    assert 0 < error(content, module) < 0.03
    # Ranges are those of the inputs that it is calibrated on: of too small ones it is cut off.
    assert error(quantised(plain, feeds(0.1), reduce_range=False), module) > 0.2


def test_weights_are_signed_with_a_scale_a_channel_and_seven_bits_where_it_is_asked() -> None:
    plain = to_onnx(network(), (IMAGES[0],))
    for reduced, largest in ((False, 127), (True, 64)):
        model = onnx.load_model_from_string(quantised(plain, feeds(), reduce_range=reduced))
        arrays = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
        weights = {n: a for n, a in arrays.items() if a.dtype == np.int8 and a.ndim == 4}
        assert len(weights) == 3
        assert max(int(np.abs(a.astype(int)).max()) for a in weights.values()) == largest
        for name, array in weights.items():
            assert arrays[name.replace("_quantized", "_scale")].shape == array.shape[:1]
        assert all(a.dtype != np.int8 for n, a in arrays.items() if n.startswith("input_zero"))


def test_the_block_that_quantises_worst_stays_in_float() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(8, 8, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.third(self.second(self.first(x)))
            return out

    torch.manual_seed(0)
    module = Three().eval()
    with torch.no_grad():  # one channel so large that the others are lost in its range
        module.second.weight[0] *= 1000
        module.third.weight[:, 0] /= 1000
    plain = to_onnx(module, (IMAGES[0],))
    worst = costliest(plain, list(feeds()), 3, reduce_range=False)
    assert sorted(worst) == ["first", "second", "third"] and worst[0] != "first"
    without = quantised(plain, feeds(), reduce_range=False)
    kept = quantised(plain, feeds(), reduce_range=False, float_blocks=worst[:2])
    assert error(kept, module) < 0.3 * error(without, module)
    graph = onnx.load_model_from_string(kept).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    weights = {
        node.name.split("/")[1]: made.get(node.input[1])
        for node in graph.node
        if node.op_type == "Conv"
    }
    integers = {name for name, source in weights.items() if source == "DequantizeLinear"}
    assert len(weights) == 3 and integers == set(weights) - set(worst[:2])


def test_what_stays_in_float_is_told() -> None:
    plain = to_onnx(network(nn.Hardswish), (IMAGES[0],))
    content = quantised(plain, feeds(), reduce_range=False)
    shares = float_share(
        lambda profile: open_session(content, profile=profile), {"input": IMAGES[0].numpy()}
    )
    assert shares and "Conv" not in shares and not any("QLinear" in name for name in shares)
    assert 0 < sum(share for _, share in shares.values()) < 1
    whole = quantised(to_onnx(network(), (IMAGES[0],)), feeds(), reduce_range=False)
    opened = {"input": IMAGES[0].numpy()}
    assert float_share(lambda profile: open_session(whole, profile=profile), opened) == {}


def test_float16_has_inputs_and_outputs_in_float32() -> None:
    module = network()
    content = in_precision(to_onnx(module, (IMAGES[0],)), "fp16", (), reduce_range=False)
    assert 0 < error(content, module) < 2e-3
    model = onnx.load_model_from_string(content)
    kinds = {onnx.TensorProto.DataType.Name(w.data_type) for w in model.graph.initializer}
    assert "FLOAT16" in kinds


def test_integers_are_no_noise() -> None:
    ids, image = np.zeros((1, 4), np.int64), np.zeros((1, 3), np.float32)
    first, second = noisy_feeds({"ids": ids, "image": image})
    assert first["ids"] is ids and second["ids"] is ids
    assert np.abs(second["image"]).sum() > 0


def test_what_cannot_be_quantised_is_one_line() -> None:
    plain = to_onnx(network(), (IMAGES[0],))
    content = quantised(plain, feeds(), reduce_range=False)
    for wrong, words in ((content, "quantised already"), (b"nothing", "no ONNX file")):
        with pytest.raises(ExportError, match=words):
            quantised(wrong, feeds(), reduce_range=False)
    with pytest.raises(ExportError, match="cannot be quantised") as caught:
        quantised(plain, iter([{"other": np.zeros(3)}]), reduce_range=False)
    assert "\n" not in str(caught.value)
    endless = network()
    with torch.no_grad():
        next(endless.parameters()).fill_(torch.inf)
    with pytest.raises(ExportError, match="is NaN or infinite"):
        quantised(to_onnx(endless, (IMAGES[0],)), feeds(), reduce_range=False)


@pytest.mark.parametrize(
    ("machine", "flags", "instructions", "reduced"),
    [
        ("x86_64", "sse avx2", (), True),
        ("x86_64", "avx2 avx512_vnni avx_vnni", ("avx512_vnni", "avx_vnni"), False),
        ("aarch64", "fp asimd", (), False),
        ("aarch64", "fp asimd asimddp i8mm", ("asimddp", "i8mm"), False),
    ],
)
def test_seven_bits_where_sums_would_overflow(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    flags: str,
    instructions: tuple[str, ...],
    reduced: bool,
) -> None:
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset(flags.split()))
    assert host.integer_instructions() == instructions
    assert host.needs_reduced_range() == reduced
