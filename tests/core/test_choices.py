"""Choices that several positions share: one row of α, weights of their own, summed costs."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import changed, make_search, seeded, snapshot, supernet_with

from proxylessnas import search
from proxylessnas.architecture import Architecture
from proxylessnas.config import DeriveSettings, MeasureSettings, SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.gates import Binary, Path
from proxylessnas.core.search import fair_gates
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero, softmax
from proxylessnas.core.tensors import collect_tensors
from proxylessnas.errors import SupernetError
from proxylessnas.export.python import python_source
from proxylessnas.hardware.costs import count_costs, latency_costs
from proxylessnas.hardware.count import check_shapes, count_macs, count_parameters
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import trace
from proxylessnas.hardware.validate import validate
from proxylessnas.report.draw import draw
from proxylessnas.spaces import build_supernet


class Cells(nn.Module):
    """Three cells that share their edge, and a mixed operation of its own between them.

    The first cell has a shortcut, which `none` leaves alone there; in the second `skip` is an
    identity, which costs nothing; the third changes the shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.narrow = Residual(MixedOp(self.edge(4, 4), choice="edge"))
        self.between = MixedOp({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        self.plain = MixedOp(self.edge(4, 4), choice="edge")
        self.wide = MixedOp(self.edge(4, 6), choice="edge")
        self.head = nn.Linear(6, 4)
        self.double()

    @staticmethod
    def edge(width: int, out: int) -> dict[str, nn.Module]:
        norm = nn.BatchNorm1d(out)
        return {
            "one": nn.Sequential(nn.Linear(width, out), norm),
            "two": nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, out)),
            "skip": nn.Identity() if width == out else nn.Linear(width, out, bias=False),
            "none": Zero(),
        }

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.wide(self.plain(self.between(self.narrow(x)))))
        return out


SMALL = {"input_shape": [3, 32, 32], "widths": [8, 16], "depths": [3, 3], "stem": 8, "first": 8}
COUNT = torch.tensor([[1.0], [2.0], [1.0], [2.0]]).double()  # positions of a row
IMAGE = torch.zeros(1, 3, 32, 32)
X = torch.randn(3, 4, dtype=torch.float64, generator=seeded(1))
ALL = list(itertools.product(range(4), range(2)))


def cells() -> Supernet:
    torch.manual_seed(0)
    return supernet_with(Cells(), [[0.3, -0.2, 0.5, 0.1], [0.4, -0.4]])


# --- found ---


def test_a_row_is_a_choice_and_its_positions_follow_the_model() -> None:
    supernet = cells()
    assert supernet.names == ("edge", "between")
    assert supernet.candidates == (("one", "two", "skip", "none"), ("linear", "skip"))
    model = supernet.model
    edge = (model.narrow.branch, model.plain, model.wide)
    assert supernet.positions == (edge, (model.between,))
    assert list(supernet.paths.values()) == ["narrow.branch", "plain", "wide", "between"]
    assert supernet.mask.sum(1).tolist() == [4, 2] and supernet.alpha.shape == (2, 4)


@pytest.mark.parametrize("choice", ["", 3, 0, b"edge", ("edge",)])
def test_a_choice_without_a_proper_name_is_refused(choice: Any) -> None:
    with pytest.raises(SupernetError, match=r"choice is .*must be a string that is not empty"):
        MixedOp([nn.Identity()], choice=choice)


def two(first: Any, second: Any, *choices: str | None) -> nn.Module:
    pairs = zip((first, second), choices, strict=True)
    return nn.Sequential(*(MixedOp(candidates, choice=name) for candidates, name in pairs))


def named(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Identity() for name in names}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("ab", "abc", r"\('1' alone has \['c'\]\)"),
        ("abd", "abc", r"\('0' alone has \['d'\], '1' alone has \['c'\]\)"),
        ("ab", "ba", r"in the orders \('a', 'b'\) and \('b', 'a'\)"),
    ],
)
def test_positions_with_other_candidates_are_named(first: str, second: str, words: str) -> None:
    model = two(named(*first), named(*second), "edge", "edge")
    with pytest.raises(SupernetError, match="positions '0' and '1' of the choice 'edge'") as error:
        Supernet(model)
    assert error.match(words) and "\n" not in str(error.value)


@pytest.mark.parametrize("choices", [("1", None), (None, "0"), ("1", "edge")])
def test_a_choice_named_like_another_position_is_refused(choices: tuple[str | None, ...]) -> None:
    with pytest.raises(SupernetError, match="is the module path of another MixedOp") as error:
        Supernet(two(named("a"), named("a"), *choices))
    assert "\n" not in str(error.value)


