"""The protocol, and tables of the fake runtime: no clock, no device."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware import host as machine
from proxylessnas.hardware import rounds
from proxylessnas.hardware.costs import count_costs, latency_costs, space_id
from proxylessnas.hardware.host import Clocks
from proxylessnas.hardware.limiting import largest_costs, largest_network
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.plan import choose_networks
from proxylessnas.hardware.rounds import Rounds
from proxylessnas.hardware.runtimes.base import Session
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import Measurement, measure_sessions
from proxylessnas.hardware.trace import trace
from proxylessnas.hardware.whole_networks import canary_of, measure_networks
from proxylessnas.spaces import build_supernet

SETTINGS = MeasureSettings(rounds=3, network_rounds=5, networks=4, validation=3, runs=2)
INPUTS = (torch.zeros(1, 3, 16, 16),)


def small() -> Supernet:
    return build_supernet(
        "macro", {"widths": [8, 16], "depths": [2, 2], "input_shape": [3, 16, 16]}
    )


class Scripted(Session):
    """Says what it is told, and writes down who was called when."""

    def __init__(self, name: str, log: list[str], ms: float = 1.0) -> None:
        self.name, self.log, self.ms, self.closed = name, log, ms, False

    def __call__(self) -> None:
        self.log.append(f"{self.name} warm")

    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        return ()

    def timed(self, repeat: int) -> float:
        self.log.append(f"{self.name} x{repeat}")
        return repeat * self.ms / 1e3


def test_a_visit_is_warmups_and_runs_and_its_median() -> None:
    log: list[str] = []
    session = Scripted("a", log)
    assert statistics.median(rounds.visit(session, 3, runs=5, warmup=2)) == pytest.approx(1.0)
    assert log == ["a warm"] * 2 + ["a x3"] * 5


def test_fast_sessions_are_looped() -> None:
    assert rounds.loops_of(Scripted("slow", [], ms=5.0), 1) == 1
    assert rounds.loops_of(Scripted("fast", [], ms=0.01), 1) == 10
    assert rounds.loops_of(Scripted("nothing", [], ms=0.0), 1) == rounds.MOST_LOOPS


def test_every_round_visits_all_in_shuffled_order() -> None:
    orders = rounds.orders({"a": 4, "b": 4, "c": 2, "d": 1}, seed=0)
    assert len(orders) == 4
    assert all({"a", "b"} <= set(order) for order in orders)
    assert ["c" in order for order in orders] == [False, True, False, True]
    assert sum("d" in order for order in orders) == 1
    many = rounds.orders(dict.fromkeys("abcdefgh", 3), seed=1)
    assert len({tuple(order) for order in many}) == 3
    assert many == rounds.orders(dict.fromkeys("abcdefgh", 3), seed=1)
    assert many != rounds.orders(dict.fromkeys("abcdefgh", 3), seed=2)


VISIT = MeasureSettings(runs=1, warmup=0)


def test_sessions_are_measured_with_progress_and_the_canary_in_between() -> None:
    log: list[str] = []
    sessions = {name: Scripted(name, log, ms=i + 1.0) for i, name in enumerate("abcd")}
    seen: list[tuple[int, int]] = []
    measured = measure_sessions(
        sessions,
        dict.fromkeys(sessions, 8),
        MeasureSettings(runs=3, warmup=0),
        seed=0,
        canary="d",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i + 1, 32) for i in range(32)]
    assert [measured[n].median_ms for n in "abcd"] == pytest.approx([1, 2, 3, 4])
    assert all(len(m.samples_ms) == 8 for m in measured.values())
    assert log.count("d x1") > log.count("c x1")
    assert measured["a"].environment["canary_drift_pct"] == 0


def test_what_the_system_tells_of_its_clock_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([Clocks(mhz=3000.0, throttled=5), Clocks(mhz=2400.4, throttled=17)])
    monkeypatch.setattr(rounds, "read_clocks", lambda: next(told))
    measured = measure_sessions({"a": Scripted("a", [])}, {"a": 1}, VISIT, seed=0)
    environment = measured["a"].environment
    assert (environment["clock_mhz"], environment["throttled"]) == (2400, 12)
    monkeypatch.setattr(rounds, "read_clocks", Clocks)  # a system that tells nothing
    measured = measure_sessions({"a": Scripted("a", [])}, {"a": 1}, VISIT, seed=0)
    assert not {"clock_mhz", "throttled"} & set(measured["a"].environment)


def test_a_session_that_fails_is_one_line() -> None:
    class Fails(Scripted):
        def __call__(self) -> None:
            raise RuntimeError("device lost\nat line 7")

    with pytest.raises(MeasurementError, match="device lost at line 7"):
        measure_sessions({"a": Fails("a", [])}, {"a": 1}, VISIT, seed=0)


def test_what_is_known_is_not_measured_again() -> None:
    log: list[str] = []
    measured = measure_sessions(
        {"a": Scripted("a", log), "b": Scripted("b", log)},
        {"a": 2, "b": 2},
        VISIT,
        seed=0,
        earlier={"a": [7.0, 7.0], "b": [9.0]},
    )
    assert measured["a"].samples_ms == (7.0, 7.0)
    assert measured["b"].samples_ms == (9.0, 1.0)
    assert not [line for line in log if line.startswith("a")]


def test_what_was_measured_is_saved_every_few_seconds_and_at_the_end() -> None:
    clock = iter(range(0, 1000, 2))  # two seconds a look, and one look more at every save
    saved: list[int] = []
    measuring = Rounds(
        {"a": Scripted("a", [])}, {"a": 10}, runs=1, warmup=0, seed=0, clock=lambda: next(clock)
    )
    measuring.run(save=lambda: saved.append(len(measuring.samples_ms["a"])))
    assert saved == [3, 6, 9, 10]
    assert set(measuring.environment) >= {"date", "pinned_core", "other_load_cores"}


def test_spread_and_noise_are_robust() -> None:
    steady = Measurement(samples_ms=(10.0, 10.1, 9.9, 10.0, 50.0))
    assert steady.median_ms == 10.0
    assert steady.spread_pct == pytest.approx(1.4826, rel=1e-3)
    assert steady.noise_pct == pytest.approx(1.2533 * 1.4826 / 5**0.5, rel=1e-3)
    for bad in ((), (0.0,), (float("nan"),)):
        with pytest.raises(MeasurementError):
            Measurement(samples_ms=bad)


def test_the_machine_is_put_back() -> None:
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    tiny = torch.tensor([1e-40])
    measure_sessions({"a": Scripted("a", [])}, {"a": 1}, VISIT, seed=0)
    if before is not None:
        assert os.sched_getaffinity(0) == before
    assert (tiny * 1.0).item() != 0
    assert machine.cpu_model()
    assert machine.OtherLoad().so_far() >= 0


# --- tables ---


def test_a_table_has_every_candidate_and_networks_of_every_role(tmp_path: Path) -> None:
    supernet, path = small(), tmp_path / "table.json"
    table = measure_table(supernet, FakeRuntime(), INPUTS, SETTINGS, seed=0, path=path)
    found = trace(supernet, INPUTS)
    assert set(table.entries) == set(found.units)
    assert all(len(m.samples_ms) == 3 for m in table.entries.values())
    roles = [n.role for n in table.networks]
    assert (roles.count("fit"), roles.count("canary"), roles.count("validation")) == (3, 1, 3)
    assert all((n.repeat is not None) == (n.role == "validation") for n in table.networks)
    assert all(len(n.measurement.samples_ms) == 5 for n in table.networks)
    assert table.complete and table.device["batch"] == 1
    assert table.networks[0].measurement.environment["runtime"] == "fake"
    assert LatencyTable.load(path).to_json() == table.to_json()


def test_the_same_seed_measures_the_same() -> None:
    def noisy(seed: int) -> LatencyTable:
        torch.manual_seed(0)
        return measure_table(small(), FakeRuntime(noise=0.05), INPUTS, SETTINGS, seed=seed)

    def samples(table: LatencyTable) -> list[tuple[float, ...]]:
        return [m.samples_ms for m in table.entries.values()]

    assert samples(noisy(1)) == samples(noisy(1))
    assert [n.choices for n in noisy(1).networks] != [n.choices for n in noisy(2).networks]


def test_a_broken_measurement_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxylessnas.hardware.rounds.SAVE_EVERY_S", -1.0)
    supernet, path = small(), tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        measure_table(supernet, FakeRuntime(stops_after=120), INPUTS, SETTINGS, seed=0, path=path)
    partial = LatencyTable.load(path)
    assert not partial.complete
    with pytest.raises(MeasurementError, match="not complete"):
        partial.check(FakeRuntime().describe(), 1)
    done = sum(len(m.samples_ms) for m in partial.entries.values())
    assert done > 0
    steps: list[tuple[int, int]] = []
    runtime = FakeRuntime()
    table = measure_table(
        supernet, runtime, INPUTS, SETTINGS, seed=0, path=path, progress=lambda *p: steps.append(p)
    )
    assert table.complete
    # Sessions that are loaded and visits are counted apart: one takes seconds, the other none.
    (sessions, loaded), (visits, done_now) = [
        (total, [d for d, t in steps if t == total]) for total in dict.fromkeys(t for _, t in steps)
    ]
    assert loaded == list(range(1, sessions + 1)) and done_now[-1] == visits
    assert all(len(m.samples_ms) == 3 for m in table.entries.values())
    full = FakeRuntime()
    measure_table(small(), full, INPUTS, SETTINGS, seed=0)
    assert runtime.timed_runs < full.timed_runs
    again = FakeRuntime()
    assert measure_table(supernet, again, INPUTS, SETTINGS, seed=0, path=path) == table
    assert again.loaded == 0


def test_a_table_of_another_device_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    measure_table(small(), FakeRuntime(), INPUTS, SETTINGS, seed=0, path=path)
    with pytest.raises(MeasurementError, match="device 'fake device', not 'other'"):
        measure_table(small(), FakeRuntime(device="other"), INPUTS, SETTINGS, seed=0, path=path)


def test_samples_of_two_versions_of_a_runtime_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    measure_table(small(), FakeRuntime(), INPUTS, SETTINGS, seed=0, path=path)
    with pytest.raises(MeasurementError, match=r"version '1', not '2'.*--force"):
        measure_table(small(), FakeRuntime(version="2"), INPUTS, SETTINGS, seed=0, path=path)
    runtime = FakeRuntime(version="2")
    table = measure_table(small(), runtime, INPUTS, SETTINGS, seed=0, path=path, force=True)
    assert table.device["version"] == "2" and table.complete
    assert runtime.loaded > len(table.entries)


def test_two_spaces_share_a_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    one = measure_table(small(), FakeRuntime(), INPUTS, SETTINGS, seed=0, path=path)
    wide = build_supernet("macro", {"widths": [8, 24], "depths": [2, 2]})
    both = measure_table(wide, FakeRuntime(), INPUTS, SETTINGS, seed=0, path=path)
    assert set(one.entries) < set(both.entries)
    assert len(both.networks) == 2 * len(one.networks)


def test_a_candidate_that_cannot_run_is_named() -> None:
    with pytest.raises(MeasurementError, match=r"'e3_k3' of 'blocks.0' .MBConv k3 .* on fake"):
        measure_table(small(), FakeRuntime(fails="MBConv"), INPUTS, SETTINGS, seed=0)


def test_chosen_networks_span_the_space() -> None:
    supernet = small()
    counts = count_costs(supernet, trace(supernet, INPUTS))
    chosen = choose_networks(counts, supernet.mask, 20, seed=0)
    assert len(set(chosen)) == 20
    low, high = counts.range(supernet.mask)[0]
    costs = [counts.cost_of("macs", c) for c in chosen]
    assert (costs[0], costs[1]) == (low, high)
    thirds = np.histogram(costs, bins=3, range=(low, high))[0]
    assert thirds.min() >= 3
    assert len(choose_networks(counts, supernet.mask, 1000, seed=0)) <= 3**4


# --- networks, later ---


def test_drift_since_the_table_is_corrected() -> None:
    supernet = small()
    table = measure_table(supernet, FakeRuntime(), INPUTS, SETTINGS, seed=0)
    network = supernet.derive([1, 1, 1, 1])
    canary = canary_of(supernet, table, space_id(supernet, trace(supernet, INPUTS)))
    report = measure_networks(
        {"canary": network}, FakeRuntime(slowdown=1.25), INPUTS, SETTINGS, canary=canary, seed=0
    )
    then = FakeRuntime().load(network, INPUTS).timed(1) * 1e3
    assert report.drift == pytest.approx(1.25, rel=1e-4)
    assert report["canary"].raw_ms == pytest.approx(1.25 * then, rel=1e-4)
    assert report["canary"].corrected_ms == pytest.approx(then, rel=1e-4)
    assert report.canary is not None and set(report.networks) == {"canary"}


def test_two_input_sizes_in_one_table_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for size in (16, 64):
        supernet = build_supernet("macro", {"widths": [8], "depths": [3]})
        inputs = (torch.zeros(1, 3, size, size),)
        table = measure_table(supernet, FakeRuntime(), inputs, SETTINGS, seed=0, path=path)
        found = trace(supernet, inputs)
        costs = Costs.join(latency_costs(supernet, found, table), count_costs(supernet, found))
        canary = canary_of(supernet, table, costs.space)
        largest = supernet.derive(largest_network(supernet, costs)).eval()
        report = measure_networks(
            {"largest": largest}, FakeRuntime(), inputs, SETTINGS, canary=canary, seed=0
        )
        assert canary is not None and report.drift == pytest.approx(1.0, rel=1e-4)
        largest_ms = largest_costs(supernet, costs, table)["latency"]
        assert largest_ms == pytest.approx(report["largest"].raw_ms, rel=1e-4)
    assert len({n.space for n in table.networks}) == 2
    assert canary_of(supernet, table, "another") is None


def test_files_are_measured_beside_modules(tmp_path: Path) -> None:
    network = small().derive([1, 2, 1, 0]).eval()
    to_onnx(network, INPUTS, tmp_path / "net.onnx")
    modules: Mapping[str, nn.Module | Path] = {"eager": network, "file": tmp_path / "net.onnx"}
    report = measure_networks(modules, FakeRuntime(), INPUTS, SETTINGS, seed=0)
    assert report["file"].raw_ms == pytest.approx(report["eager"].raw_ms)
    assert (report.drift, report.canary) == (1.0, None)
    with pytest.raises(MeasurementError, match="the network 'gone'"):
        measure_networks({"gone": tmp_path / "x.onnx"}, FakeRuntime(), INPUTS, SETTINGS, seed=0)


def test_a_real_runtime_measures_a_table() -> None:
    from proxylessnas.hardware.runtimes import make

    settings = MeasureSettings(rounds=1, network_rounds=1, networks=3, runs=1, warmup=0)
    table = measure_table(small(), make("onnxruntime"), INPUTS, settings, seed=0)
    assert table.complete
    assert all(0 < m.median_ms < 1e4 for m in table.entries.values())
