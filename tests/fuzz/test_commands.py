"""The command line on a stranger's files: exit code 2 and one line, or an honest success."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from amounts import seeds
from mutate import damaged, hostile
from PIL import Image
from tiny_run import TINY_RUN

from proxylessnas.cli.main import main
from proxylessnas.runs.configured import ConfiguredProblem

pytestmark = pytest.mark.slow


def refused_or_done(capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """The exit code; where it is not 0 there is one line, where it is 0 no error."""
    code = main(list(words))
    error = capsys.readouterr().err.strip()
    assert code in (0, 2) and "Traceback" not in error
    assert code == 0 or error.splitlines()[-1].startswith("proxylessnas: ")
    return code


FILES = ["config.yaml", "architecture.json", "latency_table.json", "stages/search.json"]
FILES += ["stages/derive.json", "stages/export.json", "weights.safetensors", "summary.json"]


@pytest.mark.parametrize("seed", seeds(16, few=len(FILES)))
def test_a_run_directory_with_a_damaged_file(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance = random.Random(seed)
    path = run_copy / FILES[seed % len(FILES)]
    data = path.read_bytes()
    json_file = path.suffix == ".json"
    path.write_bytes(hostile(data.decode(), chance) if json_file else damaged(data, chance))
    code = refused_or_done(capsys, "run", "--resume", f"--out={run_copy}", "--quiet")
    records = run_copy / "stages"
    assert code == 2 or {p.stem for p in records.iterdir()} >= {"search", "train", "export"}
    Image.new("L", (8, 8), 128).save(tmp_path / "digit.png")
    assert refused_or_done(capsys, "predict", str(run_copy), str(tmp_path / "digit.png")) in (0, 2)


@pytest.mark.parametrize("seed", seeds(16, few=4))
def test_a_damaged_config_or_table_on_the_command_line(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance = random.Random(seed)
    config, table = tmp_path / "config.yaml", tmp_path / "table.json"
    config.write_bytes(damaged((finished_run / "config.yaml").read_bytes(), chance))
    table.write_bytes(damaged((finished_run / "latency_table.json").read_bytes(), chance))
    out = tmp_path / "run"
    words = ["run", f"--out={out}", "--quiet", "--config", str(config), "--data=./nowhere"]
    assert refused_or_done(capsys, *words) == 2
    words = ["measure", *TINY_RUN, f"--out={out}", f"--table={table}"]
    if refused_or_done(capsys, *words) == 2:
        assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--space-settings={stem: null}"], "stem is null"),
        (["--space-settings={widths: [1000000000], depths: [1]}"], "widths[0] is 1000000000"),
        (["--space-settings={widths: [1000000], depths: [1]}"], "parameters"),
        (["--limit=peak_memory=nan"], "the peak_memory 'nan' is not understood"),
        (["--limit=macs=1Q"], "the macs '1Q' is not understood"),
        (["--limit=macs"], "NAME=VALUE"),
        (["--max-macs=5"], "--max-macs is now --limit macs="),
        (["--table=no/such/table.json"], "cannot read no/such/table.json: No such file"),
        (["--table=no/such/table.yaml"], "no/such/table.yaml: No such file"),
        (["--search.objective=linear"], "needs cost_weight"),
        (["--search.objective=mul_log"], "needs a target latency"),
        (["--search.objective=reward", "--target-latency=0.6x"], "needs the estimator reinforce"),
        (["--budget=0.001s"], "too short"),
        (["--seed=-1"], "seed is -1"),
    ],
)
def test_what_was_found_in_attacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    out = tmp_path / "run"
    words = [word for word in TINY_RUN if not word.startswith("--target-latency")]
    assert main(["run", *words, *options, f"--out={out}"]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error
    assert not out.exists() or "--budget=0.001s" in options


def test_no_limit_is_no_list_of_limits(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", str(run_copy), "--latencies", "", "--quiet"]) == 2
    assert "the latency '' is not understood" in capsys.readouterr().err


def test_a_bug_leaves_no_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ConfiguredProblem, "supernet", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", *TINY_RUN, f"--out={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_whole_disk_is_not_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxylessnas.data import tree

    monkeypatch.setattr(tree, "MAX_OTHERS", 20)
    for name in ("etc", "usr"):
        for i in range(15):
            (tmp_path / "disk" / name / f"{i}").mkdir(parents=True)
    (tmp_path / "disk" / "etc" / "logo.png").write_bytes(b"")
    words = [w for w in TINY_RUN if not w.startswith("--data")]
    assert main(["run", *words, f"--data={tmp_path / 'disk'}", f"--out={tmp_path / 'run'}"]) == 2
    assert "give the folder of the data set" in capsys.readouterr().err
