"""What candidates cost: every layer of the choices alone, corrected by whole networks.

Latency is a sum over layers, and a layer between two pairs is narrowed by both: its latency is
about proportional to the product of their shares, which no sum over choices is. So it is measured
with both ends narrowed alike, and each of its ends carries half of that. The sum is exact where all
pairs are narrowed alike; whole networks, uniform and random, correct the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.hardware.fit import fit
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.whole_networks import measure_networks
from proxylessnas.pretrained.candidates import SHARES
from proxylessnas.seeds import derive_seed
from proxylessnas.surgery.proof import outputs
from proxylessnas.surgery.space import Space

RANDOM = 4  # whole networks besides the uniform ones
# Of one network's visits: where an inference takes long, its noise is a small share of it.
PATIENCE_S, LEAST_ROUNDS = 4.0, 5

Progress = Callable[[int, int], None]
Row = float | str  # of layers that are measured alone: all at one share, or changed at one level


@dataclass(frozen=True, kw_only=True, eq=False)
class Latencies:
    """costs: of every candidate, without a limit. model_ms: of the model; least_ms: of the fastest
    network that was measured, whose sum may be far off.

    layers: of every layer of the model, by its path; ms alone.
    """

    costs: Costs
    model_ms: float
    least_ms: float
    layers: Mapping[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Of the model's latency, of every layer."""
        return {path: ms / self.model_ms for path, ms in self.layers.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "per_candidate_ms": self.costs.per_candidate[0].tolist(),
            "fixed_ms": float(self.costs.fixed[0]),
            "model_ms": self.model_ms,
            "least_ms": self.least_ms,
            "layers_ms": dict(self.layers),
        }

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Latencies:
        costs = torch.tensor(facts["per_candidate_ms"], dtype=torch.float64)
        return Latencies(
            costs=Costs.one("latency", costs, fixed=facts["fixed_ms"], unit="ms"),
            model_ms=facts["model_ms"],
            least_ms=facts["least_ms"],
            layers=facts["layers_ms"],
        )


def patient(
    model: nn.Module, inputs: tuple[Any, ...], runtime: Runtime, settings: MeasureSettings
) -> MeasureSettings:
    """The settings with as many visits as a model that takes long leaves time for.

    Raises:
        MeasurementError: the runtime cannot run the model.
    """
    once = replace(settings, network_rounds=1, runs=1, warmup=1)
    ms = measure_networks({"model": model}, runtime, inputs, once, seed=0)["model"].raw_ms
    rounds = int(PATIENCE_S * 1e3 / (ms * (settings.runs + settings.warmup)))
    return replace(settings, network_rounds=min(settings.network_rounds, max(LEAST_ROUNDS, rounds)))


