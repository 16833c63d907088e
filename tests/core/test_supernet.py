"""Any model with mixed operations: found, sampled, activated and derived."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Scale, log_of, problem, seeded, supernet_with

from proxylessnas.architecture import Architecture
from proxylessnas.core.estimators import FullPath
from proxylessnas.core.gates import Path
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero, softmax
from proxylessnas.errors import ArchitectureError, LimitError, SupernetError


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x)))


class Containers(nn.Module):
    """Mixed operations in every container, as an attribute, shared, and in a residual block."""

    def __init__(self) -> None:
        super().__init__()

        def op() -> MixedOp:
            return MixedOp({"a": Block(), "b": Block(), "skip": nn.Identity()})

        self.sequence = nn.Sequential(op(), nn.ReLU(), op())
        self.items = nn.ModuleList([op(), Block()])
        self.named = nn.ModuleDict({"left": op()})
        self.shared = op()
        self.residual = Residual(MixedOp({"a": Block(), "zero": Zero()}))
        self.tail = MixedOp({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.sequence(x)
        for item in self.items:
            x = item(x)
        x = self.shared(self.residual(self.shared(self.named["left"](x))))
        return self.tail(x)


CONTAINER_NAMES = (
    "sequence.0",
    "sequence.2",
    "items.0",
    "named.left",
    "shared",
    "residual.branch",
    "tail",
)


def trained(model: nn.Module) -> nn.Module:
    """BN statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


# --- found ---


def test_mixed_operations_are_found_in_every_container() -> None:
    supernet = Supernet(Containers())
    assert supernet.names == CONTAINER_NAMES
    assert supernet.mask.sum(1).tolist() == [3, 3, 3, 3, 3, 2, 2]


def test_a_model_may_be_one_mixed_operation() -> None:
    supernet = Supernet(MixedOp([Scale(1.0), Scale(2.0)]))
    assert supernet.names == ("",)
    derived = supernet.derive([1])
    assert isinstance(derived, Scale) and derived.factor == 2.0


def test_a_list_of_candidates_is_named_by_position() -> None:
    assert MixedOp([Scale(1.0), Scale(2.0)]).names == ("0", "1")


@pytest.mark.parametrize("candidates", [[], {}, {"a.b": Scale(1.0)}, {"a": "not a module"}])
def test_unusable_candidates_are_refused(candidates: Any) -> None:
    with pytest.raises(SupernetError):
        MixedOp(candidates)


def test_a_model_without_a_mixed_operation_is_refused() -> None:
    with pytest.raises(SupernetError, match="Linear holds no MixedOp"):
        Supernet(nn.Linear(2, 2))


def test_nested_mixed_operations_are_refused_with_the_reason() -> None:
    inner = nn.Sequential(MixedOp([Scale(1.0), Scale(2.0)]))
    model = nn.Sequential(MixedOp({"a": inner, "b": Scale(3.0)}))
    with pytest.raises(SupernetError, match=r"'0' has another MixedOp.*not Σ p·cost"):
        Supernet(model)


# --- probabilities ---


