"""Both doors are one machine: the command line and the Python call find the same network."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from forked_runs import ForkServer
from tiny_run import TINY_RUN

import proxylessnas
from proxylessnas.api import Result
from proxylessnas.cli.main import main
from proxylessnas.io.console import Reporter
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.problem import Part


def search_as(directory: Path, out: Path | None = None) -> Result:
    """The search of a run directory's configuration, by the Python call."""
    config = RunDirectory(directory).read_config()
    problem = ConfiguredProblem(config, Reporter(quiet=True))
    parts: tuple[Part, ...] = ("search", "valid", "calibration", "scoring")
    batches = {part: problem.batches(part, config) for part in parts}
    return proxylessnas.search(
        problem.supernet(config).model,
        train=batches["search"],
        valid=batches["valid"],
        calibration=batches["calibration"],
        scoring=batches["scoring"],
        loss=problem.task.loss,
        train_loss=problem.task.train_loss,
        correct=problem.task.correct,
        example_inputs=problem.example_inputs(config),
        target_latency=config.target_latency,
        runtime=config.runtime,
        settings=config.search,
        measure=config.measure,
        derive=config.derive,
        machine=config.machine,
        seed=config.seed,
        out=out,
        quiet=True,
    )


def test_the_same_problem_gives_the_same_network(finished_run: Path, tmp_path: Path) -> None:
    """Architecture, inherited weights and latencies, in memory and in a directory."""
    of_run = RunDirectory(finished_run)
    record = of_run.read_json("stages/derive.json")
    weights, _ = of_run.load_tensors("inherited.safetensors")
    for out in (None, tmp_path / "python"):
        result = search_as(finished_run, out)
        assert dict(result.architecture.choices) == dict(
            json.loads((finished_run / "architecture.json").read_text())["choices"]
        )
        assert result.predicted == record["predicted"]
        assert result.measured_ms == record["measured_ms"]
        derived = result.derive().state_dict()
        assert derived.keys() == weights.keys()
        assert all(torch.equal(derived[name], weights[name]) for name in weights)
    one = (finished_run / "metrics.jsonl").read_text().splitlines()
    other = (tmp_path / "python" / "metrics.jsonl").read_text().splitlines()
    assert other == [line for line in one if json.loads(line)["stage"] == "search"]


def test_another_limit_is_the_same_through_both_doors(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert main(["derive", str(run), "--latencies=0.8x", "--quiet"]) == 0
    weights, _ = RunDirectory(run).load_tensors("inherited-0.8x.safetensors")
    derived = search_as(finished_run).derive("0.8x").state_dict()
    assert all(torch.equal(derived[name], weights[name]) for name in weights)
    loaded = proxylessnas.load(run, quiet=True)
    assert loaded.architecture.choices == search_as(finished_run).architecture.choices
    again = loaded.derive("0.8x").state_dict()  # done already: read from the directory
    assert all(torch.equal(again[name], weights[name]) for name in weights)


SCRIPT = """
import sys, torch, proxylessnas
from proxylessnas import Callback, MixedOp, SearchSettings
from torch import nn

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = MixedOp({"a": nn.Linear(4, 4), "b": nn.Sequential(nn.Linear(4, 4), nn.ReLU())})
        self.norm = nn.BatchNorm1d(4)
        self.second = MixedOp([nn.Linear(4, 4), nn.Identity()])

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


class Pace(Callback):
    def on_step(self, metrics):
        print("step", metrics.step, flush=True)


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 4, generator=generator), torch.zeros(8, 4)) for _ in range(20)]


if __name__ == "__main__":
    from proxylessnas.session import checkpoints
    checkpoints.CHECKPOINT_SECONDS = 0.0
    proxylessnas.search(
        Net(), train=data(1), valid=data(2), loss=nn.functional.mse_loss,
        example_inputs=(torch.randn(2, 4),), limits={"parameters": "0.9x"}, quiet=True,
        settings=SearchSettings(warmup_epochs=1, epochs=4), out=sys.argv[1],
        callbacks=[Pace()],
    )
"""


@pytest.mark.slow
def test_a_python_search_killed_for_real_resumes_to_the_bit(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at two moments; then the same call goes on, and another process loads it."""
    script = tmp_path / "own_model.py"
    script.write_text(SCRIPT)
    for name, kills in (("whole", ()), ("killed", (7, 55))):
        out = tmp_path / name
        for step in kills:
            started = server.start_script(script, str(out), directory=tmp_path)
            assert started.wait_for(f"step {step}\n")
            os.kill(started.pid, signal.SIGKILL)
            assert started.code() == -signal.SIGKILL
        code, text = server.run_script(script, str(out), directory=tmp_path)
        assert code == 0, text
        steps = re.findall(r"step (\d+)\n", text)
        assert steps[-1] == "100"
        if kills:
            assert int(steps[0]) >= kills[-1]  # it went on, and did not begin
    for file in ("architecture.json", "inherited.safetensors", "metrics.jsonl"):
        whole, killed = (tmp_path / "whole" / file), (tmp_path / "killed" / file)
        assert whole.read_bytes() == killed.read_bytes(), file
    last = "checkpoints/search-00000100.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_model  # type: ignore[import-not-found]

    loaded = proxylessnas.load(tmp_path / "killed", model=own_model.Net(), quiet=True)
    weights, _ = RunDirectory(tmp_path / "whole").load_tensors("inherited.safetensors")
    derived = loaded.derive().state_dict()
    assert all(torch.equal(derived[name], weights[name]) for name in weights)


def test_the_command_line_refuses_a_search_of_python(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search_as(finished_run, tmp_path / "python")
    assert main(["train", str(tmp_path / "python"), "--quiet"]) == 2
    assert "a search that Python began" in capsys.readouterr().err
    assert TINY_RUN  # the words of the run that it was compared with
