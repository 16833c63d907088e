"""A run in int8: its limit, its accuracy and its file are of what its runtime computes."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pretrained import WORDS, trained_run
from tiny_run import TINY_RUN, made_once
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.cli.main import main
from proxylessnas.config import QuantiseSettings, RunConfig
from proxylessnas.errors import ConfigError, DataError
from proxylessnas.export.fake_int8 import FakeInt8
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.precision import is_quantised
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter
from proxylessnas.report.precisions import int8_lines
from proxylessnas.runs.begin import open_run
from proxylessnas.runs.by_hand import Compared, by_hand
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.runs.elsewhere import trained_network
from proxylessnas.session.deploying import (
    as_deployed,
    as_scored,
    calibration,
    check_quantise,
    int8_file,
    int8_name,
    running,
    scored,
)
from proxylessnas.session.deriving import SCORED_IN_INT8, derive, inherited_network
from proxylessnas.session.finishing import evaluate
from proxylessnas.session.finishing import trained_network as network_of
from proxylessnas.session.quantising import fine_tuned
from proxylessnas.session.session import Session
from proxylessnas.session.store import MemoryStore

INT8 = int8_name("onnxruntime")
INT8_RUN = [*TINY_RUN, "--precision=int8", "--quantise.images=40"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make_run(path: Path) -> None:
        assert main(["run", *INT8_RUN, f"--out={path}"]) == 0

    return made_once(tmp_path_factory, "int8-run", make_run)


def session_of(path: Path):  # type: ignore[no-untyped-def]
    directory = RunDirectory(path)
    return open_run(directory, {}, resume=True, reporter=Reporter(quiet=True))


def test_the_file_runs_in_place_of_the_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).eval()
    content = to_onnx(network, (torch.zeros(2, 3, 4, 4),))
    images = torch.randn(5, 3, 4, 4)  # two whole inferences of two, and one padded
    with running(make("onnxruntime"), content, 2) as module:
        torch.testing.assert_close(module(images), network(images), rtol=1e-4, atol=1e-5)


def test_the_limit_is_of_the_int8_network(run: Path) -> None:
    table = LatencyTable.load(run / "latency_table.json")
    assert table.device["precision"] == "int8"
    facts = json.loads((run / "summary.json").read_text())
    assert facts["measured_latency_ms"] <= 1.02 * facts["target_latency_ms"]
    assert facts["int8"]["ratio"]["value"] == pytest.approx(0.5)  # as the fake is made
    assert facts["int8"]["int8_ms"] == pytest.approx(facts["measured_latency_raw_ms"], rel=0.05)


def test_the_accuracy_is_that_of_the_exported_file(run: Path) -> None:
    """Computed here by ONNX Runtime, image by image, without anything of the session's."""
    content = (run / INT8).read_bytes()
    assert is_quantised(onnx.load_model_from_string(content))
    assert not is_quantised(onnx.load(run / "model.onnx"))
    session, opened = session_of(run), open_session(content)
    right = total = 0
    for images, labels in session.problem.batches("test", session.config).epoch(0):
        for image, label in zip(images, labels, strict=True):
            answers = opened.run(None, {"input": image[None].numpy()})[0]
            right, total = right + int(answers.argmax() == int(label)), total + 1
    facts = json.loads((run / "summary.json").read_text())
    assert facts["test_images"] == total
    assert facts["test_accuracy"] == facts["int8"]["test_accuracy"] == right / total
    loss = facts["int8"]["float_test_accuracy"] - facts["test_accuracy"]
    assert facts["int8"]["loss_points"] == pytest.approx(100 * loss)


