"""A search from scratch within a budget: a stage's settings fitted to its seconds as it begins.

At a run's start a few steps on a part of a batch say about how long steps take. What cannot be
done in time is refused then, before anything is measured. For the errors of that estimate the
training makes up, whose own steps are timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from proxylessnas.config import DeriveSettings, RunConfig
from proxylessnas.errors import BudgetError
from proxylessnas.hardware.limiting import largest_network
from proxylessnas.io.console import duration
from proxylessnas.session.budget import Budget
from proxylessnas.session.durations import (
    CANDIDATE,
    end_seconds,
    measuring_seconds,
    score_images_of,
    seconds_of_training_step,
    table_seconds,
    time_steps,
)
from proxylessnas.session.session import Session
from proxylessnas.session.tuning import tune, untried_machine
from proxylessnas.session.untrained import LEAST, seconds_of_figures

# The least of which anything can be expected: rounds of weight steps in which every candidate is
# trained, rounds of architecture steps in which all are compared, and steps of the training.
WARMUP_ROUNDS, COMPARED_ROUNDS, TRAINING_STEPS = 2, 6, 100
LATE = 0.05  # of a budget, by which an estimate may exceed it: half of what a run may
LEAST_ROUNDS, LEAST_NETWORKS = 3, 4  # of the stage `measure`
FEW_IMAGES, FEW_NETWORKS = 500, 2  # of the scores in `derive`


Fit = Callable[[Session, float, dict[str, float]], RunConfig]  # seconds, and `Budget.speeds`


def begin_within(session: Session, budget: Budget) -> None:
    """Decide the machine settings of a session, if a useful run fits into its budget.

    Raises:
        BudgetError: none does; the message says how long one takes.
    """
    given, untried = session.config, untried_machine(session)
    session.settle(replace(given, machine=untried))
    time_steps(session, budget)
    steps = int(budget.seconds_for("search") / budget.speeds["weight"])
    session.settle(given)
    machine = tune(session, planned=session.ranks.of_main(lambda: steps))
    session.settle(replace(given, machine=machine))
    if machine != untried:
        time_steps(session, budget)
    remedy = (
        "take fewer pixels (--image-size), a narrower space (--space-settings), or, for photos, "
        "trained weights (--pretrained efficientnet_lite0)"
    )
    reserve_least(session, budget, _least_seconds(session, budget.speeds), remedy)


def reserve_least(
    session: Session, budget: Budget, least: Mapping[str, float], remedy: str
) -> None:
    """Keep what every stage of the least useful run takes from here on, in seconds.

    Raises:
        BudgetError: it is more than there is; the message says how long such a run takes.
    """
    for stage, seconds in least.items():
        budget.reserve(stage, seconds)
    if session.ranks.of_main(lambda: budget.spare + LATE * budget.total < 0):
        asked = session.config.budget
        takes = session.ranks.of_main(lambda: budget.total - budget.spare)
        raise BudgetError(
            f"the budget {asked} is too short: the least useful run of these settings takes about "
            f"{duration(takes)} (minutes:seconds) here; allow that, or {remedy}"
        )


def fit(session: Session, stage: str) -> None:
    """Fit a stage's settings to its seconds, unless that is done, or there is no budget."""
    budget = session.budget
    if budget is None or stage not in (budget.fits or FITS) or stage in budget.fitted:
        return
    config, seconds = fitted(session, budget, stage)
    last = stage == list(budget.shares)[-1]
    session.settle(replace(config, budget=None) if last else config)
    session.reporter.say(f"  budget: {duration(seconds)} for {stage}, {_words(config, stage)}")
    note = f"# Fitted to a budget of {duration(budget.total)}.\n"
    session.store.write_config(session.config, note)
    budget.keep(session.store, stage)


