"""A user's limits in the units of a supernet's costs, and peak memory, which is no sum."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import LimitError
from proxylessnas.hardware.costs import over_calls
from proxylessnas.hardware.count import peak_memory
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace
from proxylessnas.limits import Limit, check_limit_names, parse_limit

MIB = 1 << 20


def largest_network(supernet: Supernet, costs: Costs) -> tuple[int, ...]:
    """The network of the most MACs, the first among equals."""
    return costs.extremes("macs", supernet.mask)[1]


def largest_costs(
    supernet: Supernet, costs: Costs, table: LatencyTable | None = None
) -> dict[str, float]:
    """Every cost of the largest network; its latency as measured where the table has it."""
    largest = largest_network(supernet, costs)
    values = dict(zip(costs.names, costs.of(largest), strict=True))
    choices = dict(supernet.architecture(largest).choices)
    for network in table.networks if table is not None else ():
        # The same choices at another input size are another network.
        if network.space == costs.space and dict(network.choices) == choices:
            values["latency"] = network.measurement.median_ms
            break
    return values


def absolute_limits(
    limits: Mapping[str, Limit], costs: Costs, largest: Mapping[str, float]
) -> dict[str, float]:
    """Limits as a user wrote them, in the units of the costs; `peak_memory` is left out.

    largest: what `0.6x` is a share of, see `largest_costs`.

    Raises:
        ConfigError: a limit is not understood, or of no cost. LimitError: of a latency that was
            not measured, or a share of nothing.
    """
    check_limit_names(limits, costs.names)
    absolute = {}
    for name, limit in limits.items():
        if name == "peak_memory":
            continue  # no sum: see `forbid_over_peak_memory`
        if name not in costs:
            raise LimitError(
                f"the {name} was not measured: give a target latency, or a latency table"
            )
        value, relative = parse_limit(name, limit, costs.units[costs.index(name)])
        if relative and largest[name] <= 0:
            raise LimitError(
                f"the limit {limit} of {name} is a share of the largest network's, which is "
                f"{largest[name]:g}: give the limit as a number"
            )
        absolute[name] = value * largest[name] if relative else value
    return absolute


def forbid_over_peak_memory(supernet: Supernet, trace: Trace, mib: float) -> None:
    """Take candidates out that need more than so many MiB of activations at their peak.

    Peak memory is a maximum over the network, not a sum: a network keeps the limit where each of
    its candidates does, and what lies between them.

    Raises:
        LimitError: no network does.
    """
    peaks = peak_memory_of_candidates(supernet, trace)
    supernet.forbid(peaks > mib * MIB, f"all need more than {mib:g} MiB at their peak")
    smallest = peaks.masked_fill(~supernet.mask, torch.inf).argmin(1).tolist()
    needed = peak_memory(supernet.derive(smallest), trace.inputs) / MIB
    if needed > mib:
        raise LimitError(
            f"no network keeps {mib:g} MiB at its peak: the layers that all share need "
            f"{needed:.4g} MiB"
        )


def peak_memory_of_candidates(supernet: Supernet, trace: Trace) -> Tensor:
    """Bytes, [choices, candidates]: see `count.peak_memory`; the most of all calls."""
    return over_calls(
        supernet,
        trace,
        lambda unit: peak_memory(unit.module, unit.inputs, unit.kwargs),
        total=partial(max, default=0),
    )
