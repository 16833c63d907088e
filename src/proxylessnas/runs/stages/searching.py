"""The stages `search` and `derive`: from the supernet to one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.config import DeriveSettings
from proxylessnas.core.adapt import adapt
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.derive import Choice, choose
from proxylessnas.core.search import Search
from proxylessnas.hardware.costs import absolute_limits
from proxylessnas.limits import parse_latency
from proxylessnas.report.draw import draw
from proxylessnas.runs.run import Run
from proxylessnas.runs.stages.keeping import Keeper, Progress, load_finished, resume
from proxylessnas.seeds import derive_seed
from proxylessnas.training.callbacks import MetricsLog
from proxylessnas.training.evaluate import evaluate, recalibrate


def make_search(run: Run) -> Search:
    """The search of this run, at its first step."""
    return search_with(run, run.costs)


def search_with(run: Run, costs: Costs) -> Search:
    s = run.config.search
    return Search.from_settings(
        s,
        supernet=run.supernet,
        task=run.task,
        train=run.batches("search", s.batch_size, augment=True, shuffle=True),
        valid=run.batches("valid", s.valid_batch_size or s.batch_size, augment=True, shuffle=True),
        costs=costs,
        seed=run.config.seed,
        machine=run.machine,
        ranks=run.ranks,
    )


def search(run: Run) -> Search:
    """Warm-up, then weight and architecture steps in turn."""
    job = make_search(run)
    target = "no latency limit" if run.target_ms is None else f"limit {run.target_ms:.4g} ms"
    schedule = job.schedule
    title = (
        f"{schedule.total} weight and {schedule.architecture_steps} architecture steps, {target}"
    )
    with run.stage("search", title) as facts:
        resume(run, "search", job)
        with run.reporter.bar("searching") as update:
            keeper = Keeper(run, "search")
            keeper.drive(job, [MetricsLog(run.directory.log), Progress(update)])
            keeper.save(job)
        entropy = job.entropy()
        run.reporter.say(f"  mean entropy of alpha {entropy:.2f} (1: nothing decided)")
        facts |= {"entropy": entropy, "multipliers": job.objective.state()}
        facts |= {"weight_steps": job.step, "architecture_steps": job.schedule.architecture_steps}
        facts["files"] = [keeper.last]
    return job


def _finished_search(run: Run) -> Search:
    """The search as it ended."""
    run.require("search")
    job = make_search(run)
    load_finished(run, "search", job)
    return job


# --- derive ---


def derive(run: Run) -> Architecture:
    """The most probable network within the limit; scored, measured, corrected."""
    job = _finished_search(run)
    with run.stage("derive", f"the best of the {run.config.derive.top_k} most probable") as facts:
        choice = choose_network(run, job, run.config.derive)
        architecture = run.found(choice.chosen.indices)
        run.directory.write_json("architecture.json", architecture.to_dict())
        run.directory.write("architecture.svg", draw(architecture).encode())
        inherited = job.supernet.derive(choice.chosen.indices)
        run.directory.save_tensors("inherited.safetensors", inherited.state_dict())
        facts |= choice_facts(run, choice)
        facts["files"] = ["architecture.json", "inherited.safetensors"]
        say_choice(run, facts, run.target_ms)
    return architecture


def choose_network(run: Run, job: Search, settings: DeriveSettings) -> Choice:
    """Decode, score and measure under the run's limits."""
    # Shuffled: many sets come sorted by class, and BN statistics are taken from a part.
    training = run.batches("search", 250, shuffle=True)
    valid = run.batches("valid", 250, shuffle=True)  # a batch is a sample, not a class

    def score(indices: Indices) -> tuple[float, tuple[float, ...]]:
        network = job.supernet.derive(indices)
        images, ranks = settings.score_images, run.ranks
        recalibrate(network, training, settings.recalibrate_images, run.machine, ranks)
        return evaluate(network, run.task, valid, run.machine, examples=images, ranks=ranks).value

    def measured(networks: Sequence[Indices]) -> list[tuple[float, float]]:
        derived = {str(i): job.supernet.derive(n) for i, n in enumerate(networks)}
        report = run.measure(derived)
        return [report[name].value for name in derived]

    with run.reporter.bar("scoring") as update:
        return choose(
            job.supernet,
            job.costs,
            settings,
            score=score,
            measure=(lambda n: run.ranks.of_main(lambda: measured(n)))
            if run.device_is_here
            else None,
            learned=job.estimator.learns,
            seed=derive_seed(run.config.seed, "proposals"),
            progress=update,
        )