def test_a_choice_may_be_named_like_a_position_that_shares_it() -> None:
    assert Supernet(two(named("a"), named("a"), "0", "0")).names == ("0",)


def test_a_shared_choice_of_one_position_is_an_ordinary_one_under_its_name() -> None:
    supernet = Supernet(two(named("a", "b"), named("a"), "edge", None))
    assert supernet.names == ("edge", "1")


# --- paths ---


@pytest.mark.parametrize("indices", ALL)
def test_a_path_runs_one_candidate_at_all_positions(indices: tuple[int, int]) -> None:
    supernet = cells()
    model, (edge, between) = supernet.model.eval(), indices
    name = supernet.candidates[0][edge]
    trace(supernet, (X,))  # shapes of Zero
    x = X + model.narrow.branch.candidates[name](X)
    x = list(model.between.candidates.values())[between](x)
    expected = model.head(model.wide.candidates[name](model.plain.candidates[name](x)))
    with supernet.active(indices):
        assert torch.equal(model(X), expected)
    assert all(isinstance(m.gate, Path) and m.gate.active == 0 for m in supernet.paths)


@pytest.mark.parametrize("indices", ALL)
def test_derive_replaces_every_position(indices: tuple[int, int]) -> None:
    supernet = cells()
    trace(supernet, (X,))
    supernet.model.eval()
    network = supernet.derive(indices)
    assert not any(isinstance(m, MixedOp) for m in network.modules())
    assert isinstance(network.narrow, nn.Identity) == (indices[0] == 3)
    with supernet.active(indices):
        assert torch.equal(network(X), supernet.model(X))
    theirs = {p.data_ptr() for p in supernet.model.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in network.parameters())


def test_the_architecture_names_a_choice_once() -> None:
    supernet = cells()
    architecture = supernet.architecture([1, 0])
    assert dict(architecture.choices) == {"edge": "two", "between": "linear"}
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture and supernet.indices(again) == (1, 0)
    drawing = draw(again)
    assert drawing.count(">edge<") == drawing.count(">between<") == 1


def stages() -> tuple[Supernet, Supernet]:
    """The mobile space, and the same network with one choice for all blocks of a stage."""
    own = build_supernet("mobile", SMALL)
    model = copy.deepcopy(own.model)
    for i, mixed in enumerate(m for m in model.modules() if isinstance(m, MixedOp)):
        if i not in (0, 3):  # the first of a stage has another stride, and no Zero
            mixed.choice = f"stage {i // 3}"
    return own, Supernet(model, space="mobile", settings=own.settings)


def test_one_choice_for_a_whole_stage_is_those_of_its_blocks_together() -> None:
    """Latencies as published, MACs, the network itself, and its source text."""
    own, shared = stages()
    assert shared.names == (own.names[0], "stage 0", own.names[3], "stage 1")
    for a, b, c, d in [(0, 1, 2, 6), (5, 6, 0, 3), (2, 0, 1, 4)]:
        alone, together = own.derive([a, b, b, c, d, d]), shared.derive([a, b, c, d])
        architecture = shared.architecture([a, b, c, d])
        assert python_source(architecture, alone) == python_source(architecture, together)
        with torch.no_grad():
            assert torch.equal(alone.eval()(IMAGE), together.eval()(IMAGE))
    sums = [count_costs(s, trace(s, (IMAGE,))).per_candidate[0] for s in (own, shared)]
    rows = [m.reshape(-1, m.shape[-1]) for m in sums]
    assert torch.equal(rows[1], torch.stack([rows[0][m] for m in (0, 1, 3, 4)]) * COUNT)


# --- gates ---


@pytest.mark.parametrize("active", range(3))
def test_the_inner_products_of_all_positions_add_up(active: int) -> None:
    """∂L/∂g of the shared row is the sum of what each position alone would receive."""
    torch.manual_seed(0)
    ops = [MixedOp([nn.Linear(4, 4) for _ in range(3)]).double() for _ in range(3)]
    others = tuple(j for j in range(3) if j != active)

    def row() -> Tensor:
        return torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def gradients(gates: list[Tensor]) -> list[Tensor]:
        for op, leaf in zip(ops, gates, strict=True):
            op.gate = Binary(active, others, leaf)
        y = X
        for op in ops:
            y = torch.tanh(op(y))
        y.square().sum().backward()
        return [leaf.grad for leaf in gates if leaf.grad is not None]

    apart, shared = gradients([row(), row(), row()]), gradients([row()] * 3)
    assert all(bool(gradient.abs().min() > 0) for gradient in apart)
    torch.testing.assert_close(shared[0], sum(apart, torch.zeros(3).double()))


