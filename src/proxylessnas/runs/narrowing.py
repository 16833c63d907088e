"""The stages of `--model` up to a network: measure, teach, candidates, scores, search, derive.

What a network takes does not depend on its weights. So the model is measured first, and a limit
that cannot be kept is refused before anything is learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.measure import describe
from proxylessnas.limits import Limit
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.specialised import LINEAR, TEACHER
from proxylessnas.runs.teaching import linear_classifier, teach
from proxylessnas.selection.choose import Choice
from proxylessnas.session.finishing import trained_network
from proxylessnas.session.fitting import fit
from proxylessnas.session.pipeline import stop_if_asked
from proxylessnas.session.session import Session
from proxylessnas.surgery.around import LATENCIES, Around, around, limit_of, measured
from proxylessnas.surgery.choosing import facts_of, recorded_choice, unrecorded_choice
from proxylessnas.surgery.latency import Latencies
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.task import batch_size

STAGES = ("measure", "teach", "candidates", "scores", "search", "derive")


def narrow(session: Session, problem: ModelProblem) -> None:
    """All that is not done yet of the way to the network.

    Raises:
        UserError: the model cannot be narrowed, or no network around it keeps the limit.
    """
    if all(map(session.records.done, STAGES)):
        return
    fit(session, "measure")
    found = problem.found(session)
    latencies = measured(replace(found, brought=problem.brought(session, found.brought.model)))
    limit = limit_of(_text(session.limits["latency"]), latencies, found.brought)
    stop_if_asked(session)
    if not session.records.done("teach"):
        fit(session, "teach")
        teach_model(session, problem)
    stop_if_asked(session)
    fit(session, "candidates")
    space = _space(session, problem)
    recorded_choice(space, limit, lambda choice: _keep(session, problem, space, choice))


def narrow_within(
    session: Session, problem: ModelProblem, latencies: Iterable[str]
) -> dict[str, Architecture]:
    """A network for each limit, from the candidates and scores of the finished run.

    Raises:
        RunError: the run is not finished. LimitError: no network keeps one of the limits.
    """
    for stage in STAGES:
        session.records.require(stage)
    space, networks = _space(session, problem), dict[str, Architecture]()
    limits = {name: space.limit_of(name) for name in latencies}  # before the first is derived
    for name, limit in limits.items():
        stage, title = f"derive-{name}", f"the best network within {limit:.4g} ms"
        with session.records.stage(stage, title, session.callbacks) as facts:
            choice = unrecorded_choice(space, limit)
            facts |= {**facts_of(choice), **_keep(session, problem, space, choice, f"-{name}")}
            facts["limits"] = {"latency": limit}
        networks[name] = session.load_architecture(f"architecture-{name}.json")
    return networks


def _space(session: Session, problem: ModelProblem) -> Around:
    found = problem.found(session)
    latencies = Latencies.from_json(session.store.read_json(LATENCIES))
    return around(found, latencies, problem.brought(session, problem.teacher().model))


def _text(limit: Limit) -> str:
    """The limit, as `specialise` takes it."""
    return limit if isinstance(limit, str) else f"{limit}ms"


def _keep(
    session: Session, problem: ModelProblem, space: Around, choice: Choice, suffix: str = ""
) -> dict[str, Any]:
    """The architecture, and the weights that its training begins with."""
    indices = choice.chosen.indices
    network = space.space.network(indices)
    chosen = space.space.chosen(indices)
    architecture = problem.described(chosen, space.space.attributes(indices))
    files = [f"architecture{suffix}.json", f"inherited{suffix}.safetensors"]
    session.store.write(files[0], architecture.to_json().encode())
    session.store.save_tensors(files[1], network.state_dict())
    costs = choice.costs  # as measurements corrected them: their sum is what is predicted
    blocks = [
        {"name": name, "choice": candidate, "ms": float(row[index])}
        for (name, candidate), row, index in zip(
            chosen.items(), costs.per_candidate[0], indices, strict=True
        )
    ]
    blocks.append({"name": "everything else", "choice": "", "ms": float(costs.fixed[0])})
    return {"blocks": blocks, "files": files}


def teach_model(session: Session, problem: ModelProblem) -> None:
    """The stage `teach`; a model whose weights fit the classes is its own teacher.

    Which class is which, a file of weights does not say. So the model is believed where it is no
    worse than a linear classifier on its features.
    """
    if not problem.fits_classes:
        teach(session, problem)
        return
    network = session.machine.place(problem.as_it_came())
    scoring = problem.batches("scoring", session.config)
    own = evaluate(network, problem.task, scoring, session.machine, ranks=session.ranks)
    known, fit = linear_classifier(session, problem)
    linear = evaluate(known, problem.task, scoring, session.machine, ranks=session.ranks)
    own_accuracy, linear_accuracy = own.accuracy or 0.0, linear.accuracy or 0.0
    noise = (linear_accuracy * (1 - linear_accuracy) / max(1, own.examples)) ** 0.5
    words = f"its own classes {100 * own_accuracy:.1f} % of the validation part, a linear "
    words += f"classifier on its features {100 * linear_accuracy:.1f} %"
    if own_accuracy < linear_accuracy - 2 * noise:
        session.reporter.say(
            f"  warning: {words}: its classes are others, or in another order than yours; it is "
            "taught anew"
        )
        teach(session, problem)
        return
    title = f"{session.config.model} knows these classes: {words}"
    with session.records.stage("teach", title, session.callbacks) as facts:
        session.store.save_tensors(TEACHER, network.state_dict())
        facts |= {
            "majority_class": max(range(len(fit.counts)), key=lambda label: fit.counts[label]),
            "linear_valid_accuracy": linear_accuracy,
            "teacher_valid_accuracy": own_accuracy,
            "best_step": 0,
            "files": [TEACHER, LINEAR],
        }


# --- for the summary ---


def space_facts(session: Session) -> dict[str, Any]:
    """What a summary says of the space and of the network in it."""
    record = session.records.require("derive")
    latencies = Latencies.from_json(session.store.read_json(LATENCIES))
    network = trained_network(session).cpu()
    batch = batch_size(*session.inputs)
    return {
        "runtime": dict(describe(session.runtime, session.inputs)),
        "target_latency_ms": record["target_ms"],
        "predicted_latency_ms": record["predicted"]["latency"],
        "parameters": count_parameters(network),
        "macs": count_macs(network, session.inputs) // batch,
        "limits": {},
        "largest_network_ms": latencies.model_ms,
        "blocks": record["blocks"],
        "candidates": max(map(len, session.store.read_json("scores.json"))),
    }
