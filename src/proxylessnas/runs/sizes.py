"""Input size as part of the choice: `--image-size 96,128,160` or `auto`.

Every size has a run of its own under `sizes/`, as far as a network: teacher, candidates, latency
table, search. All share one limit in milliseconds; `0.5x` is of the largest size's teacher. Each
network is then fine-tuned for a while and scored on the validation part, and the run goes on as the
one whose loss is least. Of a budget every size has a part for that, by its pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from proxylessnas.config import RunConfig, parse_sizes
from proxylessnas.errors import BudgetError, LimitError, UserError
from proxylessnas.io.console import Reporter
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.narrowing import narrow
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.runs.teaching import prepare
from proxylessnas.runs.trials import tried
from proxylessnas.session.budget import FILE as BUDGET
from proxylessnas.session.budget import Budget, open_budget
from proxylessnas.session.deriving import inherited_network
from proxylessnas.session.pipeline import find_network
from proxylessnas.session.session import Session
from proxylessnas.session.store import CONFIG, MAX_TENSOR_BYTES, Store
from proxylessnas.training.ranks import Ranks

AUTO = (1.0, 0.875, 0.75)  # of the data's own size
STEP = 8  # pixels, to which `auto` rounds
FOLDER, FACTS, TRIAL = "sizes", "sizes.json", "trial"
ASKED = ("image_size", "target_latency")  # what the choice of a size replaces

REST = 0.75  # of a budget: what follows the choice, beside 1 for the largest size up to its network


class Opening(Protocol):
    """Makes a session: of settings, and of those that its directory holds already."""

    @property
    def reporter(self) -> Reporter: ...

    @property
    def ranks(self) -> Ranks: ...

    @property
    def started(self) -> float:
        """When the command began; `__call__` has when a budget of its own begins."""

    def __call__(
        self, directory: Store, config: RunConfig, stored: RunConfig | None, started: float | None
    ) -> Session: ...


def decide_size(
    config: RunConfig, store: Store, opening: Opening, natural_side: Callable[[], int]
) -> RunConfig:
    """The settings with the size that pays, whose stages the directory then holds.

    natural_side: the size in pixels that the images have where none is given; asked for by `auto`.

    Raises:
        LimitError: the limit is below what any of the sizes reaches.
        BudgetError: a size's part of the budget is too short.
    """
    begun, asked = config, {name: getattr(config, name) for name in ASKED}
    assert isinstance(config.image_size, str)
    sizes, facts = _sizes(config.image_size, natural_side), dict[int, dict[str, Any]]()
    budget = _divided(config, store, opening.started, sizes)
    refusals, reporter = list[UserError](), opening.reporter
    reporter.say(f"image sizes: {', '.join(map(str, sizes))}, one run each up to its network")
    for size in sizes:
        reporter.say(f"image size {size}")
        place = store.below(f"{FOLDER}/{size}")
        with place.held():
            stored = place.read_config() if place.has(CONFIG) else None
            try:
                part = None if budget is None else _part(budget, size, opening.ranks)
                own = replace(config, image_size=size, baselines=False, budget=part)
                session = opening(place, stored or own, stored, time.monotonic())
                if not store.has(CONFIG):
                    store.write_config(begun)  # from here on `--resume` goes on
                facts[size] = _trial(session)
            except (LimitError, BudgetError) as error:
                refusals.append(_refusal(error, size, begun.budget))
                if "x" in str(config.target_latency):  # of the largest size's teacher
                    break
                reporter.say(f"  {refusals[-1]}")
                continue
            if budget is not None:
                budget.keep(store, str(size))
            target_ms = session.records.require("derive")["target_ms"]
            if target_ms is not None:
                config = replace(config, target_latency=f"{target_ms:.6g}ms")
    if not facts:
        if not store.has(CONFIG):  # nothing is left of what was refused
            store.below(FOLDER).clear()
        raise refusals[-1]
    best = min(facts, key=lambda size: facts[size]["loss"])
    reporter.say(
        f"image size {best} pays most: " + "; ".join(_words(s, f) for s, f in facts.items())
    )
    decided = store.below(f"{FOLDER}/{best}").read_config()  # lengths and rates suit the images
    kept = {name: getattr(config, name) for name in ("target_latency", "baselines", "budget")}
    before = None if budget is None else budget.before
    return _adopted(replace(decided, **kept), store, {"asked": asked, "tried": facts}, before)


def undecided(store: Store, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are given again, without those that the choice of a size has replaced."""
    asked = store.read_json(FACTS).get("asked", {}) if store.has(FACTS) else {}
    return {k: v for k, v in settings.items() if k not in asked or v != asked[k]}


def _sizes(text: str, natural_side: Callable[[], int]) -> tuple[int, ...]:
    sizes = parse_sizes(text)
    if sizes is not None:
        return sizes
    sides = (max(STEP, round(share * natural_side() / STEP) * STEP) for share in AUTO)
    return tuple(dict.fromkeys(sides))


def _trial(session: Session) -> dict[str, Any]:
    """What a size's network is worth after a short fine-tuning; kept as a record."""
    problem = session.problem
    assert isinstance(problem, SpecialisedProblem)
    if isinstance(problem, ModelProblem):
        narrow(session, problem)
    else:
        prepare(session, problem)
        find_network(session)
    if not session.records.done(TRIAL):
        with session.records.stage(TRIAL, "a short fine-tuning") as facts:
            score = tried(session, problem, _inherited(session, problem))
            facts |= {"accuracy": score.accuracy, "examples": score.examples}
            facts["loss"] = score.calibrated_loss
    return session.records.require(TRIAL)


def _inherited(session: Session, problem: SpecialisedProblem) -> nn.Module:
    if isinstance(problem, ModelProblem):
        return problem.network(session.load_architecture("architecture.json"), session.config)
    return inherited_network(session)


def _divided(
    config: RunConfig, store: Store, started: float, sizes: Sequence[int]
) -> Budget | None:
    """The run's budget, of which every size has a share, and the rest after the choice."""
    shares = {str(size): float(size**2) for size in sizes}
    return open_budget(config.budget, store, started, shares | {"rest": REST * max(sizes) ** 2})


def _part(budget: Budget, size: int, ranks: Ranks) -> str:
    """A size's part of the budget, as the settings have it."""
    return ranks.of_main(lambda: f"{budget.seconds_for(str(size)):.0f}s")


def _refusal(error: UserError, size: int, budget: str | None) -> UserError:
    if not isinstance(error, BudgetError):
        return error
    return BudgetError(f"image size {size} has a part of the budget {budget}: {error}")


def _words(size: int, facts: dict[str, Any]) -> str:
    return f"{size} px {100 * facts['accuracy']:.1f} %, loss {facts['loss']:.3f}"


def _adopted(
    config: RunConfig, store: Store, facts: dict[str, Any], before: float | None
) -> RunConfig:
    """The chosen size's files in the run's own place; the settings, written last, decide.

    before: seconds that earlier processes took of a budget.
    """
    place = store.below(f"{FOLDER}/{config.image_size}")
    for name in place.names():
        if name not in (CONFIG, f"stages/{TRIAL}.json"):
            store.write(name, place.read(name, MAX_TENSOR_BYTES))
    if before is not None:
        store.write_json(BUDGET, {**store.read_json(BUDGET), "spent": before})
    store.write_json(FACTS, facts)
    store.write_config(config)
    store.below(FOLDER).clear()
    return config
