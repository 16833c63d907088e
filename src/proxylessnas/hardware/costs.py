"""From a supernet and the trace of its forward pass to its costs.

cost(network) = fixed + Σ over choices of cost(chosen candidate). MACs and parameters are exactly
such a sum. For the latency the sum is a model (paper, section 3.3 and appendix B), corrected to
whole networks, see `fit.py`. A column of the latency table (energy, say) or a function of a
module is a sum because it is said to be; a function is checked on whole networks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, MeasurementError, foreign
from proxylessnas.hardware import fit as calibrate
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace, Unit
from proxylessnas.limits import UNITS
from proxylessnas.training.task import batch_size

LARGEST = 1e30  # of a user's costs, whose sums must be numbers too
NOT_A_SUM = 0.01  # how far, as a share of it, a network's value may be from the sum unsaid

# A cost of a user's own: a candidate (or a whole network) in eval mode and its inputs to a number.
CostFunction = Callable[[nn.Module, tuple[Any, ...]], float]


def all_costs(
    supernet: Supernet,
    trace: Trace,
    *,
    table: LatencyTable | None = None,
    published: Costs | None = None,
    counted: Costs | None = None,
) -> Costs:
    """Every cost there is, side by side: latency first, then what is counted, then columns.

    table: measured latencies; `published` takes their place, see `published_table`.
    counted: see `counted_costs`; without a user's functions where it is left out.

    Raises:
        ConfigError: a name is no identifier, or taken. MissingEntry, MeasurementError: see
            `latency_costs` and `column_costs`.
    """
    columns = table.columns if table is not None else {}
    counted = counted_costs(supernet, trace) if counted is None else counted
    check_names([*columns, *(name for name in counted.names if name not in UNITS)])
    parts = []
    if published is not None:
        parts.append(published)
    elif table is not None:
        parts.append(latency_costs(supernet, trace, table))
    parts.append(counted)
    if table is not None:
        parts += [column_costs(supernet, trace, table, name) for name in columns]
    return Costs.join(*parts)


def counted_costs(
    supernet: Supernet, trace: Trace, functions: Mapping[str, CostFunction] | None = None
) -> Costs:
    """What needs no measurement: MACs and parameters, then a user's functions by their names.

    Raises:
        ConfigError: see `check_names` and `function_costs`.
    """
    functions = functions or {}
    check_names(list(functions))
    own = [function_costs(supernet, trace, name, f) for name, f in functions.items()]
    return Costs.join(count_costs(supernet, trace), *own)


def check_names(names: Sequence[str]) -> None:
    """Names of a user's own costs.

    Raises:
        ConfigError: one is no identifier, or stands for two costs.
    """
    for i, name in enumerate(names):
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*", name):
            raise ConfigError(f"a cost is named {name!r}: letters, digits and _ make a name")
        if name in UNITS or name in names[:i]:
            raise ConfigError(f"there is a cost {name!r} already: give yours another name")


# --- exact counts ---


def count_costs(supernet: Supernet, trace: Trace) -> Costs:
    """MACs of one example, and parameters.

    A choice counts the MACs of every call at all its positions, and the parameters of all its
    positions, shared ones once.
    """
    batch, network = batch_size(*trace.inputs), supernet.derive(_reference(supernet)).eval()
    macs = over_calls(
        supernet, trace, lambda unit: count_macs(unit.module, unit.inputs, unit.kwargs) / batch
    )
    parameters = torch.zeros_like(macs)
    for m, positions in enumerate(supernet.positions):
        for j, name in enumerate(supernet.candidates[m]):
            # In one list, parameters that two positions share count once, as in the network.
            modules = nn.ModuleList(mixed.candidates[name] for mixed in positions)
            parameters[m, j] = count_parameters(modules)
    space = space_id(supernet, trace)
    return Costs.join(
        _of_whole("macs", macs, count_macs(network, trace.inputs) / batch, space),
        _of_whole("parameters", parameters, count_parameters(network), space),
    )


def _reference(supernet: Supernet) -> tuple[int, ...]:
    """A network to tell the fixed part by: whichever it is, as long as the cost is a sum."""
    return (0,) * len(supernet.names)


def _of_whole(name: str, per_candidate: Tensor, whole: float, space: str) -> Costs:
    """A sum whose fixed part is the cost of the whole reference network less its candidates'."""
    fixed = whole - math.fsum(per_candidate[:, 0].tolist())
    return Costs.one(name, per_candidate, fixed=fixed, space=space)


def over_calls(
    supernet: Supernet,
    trace: Trace,
    cost_of: Callable[[Unit], float],
    total: Callable[[Iterable[float]], float] = math.fsum,
) -> Tensor:
    """[choices, candidates]: the total of every candidate's calls, each unit asked once."""
    of_unit = {key: cost_of(unit) for key, unit in trace.units.items()}
    per_candidate = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, candidates in enumerate(trace.keys):
        for j, keys in enumerate(candidates):
            per_candidate[m, j] = total(of_unit[key] for key in keys)
    return per_candidate


