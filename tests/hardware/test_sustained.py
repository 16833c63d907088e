"""Continuous inference, tails and intervals of latencies, and several batches in one table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from proxylessnas.cli.main import main
from proxylessnas.config import MachineSettings
from proxylessnas.hardware.host import Clocks, read_clocks
from proxylessnas.hardware.rounds import Rounds, TimedNetwork, quantile
from proxylessnas.hardware.sustained import sustain
from proxylessnas.hardware.timing import Measurement
from proxylessnas.hardware.whole_networks import NetworkResult
from proxylessnas.report.sustained import sustained_lines, sustained_table
from proxylessnas.runs.summary import widened
from proxylessnas.training.device import make_machine

FEW = ["--measure.network-rounds=4", "--measure.runs=6", "--runtime=fake", "--quiet"]


class Warming(TimedNetwork):
    """Slower the longer the device is at work; its inferences move the clock."""

    def __init__(self, device: Device, ms: float, per_second: float) -> None:
        self.device, self.ms, self.per_second = device, ms, per_second

    def timed(self, repeat: int) -> float:
        seconds = self.ms * (1 + self.per_second * self.device.now) / 1e3
        self.device.now += seconds
        return seconds


@dataclass
class Device:
    now: float = 0.0

    def clocks(self) -> Clocks:
        return Clocks(mhz=2000 - self.now, governor="schedutil", throttled=int(self.now // 100))


def test_a_network_that_slows_down_is_found_out() -> None:
    device = Device()
    networks = {"cool": Warming(device, 12.0, 0.0), "hot": Warming(device, 10.0, 0.001)}
    measured = sustain(networks, 600, clock=lambda: device.now, clocks=device.clocks)
    assert [round(step.seconds) for step in measured.steps] == [60 * i for i in range(1, 11)]
    assert measured.drift_pct("cool") == pytest.approx(0)
    # The median of a minute is that of its middle: 30 s and 570 s.
    assert measured.drift_pct("hot") == pytest.approx(100 * (1.57 / 1.03 - 1), abs=0.5)
    first = measured.steps[0]
    assert first.median_ms["hot"] == pytest.approx(10.3, rel=0.01)
    assert first.p95_ms["hot"] == pytest.approx(10.57, rel=0.01)
    assert measured.ranking(0) == ["hot", "cool"] and measured.ranking(-1) == ["cool", "hot"]
    assert measured.throttled == 6
    lines = "\n".join(sustained_lines(measured))
    for words in ("warning: hot: +5", "ranking changed from hot, cool to cool, hot", "6 events"):
        assert words in lines
    assert "warning: cool" not in lines and "schedutil" in lines
    assert sustained_table(measured).row_count == 10


def test_what_the_system_does_not_tell_is_said(tmp_path: Path) -> None:
    assert read_clocks(tmp_path) == Clocks()
    device = Device()
    measured = sustain({"a": Warming(device, 1.0, 0.0)}, 8, clock=lambda: device.now, clocks=Clocks)
    assert len(measured.steps) == 4
    lines = "\n".join(sustained_lines(measured))
    assert lines.count("the system does not tell") == 2 and "ranking" not in lines


def test_clocks_are_linux_files(tmp_path: Path) -> None:
    for core, khz, events in ((0, 1_000_000, 3), (1, 2_000_000, 4)):
        for name, text in (
            ("cpufreq/scaling_cur_freq", khz),
            ("cpufreq/scaling_governor", "performance"),
            ("thermal_throttle/core_throttle_count", events),
        ):
            path = tmp_path / f"cpu{core}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    assert read_clocks(tmp_path) == Clocks(mhz=1500.0, governor="performance", throttled=7)


# --- tails ---


def test_tails_are_of_single_inferences() -> None:
    values = [float(i) for i in range(1, 101)]
    assert (quantile(values, 0.95), quantile(values, 0.99), quantile([3.0], 0.95)) == (95, 99, 3)
    measured = Measurement(samples_ms=(50.0,), runs_ms=tuple(reversed(values)))
    assert measured.tail_ms(0.95) == 95 and measured.tail_ms(0.99) == 99
    few = Measurement(samples_ms=(50.0,), runs_ms=tuple(values[:20]))
    assert few.tail_ms(0.95) == 19 and few.tail_ms(0.99) is None
    assert few.tail_words == "p95 19.000"


def test_networks_that_are_timed_in_groups_have_no_tail() -> None:
    device = Device()
    networks = {"fast": Warming(device, 0.01, 0.0), "slow": Warming(device, 2.0, 0.0)}
    for network in networks.values():
        network.__class__.__call__ = lambda self: None  # type: ignore[method-assign]
    rounds = Rounds(networks, {"fast": 2, "slow": 2}, runs=3, warmup=0, seed=0)
    rounds.run()
    assert list(rounds.runs_ms) == ["slow"] and len(rounds.runs_ms["slow"]) == 6


def test_raw_and_corrected_have_one_interval() -> None:
    """A user saw 2.90 ms after the correction, and 2.22 half an hour later."""
    raw = Measurement(samples_ms=(2.3,))
    low, high = NetworkResult(raw=raw, corrected_ms=2.9, noise_pct=3.0).interval_ms
    assert low < 2.22 and high > 2.9
    low, high = NetworkResult(raw=raw, corrected_ms=2.3, noise_pct=1.0).interval_ms
    assert (low, high) == pytest.approx((2.3 * (1 - 0.0196), 2.3 * (1 + 0.0196)))


def test_the_interval_of_a_run_holds_all_that_it_measured() -> None:
    """On a busy machine: at its end .688 (.588 to .788), minutes before 1.016 and 1.033."""
    assert widened((0.588, 0.788), [0.799, 1.016, 1.033]) == (0.588, 1.033)
    assert widened((0.588, 0.788), [0.6, None]) == (0.588, 0.788)
    assert widened(None, [0.6]) is None


# --- the command ---


def test_batches_and_threads_are_rows_of_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "proxyless_cpu", "--batch=1,8", "--threads=1,2", *FEW]) == 0
    said = capsys.readouterr().out
    rows = dict(re.findall(r"proxyless_cpu, (batch \d, \d threads?) +([\d.]+) ms", said))
    assert len(rows) == 4
    assert float(rows["batch 8, 1 thread"]) > 6 * float(rows["batch 1, 1 thread"])
    assert "p95" in said


def test_sustained_is_minutes_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", "proxyless_cpu", "proxyless_gpu", "--sustained=1s", "--runtime=fake"]
    assert main([*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "ranking of the networks is the same" in said and "governor" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["proxyless_cpu", "--batch=0"], "--batch 0: write numbers from 1 on"),
        (["proxyless_cpu", "--threads=1,x"], "--threads 1,x: write numbers"),
        (["proxyless_cpu", "--sustained=10"], "--sustained '10' is not understood"),
        (["proxyless_cpu", "--sustained=1s", "--batch=1,8"], "--sustained is on one runtime"),
        (["proxyless_cpu", "--sustained=1s", "--precision=f32,int8"], "of one precision"),
        (["--out=t.json", "--batch=1,8"], "--batch has no meaning with --out table.json"),
        (["--data=digits", "--sustained=1m"], "--sustained is for networks"),
    ],
)
def test_bad_values_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["measure", *words, "--runtime=fake", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line


def test_a_short_time_and_many_threads_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", "proxyless_cpu", "--runtime=fake", "--sustained=0.5s"]
    assert main(words) == 0
    assert "0.5 s are too short to tell what a warm device does" in capsys.readouterr().err
    before = torch.get_num_threads()
    try:
        with pytest.warns(UserWarning, match=r"machine\.threads is 1024, and there are \d+ cores"):
            make_machine(MachineSettings(device="cpu", threads=1024))
    finally:
        torch.set_num_threads(before)
