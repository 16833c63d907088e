"""Binary gates: the output of one path, gradients for all gates, and nothing left behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from toys import Recorder, Scale

from proxylessnas.core.gates import Binary, Mixture, Path
from proxylessnas.core.supernet import MixedOp, Zero
from proxylessnas.errors import SupernetError


def binary(active: int, count: int, inactive: tuple[int, ...] | None = None) -> Binary:
    others = tuple(j for j in range(count) if j != active) if inactive is None else inactive
    return Binary(active, others, torch.zeros(count, dtype=torch.float64, requires_grad=True))


def gate_gradient(gate: Binary) -> Tensor:
    grad = gate.gates.grad
    assert grad is not None
    return grad


def linears(count: int, width: int = 4) -> MixedOp:
    return MixedOp([nn.Linear(width, width) for _ in range(count)]).double()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# --- values and gradients ---


def test_a_path_runs_its_candidate_alone() -> None:
    log: list[tuple[Any, bool]] = []
    mixed = MixedOp([Recorder(Scale(j), j, log) for j in range(3)])
    mixed.gate = Path(2)
    assert torch.equal(mixed(torch.ones(2)), torch.full((2,), 2.0))
    assert log == [(2, True)]


def test_outside_of_a_search_the_first_candidate_runs() -> None:
    assert torch.equal(MixedOp([Scale(5.0), Scale(7.0)])(torch.ones(1)), torch.tensor([5.0]))


def test_binary_gates_compute_the_active_candidate_and_its_gradients() -> None:
    """Output, ∂L/∂x and ∂L/∂w are those of the active candidate alone."""
    mixed, x = linears(3), rows(5, 4).requires_grad_()
    plain = mixed.candidates["1"](x)
    expected = torch.autograd.grad(plain.square().sum(), [x, *mixed.candidates["1"].parameters()])
    mixed.gate = binary(1, 3)
    y = mixed(x)
    assert torch.equal(y, plain)
    found = torch.autograd.grad(y.square().sum(), [x, *mixed.candidates["1"].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_gate_receives_the_inner_product_of_its_candidate() -> None:
    """∂L/∂g_j = ⟨∂L/∂y, o_j(x)⟩ for active and listed candidates, 0 for the others."""
    mixed, x, weight = linears(4), rows(5, 4), rows(5, 4)
    gate = mixed.gate = binary(1, 4, inactive=(3,))
    (weight * mixed(x)).sum().backward()
    expected = [0.0, 0.0, 0.0, 0.0]
    for j in (1, 3):
        expected[j] = (weight * mixed.candidates[str(j)](x)).sum().item()
    torch.testing.assert_close(gate_gradient(gate), torch.tensor(expected, dtype=torch.float64))


def test_only_the_active_candidate_is_recorded_and_only_the_listed_ones_run() -> None:
    log: list[tuple[Any, bool]] = []
    mixed = MixedOp([Recorder(Scale(j + 1.0), j, log) for j in range(5)])
    mixed.gate = binary(1, 5, inactive=(4,))
    loss = mixed(rows(2)).sum()
    assert log == [(1, True)]  # nothing else before the backward pass
    loss.backward()
    assert log == [(1, True), (4, False)]


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_inner_products_do_not_depend_on_the_memory_layout(layout: str) -> None:
    """Of the outputs and of the gradient, each in its own layout."""

    class Laid(nn.Module):
        def __init__(self, change: bool) -> None:
            super().__init__()
            self.conv, self.change = nn.Conv2d(3, 3, 3, padding=1).double(), change

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            if not self.change:
                return y.contiguous()
            if layout == "channels_last":
                return y.to(memory_format=torch.channels_last)
            if layout == "strided":
                return y.transpose(2, 3).contiguous().transpose(2, 3)
            return y.mean(3, keepdim=True).expand_as(y)

    x, weight = rows(2, 3, 4, 5), rows(2, 3, 4, 5).to(memory_format=torch.channels_last)
    mixed = MixedOp([Laid(False), Laid(True), Laid(False)])
    expected = [(weight * c(x)).sum().item() for c in mixed.candidates.values()]
    for active in range(3):
        gate = mixed.gate = binary(active, 3)
        (weight * mixed(x)).sum().backward()
        torch.testing.assert_close(gate_gradient(gate), torch.tensor(expected).double())


def test_the_gradient_of_a_sum_is_an_expanded_tensor() -> None:
    mixed, x = linears(2), rows(3, 4)
    gate = mixed.gate = binary(0, 2)
    mixed(x).sum().backward()
    expected = torch.stack([c(x).sum() for c in mixed.candidates.values()]).detach()
    torch.testing.assert_close(gate_gradient(gate), expected)


def test_a_mixture_is_the_weighted_sum() -> None:
    mixed, x = linears(3), rows(2, 4)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64, requires_grad=True)
    mixed.gate = Mixture(weights)
    outputs = torch.stack([c(x) for c in mixed.candidates.values()])
    torch.testing.assert_close(mixed(x), (weights[:, None, None] * outputs).sum(0))
    (grad,) = torch.autograd.grad(mixed(x).sum(), [weights])
    torch.testing.assert_close(grad, outputs.sum((1, 2)))


# --- structure ---


class Pair(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, *, scale: dict[str, Tensor]) -> dict[str, Any]:
        y = self.factor * scale["by"] * x
        return {"y": y, "z": (y + 1, None), "index": y.argmax(), "name": "pair"}


def test_tuples_dicts_keyword_tensors_and_what_is_no_tensor() -> None:
    mixed, x, by = MixedOp([Pair(1.0), Pair(3.0)]), rows(4), rows(4).requires_grad_()
    gate = mixed.gate = binary(0, 2)
    out = mixed(x, scale={"by": by})
    assert out["name"] == "pair" and out["z"][1] is None
    assert torch.equal(out["index"], (by * x).argmax())
    (out["y"].sum() + 2 * out["z"][0].sum()).backward()
    torch.testing.assert_close(by.grad, 3 * x)
    dot = (x * by).sum().item()
    expected = torch.tensor([3 * dot + 8, 9 * dot + 8], dtype=torch.float64)
    torch.testing.assert_close(gate_gradient(gate), expected)


def test_an_output_that_the_loss_does_not_use_counts_nothing() -> None:
    mixed, x = MixedOp([Pair(1.0), Pair(3.0)]), rows(4)
    gate = mixed.gate = binary(1, 2)
    mixed(x, scale={"by": torch.ones(4)})["y"].sum().backward()
    expected = torch.stack((x.sum(), 3 * x.sum()))
    torch.testing.assert_close(gate_gradient(gate), expected)


def test_candidates_with_another_shape_or_structure_are_named() -> None:
    other = nn.Linear(4, 5).double()
    for gate in (binary(0, 2), Mixture(torch.ones(2, requires_grad=True))):
        mixed = MixedOp([nn.Identity(), other])
        mixed.gate = gate
        with pytest.raises(SupernetError, match=r"\(3, 4\).* and .*\(3, 5\)"):
            mixed(rows(3, 4)).sum().backward()


class Returns(nn.Module):
    """What a function makes of the input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x, lambda x: (x, x)),
        (lambda x: (x,), lambda x: x),
        (lambda x: (x, x), lambda x: (x, None)),
        (lambda x: (x, x), lambda x: [x, x]),
        (lambda x: {"a": x, "b": 10 * x}, lambda x: {"b": 10 * x, "a": x}),
    ],
)
def test_candidates_that_return_another_structure_are_named(
    one: Callable[[Tensor], Any], other: Callable[[Tensor], Any], mixture: bool
) -> None:
    mixed = MixedOp([Returns(one), Returns(other)])
    mixed.gate = Mixture(torch.ones(2, requires_grad=True)) if mixture else binary(0, 2)
    with pytest.raises(SupernetError, match=r"candidates 0 and 1 .* different structures"):
        leaves = pytree.tree_leaves(mixed(rows(3, 4)))
        sum(leaf.sum() for leaf in leaves).backward()