def latency_costs(
    space: Space,
    inputs: tuple[Any, ...],
    runtime: Runtime,
    settings: MeasureSettings,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Latencies:
    """What every candidate, the model and each of its layers take.

    Raises:
        MeasurementError: the runtime cannot run the model, or one of its layers.
    """
    uniform: dict[Row, Indices] = {share: space.nearest(share) for share in (1.0, *SHARES)}
    uniform |= {level: space.changed(level) for level in space.levels}
    layers = {row: layers_of(space, indices, inputs) for row, indices in uniform.items()}
    smallest = space.smallest
    networks = [*uniform.values(), *_random(space, seed), smallest]
    networks = list(dict.fromkeys(networks))
    # Layers that are built alike and read inputs of one shape take the same time.
    alone = {key: one for row in layers.values() for calls in row.values() for key, one in calls}
    modules = {_name(i): space.network(indices) for i, indices in enumerate(networks)}
    report = measure_networks(
        {**modules, **{key: layer for key, (layer, _) in alone.items()}},
        runtime,
        inputs,
        settings,
        seed=seed,
        progress=progress,
        inputs_of={key: (x,) for key, (_, x) in alone.items()},
        rounds_of=dict.fromkeys(alone, min(settings.rounds, settings.network_rounds)),
    )
    ms = {
        row: {path: sum(report[key].raw_ms for key, _ in calls) for path, calls in of.items()}
        for row, of in layers.items()
    }
    costs = _sums(space, ms)
    measured = [report[_name(i)].raw_ms for i in range(len(networks))]
    # Of the smallest network hardly a layer is left: it tells the range, and nothing of the layers.
    # Changes of layers that take longer than these are not to be chosen, nor to be fitted to.
    own = networks.index(space.own)
    told = [
        k
        for k, n in enumerate(networks)
        if (n != smallest or n in uniform.values()) and measured[k] <= measured[own]
    ]
    slope, fixed = _line(costs, [networks[k] for k in told], [measured[k] for k in told])
    return Latencies(
        costs=Costs.one("latency", slope * costs, fixed=fixed, unit="ms"),
        model_ms=measured[own],
        least_ms=min(measured),
        layers=ms[1.0],
    )


def layers_of(
    space: Space, indices: Indices, inputs: tuple[Any, ...]
) -> dict[str, list[tuple[str, tuple[nn.Module, Tensor]]]]:
    """The layers of all pairs in one network: path -> (key, (layer, its input)) of every call.

    Of the model itself all its layers. key: the same for layers that take the same time.
    """
    network = space.network(indices)
    paths = {path for choice in space.choices for path in choice.layers}
    if tuple(indices) == space.own:
        paths |= {p for p, m in network.named_modules() if isinstance(m, nn.Linear | Convolution)}
    reads: dict[str, list[Tensor]] = {}
    layers = {
        path: layer
        for path in sorted(paths)
        if (
            getattr(layer := network.get_submodule(path), "weight", None) is not None
            and not isinstance(layer, nn.modules.batchnorm._NormBase)
        )
        or isinstance(layer, nn.Sequential)
    }
    with ExitStack() as stack:
        for path, layer in layers.items():
            hook = layer.register_forward_pre_hook(
                lambda _, args, path=path: reads.setdefault(path, []).append(args[0].detach())
            )
            stack.callback(hook.remove)
        outputs(network, inputs)
    return {
        path: [(f"{layers[path]} of {list(x.shape)}", (layers[path], x)) for x in several]
        for path, several in reads.items()
    }


def _sums(space: Space, ms: Mapping[Row, Mapping[str, float]]) -> Tensor:
    """What each candidate costs: its layers at its share of the channels, [choices, candidates]."""
    ends: dict[str, int] = {}
    for pair in (pair for choice in space.choices for pair in choice.pairs):
        for path in pair.layers:
            ends[path] = ends.get(path, 0) + 1
    alone = {path for choice in space.choices for path in choice.wide} - set(ends)
    ends |= dict.fromkeys(alone, 1)
    costs = torch.zeros(space.mask.shape, dtype=torch.float64)
    rows = [row for share, row in ms.items() if isinstance(share, float)]
    mean = {path: float(np.mean([row.get(path, 0.0) for row in rows])) for path in ends}
    for m, choice in enumerate(space.choices):
        inside = [path for pair in choice.pairs for path in pair.layers]
        inside += [path for path in choice.wide if path in alone]
        others = {p: 1 - inside.count(p) / ends[p] for p in ends if p.startswith(f"{choice.name}.")}
        for j, candidate in enumerate(choice.candidates):
            if candidate.changes:
                row, own = ms[candidate.level], ms[1.0]
                saved = (own[c.layer] - row[c.layer] for c in candidate.changes)
                costs[m, j] = costs[m, 0] - sum(saved)
            elif candidate.share == 0:  # left out: nor does it take what others' ends in it carry
                costs[m, j] = -sum(mean[path] * part for path, part in others.items())
            else:
                row = ms[candidate.share]
                costs[m, j] = sum(row.get(path, 0.0) / ends[path] for path in inside)
    return costs


def _line(
    costs: Tensor, networks: Sequence[Indices], measured: Sequence[float]
) -> tuple[float, float]:
    """Slope and fixed part, in ms, of whole networks over the sums of their layers."""
    sums = [float(sum(costs[m, j] for m, j in enumerate(indices))) for indices in networks]
    line = fit(np.array(measured), np.array(sums))
    if line.b >= 0:
        return line.a, line.b
    # What all networks share takes time too: a negative rest is noise, and would promise that
    # limits near zero can be kept.
    return float(np.median([ms / s for ms, s in zip(measured, sums, strict=True) if s > 0])), 0.0


def _random(space: Space, seed: int) -> list[Indices]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "networks to fit latencies to"))
    p = space.mask.double()
    for row, choice in zip(p, space.choices, strict=True):
        for j, candidate in enumerate(choice.candidates):
            row[j] = not candidate.changes
    return [
        tuple(torch.multinomial(p, 1, generator=generator)[:, 0].tolist()) for _ in range(RANDOM)
    ]


def _name(index: int) -> str:
    return f"whole network {index}"
