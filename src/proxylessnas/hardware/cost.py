"""One cost for every candidate, and what follows for a whole network.

cost(network) = fixed + Σ over mixed operations of cost(chosen candidate), and in the
search E[cost] = fixed + Σ p·cost, differentiable in p (paper, section 3.3). Parameters and
MACs are additive exactly. For the latency it is a model, see `calibrate.py`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError
from proxylessnas.hardware import fit as calibrate
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.count import peak_memory as peak_memory_of
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.hardware.fit import Fit
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace, Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """A cost that is a sum over the mixed operations.

    name: latency, macs or parameters. unit: ms, or empty for counts.
    per_candidate: [mixed operations, candidates] float64, 0 at pads.
    fixed: the part that no choice changes. space: see `space_id`.
    """

    name: str
    unit: str
    per_candidate: Tensor
    fixed: float
    space: str = ""
    fit: Fit | None = None

    def expected(self, probabilities: Tensor) -> Tensor:
        """E[cost] under [mixed operations, candidates] probabilities: a scalar, differentiable."""
        per_candidate = self.per_candidate.to(probabilities)
        return (probabilities * per_candidate).sum() + self.fixed

    def of(self, indices: Sequence[int]) -> float:
        """The cost of the network with these candidates."""
        return _sum(self.per_candidate, indices) + self.fixed

    def range(self, mask: Tensor) -> tuple[float, float]:
        """The cheapest and the dearest network's cost; mask: True where there is a candidate."""
        least = self.per_candidate.masked_fill(~mask, torch.inf).amin(1).sum()
        most = self.per_candidate.masked_fill(~mask, -torch.inf).amax(1).sum()
        return float(least) + self.fixed, float(most) + self.fixed

    def extremes(self, mask: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The candidates of the cheapest and of the dearest network."""
        least = self.per_candidate.masked_fill(~mask, torch.inf).argmin(1)
        most = self.per_candidate.masked_fill(~mask, -torch.inf).argmax(1)
        return tuple(least.tolist()), tuple(most.tolist())

    def corrected(self, measured: float, predicted: float) -> Cost:
        """Every part scaled by measured / predicted of one network that was measured."""
        if not (measured > 0 and predicted > 0):
            raise MeasurementError(
                f"a cost cannot be corrected by {measured} measured for {predicted} predicted"
            )
        factor = measured / predicted
        return replace(self, per_candidate=self.per_candidate * factor, fixed=self.fixed * factor)


# --- additive costs ---


def macs_cost(supernet: Supernet, trace: Trace) -> Cost:
    """Multiply-adds of the example inputs' batch; a shared mixed operation counts each call."""
    count = {k: count_macs(u.module, u.inputs, u.kwargs) for k, u in trace.units.items()}
    per_candidate = _per_candidate(supernet, trace, lambda unit: float(count[unit.key]))
    reference = [0] * len(supernet.names)
    whole = count_macs(supernet.derive(reference).eval(), trace.inputs)
    return _counted("macs", supernet, trace, per_candidate, reference, whole)


def parameters_cost(supernet: Supernet, trace: Trace) -> Cost:
    """Parameters, at all positions; a mixed operation that is called twice counts once."""
    per_candidate = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, (names, positions) in enumerate(
        zip(supernet.candidates, supernet.positions, strict=True)
    ):
        for j, name in enumerate(names):
            # In one list, parameters that two positions share count once, as in the network.
            modules = nn.ModuleList(mixed.candidates[name] for mixed in positions)
            per_candidate[m, j] = count_parameters(modules)
    reference = [0] * len(supernet.names)
    whole = count_parameters(supernet.derive(reference))
    return _counted("parameters", supernet, trace, per_candidate, reference, whole)


def _counted(
    name: str,
    supernet: Supernet,
    trace: Trace,
    per_candidate: Tensor,
    reference: Sequence[int],
    whole: int,
) -> Cost:
    return Cost(
        name=name,
        unit="",
        per_candidate=per_candidate,
        fixed=whole - _sum(per_candidate, reference),
        space=space_id(supernet, trace),
    )


def peak_memory(supernet: Supernet, trace: Trace) -> Tensor:
    """Bytes, [mixed operations, candidates]: see `count.peak_memory`; the most of all calls."""
    peak = {k: peak_memory_of(u.module, u.inputs, u.kwargs) for k, u in trace.units.items()}
    memory = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, candidates in enumerate(trace.keys):
        for j, keys in enumerate(candidates):
            memory[m, j] = max((peak[key] for key in keys), default=0)
    return memory


def _per_candidate(supernet: Supernet, trace: Trace, cost_of: Callable[[Unit], float]) -> Tensor:
    per_candidate = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, candidates in enumerate(trace.keys):
        for j, keys in enumerate(candidates):
            per_candidate[m, j] = sum(cost_of(trace.units[key]) for key in keys)
    return per_candidate


def space_id(supernet: Supernet, trace: Trace) -> str:
    """Which choices lead to which networks at which input: 12 hex digits.

    Networks measured in one space say nothing about another that has the same names.
    """
    fixed = fingerprint(supernet.derive([0] * len(supernet.names)))
    text = json.dumps([supernet.names, supernet.candidates, trace.keys, fixed])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# --- latency ---


def latency_cost(supernet: Supernet, trace: Trace, table: LatencyTable) -> Cost:
    """Every candidate's latency, corrected to the table's whole networks of this space.

    The correction (`calibrate.fit`) is folded in: cost = a·block + d, fixed = b.
    Where it cannot be had: the raw sum and the mean rest, with a warning.

    Raises:
        MissingEntry: the table lacks a candidate.
        MeasurementError: it has no whole network of this space.
    """
    blocks = _per_candidate(supernet, trace, lambda unit: table[unit.key].median_ms)
    space = space_id(supernet, trace)
    networks = table.of_role("fit", "canary", space=space)
    if not networks:
        raise MeasurementError(
            "the latency table has no whole network of this space and input size, which the "
            "cost model is fitted to: measure it again with this space"
        )
    counts = _per_candidate(supernet, trace, lambda unit: 1.0)
    chosen = [indices_of(supernet, n.choices) for n in networks]
    fit = calibrate.fit(
        np.array([n.measurement.median_ms for n in networks]),
        np.array([_sum(blocks, indices) for indices in chosen]),
        np.array([_sum(counts, indices) for indices in chosen]),
        smallest=min((table[key].median_ms for key in trace.units), default=np.inf),
    )
    if fit.fallback:
        warnings.warn(
            f"the cost model is the raw sum of blocks, because {fit.fallback}", stacklevel=2
        )
    return Cost(
        name="latency",
        unit="ms",
        per_candidate=fit.a * blocks + fit.d * counts,
        fixed=fit.b,
        space=space,
        fit=fit,
    )


def _sum(per_candidate: Tensor, indices: Sequence[int]) -> float:
    return float(per_candidate[torch.arange(len(indices)), torch.tensor(list(indices))].sum())


def indices_of(supernet: Supernet, choices: Mapping[str, str]) -> tuple[int, ...]:
    """The candidate indices of a table's network."""
    return supernet.indices(Architecture(space=supernet.space, choices=choices))
