"""Exact counts, the latency model on the fake device, and a user's own costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import MeasurementError, MissingEntry
from proxylessnas.hardware.costs import count_costs, indices_of, latency_costs, space_id
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.limiting import peak_memory_of_candidates
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
