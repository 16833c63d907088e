"""The stages of the main job, each a function of a `Run`: measure, search, derive, train,
evaluate, export. A finished stage has a record in `stages/` with its files' checksums and
is not done again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import export as exporting
from .architecture import Architecture
from .config import DeriveSettings
from .derive import Choice, Indices, choose
from .emit import to_python
from .errors import ConfigError, RunError
from .estimators import RewardOf, make_estimator
from .hardware.measure import measure_table
from .loop import Plan, Search
from .objective import Prices, make_objective, make_reward, sample_within
from .report.draw import draw
from .run import Run
from .runs import write_atomic
from .seeds import derive_seed
from .spaces import build
from .train import Score, Training, evaluate, recalibrate

LOG_EVERY = 20  # steps
MOBILENET_V2_DEPTHS = (2, 3, 4, 3, 3, 1)
CHECKPOINT_SECONDS = 30.0


# --- measure ---


def measure(run: Run) -> None:
    """Every distinct candidate and a few whole networks, on the runtime."""
    on = run.config.runtime if run.device_is_here else run.config.table
    count = len(run.pricing.trace.units)
    with run.stage("measure", f"{count} distinct candidates on {on}") as facts:
        if run.device_is_here:
            _measure_table(run)
            facts["files"] = ["latency_table.json"]
        latency = run.priced.latency
        assert latency is not None
        low, high = latency.range(run.supernet.mask)
        largest = run.priced.largest_ms
        run.reporter.say(
            f"  networks of this space take {low:.3g} to {high:.3g} ms, the largest {largest:.3g}"
        )
        facts |= {"range_ms": [low, high], "largest_ms": largest}
        like = mobilenet_v2_like(run)
        if like is not None:
            facts["mobilenet_v2_like_ms"] = latency.of(like)
            run.reporter.say(f"  one like MobileNetV2 takes {latency.of(like):.4g} ms")
        if latency.fit is not None:
            facts["fit"] = dataclasses.asdict(latency.fit)


def mobilenet_v2_like(run: Run) -> Indices | None:
    """Kernel 3 and expansion 6 everywhere, at MobileNetV2's depths (2, 3, 4, 3, 3, 1)."""
    if run.config.space != "mobile" or not all("k3_e6" in c for c in run.supernet.candidates):
        return None
    choice, stage, inside = [], -1, 0
    for names in run.supernet.candidates:
        # A block without Zero begins a stage.
        stage, inside = (stage, inside + 1) if "zero" in names else (stage + 1, 1)
        deep = inside > MOBILENET_V2_DEPTHS[min(max(stage, 0), 5)]
        choice.append(names.index("zero" if deep else "k3_e6"))
    return tuple(choice)


def _measure_table(run: Run) -> None:
    with run.reporter.bar("measuring") as update:

        def progress(done: int, total: int) -> None:
            update(done, total)
            if run.signal.requested:  # the visits so far are saved every few seconds
                raise Stopped

        measure_table(
            run.supernet,
            run.runtime,
            run.example(),
            run.config.measure,
            seed=run.config.seed,
            progress=progress,
            path=run.directory.file("latency_table.json"),
        )


# --- search ---


def make_search(run: Run) -> Search:
    """The search of this run, at its first step."""
    return search_with(run, run.prices, make_reward(run.config.search, run.prices))


def search_with(run: Run, prices: Prices, reward: RewardOf | None = None) -> Search:
    s = run.config.search
    train = run.batches("search", s.batch_size, augment=True, shuffle=True)
    arch_steps = Plan.of(s, len(train)).arch_steps
    return Search(
        supernet=run.supernet,
        task=run.task,
        train=train,
        valid=run.batches("valid", s.valid_batch_size or s.batch_size, augment=True, shuffle=True),
        prices=prices,
        objective=make_objective(s, prices, arch_steps),
        estimator=make_estimator(s.estimator, samples=s.reinforce_samples, reward=reward),
        settings=s,
        seed=run.config.seed,
        machine=run.machine,
    )