def test_probabilities_are_softmax_rows_with_zero_pads() -> None:
    model = nn.Sequential(MixedOp([Scale(1.0)] * 3), MixedOp([Scale(1.0)]))
    supernet = supernet_with(model, [log_of((0.5, 0.3, 0.2)), [7.0]])
    expected = torch.tensor([[0.5, 0.3, 0.2], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(supernet.probabilities(), expected)
    torch.testing.assert_close(supernet.log_probabilities(), expected.log())


def test_the_most_probable_is_the_first_among_equals() -> None:
    supernet = supernet_with(MixedOp([Scale(1.0)] * 4), [[0.0, 2.0, 2.0, 1.0]])
    assert supernet.indices(supernet.most_probable()) == (1,)


def test_a_sample_follows_the_probabilities() -> None:
    supernet = supernet_with(MixedOp([Scale(1.0)] * 3), [log_of((0.7, 0.1, 0.2))])
    for uniform, expected in ((False, (0.7, 0.1, 0.2)), (True, (1 / 3, 1 / 3, 1 / 3))):
        generator, draws = seeded(), 2000
        seen = Counter(
            supernet.indices(supernet.sample(generator, uniform=uniform))[0] for _ in range(draws)
        )
        shares = [seen[j] / draws for j in range(3)]
        assert shares == pytest.approx(list(expected), abs=0.04)


def test_forbidden_candidates_leave_the_search() -> None:
    supernet = Supernet(nn.Sequential(MixedOp([Scale(1.0)] * 3), MixedOp([Scale(1.0)] * 2)))
    supernet.forbid(torch.tensor([[False, True, False], [True, False, False]]), "too large")
    assert supernet.probabilities().tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    drawn = {supernet.indices(supernet.sample(seeded(i), uniform=True)) for i in range(30)}
    assert drawn == {(0, 1), (2, 1)}


def test_forbidding_every_candidate_names_the_operation() -> None:
    supernet = Supernet(nn.Sequential(MixedOp([Scale(1.0)] * 2)))
    with pytest.raises(LimitError, match=r"no candidate of '0' is left: memory"):
        supernet.forbid(torch.ones(1, 2, dtype=torch.bool), "memory")


def test_softmax_under_a_mask_survives_extremes() -> None:
    alpha = torch.tensor([[1e3, -1e3, 1e3], [0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert softmax(alpha, mask).tolist() == [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]


# --- architectures ---


def test_indices_and_architecture_are_inverse() -> None:
    supernet = Supernet(Containers(), space="mine:net", settings={"width": 4})
    architecture = supernet.architecture([2, 0, 1, 2, 0, 1, 1])
    assert architecture.choices["residual.branch"] == "zero"
    assert architecture.space == "mine:net" and architecture.settings == {"width": 4}
    assert supernet.indices(architecture) == (2, 0, 1, 2, 0, 1, 1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"0": "a"}, "chooses nothing for '1'"),
        ({"0": "a", "1": "c"}, "no candidate 'c'"),
        ({"0": "a", "1": "b", "2": "a"}, "no choice '2'"),
    ],
)
def test_an_architecture_of_another_model_is_refused(choices: dict[str, str], message: str) -> None:
    two = {"a": Scale(1.0), "b": Scale(2.0)}
    supernet = Supernet(nn.Sequential(MixedOp(two), MixedOp(two)))
    with pytest.raises(ArchitectureError, match=message):
        supernet.indices(Architecture(space="custom", choices=choices))


# --- paths ---


def test_within_active_the_model_computes_the_architecture() -> None:
    supernet = Supernet(nn.Sequential(MixedOp([Scale(2.0), Scale(3.0)]), MixedOp([Scale(5.0)])))
    with supernet.active([1, 0]) as model:
        assert model(torch.ones(1)).item() == 15.0
    assert supernet.model(torch.ones(1)).item() == 10.0


def test_gates_are_put_back_after_an_error() -> None:
    supernet = Supernet(nn.Sequential(MixedOp([Scale(2.0), nn.Linear(3, 3)])))
    with pytest.raises(RuntimeError), supernet.active([1]) as model:
        model(torch.ones(7))
    gate = supernet.positions[0][0].gate
    assert isinstance(gate, Path) and gate.active == 0


def test_a_row_of_the_wrong_length_changes_nothing() -> None:
    supernet = Supernet(nn.Sequential(MixedOp([Scale(2.0)] * 2), MixedOp([Scale(3.0)] * 2)))
    with pytest.raises(ValueError), supernet.active([1]):
        pass
    assert [m.gate.active for m in supernet.paths if isinstance(m.gate, Path)] == [0, 0]


# --- Zero and the shortcut ---


def test_zero_without_a_shortcut_outputs_zeros_of_its_shape() -> None:
    x = torch.ones(3, 4, 5, 5)
    assert Zero()(x).shape == x.shape
    y = Zero((8, 2, 2))(x.to(torch.bfloat16))
    assert y.shape == (3, 8, 2, 2) and y.dtype == torch.bfloat16 and not y.any()


def residual_alpha_gradient(model: nn.Module, active_seed: int) -> Tensor:
    supernet = supernet_with(model, [log_of((0.5, 0.3, 0.2))])
    x = torch.randn(6, 4, dtype=torch.float64, generator=seeded(5))
    task = problem(supernet, lambda m: (m(x) ** 3).sum())
    gradient = FullPath().step(task, seeded(active_seed)).gradient
    assert gradient is not None
    return gradient


@pytest.mark.parametrize("seed", range(6))
def test_zero_beside_a_shortcut_teaches_alpha_what_identity_for_the_block_does(seed: int) -> None:
    a, b = Block().double(), Block().double()
    beside = nn.Sequential(Residual(MixedOp({"a": a, "b": b, "zero": Zero()})))
    instead = nn.Sequential(
        MixedOp({"a": Residual(a), "b": Residual(b), "identity": nn.Identity()})
    )
    torch.testing.assert_close(
        residual_alpha_gradient(beside, seed), residual_alpha_gradient(instead, seed)
    )


def test_a_residual_block_with_zero_computes_nothing() -> None:
    block = Residual(MixedOp({"a": Scale(1.0), "zero": Zero()}))
    block.branch.gate = Path(1)
    x = torch.ones(2)
    assert block(x) is x


# --- derive ---


@pytest.mark.parametrize("seed", range(5))
def test_derived_computes_what_the_active_path_computes(seed: int) -> None:
    supernet = Supernet(trained(Containers()))
    architecture = supernet.sample(seeded(seed), uniform=True)
    x = torch.randn(5, 4)
    with supernet.active(architecture) as model, torch.no_grad():
        expected = model(x)
    derived = supernet.derive(architecture)
    with torch.no_grad():
        assert torch.equal(derived(x), expected)


def test_derived_is_plain_and_holds_the_chosen_candidates_alone() -> None:
    """No MixedOp, no gate, no hook; every parameter is used; weights are copies."""
    supernet = Supernet(trained(Containers()))
    derived = supernet.derive([0, 1, 0, 1, 0, 0, 1])
    for module in derived.modules():
        assert not isinstance(module, MixedOp | Zero)
        assert not hasattr(module, "gate") and not hasattr(module, "candidates")
        assert not module._forward_hooks and not module._forward_pre_hooks
    derived(torch.randn(5, 4)).sum().backward()
    assert all(p.grad is not None for p in derived.parameters())
    theirs = {p.data_ptr() for p in supernet.model.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in derived.parameters())
    chosen = supernet.positions[0][0].candidates["a"]
    assert torch.equal(derived.sequence[0].linear.weight, chosen.linear.weight)


def test_a_block_that_chose_zero_derives_to_the_identity() -> None:
    supernet = Supernet(Containers())
    derived = supernet.derive([0, 0, 0, 0, 0, 1, 0])
    assert isinstance(derived.residual, nn.Identity)


def test_a_shared_operation_stays_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    supernet = Supernet(Twice())
    assert supernet.names == ("a",)
    derived = supernet.derive([1])
    assert derived.a is derived.b and isinstance(derived.a, nn.Linear)


class CountsCopies(nn.Module):
    def __init__(self, copies: list[str], name: str) -> None:
        super().__init__()
        self.copies, self.name = copies, name

    def __deepcopy__(self, memo: dict[int, Any]) -> CountsCopies:
        self.copies.append(self.name)
        return CountsCopies(self.copies, self.name)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_candidates_that_were_not_chosen_are_never_copied() -> None:
    copies: list[str] = []
    op = MixedOp({name: CountsCopies(copies, name) for name in "abc"})
    model = nn.Sequential(op, op, CountsCopies(copies, "fixed"))
    Supernet(model).derive([1])
    assert sorted(copies) == ["b", "fixed"]


def test_deriving_leaves_the_supernet_alone_and_is_repeatable() -> None:
    supernet = Supernet(trained(Containers()))
    before = copy.deepcopy(supernet.model.state_dict())
    first, second = supernet.derive([0] * 7), supernet.derive([0] * 7)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    after = supernet.model.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert supernet.derive([1, *[0] * 6]).sequence[0] is not first.sequence[0]


def test_a_model_can_be_copied_while_its_path_is_set() -> None:
    supernet = Supernet(nn.Sequential(MixedOp([Scale(2.0), Scale(3.0)])))
    with supernet.active([1]) as model:
        assert copy.deepcopy(model)(torch.ones(1)).item() == 3.0
