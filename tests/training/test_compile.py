"""Candidates compiled by torch.compile: when that is chosen, and that nothing else changes."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clock import Clock
from torch import Tensor, nn
from toys import After, image_search

from proxylessnas.config import MachineSettings
from proxylessnas.core.estimators import Estimator, FullPath, TwoPath
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet, Zero
from proxylessnas.errors import ConfigError
from proxylessnas.training.autotune import WORTH_COMPILING, compiling
from proxylessnas.training.device import Machine
from proxylessnas.training.loop import run_loop

CUDA = MachineSettings(device="cuda:0", memory_format="contiguous", autocast=False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(kernel: int) -> nn.Module:
            conv = nn.Conv2d(3, 3, kernel, padding=kernel // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU())

        self.first = MixedOp({"one": block(1), "three": block(3), "zero": Zero()})
        self.second = MixedOp({"one": block(1), "three": block(3)})
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(x + self.first(x)).mean((2, 3)))


def make(machine: Machine, estimator: Estimator) -> Search:
    return image_search(Net, machine, estimator)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("estimator", [TwoPath, FullPath])
def test_compiled_candidates_learn_the_same(estimator: type[TwoPath | FullPath]) -> None:
    """Weights, running statistics and α; and what is derived is a plain network."""
    eager, compiled = (make(Machine(compile=on), estimator()) for on in (False, True))
    seen = []
    for job in (eager, compiled):
        run_loop(job, callbacks=[After(job, lambda job: seen.append(states(job)))])
    assert set(seen) == {(False,) * 5, (True, True, False, True, True)}  # not Zero
    assert states(compiled) == (False,) * 5  # the model is the user's again
    torch.testing.assert_close(eager.supernet.alpha, compiled.supernet.alpha, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        dict(eager.model.state_dict()), dict(compiled.model.state_dict()), rtol=1e-3, atol=1e-4
    )


def states(job: Search) -> tuple[bool, ...]:
    candidates = [c for mixed in job.supernet.paths for c in mixed.candidates.values()]
    return tuple(c._compiled_call_impl is not None for c in candidates)


def test_a_copy_of_a_compiled_candidate_is_plain() -> None:
    job = make(Machine(compile=True), TwoPath())
    undo = job.prepare()
    assert any(states(job))
    derived = job.supernet.derive([1, 0])
    assert all(module._compiled_call_impl is None for module in derived.modules())
    undo()
    assert not any(states(job))


def test_what_its_owner_compiled_stays_so() -> None:
    job = make(Machine(compile=True), TwoPath())
    own = job.supernet.positions[0][0].candidates["one"]
    own.compile()
    before = own._compiled_call_impl
    job.prepare()()
    assert own._compiled_call_impl is before


class Steps:
    """Steps of set lengths: the first one of a compiled search, the later ones, eager ones."""

    def __init__(self, first: float, later: float, eager: float, *, fails: bool = False) -> None:
        self.first, self.later, self.eager, self.fails = first, later, eager, fails
        self.masks: list[Tensor] = []
        self.clock = Clock()

    def __call__(self, on: MachineSettings) -> Any:
        supernet, lengths = Supernet(Net()), iter([self.first])

        def step() -> None:
            if on.compile and self.fails:
                raise RuntimeError("no Triton")
            self.clock.sleep(next(lengths, self.later) if on.compile else self.eager)
            self.masks.append(supernet.mask)

        return SimpleNamespace(supernet=supernet, step=0, weight_step=step, prepare=lambda: None)


LONG = int(2 * WORTH_COMPILING / 0.02)  # steps that take an hour


@pytest.mark.parametrize(
    ("probe", "steps", "compiled"),
    [
        (Steps(0.2, 0.002, 0.02), LONG, True),
        (Steps(0.2, 0.02, 0.005), LONG * 4, False),  # slower
        (Steps(0.2, 0.002, 0.02), LONG // 4, False),  # over before it would pay
        (Steps(0.2, 0.002, 0.02, fails=True), LONG, False),
    ],
)
def test_what_saves_more_than_it_takes_is_compiled(
    probe: Steps, steps: int, compiled: bool
) -> None:
    assert compiling(CUDA, probe, steps=steps, clock=probe.clock).compile is compiled


def test_a_first_step_that_takes_longer_than_all_it_saves_is_not_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.4 s, for 3 candidates and 6 graphs of each; a step saves about 0.018 s."""
    monkeypatch.setattr("proxylessnas.training.autotune.WORTH_COMPILING", 0.0)
    probe = Steps(0.4, 0.002, 0.02)
    assert not compiling(CUDA, probe, steps=200, clock=probe.clock).compile  # 3.6 s of 7.2
    assert compiling(CUDA, probe, steps=2000, clock=probe.clock).compile  # 36 s of 7.2


def test_the_trial_runs_the_largest_candidate_of_every_operation() -> None:
    probe = Steps(0.0, 0.0, 0.0)
    compiling(CUDA, probe, steps=1)
    assert {tuple(mask.flatten().tolist()) for mask in probe.masks} == {
        (False, True, False, False, True, False)
    }


def test_steps_that_are_not_known_are_not_tried() -> None:
    probe = Steps(0.0, 0.0, 0.0)
    assert compiling(CUDA, probe, steps=0).compile is False
    assert not probe.masks


@pytest.mark.parametrize("name", ["autocast", "compile"])
def test_a_word_is_no_answer(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'false'; it must be true or false"):
        MachineSettings(**{name: "false"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machine", "compiled"),
    [
        (MachineSettings(device="cpu"), False),
        (MachineSettings(device="cpu", compile=True), True),
        (MachineSettings(device="cuda:0", compile=False), False),
        (MachineSettings(device="cuda:0", compile=True), True),
    ],
)
def test_what_is_set_by_hand_is_not_tried(machine: MachineSettings, compiled: bool) -> None:
    def never(_: MachineSettings) -> Any:
        raise AssertionError("tried")

    assert compiling(machine, never, steps=10**9).compile is compiled