def search(run: Run) -> Search:
    """Warm-up, then weight and architecture steps in turn."""
    job = make_search(run)
    target = "no latency limit" if run.target_ms is None else f"limit {run.target_ms:.4g} ms"
    title = f"{job.plan.total} weight and {job.plan.arch_steps} architecture steps, {target}"
    with run.stage("search", title) as facts:
        _resume(run, "search", job)
        with run.reporter.bar("searching") as update:
            keeper = _Keeper(run, "search")

            def after(job: Search) -> None:
                if job.step % LOG_EVERY == 0 or job.step == job.plan.total:
                    _log_search(run, job)
                keeper.save_if_due(job)
                phase = "warm-up" if job.step <= job.plan.warmup else "search"
                update(job.step, job.plan.total, phase)

            job.run(after)
            keeper.save(job)
        entropy = job.entropy()
        if job.estimator.learns and entropy > 0.97:
            run.reporter.say(
                f"  warning: alpha has barely moved (mean entropy {entropy:.3f} of 1): the derived "
                "network is little better than a random one; give the search more epochs"
            )
        facts |= {"entropy": entropy, "multipliers": job.objective.state()}
        facts |= {"weight_steps": job.step, "architecture_steps": job.plan.arch_steps}
        facts["files"] = [keeper.last]
    return job


def _log_search(run: Run, job: Search) -> None:
    seen = job.seen
    fields: dict[str, Any] = {"stage": "search", "step": job.step}
    if seen.weight_loss is not None:
        fields["loss"] = float(seen.weight_loss)
    if seen.estimate is not None:
        fields["valid_loss"] = seen.estimate.loss
        names = (f"expected_{name}" for name in job.prices.names)
        fields |= dict(zip(names, seen.estimate.expected, strict=False))
        fields["multipliers"] = job.objective.state()
        fields["entropy"] = job.entropy()
    run.directory.log(**fields)


def _finished_search(run: Run) -> Search:
    """The search as it ended."""
    run.require("search")
    job = make_search(run)
    _resume(run, "search", job)
    return job


# --- derive ---


def derive(run: Run) -> Architecture:
    """The most probable network within the limit; scored, measured, corrected."""
    job = _finished_search(run)
    with run.stage("derive", f"the best of the {run.config.derive.top_k} most probable") as facts:
        choice = choose_network(run, job, run.config.derive)
        architecture = job.supernet.architecture(choice.chosen.indices).with_input(run.input)
        run.directory.write_json("architecture.json", architecture.to_dict())
        write_atomic(run.directory.file("architecture.svg"), draw(architecture).encode())
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
    valid = run.batches("valid", 250)

    def score(indices: Indices) -> float:
        network = job.supernet.derive(indices)
        recalibrate(network, training, settings.recalibrate_images, run.machine)
        result = evaluate(network, run.task, valid, run.machine, examples=settings.score_images)
        return -result.loss if result.accuracy is None else result.accuracy

    def measured(networks: Sequence[Indices]) -> list[float]:
        derived = {str(i): job.supernet.derive(n) for i, n in enumerate(networks)}
        report = run.measure(derived)
        return [report.networks[str(i)].corrected_ms for i in range(len(networks))]

    with run.reporter.bar("scoring") as update:
        return choose(
            job.supernet,
            job.prices,
            settings,
            score=score,
            measure=measured if run.device_is_here else None,
            learned=job.estimator.learns,
            seed=derive_seed(run.config.seed, "proposals"),
            progress=update,
        )