def test_a_candidate_without_a_tensor_to_learn_from_is_refused() -> None:
    """A gate whose gradient would silently be 0."""

    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> set[Tensor]:
            return {x}

    mixed = MixedOp([Opaque(), Opaque()])
    mixed.gate = binary(0, 2)
    with pytest.raises(SupernetError, match="no floating-point tensor"):
        mixed(rows(3))


# --- any shape ---


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(0, 2**16),
)
def test_gate_gradients_are_those_of_soft_gates_at_the_one_hot(
    count: int, shape: list[int], active: int, seed: int
) -> None:
    """∂L/∂g of Σ_j g_j·o_j(x) by autograd, for any number of candidates and any shape."""
    active %= count
    torch.manual_seed(seed)
    x, weight = rows(*shape), rows(*shape)
    mixed = MixedOp([nn.Linear(shape[-1], shape[-1]) for _ in range(count)]).double()
    soft = torch.eye(count, dtype=torch.float64)[active].requires_grad_()
    outputs = torch.stack([c(x) for c in mixed.candidates.values()], -1)
    (((outputs @ soft).sin() * weight).sum()).backward()
    gate = mixed.gate = binary(active, count)
    (mixed(x).sin() * weight).sum().backward()
    torch.testing.assert_close(gate_gradient(gate), soft.grad)


