"""Costs: closed forms, exact counts, and the latency model on the fake device."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import LimitError, MeasurementError, MissingEntry
from proxylessnas.hardware.costs import (
    count_costs,
    indices_of,
    latency_costs,
    peak_memory_of_candidates,
    space_id,
)
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.timing import Measurement
from proxylessnas.hardware.trace import trace
from proxylessnas.hardware.validate import figures, validate
from proxylessnas.spaces import build_supernet

SETTINGS = MeasureSettings(rounds=1, network_rounds=1, networks=8, validation=6, runs=1, warmup=0)
INPUTS = (torch.zeros(1, 3, 32, 32),)


def macro(**changes: object) -> Supernet:
    return build_supernet("macro", {"widths": [8, 16], "depths": [2, 2], **changes})


def mobile() -> Supernet:
    return build_supernet(
        "mobile",
        {"input_shape": [3, 32, 32], "widths": [8, 16], "depths": [3, 3], "stem": 8, "first": 8},
    )


# --- closed forms ---

ROWS = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=4), min_size=1, max_size=4)


def padded(rows: list[list[float]]) -> tuple[Costs, Tensor]:
    widest = max(map(len, rows))
    values = torch.tensor([row + [0.0] * (widest - len(row)) for row in rows], dtype=torch.float64)
    mask = torch.tensor([[j < len(row) for j in range(widest)] for row in rows])
    return Costs.one("latency", values, fixed=1.5, unit="ms"), mask


@given(ROWS, st.integers(0, 2**32))
def test_the_expectation_is_the_mean_over_all_networks(rows: list[list[float]], seed: int) -> None:
    cost, mask = padded(rows)
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)).double()
    p = torch.softmax(logits.masked_fill(~mask, -torch.inf), 1).requires_grad_()
    expected = cost.expected(p)
    networks = list(itertools.product(*(range(len(row)) for row in rows)))
    q = p.detach()
    mean = sum(
        cost.of(n)[0] * float(torch.stack([q[m, j] for m, j in enumerate(n)]).prod())
        for n in networks
    )
    assert expected.item() == pytest.approx(mean, abs=1e-9)
    expected.backward()
    assert torch.equal(p.grad, cost.per_candidate[0])


@given(ROWS)
def test_range_and_extremes_are_those_of_all_networks(rows: list[list[float]]) -> None:
    cost, mask = padded(rows)
    every = [cost.of(n)[0] for n in itertools.product(*(range(len(row)) for row in rows))]
    assert cost.range(mask) == [pytest.approx((min(every), max(every)))]
    least, most = cost.extremes("latency", mask)
    assert (*cost.of(least), *cost.of(most)) == pytest.approx((min(every), max(every)))


@given(ROWS, st.floats(0.1, 10))
def test_a_correction_scales_every_network_in_one_cost_alone(
    rows: list[list[float]], factor: float
) -> None:
    latency, _ = padded(rows)
    other = Costs.one("macs", latency.per_candidate[0] + 1, fixed=7.0, limit=9.0)
    first, both = [0] * len(rows), Costs.join(latency, other)
    scaled = both.scaled("latency", factor)
    assert scaled.of(first) == pytest.approx([latency.of(first)[0] * factor, *other.of(first)])
    assert scaled.limits.tolist() == both.limits.tolist() == [math.inf, 9.0]


def test_a_correction_needs_a_positive_factor() -> None:
    cost, _ = padded([[1.0]])
    for factor in (0.0, math.inf, -1.0, math.nan):
        with pytest.raises(MeasurementError, match="cannot be corrected"):
            cost.scaled("latency", factor)


def test_costs_stand_side_by_side_and_take_limits_by_name() -> None:
    rows = [[1.0, 2.0], [3.0]]
    latency, _ = padded(rows)
    both = Costs.join(latency, Costs.one("energy", latency.per_candidate[0] * 10, unit="mJ"))
    assert (both.names, both.units) == (("latency", "energy"), ("ms", "mJ"))
    assert "energy" in both and "macs" not in both and both.index("energy") == 1
    assert both.of([1, 0]) == [6.5, 50.0]
    assert both.cost_of("energy", [1, 0]) == 50.0
    limited = both.limited({"energy": 50.0})
    assert (limited.limit("latency"), limited.limit("energy")) == (math.inf, 50.0)
    assert limited.limited({"latency": 6.0}).limits.tolist() == [6.0, math.inf]
    with pytest.raises(LimitError, match="no cost 'power' to limit; there are: latency, energy"):
        both.limited({"power": 1.0})


def test_the_expectation_takes_the_dtype_of_the_probabilities() -> None:
    cost, _ = padded([[1.0, 2.0]])
    assert cost.expected(torch.tensor([[0.5, 0.5]])).dtype == torch.float32


# --- exact counts ---


@pytest.mark.parametrize("make", [macro, mobile])
def test_counts_are_exactly_additive(make: object) -> None:
    assert callable(make)
    supernet = make()
    found = trace(supernet, INPUTS)
    costs = count_costs(supernet, found)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        indices = supernet.indices(supernet.sample(generator, uniform=True))
        network = supernet.derive(indices)
        assert costs.of(indices) == [count_macs(network, INPUTS), count_parameters(network)]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixed = MixedOp([nn.Linear(4, 4, bias=False), nn.Identity()])
        self.last = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.mixed(self.mixed(x)))
        return out


def test_a_shared_operation_counts_parameters_once_and_macs_each_call() -> None:
    supernet = Supernet(Shared())
    found = trace(supernet, (torch.zeros(1, 4),))
    costs = count_costs(supernet, found)
    assert (costs.of([0]), costs.of([1])) == ([40, 24], [8, 8])
    assert costs.fixed.tolist() == [8, 8]
    assert peak_memory_of_candidates(supernet, found).tolist() == [[4 * 8, 0]]


# --- latency ---


def test_latency_is_corrected_to_whole_networks() -> None:
    supernet = mobile()
    found = trace(supernet, INPUTS)
    table = measure_table(supernet, FakeRuntime(), INPUTS, SETTINGS, seed=0)
    cost = latency_costs(supernet, found, table)
    assert cost.fit is not None and not cost.fit.fallback and cost.fit.networks == 8
    report = validate(cost, supernet, table)
    assert report["mean_abs_error_pct"] < 1
    assert report["spearman"] > 0.99
    assert report["noise_floor_pct"] == 0
    assert report["mean_abs_error_pct"] < report["macs_only"]["mean_abs_error_pct"]
    assert report["networks"] == 6


def test_macs_alone_are_judged_the_same_on_a_slow_device() -> None:
    supernet = mobile()
    found = trace(supernet, INPUTS)
    table = measure_table(supernet, FakeRuntime(noise=0.02), INPUTS, SETTINGS, seed=0)

    def report(slower: float) -> dict[str, float]:
        def scaled(m: Measurement) -> Measurement:
            return replace(m, samples_ms=tuple(slower * s for s in m.samples_ms))

        other = replace(
            table,
            entries={k: scaled(m) for k, m in table.entries.items()},
            networks=tuple(
                replace(n, measurement=scaled(n.measurement), repeat=n.repeat and scaled(n.repeat))
                for n in table.networks
            ),
        )
        macs_only = validate(latency_costs(supernet, found, other), supernet, other)["macs_only"]
        assert isinstance(macs_only, dict)
        return macs_only

    assert report(1e4) == pytest.approx(report(1.0))
    assert report(1e-4) == pytest.approx(report(1.0))


def test_latency_of_the_canary_is_what_was_measured() -> None:
    supernet = macro()
    table = measure_table(supernet, FakeRuntime(noise=0.02), INPUTS, SETTINGS, seed=0)
    cost = latency_costs(supernet, trace(supernet, INPUTS), table)
    canary = table.canary(cost.space)
    assert canary is not None
    predicted = cost.cost_of("latency", indices_of(supernet, canary.choices))
    assert predicted == pytest.approx(canary.measurement.median_ms, rel=0.2)


def test_a_missing_candidate_and_a_foreign_space_are_errors() -> None:
    supernet = macro()
    found = trace(supernet, INPUTS)
    table = measure_table(supernet, FakeRuntime(), INPUTS, SETTINGS, seed=0)
    gone = next(iter(table.entries))
    with pytest.raises(MissingEntry, match="no entry"):
        latency_costs(
            supernet,
            found,
            replace(table, entries={k: v for k, v in table.entries.items() if k != gone}),
        )
    with pytest.raises(MeasurementError, match="no whole network of this space"):
        latency_costs(supernet, found, replace(table, networks=()))
    # The same names, but a wider head: another space.
    wide = macro(head=64)
    with pytest.raises(MeasurementError, match="no whole network of this space"):
        latency_costs(wide, trace(wide, INPUTS), table)
    assert space_id(supernet, found) != space_id(wide, trace(wide, INPUTS))
    assert space_id(supernet, found) == space_id(macro(), trace(macro(), INPUTS))


def test_a_useless_fit_falls_back_to_the_raw_sum() -> None:
    supernet = macro()
    found = trace(supernet, INPUTS)
    table = measure_table(supernet, FakeRuntime(), INPUTS, SETTINGS, seed=0)
    upside_down = replace(
        table,
        networks=tuple(
            replace(
                n,
                measurement=replace(n.measurement, samples_ms=(1 / n.measurement.median_ms,)),
            )
            for n in table.networks
        ),
    )
    with pytest.warns(UserWarning, match="raw sum of blocks"):
        cost = latency_costs(supernet, found, upside_down)
    assert cost.fit is not None and cost.fit.a == 1 and "slope" in cost.fit.fallback


def test_figures() -> None:
    assert figures([1.1, 2.0, 2.7], [1.0, 2.0, 3.0]) == pytest.approx(
        {
            "mean_abs_error_pct": 20 / 3,
            "bias_pct": 0,
            "worst_pct": 10,
            "spearman": 1,
            "kendall": 1,
        },
        abs=1e-9,
    )
    assert figures([1.0], [1.0])["spearman"] is None
    assert set(figures([], []).values()) == {None}