def fitted(session: Session, budget: Budget, stage: str) -> tuple[RunConfig, float]:
    """The settings with those of a stage as they fit into its seconds, and these."""
    fits: Mapping[str, Fit] = budget.fits or FITS
    seconds = session.ranks.of_main(lambda: budget.seconds_for(stage))
    return fits[stage](session, seconds, budget.speeds), seconds


def words_of_scores(d: DeriveSettings) -> str:
    """How many networks are scored and measured."""
    beside = f" beside {d.zero_cost} random ones" if d.zero_cost else ""
    return f"{d.top_k} networks scored{beside}, {d.measure_best} measured"


def _words(config: RunConfig, stage: str) -> str:
    s, d, t = config.search, config.derive, config.train
    m = config.measure
    return {
        "measure": f"{m.rounds} rounds of candidates, {m.networks} whole networks",
        "teach": f"{config.teach.epochs:.3g} epochs",
        "candidates": f"scored on {config.candidates.score_images} images",
        "search": f"{s.warmup_epochs:.3g} + {s.epochs:.3g} epochs",
        "derive": words_of_scores(d),
        "train": f"{t.epochs:.3g} epochs",
    }[stage]


# --- what is left, to settings ---


def fit_measure(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    """Fewer rounds, and fewer whole networks; one of the runtime's sessions each is the least."""
    m = session.config.measure
    whole = table_seconds(session, speeds, m)
    loading = CANDIDATE * len(session.trace.units)
    share = max(0.0, seconds - loading) / max(whole - loading, 1e-9)
    if session.config.table is not None or share >= 1:
        return session.config

    def fewer(count: int, least: int, share: float) -> int:
        return min(count, max(least, round(count * share)))

    root = math.sqrt(share)  # of whole networks both their number and their rounds
    measure = replace(
        m,
        rounds=fewer(m.rounds, LEAST_ROUNDS, share),
        networks=fewer(m.networks, LEAST_NETWORKS, root),
        validation=fewer(m.validation, 0, root),
        network_rounds=fewer(m.network_rounds, LEAST_ROUNDS, root),
    )
    return replace(session.config, measure=measure)


def _fit_search(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    """The ratio of warm-up to search stays as configured."""
    s = session.config.search
    length = len(session.problem.batches("search", session.config))
    joint = speeds["weight"] + speeds["architecture"] / s.arch_every
    per = length * (s.warmup_epochs * speeds["weight"] + s.epochs * joint)
    scale = seconds / per
    widest = session.supernet.mask.shape[1]
    warmup = max(scale * s.warmup_epochs * length, WARMUP_ROUNDS * widest)
    epochs = max(scale * s.epochs * length, COMPARED_ROUNDS * widest * s.arch_every)
    search = replace(
        s,
        warmup_epochs=round(warmup) / length if s.warmup_epochs else 0.0,
        epochs=round(epochs) / length,
        arch_delay_epochs=s.arch_delay_epochs * round(epochs) / length / s.epochs,
    )
    return replace(session.config, search=search)


def _fit_derive(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    derive = fewer_scores(session, session.config.derive, seconds, speeds)
    return replace(session.config, derive=derive)


def fit_limit(session: Session, derive: DeriveSettings, seconds: float) -> DeriveSettings:
    """Settings of deriving under a further limit: half of the time for α, half for scores."""
    record, search = session.records.require("search"), session.config.search
    step = record["seconds"] / max(1, record["weight_steps"] + record["architecture_steps"])
    # A third of a step's time without the way back, and the other network of two_path left out.
    speeds = {"image": step / search.batch_size / 3}
    derive = replace(derive, arch_steps=min(derive.arch_steps, int(seconds / 2 / max(step, 1e-9))))
    return fewer_scores(session, derive, seconds / 2, speeds)


def fewer_scores(
    session: Session, d: DeriveSettings, seconds: float, speeds: dict[str, float]
) -> DeriveSettings:
    """Fewer rounds and measured networks first, then fewer networks with fewer images each.

    Figures of untrained networks are left out where there is no time for enough of them.
    """
    measuring = measuring_seconds(session, session.largest.get("latency"), speeds)
    measuring *= session.is_local and session.target_ms is not None
    rounds, best = d.rounds, d.measure_best
    while measuring * rounds * best > seconds / 2 and rounds * best > 1:
        rounds, best = (rounds - 1, best) if rounds > 1 else (1, best - 1)
    valid = score_images_of(session)
    free = max(0.0, seconds - measuring * rounds * best)
    images = (d.recalibrate_images + valid) * speeds["image"]
    figures = session.ranks.of_main(lambda: seconds_of_figures(session, d))
    share = _share_of_both(images, figures, free / (d.top_k + d.zero_cost))
    zero_cost = round(d.zero_cost * share)
    if d.zero_cost and zero_cost < LEAST:
        session.reporter.say("  budget: no time for figures of untrained networks: without them")
        return fewer_scores(session, replace(d, zero_cost=0), seconds, speeds)
    networks = max(min(FEW_NETWORKS, d.top_k), round(d.top_k * share))
    left = max(0.0, free / (networks + zero_cost) - figures)
    share = min(1.0, left / max(images, 1e-9))
    return replace(
        d,
        rounds=rounds,
        measure_best=best,
        top_k=networks,
        zero_cost=zero_cost,
        recalibrate_images=_fewer(d.recalibrate_images, share),
        score_images=d.score_images if share == 1 else _fewer(valid, share),
    )


def _share_of_both(images: float, figures: float, seconds: float) -> float:
    """The share s, at most 1, of which images * s**2 + figures * s = seconds.

    It is that of the networks, and that of the images of each: figures are a network's, however
    many images it is scored on.
    """
    root = math.sqrt(figures**2 + 4 * images * seconds)
    return min(1.0, 2 * seconds / max(figures + root, 1e-9))


def _fewer(images: int, share: float) -> int:
    return max(min(images, FEW_IMAGES), round(share * images))


def _fit_train(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    step = session.ranks.of_main(lambda: seconds_of_training_step(session))
    length = len(session.problem.batches("train", session.config))
    steps = max(TRAINING_STEPS, int(seconds / step / _networks_to_train(session)))
    return replace(session.config, train=replace(session.config.train, epochs=steps / length))


FITS: dict[str, Fit] = {
    "measure": fit_measure,
    "search": _fit_search,
    "derive": _fit_derive,
    "train": _fit_train,
}


def _networks_to_train(session: Session) -> float:
    """With the baselines as multiples of the derived network, by their MACs."""
    if not session.config.baselines:
        return 1.0
    costs, derived = session.unlimited_costs, session.load_architecture("architecture.json")
    largest = costs.cost_of("macs", largest_network(session.supernet, costs))
    return 2 + largest / costs.cost_of("macs", session.supernet.indices(derived))


# --- estimates before anything is measured ---


def _least_seconds(session: Session, speeds: dict[str, float]) -> dict[str, float]:
    """Of the least useful run, from here on, by its stages."""
    config, widest = session.config, session.supernet.mask.shape[1]
    weight, architecture, image = (speeds[k] for k in ("weight", "architecture", "image"))
    warmup = WARMUP_ROUNDS * widest if config.search.warmup_epochs else 0
    joint = config.search.arch_every * weight + architecture
    search = warmup * weight + COMPARED_ROUNDS * widest * joint
    images = _fewer(config.derive.recalibrate_images, 0) + _fewer(score_images_of(session), 0)
    train = TRAINING_STEPS * config.train.batch_size / config.search.batch_size * weight
    networks = 4 if config.baselines else 1
    return {
        "measure": table_seconds(session, speeds, fit_measure(session, 0.0, speeds).measure),
        "search": search,
        "derive": FEW_NETWORKS * images * image,
        "train": networks * train,
        "the end": end_seconds(session, speeds),
    }
