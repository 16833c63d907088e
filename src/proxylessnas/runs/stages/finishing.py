"""The stages `train`, `evaluate` and `export`, and the baselines: one network to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.decode import Indices, binding_cost, sample_within
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.export.python import to_python
from proxylessnas.export.torch_export import to_torch_export
from proxylessnas.hardware.costs import largest_network
from proxylessnas.runs.run import Run
from proxylessnas.runs.stages.keeping import Keeper, Progress, resume
from proxylessnas.seeds import derive_seed
from proxylessnas.spaces import build
from proxylessnas.training.callbacks import MetricsLog
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.train import Training


def train(run: Run) -> nn.Module:
    """The derived network on all training images, from scratch or from inherited weights."""
    run.require("derive")
    architecture = Architecture.load(run.directory.file("architecture.json"))
    network = fresh_network(run, architecture)
    if run.config.train.inherit:
        run.directory.load_weights("inherited.safetensors", network)
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
        train=run.batches("train", s.batch_size, augment=s.augment or True, shuffle=True),
        settings=s,
        seed=run.config.seed,
        machine=run.machine,
        ranks=run.ranks,
        stage=stage,
        # Of the spaces here these run every layer on every batch; others may drop paths.
        may_skip=run.config.space not in ("mobile", "macro"),
    )
    with run.stage(stage, f"{s.epochs} epochs on all training images") as facts:
        resume(run, stage, job)
        with run.reporter.bar("training") as update:
            keeper = Keeper(run, stage)
            keeper.drive(job, [MetricsLog(run.directory.log), Progress(update)])
        run.directory.save_tensors(file, network.state_dict())
        facts["files"] = [file]


# --- evaluate ---


def trained_network(run: Run, name: str = "") -> nn.Module:
    """The network of this run (or of one of its baselines) with its trained weights."""
    suffix = f"-{name}" if name else ""
    architecture = Architecture.load(run.directory.file(f"architecture{suffix}.json"))
    network = build(architecture, allow=[run.config.space])
    run.directory.load_weights(f"weights{suffix}.safetensors", network)
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
        return evaluate(network, run.task, test, run.machine, ranks=run.ranks, after_batch=update)


# --- baselines ---


def baselines(run: Run) -> None:
    """The largest network and a random one of about the same latency, trained the same way."""
    run.require("derive")
    for name, indices in (
        ("largest", largest_network(run.supernet, run.all_costs)),
        ("random", _random_network(run)),
    ):
        architecture = run.found(indices)
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
    costs = run.costs
    used = binding_cost(run.supernet, costs)
    k = costs.index(used or "latency")
    low, high = costs.range(run.supernet.mask)[k]
    for share in (0.05, 0.2, 1.0) if used else (1.0,):
        least = (1 - share) * min(float(costs.limits[k]), high)
        for indices in sample_within(run.supernet.mask, costs, generator):
            if costs.of(indices)[k] >= max(least, low):
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
        data = to_onnx(network, run.example(), path, metadata=run.input.to_dict())
        difference = compare(network, data, run.example())
        others = {}
        if run.config.baselines:
            others = {name: trained_network(run, name).cpu() for name in ("largest", "random")}
        report = measure_final(run, path, network, others) if run.device_is_here else NOT_HERE
        facts |= {"largest_difference": difference.relative, **report}
        facts["predicted_ms"] = run.costs.cost_of("latency", indices)
        facts["files"] = ["model.onnx"]
    return facts


def export_as(run: Run, form: str) -> None:
    """The trained network as `network.pt2` (torch.export) or as a folder `python/`."""
    run.require("train")
    network = trained_network(run).cpu()
    if form == "torch":
        path = run.directory.file("network.pt2")
        difference = to_torch_export(network, run.example(), path)
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