def choice_facts(run: Run, choice: Choice) -> dict[str, Any]:
    names = choice.costs.names
    return {
        "predicted": dict(zip(names, choice.costs.of(choice.chosen.indices), strict=True)),
        "measured_ms": choice.chosen.measured_ms,
        "noise_pct": 100 * choice.chosen.noise,
        "score": choice.chosen.score,
        "log_p": choice.chosen.log_p,
        "rounds": choice.rounds,
        "correction": float(choice.costs.fixed[0]) / float(run.costs.fixed[0])
        if float(run.costs.fixed[0])
        else 1.0,
        "proposals": [
            {
                "choices": dict(run.supernet.architecture(p.indices).choices),
                "log_p": p.log_p,
                "predicted": dict(zip(names, p.costs, strict=True)),
                "score": p.score,
                "measured_ms": p.measured_ms,
            }
            for p in choice.proposals
        ],
    }


def say_choice(run: Run, facts: dict[str, Any], limit_ms: float | None) -> None:
    measured = facts["measured_ms"]
    text = f"  predicted {facts['predicted']['latency']:.4g} ms"
    if measured is not None:
        text += f", measured {measured:.4g} ms (± {facts['noise_pct']:.1f} %)"
    if limit_ms is not None:
        text += f", limit {limit_ms:.4g} ms"
    run.reporter.say(f"{text}; validation score {facts['score']:.4f} with the supernet's weights")


def derive_limits(
    run: Run, limits: Sequence[str], settings: DeriveSettings
) -> dict[str, Architecture]:
    """A network for each latency limit, from the one finished search's weights and α."""
    job = _finished_search(run)
    found = {}
    for limit in limits:
        parse_latency(limit)  # all are understood before the first is derived
    costs, largest = run.all_costs, run.largest_costs
    within = {
        limit: absolute_limits({"latency": limit}, costs, largest)["latency"] for limit in limits
    }
    for limit_ms in within.values():
        _within(job.costs, limit_ms).check_reachable(job.supernet.mask)
    for limit, limit_ms in within.items():
        with run.stage(f"derive-{limit}", f"within {limit_ms:.4g} ms") as facts:
            adapted = _adapted(run, job, limit_ms, settings.arch_steps)
            choice = choose_network(run, adapted, settings)
            architecture = run.found(choice.chosen.indices)
            name = f"architecture-{limit}.json"
            run.directory.write_json(name, architecture.to_dict())
            facts |= {**choice_facts(run, choice), "limit_ms": limit_ms, "files": [name]}
            say_choice(run, facts, limit_ms)
        found[limit] = architecture
    return found


def _adapted(run: Run, job: Search, limit_ms: float, steps: int) -> Search:
    """The search with α learned on under that limit, where it is another one."""
    steps = 0 if limit_ms == run.target_ms else steps
    with run.reporter.bar("learning alpha under this limit") as update:
        costs = _within(job.costs, limit_ms)
        return adapt(job, costs, steps=steps, callbacks=[Progress(update)])


def _within(costs: Costs, limit_ms: float) -> Costs:
    """The same costs with another latency limit."""
    limits = costs.limits.clone()
    limits[costs.names.index("latency")] = limit_ms
    return replace(costs, limits=limits)
