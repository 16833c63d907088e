"""The stage `derive`: from the supernet to one network, and to others under other limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import DeriveSettings
from proxylessnas.core.adapt import adapt
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.report.draw import draw
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import Choice, choose
from proxylessnas.session.deploying import as_measured, as_scored
from proxylessnas.session.session import Session
from proxylessnas.session.untrained import with_zero_cost
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.evaluate import Score, evaluate, recalibrate

PRICES = "prices.json"
SCORED_IN_INT8 = 1000  # images of a score, which are computed one after the other


def derive(session: Session) -> Architecture:
    """The most probable network within the limits; scored, measured, corrected."""
    job = session.finished_search()
    title = f"the best of the {session.config.derive.top_k} most probable"
    with session.records.stage("derive", title, session.callbacks) as facts:
        choice = _choose(session, job, session.config.derive)
        facts["target_ms"] = session.target_ms
        session.store.write_json(PRICES, _prices(session.unlimited_costs, job))
        return _keep_choice(session, choice, facts, "", job, session.config.derive)


def _prices(costs: Costs, job: Search) -> dict[str, Any]:
    """What every candidate costs and how probable it became: for reports."""
    names, probabilities = job.supernet.candidates, job.supernet.probabilities().tolist()
    per_candidate = costs.per_candidate.tolist()
    return {
        "costs": dict(zip(costs.names, costs.units, strict=True)),
        "fixed": dict(zip(costs.names, costs.fixed.tolist(), strict=True)),
        "choices": {
            choice: {
                "candidates": candidates,
                "probabilities": probabilities[m][: len(candidates)],
                **{
                    cost: per_candidate[k][m][: len(candidates)]
                    for k, cost in enumerate(costs.names)
                },
            }
            for m, (choice, candidates) in enumerate(zip(job.supernet.names, names, strict=True))
        },
    }


def derive_within(
    session: Session, limits: Mapping[str, Any], name: str, settings: DeriveSettings | None = None
) -> Architecture:
    """A network for other limits, from the finished search: α learns on under them first.

    The search's own α stays. name: of the files that this leaves, `architecture-NAME.json`.
    settings: others than the run's, which `check_zero_cost` allows.
    """
    job, settings = session.finished_search(), settings or session.config.derive
    costs = session.within(limits)
    title = "within " + ", ".join(f"{k} {v}" for k, v in limits.items())
    with session.records.stage(f"derive-{name}", title, session.callbacks) as facts:
        # Not longer than the search itself, which may have been a short one.
        steps = min(settings.arch_steps, job.schedule.architecture_steps)
        choice = _choose(session, _adapted(session, job, costs, steps), settings)
        facts["limits"] = costs.finite_limits
        return _keep_choice(session, choice, facts, f"-{name}", job, settings)


def _adapted(session: Session, job: Search, costs: Costs, steps: int) -> Search:
    """The search with α learned on under these limits, where they are others."""
    if torch.equal(costs.limits, job.costs.limits):
        steps = 0
    with session.reporter.bar("learning alpha under this limit") as update:
        reward, callbacks = session.problem.reward, [ProgressBar(update)]
        return adapt(job, costs, steps=steps, reward=reward, callbacks=callbacks)


def _choose(session: Session, job: Search, settings: DeriveSettings) -> Choice:
    """Decode, score and measure under the job's limits."""

    def score(indices: Indices) -> tuple[float, tuple[float, ...]]:
        return _scored(session, job, indices, settings).rank

    def measured(networks: Sequence[Indices]) -> list[tuple[float, float]]:
        derived = {str(i): job.supernet.derive(n).cpu() for i, n in enumerate(networks)}
        with as_measured(session, derived) as subjects:
            report = session.measure_networks(subjects)
        return [report[name].value for name in derived]

    measure = None
    if session.is_local and "latency" in job.costs:
        measure = lambda n: session.ranks.of_main(lambda: measured(n))  # noqa: E731
    chosen_by, known = with_zero_cost(session, settings, score)
    with session.reporter.bar("scoring") as update:
        return choose(
            job.supernet,
            job.costs,
            settings,
            score=chosen_by,
            known=known,
            measure=measure,
            learned=job.estimator.learns,
            seed=derive_seed(session.config.seed, "proposals"),
            progress=update,
        )


