"""One cost for every candidate, and what follows for a whole network.

cost(network) = fixed + Σ over mixed operations of cost(chosen candidate), and in the
search E[cost] = fixed + Σ p·cost, differentiable in p (paper, section 3.3). Parameters and
MACs are additive exactly. For the latency it is a model: blocks measured alone are biased,
so that it is corrected to whole networks (facts.md, section 7):

    latency = a·Σ block + b + c·Σ weights,    a > 0, c ≥ 0

c is what a block measured alone does not show: again and again the only one to run, it finds
its weights in the cache, and within a network they come from memory.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn

from ..architecture import Architecture
from ..errors import MeasurementError
from ..supernet import Supernet
from .count import count_macs, count_parameters
from .count import peak_memory as peak_memory_of
from .fingerprint import fingerprint
from .table import LatencyTable
from .trace import Trace, Unit


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How sums of blocks were corrected to whole networks: a·Σ block + b + c·Σ weights.

    a: no unit. b: ms. c: ms a megabyte of weights. networks: how many it was fitted to.
    residual_pct: mean absolute error on these.
    fallback: why the raw sum is used instead; empty where the fit is used.
    """

    a: float
    b: float
    c: float
    networks: int
    residual_pct: float
    fallback: str = ""


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
        chosen = self.per_candidate[torch.arange(len(indices)), torch.tensor(list(indices))]
        return float(chosen.sum()) + self.fixed

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
    reference = [0] * len(supernet.mixed)
    whole = count_macs(supernet.derive(reference).eval(), trace.inputs)
    return _counted("macs", supernet, trace, per_candidate, reference, whole)


def parameters_cost(supernet: Supernet, trace: Trace) -> Cost:
    """Parameters; a shared mixed operation counts once."""
    per_candidate = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, mixed in enumerate(supernet.mixed):
        for j, candidate in enumerate(mixed.candidates.values()):
            per_candidate[m, j] = count_parameters(candidate)
    reference = [0] * len(supernet.mixed)
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
    chosen = per_candidate[torch.arange(len(reference)), torch.tensor(list(reference))]
    return Cost(
        name=name,
        unit="",
        per_candidate=per_candidate,
        fixed=float(whole - chosen.sum()),
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
    fixed = fingerprint(supernet.derive([0] * len(supernet.mixed)))
    text = json.dumps([supernet.names, supernet.candidates, trace.keys, fixed])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# --- latency ---


def latency_cost(supernet: Supernet, trace: Trace, table: LatencyTable) -> Cost:
    """Every candidate's latency, corrected to the table's whole networks of this space.

    The correction is folded in: cost = a·block + c·weights, fixed = b. Where a is not
    positive or the networks hardly differ: the raw sum and the mean rest, with a warning.

    Raises:
        MissingEntry: the table lacks a candidate.
        MeasurementError: it has no whole network of this space.
    """
    blocks = _per_candidate(supernet, trace, lambda unit: table[unit.key].median_ms)
    megabytes = _per_candidate(supernet, trace, lambda unit: _weight_bytes(unit.module) / 1e6)
    space = space_id(supernet, trace)
    networks = table.of_role("fit", "canary", space=space)
    if not networks:
        raise MeasurementError(
            "the latency table has no whole network of this space and input size, which the "
            "cost model is fitted to: measure it again with this space"
        )
    raw = Cost(name="latency", unit="ms", per_candidate=blocks, fixed=0.0, space=space)
    weights = replace(raw, per_candidate=megabytes)
    chosen = [indices_of(supernet, n.choices) for n in networks]
    fit = fit_networks(
        np.array([n.measurement.median_ms for n in networks]),
        np.array([raw.of(indices) for indices in chosen]),
        np.array([weights.of(indices) for indices in chosen]),
    )
    if fit.fallback:
        warnings.warn(
            f"the cost model is the raw sum of blocks, because {fit.fallback}", stacklevel=2
        )
    return replace(raw, per_candidate=blocks * fit.a + megabytes * fit.c, fixed=fit.b, fit=fit)


def fit_networks(
    measured: np.ndarray, sums: np.ndarray, megabytes: np.ndarray | None = None
) -> Fit:
    """measured ≈ a·sums + b + c·megabytes by least squares of relative errors, a, c ≥ 0.

    measured: [networks] ms. sums: of their blocks alone. megabytes: of their weights; they
    stay out unless they predict left-out networks better, as they do not where noise rules.
    """
    ones = np.ones_like(sums)
    rest = float((measured - sums).mean())
    fallback, solution = "", np.array([1.0, rest, 0.0])
    if len(sums) < 3:
        fallback = f"only {len(sums)} whole networks were measured"
    elif np.ptp(sums) < 0.02 * measured.mean():
        fallback = "the networks it is fitted to cost almost the same"
    else:
        line = np.stack([sums, ones], axis=1) / measured[:, None]
        solution = np.append(_solve(line), 0.0)
        if megabytes is not None and len(sums) >= 6:
            full = np.column_stack([line, megabytes / measured])
            if _left_out_error(full) < _left_out_error(line):
                solution = _solve(full)
        if solution[0] < 1e-6:
            fallback = f"the fit's slope is {solution[0]:.3g}, not positive"
            solution = np.array([1.0, rest, 0.0])
    a, b, c = (float(v) for v in solution)
    weights = np.zeros_like(sums) if megabytes is None else megabytes
    errors = np.abs((a * sums + b + c * weights) / measured - 1)
    return Fit(
        a=a,
        b=b,
        c=c,
        networks=len(sums),
        residual_pct=100 * float(errors.mean()),
        fallback=fallback,
    )


def _solve(design: np.ndarray) -> np.ndarray:
    """The coefficients for which every row is nearest to 1; b alone may be negative."""
    columns = design.shape[1]
    bounds = ([0.0, -np.inf, 0.0][:columns], [np.inf] * columns)
    solution: np.ndarray = lsq_linear(design, np.ones(len(design)), bounds, method="bvls").x
    return solution


def _left_out_error(design: np.ndarray) -> float:
    """The mean relative error on each network of a fit to all the others."""
    left_out = [abs(row @ _solve(np.delete(design, i, axis=0)) - 1) for i, row in enumerate(design)]
    return float(np.mean(left_out))


def _weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def indices_of(supernet: Supernet, choices: Mapping[str, str]) -> tuple[int, ...]:
    """The candidate indices of a table's network."""
    return supernet.indices(Architecture(space=supernet.space, choices=choices))
