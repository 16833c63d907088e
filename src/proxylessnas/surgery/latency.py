"""What networks around a model take: their layers alone, corrected by whole networks.

Latency is a sum over layers. A layer between two pairs is narrowed by both, and may be of low rank
besides: its latency is about the product of these shares, which no sum over choices is. So every
layer is measured alone at widths that are the same at both ends, each end carries the root of what
that saves, and each change of the layer its own factor. Whole networks, uniform and random, correct
the sum. Decoding wants a sum over choices: that is the first order around a network at hand, exact
for every network that differs from it in one choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from proxylessnas.surgery.candidates import Candidate, Choice
from proxylessnas.surgery.proof import outputs
from proxylessnas.surgery.space import Space

RANDOM = 4  # whole networks besides the uniform ones
# Of one network's visits: where an inference takes long, its noise is a small share of it.
PATIENCE_S, LEAST_ROUNDS = 4.0, 5

Progress = Callable[[int, int], None]
Row = float | str  # of layers that are measured alone: all at one share, or changed at one level


@dataclass(frozen=True, kw_only=True, eq=False)
class Latencies:
    """What was measured. uniform: ms of the layers alone, by their paths, at every share of the
    channels; changed: the same at every level of changes, all channels there.

    slope, fixed: of whole networks over the sum of their layers, and in ms. model_ms: of the model;
    least_ms: of the fastest network that was measured, whose sum may be far off.
    """

    uniform: Mapping[float, Mapping[str, float]]
    changed: Mapping[str, Mapping[str, float]]
    slope: float
    fixed: float
    model_ms: float
    least_ms: float

    @property
    def layers(self) -> Mapping[str, float]:
        """Of every layer of the model, alone."""
        return self.uniform[1.0]

    @property
    def shares(self) -> dict[str, float]:
        """Of the model's latency, of every layer."""
        return {path: ms / self.model_ms for path, ms in self.layers.items()}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "uniform": list(self.uniform.items())}

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Latencies:
        return Latencies(**{**facts, "uniform": dict(facts["uniform"])})


class CostModel:
    """The latency of every network of a space, and what candidates cost around one of them."""

    def __init__(self, space: Space, latencies: Latencies) -> None:
        self.space, self.slope, self.fixed = space, latencies.slope, latencies.fixed
        self.ends = _ends(space)
        self.own = np.array([latencies.layers.get(path, 0.0) for path in self.ends])
        # [choices, candidates, layers]: by what a candidate multiplies the latency of a layer.
        self.factors = np.ones((*space.mask.shape, len(self.ends)))
        lengths = [len(choice.candidates) for choice in space.choices]
        self.pads = np.array([[j >= n for j in range(max(lengths))] for n in lengths])
        self.carried = np.zeros((len(space.choices), len(self.ends)))
        for m, choice in enumerate(space.choices):
            inside = _inside(choice)
            self.carried[m] = [inside.count(path) / n for path, n in self.ends.items()]
            for j, candidate in enumerate(choice.candidates):
                self.factors[m, j] = self._factors(m, candidate, latencies)

    def _factors(self, m: int, candidate: Candidate, latencies: Latencies) -> NDArray[np.float64]:
        def ratios(row: Mapping[str, float]) -> NDArray[np.float64]:
            own = np.where(self.own > 0, self.own, 1.0)
            at = np.array([row.get(path, ms) for path, ms in zip(self.ends, own, strict=True)])
            return np.asarray(np.maximum(at, 0.0) / own)

        if candidate.changes:
            changed = [change.layer for change in candidate.changes]
            here = np.array([path in changed for path in self.ends])
            return np.where(here, ratios(latencies.changed[candidate.level]), 1.0)
        if candidate.share:
            return np.asarray(ratios(latencies.uniform[candidate.share]) ** self.carried[m])
        prefix = f"{self.space.names[m]}."
        inside = (self.carried[m] > 0) | [path.startswith(prefix) for path in self.ends]
        return np.where(inside, 0.0, 1.0)

    def of(self, indices: Indices) -> float:
        """ms of a network."""
        return self.slope * self.sum_of(indices) + self.fixed

    def sum_of(self, indices: Indices) -> float:
        """ms of its layers alone."""
        return float(self._layers(indices).sum())

    def around(self, indices: Indices) -> Costs:
        """What every candidate costs beside the others of this network, without a limit.

        The network's own candidates carry their layers' parts of it.
        """
        each, layers = self._each(indices), self._layers(indices)
        costs = np.zeros(self.space.mask.shape)
        for m, j in enumerate(indices):
            others = self.own * np.delete(each, m, axis=0).prod(axis=0)
            swapped = self.factors[m] @ others
            costs[m] = swapped - swapped[j] + self.carried[m] @ layers
        costs[self.pads] = 0.0
        per_candidate = torch.from_numpy(self.slope * costs)
        return Costs.one("latency", per_candidate, fixed=self.fixed, unit="ms")

    def _each(self, indices: Indices) -> NDArray[np.float64]:
        """By what each of a network's candidates multiplies its layers, [choices, layers]."""
        return np.asarray(self.factors[np.arange(len(indices)), indices])

    def _layers(self, indices: Indices) -> NDArray[np.float64]:
        return np.asarray(self.own * self._each(indices).prod(axis=0))