def test_calibration_is_on_training_images_and_repeats(run: Path) -> None:
    session = session_of(run)
    network = network_of(session)
    assert int8_file(session, network) == (run / INT8).read_bytes()
    with as_deployed(session, network) as module:
        images = next(iter(session.problem.batches("test", session.config).epoch(0)))[0]
        answers = module(images).numpy()
    expected = network(images).detach().numpy()
    assert 0 < np.abs(answers - expected).max() < 0.5 * np.abs(expected).max()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_ranges_are_not_taken_from_values_that_are_no_numbers(value: float) -> None:
    """Nor is one such image among others passed over, as the quantiser would."""
    images = torch.zeros(8, 3, 4, 4)
    images[5, 0, 1, 1] = value
    batches = SimpleNamespace(epoch=lambda number: iter([(images, torch.zeros(8))]))
    session = Session(
        RunConfig(precision="int8", quantise=QuantiseSettings(images=4)),
        SimpleNamespace(batches=lambda part, config: batches),  # type: ignore[arg-type]
        MemoryStore(),
    )
    assert len(calibration(session)) == 4
    session.settle(RunConfig(precision="int8"))
    with pytest.raises(DataError, match="a training example has values that are NaN or infinite"):
        calibration(session)


def test_calibration_images_are_gathered_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every score and file; of other settings and of another problem they are others."""
    session, drawn = session_of(run), []
    network = network_of(session)
    ours, batches = type(session.problem), session.problem.batches

    def counted(problem, part, config):  # type: ignore[no-untyped-def]
        drawn.append(part)
        return batches(part, config)

    monkeypatch.setattr(ours, "batches", counted)
    for _ in range(2):
        assert int8_file(session, network) == (run / INT8).read_bytes()
        with as_scored(session, network), as_deployed(session, network):
            pass
    assert drawn == ["calibration"]
    first = calibration(session)
    assert calibration(session, session.problem) is first and len(first) == 40
    quantisation = dataclasses.replace(session.config.quantise, images=8)
    session.settle(dataclasses.replace(session.config, quantise=quantisation))
    few = calibration(session)
    assert len(few) == 8 and all(torch.equal(*pair) for pair in zip(few[0], first[0], strict=True))
    other = copy.copy(session.problem)
    assert drawn == ["calibration"] * 2
    assert len(calibration(session, other)) == 8 and drawn == ["calibration"] * 3


def test_what_is_used_elsewhere_is_the_int8_file(run: Path) -> None:
    module, info = trained_network(run)
    image = torch.randn(3, *info.shape)
    expected = open_session((run / INT8).read_bytes()).run(None, {"input": image[:1].numpy()})
    torch.testing.assert_close(module(image)[:1], torch.from_numpy(expected[0]))


def test_networks_for_other_latencies_keep_the_int8_limit(run: Path) -> None:
    assert main(["derive", str(run), "--latencies=0.6x", "--quiet"]) == 0
    record = json.loads((run / "stages/derive-0.6x.json").read_text())
    assert record["predicted"]["latency"] <= record["limits"]["latency"]
    table = LatencyTable.load(run / "latency_table.json")
    largest = max(n.measurement.median_ms for n in table.networks)
    assert record["limits"]["latency"] == pytest.approx(0.6 * largest, rel=0.05)
    assert Architecture.load(run / "architecture-0.6x.json").choices


def test_another_precision_is_another_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--resume", f"--out={run}", "--precision=f32"]) == 2
    assert "its precision is int8, not f32" in capsys.readouterr().err


def test_a_table_of_float_is_refused_before_anything_else(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        (run / "latency_table.json")
        .read_text()
        .replace('"precision": "int8"', '"precision": "f32"')
    )
    (tmp_path / "f32.json").write_text(text)
    words = [*INT8_RUN, f"--table={tmp_path / 'f32.json'}", f"--out={tmp_path / 'run'}"]
    assert main(["run", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the latency table is of f32, and int8 is asked for" in line
    assert not (tmp_path / "run").exists()
    words = [*TINY_RUN, f"--table={run / 'latency_table.json'}", f"--out={tmp_path / 'run'}"]
    assert main(["run", *words]) == 2
    assert "the latency table is of int8, and f32 is asked for" in capsys.readouterr().err


def test_a_large_loss_proposes_what_helps() -> None:
    facts = {"test_accuracy": 0.90, "float_test_accuracy": 0.91, "calibration_images": 200}
    facts |= {"file": "model.int8.onnx"}
    lines = list(int8_lines({**facts, "loss_points": 1.0}, "runs/x"))
    assert "90.00 % of the file, 91.00 % in float (-1.00 points)" in lines[0]
    assert any("evaluate runs/x --quantise.images 1000" in line for line in lines)
    assert any("evaluate runs/x --quantise.float-blocks 2" in line for line in lines)
    assert any("evaluate runs/x --quantise.aware-epochs 1" in line for line in lines)
    tried = {"all_images": True, "aware": {"kept": True}, "file": "model.int8.tflite"}
    lines = list(int8_lines({**facts, **tried, "loss_points": 1.0}, "runs/x"))
    assert not any("--quantise." in line for line in lines)  # nothing that cannot help
    assert len(list(int8_lines({**facts, "loss_points": 0.2}, ""))) == 1
    assert list(int8_lines(None, "")) == []


def test_the_remedies_are_commands_that_work(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert main(["evaluate", str(copy), "--quantise.float-blocks=1", "--quiet"]) == 0
    assert (copy / INT8).read_bytes() != (run / INT8).read_bytes()
    assert main(["run", "--resume", f"--out={copy}", "--quiet"]) == 0
    assert json.loads((copy / "summary.json").read_text())["int8"]["float_blocks"] == 1


def test_the_limit_is_kept_with_the_blocks_that_stay_in_float(run: Path, tmp_path: Path) -> None:
    """What is measured before a network is chosen is the file with those blocks in float."""
    session = session_of(Path(shutil.copytree(run, tmp_path / "run")))
    quantise = dataclasses.replace(session.config.quantise, float_blocks=1)
    session.settle(dataclasses.replace(session.config, quantise=quantise))
    measure, in_float = session.measure_networks, []

    def recorded(networks: Mapping[str, Any], **how: Any) -> Any:
        for file in networks.values():
            nodes = onnx.load(file).graph.node
            made = {output: node.op_type for node in nodes for output in node.output}
            convolutions = [made.get(n.input[1]) for n in nodes if n.op_type == "Conv"]
            in_float.append(sum(source != "DequantizeLinear" for source in convolutions))
        return measure(networks, **how)

    session.measure_networks = recorded  # type: ignore[method-assign]
    session.records.undo("derive")
    derive(session)
    assert in_float and all(in_float)


# --- quantisation-aware fine-tuning, and scores of what is quantised ---


def test_fine_tuning_for_int8_is_kept_where_it_scores_higher(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert main(["evaluate", str(copy), "--quantise.aware-epochs=1"]) == 0
    said = "".join(capsys.readouterr())
    record = json.loads((copy / "stages/evaluate.json").read_text())["aware"]
    assert record["kept"] == (record["after"] > record["before"])
    assert f"validation score {record['after']:.4f} after it, {record['before']:.4f}" in said
    same = (copy / INT8).read_bytes() == (run / INT8).read_bytes()
    assert same != record["kept"]
    assert (copy / "weights.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()
    assert main(["run", "--resume", f"--out={copy}", "--quiet"]) == 0
    assert json.loads((copy / "summary.json").read_text())["int8"]["aware"] == record


def test_fine_tuning_lowers_the_loss_of_the_int8_file(run: Path) -> None:
    session = session_of(run)
    network = network_of(session).cpu()
    quantisation = dataclasses.replace(session.config.quantise, aware_epochs=4)
    session.settle(dataclasses.replace(session.config, quantise=quantisation))
    session.store = MemoryStore()
    tuned = fine_tuned(session, network)
    assert tuned is not network and loss_in_int8(session, tuned) < loss_in_int8(session, network)


def test_settings_of_int8_that_would_do_nothing_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY_RUN, "--quantise.aware-epochs=1", f"--out={tmp_path / 'run'}"]
    assert main(["run", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "quantise.aware_epochs is 1, and the network is of f32" in line
    session = session_of(run)
    quantisation = dataclasses.replace(session.config.quantise, float_blocks=2)
    session.settle(dataclasses.replace(session.config, quantise=quantisation))
    check_quantise(session)
    session.runtime.name = "litert"  # type: ignore[misc]
    with pytest.raises(ConfigError, match="float_blocks is 2, which litert does not take"):
        check_quantise(session)


def loss_in_int8(session: Session, network: nn.Module) -> float:
    with as_deployed(session, network) as deployed:
        return scored(session, deployed, "scoring").loss


@pytest.fixture(scope="module")
def specialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make_run(path: Path) -> None:
        trained = trained_run(tmp_path_factory.mktemp("trained"))
        words = [*WORDS, f"--pretrained={trained}", "--precision=int8", "--quantise.images=40"]
        assert main(["run", *words, f"--out={path}"]) == 0

    return made_once(tmp_path_factory, "int8-specialised", make_run)


@pytest.mark.parametrize("road", ["run", "specialised"])
def test_proposals_are_scored_in_int8_on_both_roads(
    road: str, request: pytest.FixtureRequest
) -> None:
    """The score that the choice was made by is that of the int8 file, and not float's."""
    path: Path = request.getfixturevalue(road)
    session = session_of(path)
    record = json.loads((path / "stages/derive.json").read_text())
    network = inherited_network(session)
    with as_deployed(session, network) as deployed:
        score = scored(session, deployed, "scoring", examples=SCORED_IN_INT8)
    assert record["score"] == score.rank[0]
    assert score.loss != scored(session, network, "scoring", examples=SCORED_IN_INT8).loss
    assert facts_of_int8(path)["loss_points"] is not None