def space_id(supernet: Supernet, trace: Trace) -> str:
    """Which choices lead to which networks at which input: 12 hex digits.

    Networks measured in one space say nothing about another that has the same names.
    """
    fixed = fingerprint(supernet.derive(_reference(supernet)))
    text = json.dumps([supernet.names, supernet.candidates, trace.keys, fixed])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def indices_of(supernet: Supernet, choices: Mapping[str, str]) -> tuple[int, ...]:
    """The candidate indices of a table's network, without those that the runtime does not run."""
    # Else the cost of a branch that leads nowhere would be in the sum, and not in the measurement.
    return supernet.as_it_runs(
        supernet.indices(Architecture(space=supernet.space, choices=choices))
    )


# --- costs of a latency table ---


def latency_costs(supernet: Supernet, trace: Trace, table: LatencyTable) -> Costs:
    """Every candidate's latency, corrected to the table's whole networks of this space.

    The correction (`fit.fit`) is folded in: cost = a·block + d, fixed = b.
    Where there can be none: the raw sum and the mean rest, with a warning.

    Raises:
        MissingEntry: the table lacks a candidate.
        MeasurementError: it has no whole network of this space.
    """
    blocks = over_calls(supernet, trace, lambda unit: table[unit.key].median_ms)
    space = space_id(supernet, trace)
    networks = table.of_role("fit", "canary", space=space)
    if not networks:
        raise MeasurementError(
            "the latency table has no whole network of this space and input, which the cost model "
            f"is fitted to; it was measured at {table.device.get('input_shapes', 'another input')} "
            "(batch, channels, height, width): measure it again with this space and input"
        )
    counts = over_calls(supernet, trace, lambda unit: 1.0)
    sums = Costs.join(Costs.one("sum of blocks", blocks), Costs.one("blocks", counts))
    fitted = [sums.of(indices_of(supernet, n.choices)) for n in networks]
    fit = calibrate.fit(
        np.array([n.measurement.median_ms for n in networks]),
        *np.array(fitted).T,
        smallest=min((table[key].median_ms for key in trace.units), default=np.inf),
    )
    if fit.fallback:
        warnings.warn(
            f"the cost model is the raw sum of blocks, because {fit.fallback}", stacklevel=2
        )
    latency = fit.a * blocks + fit.d * counts
    return Costs.one("latency", latency, fixed=fit.b, unit="ms", space=space, fit=fit)


def column_costs(supernet: Supernet, trace: Trace, table: LatencyTable, name: str) -> Costs:
    """A further column of the table: a value of every candidate, and of whole networks.

    The fixed part is what networks of this space have besides their candidates, in the mean.
    Where the column has no network of this space: 0, with a warning.

    Raises:
        MissingEntry: the column lacks a candidate; it is named, with the nearest ones.
    """
    column, space = table.columns[name], space_id(supernet, trace)
    per_candidate = over_calls(supernet, trace, lambda unit: table.value(name, unit.key))
    cost = Costs.one(name, per_candidate, unit=column.unit, space=space)
    rests = [
        n.value - cost.cost_of(name, indices_of(supernet, n.choices))
        for n in column.networks
        if n.space == space
    ]
    if rests:
        return replace(cost, fixed=cost.fixed + float(np.mean(rests)))
    warnings.warn(
        f"the latency table has no {name} of a whole network of this space: what the layers "
        "that all networks share add to it is not known, and counts 0",
        stacklevel=2,
    )
    return cost


# --- functions of a user ---


def function_costs(supernet: Supernet, trace: Trace, name: str, function: CostFunction) -> Costs:
    """A user's cost: `function(module, inputs)` to a number, of every distinct candidate.

    module: a candidate in eval mode, with its shortcut where it has one; it counts at each of its
    calls. Identity and Zero are 0. The fixed part is the function of a whole derived network
    minus its candidates, as for MACs, and a second network shows whether the cost is a sum.

    Raises:
        ConfigError: the function fails, or returns no finite number.
    """
    per_candidate = over_calls(
        supernet,
        trace,
        lambda unit: _value(name, function, f"the candidate {unit.label!r}", *unit.plain()),
    )

    def whole(indices: Sequence[int]) -> float:
        network = supernet.derive(indices).eval()
        return _value(name, function, "a whole network", network, trace.inputs)

    reference = _reference(supernet)
    cost = _of_whole(name, per_candidate, whole(reference), space_id(supernet, trace))
    least, most = cost.extremes(name, supernet.mask)
    other = most if most != reference else least
    said, summed = whole(other), cost.of(other)[0]
    if abs(said - summed) > NOT_A_SUM * max(abs(said), abs(summed)):
        warnings.warn(
            f"the cost {name} is not a sum over candidates: of one network the function says "
            f"{said:.4g}, and the sum {summed:.4g}; limits are kept in the sum",
            stacklevel=2,
        )
    return cost


def _value(
    name: str, function: CostFunction, subject: str, module: nn.Module, inputs: tuple[Any, ...]
) -> float:
    failure = f"the cost {name} fails on {subject}"
    with foreign(ConfigError, failure, kind=True), torch.no_grad():
        value = function(module, inputs)
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"the cost {name} of {subject} is {number!r}, not a finite number")
    if abs(number) >= LARGEST:
        raise ConfigError(f"the cost {name} of {subject} is {number:g}: not under {LARGEST:g}")
    return float(number)
