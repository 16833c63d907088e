"""What the networks of a supernet cost on a device, and the limits in those costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from proxylessnas.config import parse_latency
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import LimitError
from proxylessnas.hardware.cost import Cost, latency_cost, macs_cost, parameters_cost
from proxylessnas.hardware.cost import peak_memory as peak_memory_of
from proxylessnas.hardware.count import peak_memory as peak_of_module
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace
from proxylessnas.hardware.trace import trace as trace_of

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a network may cost; None is no limit.

    latency: `12ms`, `800us`, or `0.6x` of the space's largest network. macs, parameters:
    counts, of one example. peak_memory: MiB of activations, of any one candidate.
    """

    latency: str | None = None
    macs: float | None = None
    parameters: float | None = None
    peak_memory: float | None = None


@dataclass
class Pricing:
    """The costs of a supernet's candidates, each found once when first asked for.

    example_inputs: what the model is called with; their batch is what is measured.
    published: given where it comes from a published table instead of a measured one.
    """

    supernet: Supernet
    example_inputs: tuple[Any, ...]
    table: LatencyTable | None = None
    published: Cost | None = None

    @cached_property
    def trace(self) -> Trace:
        return trace_of(self.supernet, self.example_inputs)

    @cached_property
    def latency(self) -> Cost | None:
        """None where nothing was measured."""
        if self.published is not None:
            return self.published
        return None if self.table is None else latency_cost(self.supernet, self.trace, self.table)

    @property
    def batch(self) -> int:
        first = next((x for x in self.example_inputs if isinstance(x, Tensor) and x.dim()), None)
        return 1 if first is None else len(first)

    @cached_property
    def macs(self) -> Cost:
        """MACs of one example."""
        cost = macs_cost(self.supernet, self.trace)
        return replace(
            cost, per_candidate=cost.per_candidate / self.batch, fixed=cost.fixed / self.batch
        )

    @cached_property
    def parameters(self) -> Cost:
        return parameters_cost(self.supernet, self.trace)

    @cached_property
    def largest(self) -> tuple[int, ...]:
        """The network with the most MACs, the first among equals."""
        return self.macs.extremes(self.supernet.mask)[1]

    @property
    def largest_ms(self) -> float:
        """The largest network's latency: measured where the table has it, else predicted."""
        assert self.latency is not None
        if self.table is not None:
            choices = dict(self.supernet.architecture(self.largest).choices)
            for network in self.table.networks:
                # The same choices at another input size are another network.
                if network.space == self.latency.space and dict(network.choices) == choices:
                    return network.measurement.median_ms
        return self.latency.of(self.largest)

    def milliseconds(self, limit: str) -> float:
        """A latency limit as the user wrote it, in milliseconds."""
        value, relative = parse_latency(limit)
        return value * self.largest_ms if relative else value

    def forbid_over(self, peak_memory: float | None) -> None:
        """Take candidates out that need more than so many MiB at their peak.

        Peak memory is a maximum over the network, not a sum: a network keeps the limit where
        each of its candidates does, and what lies between them.

        Raises:
            LimitError: no network does.
        """
        if peak_memory is None:
            return
        supernet = self.supernet
        peaks = peak_memory_of(supernet, self.trace)
        supernet.forbid(
            peaks > peak_memory * MIB, f"all need more than {peak_memory:g} MiB at their peak"
        )
        smallest = peaks.masked_fill(~supernet.mask, torch.inf).argmin(1).tolist()
        needed = peak_of_module(supernet.derive(smallest), self.trace.inputs) / MIB
        if needed > peak_memory:
            raise LimitError(
                f"no network keeps {peak_memory:g} MiB at its peak: the layers that all share need "
                f"{needed:.4g} MiB"
            )

    def costs(self, limits: Limits) -> Costs:
        """All costs, limited or not.

        Raises:
            LimitError: a limit is under what any network of the space costs.
        """
        costs = [self.macs, self.parameters]
        bounds = [limits.macs, limits.parameters]
        if self.latency is not None:
            costs.insert(0, self.latency)
            bounds.insert(0, None if limits.latency is None else self.milliseconds(limits.latency))
        joined = Costs(
            names=tuple(cost.name for cost in costs),
            units=tuple(cost.unit for cost in costs),
            per_candidate=torch.stack([cost.per_candidate for cost in costs]),
            fixed=torch.tensor([cost.fixed for cost in costs], dtype=torch.float64),
            limits=torch.tensor(
                [math.inf if bound is None else bound for bound in bounds], dtype=torch.float64
            ),
        )
        joined.check_reachable(self.supernet.mask)
        return joined
