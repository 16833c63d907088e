"""Energy with a meter, and one line without one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_run import TINY_RUN

from proxylessnas.cli.main import main
from proxylessnas.errors import MeasurementError
from proxylessnas.hardware import measure as measuring
from proxylessnas.hardware.energy import PowerLog, Rapl, measure_energy, meter_of
from proxylessnas.hardware.rounds import TimedNetwork
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.session import pipeline


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Takes(TimedNetwork):
    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def __call__(self) -> None:
        self.clock.now += self.seconds


@dataclass
class FiveWatts:
    """A meter."""

    def begin(self) -> None: ...

    def joules(self, start: float, end: float) -> float:
        return 5 * (end - start)


def counters(folder: Path, *microjoules: int) -> None:
    for i, value in enumerate(microjoules):
        package = folder / f"intel-rapl:{i}"
        package.mkdir(exist_ok=True)
        (package / "energy_uj").write_text(f"{value}\n")
        (package / "max_energy_range_uj").write_text("1000000000\n")


def test_rapl_adds_packages_and_counters_begin_again(tmp_path: Path) -> None:
    counters(tmp_path, 5_000_000, 999_000_000)
    meter = Rapl(tmp_path)
    counters(tmp_path, 7_000_000, 1_000_000)
    assert meter.joules(0, 1) == pytest.approx(2 + 2)
    with pytest.raises(MeasurementError, match="has no counters: no energy is measured"):
        Rapl(tmp_path / "nowhere")


def test_a_power_meters_file_is_aligned_by_time(tmp_path: Path) -> None:
    path, clock = tmp_path / "power.csv", Clock()
    path.write_text("time,W\n998,2.0\n1000,4.0\n1002,6.0\n1004,0.0\n1005,9")  # the last unfinished
    log = PowerLog(path, clock=clock, sleep=lambda seconds: None)
    assert log.joules(999, 1003) == pytest.approx(1 * 2 + 2 * 4 + 1 * 6)
    iso = tmp_path / "iso.csv"
    iso.write_text("1970-01-01T00:00:00+00:00,3.0\n1970-01-01T00:00:04+00:00,3.0\n")
    assert PowerLog(iso).joules(1, 4) == pytest.approx(9)

    def later(seconds: float) -> None:
        clock.now += seconds

    behind = PowerLog(path, clock=clock, sleep=later)
    with pytest.raises(MeasurementError, match="is behind: its last line is 6 s before"):
        behind.joules(1000, 1010)
    with pytest.raises(MeasurementError, match="begins after the first network"):
        log.joules(900, 1001)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no line of a time"),
        ("time,W\n", "no line"),
        ("1,2\nx,y\n", "line 2: 'x,y' is no time"),
        ("1,2\n2,nan\n", "line 2: '2,nan'"),
        ("1,2\n2,inf\n", "line 2: '2,inf'"),
        ("1,2\n2,-1\n", "line 2: '2,-1'"),
        ("1,2\n3,2\n2,2\n", "line 3: '2,2' is no time, after that of the line before"),
        ("inf,2\n", "line 1: 'inf,2'"),
        ("time,volts,amps\n1,5,2\n", "which column is the power.*time,volts,amps"),
        ("time,energy_J\n1,5\n", "which column is the power"),
        ("time,W,cpu_W\n1,5,2\n", "which column is the power"),
        ("1,5,3\n2,5,3\n", "which column is the power"),  # 5,3 watts between commas, or two columns
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(MeasurementError, match=words):
        PowerLog(tmp_path / "p.csv")
    with pytest.raises(MeasurementError, match="cannot read the power meter's"):
        meter_of(str(tmp_path / "missing.csv"))


@pytest.mark.parametrize(
    "content",
    [
        "time,V,A,power_mW\n0,5.0,0.6,3000\n4,5.0,0.6,3000\n",
        "\ufeffZeit;Watt\n0;3,0\n4;3,0\n",
        "time\tPower (W)\tmode\n0\t3\tidle\n4\t3\tbusy\n",
        "1970-01-01T00:00:00Z,3\n1970-01-01T00:00:04+00:00,3\n",
        "time,V,power\n0,12,3\n4,12,3\n",
    ],
)
def test_power_is_the_column_that_says_so(tmp_path: Path, content: str) -> None:
    """Volts before watts were taken for watts."""
    (tmp_path / "p.csv").write_text(content)
    assert PowerLog(tmp_path / "p.csv").joules(1, 3) == pytest.approx(6)


def test_thousandths_of_seconds_and_gaps(tmp_path: Path) -> None:
    path, now = tmp_path / "p.csv", 1_700_000_000
    path.write_text(f"{now}000,3\n{now}500,3\n{now + 2}000000,3\n{now + 30}000,3\n")
    assert PowerLog(path).joules(now, now + 1) == pytest.approx(3)
    with pytest.raises(MeasurementError, match="no line for 28 s while networks ran; at most 5"):
        PowerLog(path).joules(now, now + 4)


def test_energy_is_of_one_inference() -> None:
    clock = Clock()
    networks = {"slow": Takes(clock, 0.2), "fast": Takes(clock, 0.01)}
    found = measure_energy(networks, FiveWatts(), window_s=1.0, clock=clock)
    assert found == pytest.approx({"slow": 1000.0, "fast": 50.0}, rel=0.02)  # 5 W for 0.2 s: 1 J


def test_a_limit_of_energy_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The meter says what the fake runtime's latencies would cost at five watts."""

    def by_latency(networks, meter, **how):  # type: ignore[no-untyped-def]
        return {name: 5 * 1e3 * network.timed(1) for name, network in networks.items()}

    for module in (measuring, pipeline):
        monkeypatch.setattr(module, "meter_of", lambda name: FiveWatts())
    monkeypatch.setattr(measuring, "measure_energy", by_latency)
    words = [w for w in TINY_RUN if "latency" not in w]
    first = tmp_path / "first"
    assert main(["measure", *words, "--measure.energy=rapl", f"--out={first}"]) == 0
    table = LatencyTable.load(first / "latency_table.json")
    column = table.columns["energy_mj"]
    assert column.unit == "mJ" and set(column.entries) == set(table.entries)
    for key, value in column.entries.items():
        assert value == pytest.approx(5 * table[key].median_ms, rel=1e-3)
    largest = max(n.value for n in column.networks)
    limit = 0.7 * largest
    more = [f"--table={first / 'latency_table.json'}", f"--limit=energy_mj={limit}"]
    run = tmp_path / "run"
    assert main(["measure", *words, *more, f"--out={run}"]) == 0
    assert main(["search", str(run), "--quiet"]) == 0
    assert main(["derive", str(run), "--quiet"]) == 0
    record = json.loads((run / "stages/derive.json").read_text())
    assert record["predicted"]["energy_mj"] <= limit * 1.001
    run = tmp_path / "own"  # the same with a table of its own, which does not exist yet
    more = ["--measure.energy=rapl", f"--limit=energy_mj={limit}"]
    assert main(["run", *words, *more, f"--out={run}"]) == 0
    facts = json.loads((run / "summary.json").read_text())["limits"]["energy_mj"]
    assert facts["is"] <= limit * 1.001 and facts["limit"] == pytest.approx(limit)
    capsys.readouterr()
    assert main(["run", *words, "--limit=energy_mj=5", f"--out={tmp_path / 'other'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "without a meter there is no number" in line
    monkeypatch.undo()
    words += ["--limit=energy_mj=5", f"--measure.energy={tmp_path}/no.csv"]
    assert main(["run", *words, f"--out={tmp_path / 'other'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no.csv" in line and not (tmp_path / "other").exists()
