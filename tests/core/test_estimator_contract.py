"""One contract for all six estimators, and two in both their forms, in the loop that uses them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import ESTIMATORS, LEARNING, REINMAX, After, Planted, Scale, make_search, priced

from proxylessnas.core.estimators import make_estimator
from proxylessnas.core.objective import Constraint
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Zero
from proxylessnas.training.device import Machine
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

pytestmark = pytest.mark.parametrize("name", [*ESTIMATORS, *REINMAX])


class Rich(nn.Module):
    """Everything a step may disturb: momentum, batch norm, dropout, a Zero, ragged rows.

    count: how many mixed operations share the first choice.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.first = nn.ModuleList(self.edge() for _ in range(count))
        self.norm = nn.BatchNorm1d(4)
        self.second = MixedOp([nn.Linear(4, 4), nn.Identity()])

    @staticmethod
    def edge() -> MixedOp:
        candidates = {
            "bn": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            "dropout": nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 4)),
            "zero": Zero(),
        }
        return MixedOp(candidates, choice="edge")

    def forward(self, x: Tensor) -> Tensor:
        for edge in self.first:
            x = self.norm(x + edge(x))
        return self.second(x)


several_positions = pytest.mark.parametrize("positions", [1, 2])


def rich(name: str, seed: int = 0, weights: int = 0, positions: int = 1, **settings: Any) -> Search:
    """A search with a cost under a constraint that binds."""
    torch.manual_seed(weights)
    job = make_search(
        Rich(positions),
        name,
        seed=seed,
        objective=Constraint([2.0], rate=0.5),
        uniform_share=0.3,
        **settings,
    )
    job.costs = priced(job.supernet, [[3.0, 2.0, 0.0], [1.0, 0.5]])
    return job


def everything(job: Search) -> tuple[dict[str, Tensor], str]:
    """A search's whole state as a checkpoint keeps it: copied tensors, and JSON."""
    tensors, values = job.state()
    return {k: v.detach().clone() for k, v in tensors.items()}, json.dumps(values)


def assert_same(a: tuple[dict[str, Tensor], str], b: tuple[dict[str, Tensor], str]) -> None:
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    different = [k for k, v in a[0].items() if not torch.equal(v, b[0][k])]
    assert different == []