def test_fair_gates_run_every_candidate_once_a_round() -> None:
    supernet = cells()
    rounds = [fair_gates(supernet, 0, step) for step in range(8)]
    assert Counter(row[0] for row in rounds) == dict.fromkeys(range(4), 2)
    assert Counter(row[1] for row in rounds) == dict.fromkeys(range(2), 4)


# --- what a step may change (invariants 1 and 2) ---


def test_a_candidates_tensors_are_those_of_all_positions() -> None:
    supernet = cells()
    names = {id(p): n for n, p in supernet.model.named_parameters()}
    tensors = collect_tensors(supernet)
    one = [names[id(p)] for p in tensors.candidates[0][0].parameters]
    assert len(tensors.candidates[0][0].batch_norms) == 3
    assert one == [
        f"{place}.candidates.one.{i}.{kind}"
        for place in ("narrow.branch", "plain", "wide")
        for i in (0, 1)
        for kind in ("weight", "bias")
    ]


def doubles() -> list[tuple[Tensor, Tensor]]:
    data = [torch.randn(8, 4, dtype=torch.float64, generator=seeded(i)) for i in range(4)]
    return [(x, x) for x in data]


def test_a_weight_step_changes_the_active_candidate_at_all_positions_alone() -> None:
    supernet = cells()
    trace(supernet, (X,))
    job = make_search(supernet.model, data=doubles(), weight_decay=0.1, momentum=0.9)
    job.model.train()
    seen = set()
    for _ in range(job.schedule.total):
        edge, between = job.weight_gates()
        name, other = supernet.candidates[0][edge], supernet.candidates[1][between]
        before, alpha = snapshot(job.model), job.supernet.alpha.detach().clone()
        job.weight_step()
        moved = changed(job.model, before)
        allowed = [f"{place}.candidates.{name}." for place in ("narrow.branch", "plain", "wide")]
        allowed += ["head.", f"between.candidates.{other}."]
        assert all(n.startswith(tuple(allowed)) for n in moved)
        if name == "two":
            assert {
                f"{place}.candidates.two.0.weight" for place in ("narrow.branch", "wide")
            } <= moved
        assert torch.equal(job.supernet.alpha, alpha)
        seen.add(name)
        job.step += 1
    assert seen == {"one", "two", "skip", "none"}


@pytest.mark.parametrize("name", ["two_path", "full_path", "reinforce", "darts", "gumbel"])
def test_an_architecture_step_changes_one_row_for_all_positions_and_nothing_else(
    name: str,
) -> None:
    supernet = cells()
    trace(supernet, (X,))
    job = make_search(supernet.model, name, data=doubles())
    job.model.train()
    job.weight_step()
    before, alpha = snapshot(job.model), job.supernet.alpha.detach().clone()
    for _ in range(3):
        job.architecture_step()
    assert changed(job.model, before) == set()
    assert job.supernet.alpha.shape == (2, 4) and not torch.equal(job.supernet.alpha, alpha)


# --- costs (invariant 4) ---


def test_keys_are_those_of_all_positions() -> None:
    found = trace(cells(), (X,))
    assert [len(keys) for keys in found.keys[0]] == [3, 3, 2, 0]
    assert [call.path for call in found.calls[0]] == ["narrow.branch", "plain", "wide"]
    first, second, third = (call.keys for call in found.calls[0])
    assert found.keys[0][0] == (first[0], second[0], third[0])
    assert first[0].startswith("x+") and not second[0].startswith("x+")
    assert second[2] is None and found.keys[0][2] == (first[2], third[2])


def test_a_position_that_never_runs_is_warned_about() -> None:
    class Half(Cells):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.plain(self.between(self.narrow(x)))
            return out

    with pytest.warns(UserWarning, match="never runs the mixed operation 'wide'") as caught:
        found = trace(Supernet(Half()), (X,))
    assert len(caught) == 1
    assert [len(keys) for keys in found.keys[0]] == [2, 2, 1, 0]


@pytest.mark.parametrize("indices", ALL)
def test_counts_of_every_network_are_exact(indices: tuple[int, int]) -> None:
    supernet = cells()
    found = trace(supernet, (X,))
    network = supernet.derive(indices)
    exact = [count_macs(network, (X,)) / len(X), count_parameters(network)]
    assert count_costs(supernet, found).of(indices) == exact


