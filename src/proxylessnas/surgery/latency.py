"""What is measured of networks around a model: their layers alone, and a few whole networks.

Every layer is measured alone at widths that are the same at both ends, and with every level of
changes; whole networks are those, uniform ones and random ones. `cost_model.py` makes of this what
every network takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.decode import Indices
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.whole_networks import measure_networks
from proxylessnas.pretrained.candidates import SHARES
from proxylessnas.seeds import derive_seed
from proxylessnas.surgery.candidates import LEFT_OUT, LOW_RANK, NARROWER, SMALLER
from proxylessnas.surgery.proof import outputs
from proxylessnas.surgery.space import Space

# In random networks the share of the blocks that are left out, in turns, and of the choices whose
# layers are changed, or are of another width than most.
LEAVING_OUT, CHANGING, WIDTHS = (0.0, 0.25, 0.5), 0.25, 0.25
NOTHING = (
    "nothing"  # what a run takes besides its layers: these have no run of their own in a network
)
LEAST_INSIDE = 0.1  # of what a layer takes alone
# Of one network's visits: where an inference takes long, its noise is a small share of it.
PATIENCE_S, LEAST_ROUNDS = 4.0, 5

Progress = Callable[[int, int], None]
# Path -> (key, (layer, its input)) of every call.
Layers = dict[str, list[tuple[str, tuple[nn.Module, Tensor]]]]
Row = float | str  # of layers that are measured alone: all at one share, or changed at one level


@dataclass(frozen=True, kw_only=True, eq=False)
class Latencies:
    """What was measured. uniform: ms of the layers alone, by their paths, at every share of the
    channels; changed: the same at every level of changes, all channels there.

    reads, weights: as uniform, how many numbers the layers read, and hold. whole: networks, and ms
    of each. model_ms: of the model; least_ms: of the fastest network.
    """

    uniform: Mapping[float, Mapping[str, float]]
    changed: Mapping[str, Mapping[str, float]]
    reads: Mapping[float, Mapping[str, float]]
    weights: Mapping[float, Mapping[str, float]]
    whole: Sequence[tuple[Indices, float]]
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
        lists = {name: list(getattr(self, name).items()) for name in _BY_SHARE}
        return {**asdict(self), **lists}

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Latencies:
        by_share = {name: dict(facts[name]) for name in _BY_SHARE}
        whole = [(tuple(indices), ms) for indices, ms in facts["whole"]]
        return Latencies(**{**facts, **by_share, "whole": whole})


_BY_SHARE = ("uniform", "reads", "weights")  # JSON has no numbers as keys


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
    networks = list(dict.fromkeys([*uniform.values(), *_random(space, seed), space.smallest]))
    # Layers that are built alike and read inputs of one shape take the same time.
    alone = {key: one for row in layers.values() for calls in row.values() for key, one in calls}
    alone[NOTHING] = nn.ReLU(), torch.zeros(1, 8)
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
    start = report[NOTHING].raw_ms

    def inside(key: str) -> float:
        ms = report[key].raw_ms
        return max(ms - start, LEAST_INSIDE * ms)

    ms = {
        row: {path: sum(inside(key) for key, _ in calls) for path, calls in of.items()}
        for row, of in layers.items()
    }
    by_share = {row: of for row, of in layers.items() if isinstance(row, float)}
    measured = [report[_name(i)].raw_ms for i in range(len(networks))]
    return Latencies(
        uniform={row: of for row, of in ms.items() if isinstance(row, float)},
        changed={row: of for row, of in ms.items() if isinstance(row, str)},
        reads={row: _numbers(of, lambda _, x: x.numel()) for row, of in by_share.items()},
        weights={row: _numbers(of, _weights) for row, of in by_share.items()},
        whole=list(zip(networks, measured, strict=True)),
        model_ms=measured[networks.index(space.own)],
        least_ms=min(measured),
    )


def _numbers(layers: Layers, count: Callable[[nn.Module, Tensor], int]) -> dict[str, float]:
    """Of every layer, over its calls."""
    return {path: float(sum(count(*one) for _, one in calls)) for path, calls in layers.items()}


def _weights(layer: nn.Module, x: Tensor) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def layers_of(space: Space, indices: Indices, inputs: tuple[Any, ...]) -> Layers:
    """The layers of all pairs in one network.

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


def _random(space: Space, seed: int) -> list[Indices]:
    """Networks of all sizes, with more and fewer blocks left out and layers changed."""
    rng = random.Random(derive_seed(seed, "networks to fit latencies to"))
    networks = []
    for share, leaving_out in zip(2 * SHARES, cycle(LEAVING_OUT), strict=False):
        network = list(space.nearest(share))
        for m, choice in enumerate(space.choices):
            (wanted,) = rng.choices(
                [(LEFT_OUT,), (SMALLER, LOW_RANK), (NARROWER,), ()],
                [leaving_out, CHANGING, WIDTHS, 1 - leaving_out - CHANGING - WIDTHS],
            )
            kinds = [j for j, c in enumerate(choice.candidates) if c.kind in wanted]
            network[m] = rng.choice(kinds or [network[m]])
        networks.append(tuple(network))
    return networks


def _name(index: int) -> str:
    return f"whole network {index}"