class PlantedTwice(nn.Module):
    """The target is the input; of three scales at two positions only 1 twice returns it."""

    def __init__(self) -> None:
        super().__init__()
        scales = {"smaller": 0.5, "right": 1.0, "none": 0.0}
        self.scale = nn.Parameter(torch.ones(()))
        self.ops = nn.ModuleList(
            MixedOp({k: Scale(v) for k, v in scales.items()}, choice="edge") for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for op in self.ops:
            x = op(x)
        return self.scale * x


def test_learns_what_is_best_at_all_positions_together(name: str) -> None:
    model = PlantedTwice()
    model.scale.requires_grad_(False)
    job = make_search(model, name, warmup_epochs=0, epochs=12)
    run_loop(job)
    assert job.supernet.names == ("edge",)
    assert name == "random" or job.most_probable() == [1]


def test_learns_the_planted_best_candidate(name: str) -> None:
    job = make_search(Planted(), name, warmup_epochs=0, epochs=12)
    start = job.supernet.alpha.detach().clone()
    run_loop(job)
    if name == "random":
        assert torch.equal(job.supernet.alpha, start)
        return
    assert dict(job.supernet.most_probable().choices) == {"first": "right", "second": "right"}
    assert float(job.supernet.probabilities()[0, 1]) > 0.5
    assert job.entropy() < 0.9


def test_learns_the_cheap_candidate_where_the_loss_does_not_care(name: str) -> None:
    """Eight equal candidates of which one is cheaper; the limit asks for it."""
    model = nn.Sequential(MixedOp([Scale(1.0) for _ in range(8)]), nn.Linear(4, 4))
    job = make_search(
        model, name, warmup_epochs=0, epochs=12, objective=Constraint([1.0], rate=0.3)
    )
    job.costs = priced(job.supernet, [[2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0]])
    start = job.supernet.alpha.detach().clone()
    run_loop(job)
    if name == "random":
        assert torch.equal(job.supernet.alpha, start)
    else:
        assert job.most_probable() == [3]


@several_positions
def test_is_deterministic_under_a_seed(name: str, positions: int) -> None:
    first, second, other = (rich(name, seed, positions=positions) for seed in (0, 0, 1))
    for job in (first, second, other):
        run_loop(job)
    assert_same(everything(first), everything(second))
    assert not torch.equal(first.supernet.alpha, other.supernet.alpha)


@several_positions
@pytest.mark.parametrize("stop", [3, 13])
def test_resumed_is_bit_identical_to_never_stopped(name: str, stop: int, positions: int) -> None:
    """In the warm-up and in the middle of an epoch of the search."""
    whole = rich(name, positions=positions, arch_every=2)
    run_loop(whole)
    stopped = rich(name, positions=positions, arch_every=2)
    with pytest.raises(InterruptedError):
        run_loop(stopped, callbacks=[After(stopped, _stop_at(stop))])
    tensors, values = everything(stopped)
    resumed = rich(name, weights=1, positions=positions, arch_every=2)
    resumed.load(tensors, json.loads(values))
    assert_same(everything(resumed), (tensors, values))
    run_loop(resumed)
    assert_same(everything(resumed), everything(whole))


def _stop_at(step: int) -> Any:
    def after(job: Search) -> None:
        if job.step == step:
            raise InterruptedError

    return after


def test_a_state_given_out_does_not_change_when_loaded_elsewhere(name: str) -> None:
    """Loading copies: the resumed search does not write into the checkpoint."""
    job = rich(name)
    run_loop(job)
    tensors, values = everything(job)
    kept = copy.deepcopy(tensors)
    resumed = rich(name, epochs=5)
    resumed.load(tensors, json.loads(values))
    run_loop(resumed)
    assert resumed.step > job.step
    assert all(torch.equal(v, kept[k]) for k, v in tensors.items())


@pytest.mark.parametrize("count", [1, 2, 12])
def test_any_number_of_candidates(name: str, count: int) -> None:
    model = nn.Sequential(
        MixedOp([nn.Linear(4, 4) for _ in range(count)]), MixedOp([Scale(1.0), Zero()])
    )
    job = make_search(model, name)
    start = job.supernet.probabilities()
    run_loop(job)
    p = job.supernet.probabilities()
    assert bool(torch.isfinite(job.supernet.alpha).all())
    assert torch.equal(p == 0, ~job.supernet.mask)
    assert torch.equal(p[0], start[0]) == (count == 1 or name == "random")


def test_a_supernet_with_one_candidate_everywhere(name: str) -> None:
    job = make_search(nn.Sequential(MixedOp([nn.Linear(4, 4)])), name)
    run_loop(job)
    assert job.supernet.probabilities().tolist() == [[1.0]]


def test_zero_is_active_all_the_time(name: str) -> None:
    """No path reaches a weight, and the steps still go through."""
    job = make_search(
        nn.Sequential(nn.Linear(4, 4), MixedOp({"a": nn.Linear(4, 4), "zero": Zero()})), name
    )
    with torch.no_grad():
        job.supernet.alpha.copy_(torch.tensor([[-30.0, 30.0]]))
    run_loop(job)
    assert bool(torch.isfinite(job.supernet.alpha).all())
    assert job.most_probable() == [1]


@pytest.mark.parametrize("autocast", [False, True])
def test_float32_and_bfloat16_autocast(name: str, autocast: bool) -> None:
    model = nn.Sequential(
        nn.Linear(4, 8),
        MixedOp({"linear": nn.Linear(8, 8), "skip": nn.Identity(), "zero": Zero()}),
        nn.Linear(8, 4),
    )
    dtypes = set()
    model[1].candidates["linear"].register_forward_hook(lambda _, __, y: dtypes.add(y.dtype))
    job = make_search(
        model,
        name,
        machine=Machine(autocast=autocast),
        task=Task(loss=lambda y, target: nn.functional.mse_loss(y.float(), target)),
    )
    start = job.supernet.alpha.detach().clone()
    run_loop(job)
    # Inactive candidates, which run in the backward pass, compute in the same precision.
    assert dtypes == {torch.bfloat16 if autocast else torch.float32}
    assert bool(torch.isfinite(job.supernet.alpha).all())
    assert torch.equal(job.supernet.alpha, start) == (name == "random")


class Structured(nn.Module):
    """Takes a keyword argument; returns a tuple or a dict, with a tensor that is no float."""

    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.linear, self.as_dict = nn.Linear(4, 4), as_dict

    def forward(self, x: Tensor, *, shift: Tensor) -> Any:
        y = self.linear(x) + shift
        if self.as_dict:
            return {"y": y, "aux": [y.mean()], "which": y.argmax(1), "note": "kept"}
        return y, y.argmax(1), (y.mean(), None)


class UsesStructure(nn.Module):
    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.op, self.as_dict = MixedOp([Structured(as_dict) for _ in range(3)]), as_dict
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.op(x, shift=self.shift)
        y, aux = (out["y"], out["aux"][0]) if self.as_dict else (out[0], out[2][0])
        return y + aux


@pytest.mark.parametrize("as_dict", [False, True])
def test_candidates_that_return_tuples_or_dicts_and_take_kwargs(name: str, as_dict: bool) -> None:
    job = make_search(UsesStructure(as_dict), name)
    start = job.supernet.alpha.detach().clone()
    run_loop(job)
    assert torch.equal(job.supernet.alpha, start) == (name == "random")


@several_positions
def test_alpha_alone_moves_in_an_architecture_step(name: str, positions: int) -> None:
    """Invariant 2, every weight and buffer bit-identical."""
    job = rich(name, positions=positions)
    job.model.train()
    job.step = job.schedule.warmup
    for _ in range(2):  # momenta and statistics exist
        job.weight_step()
    tensors, _ = everything(job)
    for _ in range(3):
        job.architecture_step()
    after, _ = everything(job)
    moved = {k for k, v in after.items() if k not in tensors or not torch.equal(v, tensors[k])}
    assert all(k == "alpha" or k.startswith("arch_optimizer") for k in moved)
    assert ("alpha" in moved) == (name != "random")
    assert all(p.grad is None and p.requires_grad for p in job.model.parameters())


def test_settings_name_every_estimator(name: str) -> None:
    estimator = make_estimator(name.partition(",")[0], reinmax=name in REINMAX)
    assert estimator.learns == (name in [*LEARNING, *REINMAX])
    estimator.load(json.loads(json.dumps(estimator.state())))