def choice_facts(run: Run, choice: Choice) -> dict[str, Any]:
    names = choice.prices.names
    return {
        "predicted": dict(zip(names, choice.prices.of(choice.chosen.indices), strict=True)),
        "measured_ms": choice.chosen.measured_ms,
        "score": choice.chosen.score,
        "log_p": choice.chosen.log_p,
        "rounds": choice.rounds,
        "correction": float(choice.prices.fixed[0]) / float(run.prices.fixed[0])
        if float(run.prices.fixed[0])
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
        text += f", measured {measured:.4g} ms"
    if limit_ms is not None:
        text += f", limit {limit_ms:.4g} ms"
    run.reporter.say(f"{text}; validation score {facts['score']:.4f} with the supernet's weights")


def derive_limits(run: Run, limits: Sequence[str]) -> dict[str, Architecture]:
    """A network for each latency limit, from the one finished search."""
    job = _finished_search(run)
    found = {}
    for limit in limits:
        limit_ms = run.priced.milliseconds(limit)
        with run.stage(f"derive-{limit}", f"within {limit_ms:.4g} ms") as facts:
            limits_now = job.prices.limits.clone()
            limits_now[job.prices.names.index("latency")] = limit_ms
            job.prices = replace(job.prices, limits=limits_now)
            choice = choose_network(run, job, run.config.derive)
            architecture = job.supernet.architecture(choice.chosen.indices).with_input(run.input)
            name = f"architecture-{limit}.json"
            run.directory.write_json(name, architecture.to_dict())
            facts |= {**choice_facts(run, choice), "limit_ms": limit_ms, "files": [name]}
            say_choice(run, facts, limit_ms)
        found[limit] = architecture
    return found


# --- train ---


def train(run: Run) -> nn.Module:
    """The derived network on all training images, from scratch or from inherited weights."""
    run.require("derive")
    architecture = Architecture.load(run.directory.file("architecture.json"))
    network = fresh_network(run, architecture)
    if run.config.train.inherit:
        tensors, _ = run.directory.load_tensors("inherited.safetensors")
        network.load_state_dict(tensors)
    _train(run, "train", network, "weights.safetensors")
    return network


def fresh_network(run: Run, architecture: Architecture) -> nn.Module:
    torch.manual_seed(derive_seed(run.config.seed, "training weights"))
    return build(architecture, allow=[run.config.space])


def _train(run: Run, stage: str, network: nn.Module, file: str) -> None:
    s = run.config.train
    job = Training(
        network=network,
        task=run.task,
        train=run.batches("train", s.batch_size, augment=True, shuffle=True),
        settings=s,
        seed=run.config.seed,
        machine=run.machine,
    )
    with run.stage(stage, f"{s.epochs} epochs on all training images") as facts:
        _resume(run, stage, job)
        with run.reporter.bar("training") as update:
            keeper = _Keeper(run, stage)

            def after(job: Training) -> None:
                if job.step % LOG_EVERY == 0 or job.step == job.total:
                    loss = float("nan") if job.loss is None else float(job.loss)
                    run.directory.log(stage=stage, step=job.step, loss=loss)
                keeper.save_if_due(job)
                update(job.step, job.total)

            job.run(after)
        run.directory.save_tensors(file, network.state_dict())
        facts["files"] = [file]


# --- evaluate ---


def trained_network(run: Run, name: str = "") -> nn.Module:
    """The network of this run (or of one of its baselines) with its trained weights."""
    suffix = f"-{name}" if name else ""
    architecture = Architecture.load(run.directory.file(f"architecture{suffix}.json"))
    network = build(architecture, allow=[run.config.space])
    tensors, _ = run.directory.load_tensors(f"weights{suffix}.safetensors")
    network.load_state_dict(tensors)
    return run.machine.place(network).eval()


def evaluate_(run: Run) -> Score:
    """Accuracy on the test part, which nothing before has seen."""
    run.require("train")
    with run.stage("evaluate", "the test part") as facts:
        score = _evaluate(run, trained_network(run))
        facts |= {"accuracy": score.accuracy, "loss": score.loss, "examples": score.examples}
    run.reporter.say(f"  test accuracy {100 * (score.accuracy or 0):.2f} %")
    return score


def _evaluate(run: Run, network: nn.Module) -> Score:
    with run.reporter.bar("evaluating") as update:
        test = run.batches("test", 250)
        return evaluate(network, run.task, test, run.machine, after_batch=update)


# --- baselines ---


def baselines(run: Run) -> None:
    """The largest network and a random one of about the same latency, trained the same way."""
    run.require("derive")
    for name, indices in (("largest", run.priced.largest), ("random", _random_network(run))):
        architecture = run.supernet.architecture(indices).with_input(run.input)
        if not run.done(f"train-{name}"):
            run.directory.write_json(f"architecture-{name}.json", architecture.to_dict())
            network = fresh_network(run, architecture)
            _train(run, f"train-{name}", network, f"weights-{name}.safetensors")
        if not run.done(f"evaluate-{name}"):
            with run.stage(f"evaluate-{name}", "the test part") as facts:
                score = _evaluate(run, trained_network(run, name))
                facts |= {"accuracy": score.accuracy, "loss": score.loss}


def _random_network(run: Run) -> Indices:
    """Uniform among the networks within 5 % under the limit; without a limit, among all."""
    generator = torch.Generator().manual_seed(derive_seed(run.config.seed, "random baseline"))
    prices = run.prices
    k = prices.names.index("latency")
    limit = float(prices.limits[k])
    low, high = prices.range(run.supernet.mask)[k]
    for share in (0.05, 0.2, 1.0):
        least = (1 - share) * min(limit, high)
        for indices in sample_within(run.supernet.mask, prices, generator):
            if prices.of(indices)[k] >= max(least, low) or run.target_ms is None:
                return indices
    raise RunError("no random network keeps the limit: the limit is at the space's very edge")


# --- export ---


def export(run: Run) -> dict[str, Any]:
    """ONNX, compared with eager, and measured as the file it is."""
    run.require("train")
    architecture = Architecture.load(run.directory.file("architecture.json"))
    indices = run.supernet.indices(replace(architecture, settings=run.supernet.settings))
    with run.stage("export", "ONNX, compared with eager, measured") as facts:
        network = trained_network(run).cpu()
        path = run.directory.file("model.onnx")
        data = exporting.to_onnx(network, run.example(), path, metadata=run.input.to_dict())
        difference = exporting.compare(network, data, run.example())
        others = {}
        if run.config.baselines:
            others = {name: trained_network(run, name).cpu() for name in ("largest", "random")}
        report = measure_final(run, path, network, others) if run.device_is_here else NOT_HERE
        facts |= {"largest_difference": difference.relative, **report}
        facts["predicted_ms"] = run.prices.of(indices)[run.prices.names.index("latency")]
        facts["files"] = ["model.onnx"]
    return facts


def export_as(run: Run, form: str) -> None:
    """The trained network as `network.pt2` (torch.export) or as a folder `python/`."""
    run.require("train")
    network = trained_network(run).cpu()
    if form == "torch":
        path = run.directory.file("network.pt2")
        difference = exporting.to_torch_export(network, run.example(), path)
    elif form == "python":
        path = run.directory.file("python")
        architecture = Architecture.load(run.directory.file("architecture.json"))
        difference = to_python(architecture, network, path)
    else:
        raise ConfigError(f"there is no export format {form!r}; allowed: onnx, torch, python")
    run.reporter.say(f"  {path}: differs from eager by {difference.relative:.1e} at most")


NOT_HERE: dict[str, Any] = {
    "measured_ms": None,
    "measured_raw_ms": None,
    "canary_drift": None,
    "noise_pct": None,
    "baselines_ms": {},
}


def measure_final(
    run: Run, path: Path, network: nn.Module, others: dict[str, nn.Module]
) -> dict[str, Any]:
    """The exported file beside the baselines and the table's canary, in the same rounds."""
    reads_onnx = run.config.runtime.partition(":")[0] in ("onnxruntime", "openvino")
    subject: nn.Module | Path = path if reads_onnx else network
    with run.reporter.bar("measuring") as update:
        report = run.measure({"derived": subject, **others}, progress=update)
    derived = report.networks["derived"]
    return {
        "measured_ms": derived.corrected_ms,
        "measured_raw_ms": derived.raw_ms,
        "canary_drift": report.drift,
        "noise_pct": derived.noise_pct,
        "baselines_ms": {name: report.networks[name].corrected_ms for name in others},
    }


# --- going on, and stopping ---


class Stopped(BaseException):
    """SIGTERM or Ctrl-C came; the state was saved."""


class _Keeper:
    """Saves a stage's state now and then, and when the process is asked to stop."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.stage, self.last = run, stage, ""
        self.saved = time.monotonic()

    def save_if_due(self, job: Search | Training) -> None:
        if self.run.signal.requested:
            self.save(job)
            raise Stopped
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.save(job)

    def save(self, job: Search | Training) -> None:
        self.last = self.run.directory.save_checkpoint(self.stage, job.step, *job.state())
        self.saved = time.monotonic()


def _resume(run: Run, stage: str, job: Search | Training) -> None:
    """Go on from the newest whole checkpoint, if there is one."""
    saved = run.directory.load_checkpoint(stage)
    if saved is None:
        run.directory.cut_metrics_of(stage)
        return
    tensors, values = saved
    run.directory.cut_metrics(values["metrics_size"])
    job.load(tensors, values)
    run.reporter.say(f"  goes on at step {job.step}")