@pytest.mark.parametrize("name", ["macs", "parameters"])
def test_the_expected_cost_is_the_mean_over_all_networks(name: str) -> None:
    supernet = cells()
    cost = count_costs(supernet, trace(supernet, (X,)))
    alpha = supernet.alpha.detach().clone().requires_grad_()
    p = softmax(alpha, supernet.mask)
    counts: dict[str, Callable[[nn.Module], float]] = {
        "macs": lambda n: count_macs(n, (X,)) / len(X),
        "parameters": count_parameters,
    }
    mean = sum(
        (p[0, i] * p[1, j] * counts[name](supernet.derive((i, j))) for i, j in ALL),
        torch.zeros(()).double(),
    )
    expected = cost.expected(p)[cost.index(name)]
    torch.testing.assert_close(expected, mean)
    (exact,) = torch.autograd.grad(mean, [alpha], retain_graph=True)
    (gradient,) = torch.autograd.grad(expected, [alpha])
    torch.testing.assert_close(gradient, exact)
    assert bool((gradient[0] != 0).all())


def test_parameters_that_positions_share_count_once() -> None:
    layer = nn.Linear(4, 4)
    model = two({"a": layer, "b": nn.Identity()}, {"a": layer, "b": nn.Identity()}, "edge", "edge")
    supernet = Supernet(model)
    cost = count_costs(supernet, trace(supernet, (torch.zeros(1, 4),)))
    assert cost.per_candidate[cost.index("parameters")].flatten().tolist() == [20, 0]
    derived = supernet.derive([0])
    assert derived[0] is derived[1]


def test_a_table_names_choices_and_prices_the_positions_together() -> None:
    """On a device whose latencies are the sum of its layers', to the cost of whole networks."""
    _, supernet = stages()
    settings = MeasureSettings(
        rounds=1, network_rounds=1, networks=8, validation=6, runs=1, warmup=0
    )
    table = measure_table(supernet, FakeRuntime(), (IMAGE,), settings, seed=0)
    table = LatencyTable.from_json(table.to_json())
    assert all(tuple(n.choices) == supernet.names for n in table.networks)
    cost = latency_costs(supernet, trace(supernet, (IMAGE,)), table)
    report = validate(cost, supernet, table)
    assert report["mean_abs_error_pct"] < 1 and report["spearman"] > 0.99


class CellsPassed(Cells):
    """With a way past every `none`: no network is constant."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.narrow(x))
        x = x + self.plain(x)
        out: Tensor = self.head(nn.functional.pad(x, (0, 2)) + self.wide(x))
        return out


def test_a_search_with_shared_choices_keeps_its_limit() -> None:
    """The Python call, from measuring to the network; α learns on under another limit."""
    data = [(x.float(), y.float()) for x, y in doubles()]
    result = search(
        CellsPassed().float(),
        train=data,
        valid=data,
        loss=nn.functional.mse_loss,
        example_inputs=(X.float(),),
        target_latency="0.8x",
        limits={"macs": 150},
        runtime="fake",
        settings=SearchSettings(warmup_epochs=1, epochs=2, batch_size=8),
        derive=DeriveSettings(arch_steps=2),
        quiet=True,
    )
    assert set(result.architecture.choices) == {"edge", "between"}
    network = result.derive()
    assert count_macs(network, (X[:1].float(),)) == result.predicted["macs"] <= 150
    assert not any(isinstance(m, MixedOp) for m in network.modules())
    assert not any(isinstance(m, MixedOp) for m in result.derive("0.9x").modules())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_decoding_is_the_exact_optimum_within_the_limit(share: float) -> None:
    """Invariant 5, over all networks."""
    supernet = cells()
    found = trace(supernet, (X,))
    per_candidate = count_costs(supernet, found).per_candidate[0]
    limit = share * float(per_candidate.amax(1).sum())
    costs = Costs.one("macs", per_candidate, limit=limit)
    log_p = supernet.log_probabilities()

    def value(indices: tuple[int, int]) -> float:
        return sum(float(log_p[m, j]) for m, j in enumerate(indices))

    fitting = [n for n in ALL if costs.of(n)[0] <= limit]
    assert 0 < len(fitting) < len(ALL)
    expected = sorted(fitting, key=value, reverse=True)
    assert list(decode(log_p, supernet.mask, costs)) == expected


def test_shapes_are_compared_position_by_position() -> None:
    supernet = cells()
    check_shapes(supernet, trace(supernet, (X,)))
    supernet.model.wide.candidates["two"] = nn.Linear(4, 5).double()
    with pytest.raises(SupernetError, match=r"'one' and 'two' of the mixed operation 'wide'"):
        check_shapes(supernet, trace(supernet, (X,)))