def test_the_network_found_is_not_quantised_again_beside_what_one_would_do_by_hand(
    specialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate` has made its file and knows its answers; another process reads the file."""
    copied = Path(shutil.copytree(specialised, tmp_path / "run"))
    judged: list[tuple[Mapping[str, torch.Tensor], Path | None]] = []
    compared: dict[str, Compared] = {}

    def recorded(
        session: Session, network: nn.Module, problem: Any = None, file: Any = None
    ) -> Any:
        judged.append((network.state_dict(), file))
        return as_deployed(session, network, problem, file)

    def not_measured(session: Session, rows: Mapping[str, Compared]) -> dict[str, None]:
        compared.update(rows)
        return dict.fromkeys(rows)

    def files(session: Session) -> list[Path | None]:
        """That the network found is judged by, when the stage is done again."""
        judged.clear()
        session.records.undo("by-hand")
        by_hand(session, session.problem)  # type: ignore[arg-type]
        weights = network_of(session).state_dict()
        same = [(state, file) for state, file in judged if state.keys() == weights.keys()]
        return [file for state, file in same if all(state[k].equal(weights[k]) for k in weights)]

    monkeypatch.setattr("proxylessnas.runs.by_hand.as_deployed", recorded)
    monkeypatch.setattr("proxylessnas.runs.by_hand._latencies", not_measured)
    session = session_of(copied)
    session.runtime.name = "onnxruntime"
    assert files(session) == [copied / INT8]
    in_another_process = compared["found"]
    session.records.undo("evaluate")
    evaluate(session)
    assert files(session) == []
    accuracy = session.records.require("evaluate")["accuracy"]
    for found in (in_another_process, compared["found"]):
        assert found.measurable == (copied / INT8, 32)
        assert found.accuracy == accuracy == found.right.double().mean()
    assert in_another_process.right.equal(compared["found"].right)


def facts_of_int8(path: Path) -> dict[str, float | None]:
    facts: dict[str, float | None] = json.loads((path / "summary.json").read_text())["int8"]
    return facts


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_network_is_scored_as_it_is_quantised(run: Path, runtime: str) -> None:
    """As the file of the runtime, or rounded alike where a conversion takes long."""
    session = session_of(run)
    network = network_of(session).cpu()
    images = next(iter(session.problem.batches("scoring", session.config).epoch(0)))[0]
    with as_deployed(session, network) as deployed:
        expected = deployed(images)
    session.runtime.name = runtime  # type: ignore[misc]
    with as_scored(session, network) as module:
        assert isinstance(module, FakeInt8) == (runtime == "litert")
        with torch.no_grad():
            answers = module(images)
    exact = network(images).detach()
    assert (answers - expected).norm() < 0.4 * (expected - exact).norm()
