"""What one forward pass finds: units, keys, calls, the shapes of Zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from proxylessnas.core.gates import Path
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero
from proxylessnas.errors import SupernetError
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware.fingerprint import fingerprint, label
from proxylessnas.hardware.objects import tensor_label
from proxylessnas.hardware.trace import trace
from proxylessnas.spaces import build_supernet
from proxylessnas.spaces.blocks import ConvBN, MBConv

SMALL = {"input_shape": [3, 32, 32], "widths": [8, 16], "depths": [2, 2], "stem": 8, "first": 8}


def supernet_of(*layers: nn.Module) -> Supernet:
    return Supernet(nn.Sequential(*layers))


def test_mobile_finds_every_distinct_candidate_once() -> None:
    supernet = build_supernet("mobile", SMALL)
    found = trace(supernet, (torch.randn(2, 3, 32, 32),))
    # Four blocks of six candidates each; the first two blocks are alike.
    assert len(found.units) == 18
    for keys, names in zip(found.keys, supernet.candidates, strict=True):
        for key, name in zip(keys, names, strict=True):
            assert len(key) == (name != "zero")
    first = found.units[found.keys[0][0][0]]
    assert first.label == "x+MBConv k3 e3 8>8"
    assert first.key.startswith("x+MBConv k3 e3 8>8 [2x8x32x32 f32] ")


def test_identical_blocks_share_a_unit() -> None:
    supernet = build_supernet("mobile", {**SMALL, "widths": [8], "depths": [4]})
    found = trace(supernet, (torch.randn(1, 3, 32, 32),))
    assert len(found.units) == 6
    assert found.keys[0] == found.keys[1] == found.keys[2] == found.keys[3]


def test_identity_and_zero_cost_nothing() -> None:
    supernet = build_supernet("macro", {"widths": [8], "depths": [2]})
    found = trace(supernet, (torch.randn(1, 3, 32, 32),))
    assert [len(keys) for keys in found.keys[1]] == [0, 1, 1]
    assert [len(keys) for keys in found.keys[0]] == [1, 1, 1]  # its identity is a convolution


def test_the_model_is_left_as_it_was() -> None:
    supernet = build_supernet("mobile", SMALL)
    model = supernet.model.train()
    model.get_submodule("stem").eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(supernet, (torch.randn(2, 3, 32, 32),))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_units_are_plain_and_can_be_exported() -> None:
    supernet = build_supernet("mobile", {**SMALL, "depths": [2, 1]})
    supernet.model.train()
    for unit in trace(supernet, (torch.randn(1, 3, 32, 32),)).units.values():
        assert not unit.module.training
        assert not any(isinstance(m, MixedOp) for m in unit.module.modules())
        assert not any(m._forward_pre_hooks for m in unit.module.modules())
        assert to_onnx(*unit.plain())


# --- calls ---


class Shared(nn.Module):
    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.mixed = MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Identity()])
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mixed(self.pool(self.mixed(x)))
        return out


@pytest.mark.parametrize("pool", [False, True])
def test_a_shared_operation_costs_every_call(pool: bool) -> None:
    found = trace(Supernet(Shared(pool)), (torch.randn(1, 4, 8, 8),))
    ((conv, identity),) = found.keys
    assert identity == ()
    assert len(conv) == 2
    assert len(set(conv)) == len(found.units) == 1 + pool


def test_a_residual_and_its_branch_are_one_call() -> None:
    mixed = MixedOp([nn.Conv2d(4, 4, 1), Zero()])
    found = trace(supernet_of(Residual(mixed), mixed), (torch.randn(1, 4, 8, 8),))
    ((conv, zero),) = found.keys
    # Through the Residual and then directly: two calls, of different units.
    assert len(conv) == len(found.units) == 2
    assert zero == ()
    assert conv[0].startswith("x+") and not conv[1].startswith("x+")


def test_a_residual_whose_active_candidate_is_zero_is_still_seen() -> None:
    mixed = MixedOp([nn.Conv2d(4, 4, 1), Zero()])
    mixed.gate = Path(1)
    found = trace(supernet_of(Residual(mixed)), (torch.randn(1, 4, 8, 8),))
    assert len(found.units) == 1


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = MixedOp([nn.Linear(3, 3), nn.Identity()])
        self.unused = MixedOp([nn.Linear(3, 3), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


def test_an_operation_that_never_runs_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="'unused'"):
        found = trace(Supernet(Skips()), (torch.randn(2, 3),))
    assert found.keys[1] == ((), ())


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixed = MixedOp([Attends(2), Attends(3)])

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        out: Tensor = self.mixed({"x": x}, 2.0, index=index)
        return out


class Attends(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, given: dict[str, Tensor], scale: float, *, index: Tensor) -> Tensor:
        return given["x"][index] * scale * self.factor


def test_any_structure_of_arguments_becomes_a_function_of_tensors() -> None:
    x, index = torch.randn(4, 3), torch.tensor([3, 0])
    found = trace(Supernet(Keywords()), (x, index))
    for unit in found.units.values():
        module, tensors = unit.plain()
        assert [t.shape for t in tensors] == [x.shape, index.shape]
        assert torch.equal(tensors[1], index)  # indices stay valid; floats are noise
        assert torch.equal(module(*tensors), unit.module(*unit.inputs, **unit.kwargs))


# --- Zero ---


def test_zero_takes_the_shape_of_its_siblings() -> None:
    mixed = MixedOp([Zero(), ConvBN(3, 6, 3, 2)])
    trace(supernet_of(mixed), (torch.randn(2, 3, 8, 8),))
    zero = mixed.candidates["0"]
    assert isinstance(zero, Zero) and zero.shape == (6, 4, 4)
    assert zero(torch.ones(5, 3, 8, 8)).shape == (5, 6, 4, 4)
    same = MixedOp([Zero(), ConvBN(3, 3, 3)])
    trace(supernet_of(same), (torch.randn(2, 3, 8, 8),))
    assert same.candidates["0"].shape is None


def test_zero_cannot_have_two_shapes() -> None:
    mixed = MixedOp([Zero(), nn.Conv2d(3, 3, 3)])
    with pytest.raises(SupernetError, match="one mixed operation for each shape"):
        trace(supernet_of(mixed, mixed), (torch.randn(1, 3, 8, 8),))


# --- keys ---

BLOCKS = st.fixed_dictionaries(
    {
        "channels": st.sampled_from([4, 8]),
        "out_channels": st.sampled_from([4, 8]),
        "kernel": st.sampled_from([3, 5]),
        "expansion": st.sampled_from([1, 3]),
        "stride": st.sampled_from([1, 2]),
    }
)


@given(BLOCKS, BLOCKS)
def test_a_fingerprint_is_the_structure_and_nothing_else(a: dict, b: dict) -> None:
    one, two = MBConv(**a), MBConv(**b).eval()
    assert (fingerprint(one) == fingerprint(two)) == (a == b)


def test_what_a_fingerprint_sees() -> None:
    conv = nn.Conv2d(4, 4, 3)
    same = fingerprint(conv)
    assert fingerprint(nn.Conv2d(4, 4, 3)) == same
    assert fingerprint(nn.Conv2d(4, 4, 3).eval()) == same
    for other in (
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3).half(),
        nn.Sequential(nn.Conv2d(4, 4, 3)),
    ):
        assert fingerprint(other) != same
    assert fingerprint(nn.ReLU()) != fingerprint(nn.ReLU6())
    assert fingerprint(Attends(2)) != fingerprint(Attends(3))


def test_a_fingerprint_sees_the_source_of_forward() -> None:
    def made(double: bool) -> nn.Module:
        if double:

            class Layer(nn.Module):
                def forward(self, x: Tensor) -> Tensor:
                    return x + x

        else:

            class Layer(nn.Module):  # type: ignore[no-redef]
                def forward(self, x: Tensor) -> Tensor:
                    return x * x

        return Layer()

    assert fingerprint(made(True)) != fingerprint(made(False))
    assert fingerprint(made(True)) == fingerprint(made(True))


def test_a_fingerprint_survives_cycles_shared_modules_and_odd_attributes() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.again = self.act
            self.listed = [self.act, nn.Linear(2, 2)]  # not registered
            self.table = {"a": (1, 2.0), "b": {3}}
            self.function = torch.relu
            self.anything = object()
            self.tensor = torch.zeros(3)
            self.listed.append(self)

    assert fingerprint(Odd()) == fingerprint(Odd())


def test_labels() -> None:
    assert label(MBConv(24, 40, kernel=5, expansion=6, stride=2)) == "MBConv k5 e6 24>40 s2"
    assert label(Residual(MBConv(8, 8, kernel=3, expansion=1))) == "x+MBConv k3 e1 8>8"
    assert label(nn.Linear(3, 4)) == "Linear 3>4"
    assert label(nn.Dropout(0.5)).startswith("Dropout(p=0.5")
    assert tensor_label(torch.zeros(2, 3, dtype=torch.bfloat16)) == "2x3 bf16"
    assert tensor_label(torch.zeros((), dtype=torch.int64)) == "scalar i64"
    assert tensor_label(torch.zeros(1, dtype=torch.uint8)) == "1 u8"