# --- in place ---


@pytest.mark.parametrize("active", [0, 1, 2])
def test_what_follows_may_work_in_place(active: int) -> None:
    """`y += x` and an in-place ReLU behind the operation, also behind an Identity."""

    def run(in_place: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        mixed = MixedOp({"skip": nn.Identity(), "a": nn.Linear(4, 4), "zero": Zero()}).double()
        x = rows(5, 4).requires_grad_()
        h = torch.sin(x)
        gate = mixed.gate = binary(active, 3)
        y = mixed(h)
        if in_place:
            y += h
            y = nn.functional.relu_(y)
        else:
            y = torch.relu(y + h)
        y.square().sum().backward()
        assert x.grad is not None
        return gate_gradient(gate), x.grad

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("active", [0, 1])
def test_a_candidate_that_modifies_its_input_is_refused(active: int) -> None:
    """The candidates share the input: an in-place ReLU at the start changes it for the others."""
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)).double()
    mixed = MixedOp([first, nn.Linear(4, 4).double()])
    mixed.gate = binary(active, 2)
    with pytest.raises(SupernetError, match="inplace=False"):
        mixed(torch.sin(rows(5, 4))).sum().backward()


def test_an_in_place_activation_inside_a_candidate_is_fine() -> None:
    inside = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).double()
    mixed, x = MixedOp([inside, inside]), rows(5, 4)
    gate = mixed.gate = binary(0, 2)
    mixed(x).sum().backward()
    torch.testing.assert_close(gate_gradient(gate), inside(x).sum().detach().expand(2))


# --- sharing, modes, precision ---