def _inside(choice: Choice) -> list[str]:
    """The layers that a choice narrows or changes, one that two of its pairs share twice."""
    paths = [path for pair in choice.pairs for path in pair.layers]
    return paths + [path for path in choice.wide if path not in paths]


def _ends(space: Space) -> dict[str, int]:
    """Of every layer that choices narrow, how often; once, where they only change it."""
    paths = [path for choice in space.choices for pair in choice.pairs for path in pair.layers]
    wide = {path: 1 for choice in space.choices for path in choice.wide}
    return wide | dict(Counter(paths))


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


def latencies_of(
    space: Space,
    inputs: tuple[Any, ...],
    runtime: Runtime,
    settings: MeasureSettings,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Latencies:
    """Measure the layers of the space's networks, and a few whole networks.

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
    measured = [report[_name(i)].raw_ms for i in range(len(networks))]
    own = networks.index(space.own)
    latencies = Latencies(
        uniform={row: of for row, of in ms.items() if isinstance(row, float)},
        changed={row: of for row, of in ms.items() if isinstance(row, str)},
        slope=1.0,
        fixed=0.0,
        model_ms=measured[own],
        least_ms=min(measured),
    )
    # Of the smallest network hardly a layer is left: it tells the range, and nothing of the layers.
    # Changes of layers that take longer than these are not to be chosen, nor to be fitted to.
    told = [
        k
        for k, n in enumerate(networks)
        if (n != smallest or n in uniform.values()) and measured[k] <= measured[own]
    ]
    sums = CostModel(space, latencies).sum_of
    slope, fixed = _line([sums(networks[k]) for k in told], [measured[k] for k in told])
    return replace(latencies, slope=slope, fixed=fixed)


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


def _line(sums: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Slope and fixed part, in ms, of whole networks over the sums of their layers."""
    line = fit(np.array(measured), np.array(sums))
    if line.b >= 0:
        return line.a, line.b
    # What all networks share takes time too: a negative rest is noise, and would promise that
    # limits near zero can be kept.
    return float(np.median([ms / s for ms, s in zip(measured, sums, strict=True) if s > 0])), 0.0


def _random(space: Space, seed: int) -> list[Indices]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "networks to fit latencies to"))
    p = space.mask.double()
    return [
        tuple(torch.multinomial(p, 1, generator=generator)[:, 0].tolist()) for _ in range(RANDOM)
    ]


def _name(index: int) -> str:
    return f"whole network {index}"