def _scored(session: Session, job: Search, indices: Indices, settings: DeriveSettings) -> Score:
    """A network's score with the supernet's weights, as it is deployed; taken once."""
    examples = settings.score_images or (SCORED_IN_INT8 if session.is_int8 else None)
    # The weights stay as they are, whatever the limits are.
    key = (tuple(indices), settings.recalibrate_images, examples)
    if key not in session.scores:
        network = _calibrated(session, job, indices, settings)
        with as_scored(session, network) as deployed:
            session.scores[key] = evaluate(
                deployed,
                job.task,
                session.problem.batches("scoring", session.config),
                session.machine,
                examples=examples,
                ranks=session.ranks,
            )
    return session.scores[key]


def _calibrated(
    session: Session, job: Search, indices: Indices, settings: DeriveSettings
) -> nn.Module:
    """A plain network with the supernet's weights and BN statistics of its own.

    The supernet's statistics are a mixture over its paths, which belongs to no network. Trained
    weights that were never mixed keep theirs (`derive.recalibrate_images: 0`).
    """
    network = job.supernet.derive(indices)
    if not settings.recalibrate_images:
        return network
    batches = session.problem.batches("calibration", session.config)
    recalibrate(network, batches, settings.recalibrate_images, session.machine, session.ranks)
    return network


def _keep_choice(
    session: Session,
    choice: Choice,
    facts: dict[str, Any],
    suffix: str,
    job: Search,
    settings: DeriveSettings,
) -> Architecture:
    """Write the architecture and its inherited weights; fill the record."""
    indices = choice.chosen.indices
    network = _calibrated(session, job, indices, settings)
    architecture = session.described(indices)
    files = [f"architecture{suffix}.json", f"inherited{suffix}.safetensors"]
    session.store.write(files[0], architecture.to_json().encode())
    session.store.write(f"architecture{suffix}.svg", draw(architecture).encode())
    session.store.save_tensors(files[1], network.state_dict())
    scored = _scored(session, job, indices, settings)
    facts |= {**choice_facts(session.supernet, choice), "files": files}
    facts["validation_accuracy"], facts["validation_loss"] = scored.accuracy, -scored.rank[0]
    _say_choice(session, facts, choice.costs.limit("latency"))
    return architecture


def _say_choice(session: Session, facts: dict[str, Any], limit_ms: float) -> None:
    words = []
    if "latency" in facts["predicted"]:
        words.append(f"predicted {facts['predicted']['latency']:.4g} ms")
    if facts["measured_ms"] is not None:
        words.append(f"measured {facts['measured_ms']:.4g} ms (± {facts['noise_pct']:.1f} %)")
    if math.isfinite(limit_ms):
        words.append(f"limit {limit_ms:.4g} ms")
    score = f"calibrated validation loss {facts['validation_loss']:.4f}"
    if facts["validation_accuracy"] is not None:
        score += f", accuracy {100 * facts['validation_accuracy']:.2f} %,"
    score += " with the supernet's weights"
    session.reporter.say("  " + "; ".join(filter(None, [", ".join(words), score])))


def inherited_network(session: Session, suffix: str = "") -> nn.Module:
    """The derived network with the weights that the search gave it."""
    session.records.require(f"derive{suffix}")
    architecture = session.load_architecture(f"architecture{suffix}.json")
    network = session.supernet.derive(architecture)
    session.store.load_weights(f"inherited{suffix}.safetensors", network)
    return network


def choice_facts(supernet: Supernet, choice: Choice) -> dict[str, Any]:
    """What a record says of a chosen network and of the proposals beside it."""
    names, chosen, costs = choice.costs.names, choice.chosen, choice.costs
    return {
        "predicted": dict(zip(names, costs.of(chosen.indices), strict=True)),
        "measured_ms": chosen.measured_ms,
        "noise_pct": 100 * chosen.noise,
        "score": chosen.score,
        "log_p": chosen.log_p,
        "rounds": choice.rounds,
        "correction": choice.correction,
        "proposals": [
            {
                "choices": dict(supernet.architecture(p.indices).choices),
                "log_p": p.log_p,
                "predicted": dict(zip(names, p.costs, strict=True)),
                "score": p.score,
                "measured_ms": p.measured_ms,
            }
            for p in choice.proposals
        ],
    }