def test_a_shared_operation_sums_its_gate_gradients() -> None:
    mixed, x = linears(2), rows(3, 4)
    gate = mixed.gate = binary(1, 2)
    (mixed(x) + 2 * mixed(3 * x)).sum().backward()
    expected = [(c(x) + 2 * c(3 * x)).sum().item() for c in mixed.candidates.values()]
    torch.testing.assert_close(gate_gradient(gate), torch.tensor(expected).double())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_runs_the_active_candidate_alone(mode: type[Any]) -> None:
    log: list[tuple[Any, bool]] = []
    mixed = MixedOp([Recorder(Scale(j + 1.0), j, log) for j in range(3)])
    mixed.gate = binary(1, 3)
    with mode():
        assert torch.equal(mixed(torch.ones(2)), torch.full((2,), 2.0))
    assert log == [(1, False)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gate_gradients(reentrant: bool) -> None:
    mixed, x = linears(3), rows(5, 4).requires_grad_()
    direct = mixed.gate = binary(1, 3)
    mixed(x).square().sum().backward()
    recomputed = mixed.gate = binary(1, 3)
    checkpoint(mixed, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(gate_gradient(direct), gate_gradient(recomputed))


def test_inactive_candidates_compute_in_the_autocast_of_the_forward_pass() -> None:
    """The backward pass runs outside of it; ∂L/∂g is summed in float32 at least."""
    mixed = MixedOp([nn.Linear(64, 64) for _ in range(2)])
    x, seen = torch.randn(32, 64), []
    mixed.candidates["1"].register_forward_hook(lambda _, __, y: seen.append(y))
    gate = mixed.gate = binary(0, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixed(x)
    assert y.dtype == torch.bfloat16
    weight = torch.randn(32, 64)
    (weight * y).sum().backward()
    assert [o.dtype for o in seen] == [torch.bfloat16]
    exact = (weight.bfloat16().double() * seen[0].double()).sum()
    torch.testing.assert_close(gate_gradient(gate)[1], exact, rtol=1e-4, atol=1e-3)


def test_frozen_weights_leave_the_gates_their_gradients() -> None:
    mixed = linears(2).requires_grad_(False)
    gate = mixed.gate = binary(0, 2)
    mixed(rows(3, 4)).sum().backward()
    assert bool((gate_gradient(gate) != 0).all())


def test_hooks_of_a_candidate_run_with_it() -> None:
    mixed = linears(2)
    mixed.candidates["1"].register_forward_hook(lambda _, __, y: 2 * y)
    gate, x = binary(0, 2), rows(3, 4)
    mixed.gate = gate
    mixed(x).sum().backward()
    torch.testing.assert_close(gate_gradient(gate)[1], mixed.candidates["1"](x).sum().detach())


def test_a_gradient_of_a_gradient_is_refused() -> None:
    """Eq. 4's inner products are taken without a graph: a second derivative would be wrong."""
    mixed, x = linears(2), rows(3, 4).requires_grad_()
    mixed.gate = binary(0, 2)
    (grad,) = torch.autograd.grad(mixed(x).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


# --- memory ---


class Remembered(nn.Module):
    """A candidate whose activations are watched: the inner one and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.alive = nn.Linear(4, 4).double(), []

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear(x)
        out = inner.sin()
        self.alive += [weakref.ref(inner), weakref.ref(out)]
        return out


def test_nothing_of_an_inactive_candidate_outlives_its_forward() -> None:
    """When the next candidate starts, the one before is gone; so after the backward pass."""
    candidates = [Remembered() for _ in range(4)]
    living: list[int] = []

    def count(*_: Any) -> None:
        living.append(sum(ref() is not None for c in candidates[1:] for ref in c.alive))

    for candidate in candidates[1:]:
        candidate.register_forward_pre_hook(count)
    mixed = MixedOp(candidates)
    mixed.gate = binary(0, 4)
    mixed(rows(3, 4)).sum().backward()
    count()
    assert living == [0, 0, 0, 0]
    assert all(len(c.alive) == 2 for c in candidates)


def test_inactive_candidates_save_nothing_for_a_backward_pass() -> None:
    def saved(inactive: tuple[int, ...]) -> int:
        mixed, tensors = MixedOp([Remembered() for _ in range(4)]), []
        mixed.gate = binary(0, 4, inactive=inactive)

        def pack(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mixed(rows(3, 4)).sum().backward()
        return len(tensors)

    assert saved((1, 2, 3)) == saved(())


@pytest.mark.parametrize("used", [False, True])
def test_the_graph_is_freed_whether_or_not_the_output_is_used(used: bool) -> None:
    """No cycle from the output over its graph to what the graph keeps."""
    mixed, x = linears(2), rows(3, 4)
    mixed.gate = binary(0, 2)
    hidden = x * 2
    output = mixed(hidden)
    if used:
        output.sum().backward()
    refs = [weakref.ref(hidden), weakref.ref(output)]
    del hidden, output
    assert [ref() for ref in refs] == [None, None]
