"""One contract for every place that results go to: in memory and in a directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from proxylessnas.errors import RunError
from proxylessnas.io.console import Reporter
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.records import Records
from proxylessnas.session.store import MemoryStore, Store
from proxylessnas.training.callbacks import Callback, Callbacks, StageMetrics
from proxylessnas.training.ranks import ALONE


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else RunDirectory(tmp_path)


def test_bytes_come_back(store: Store) -> None:
    assert not store.has("stages/a.json") and store.digest("stages/a.json") is None
    store.write("stages/a.json", b"one")
    store.write("stages/a.json", b"three")
    assert store.read("stages/a.json", 10) == b"three" and store.size("stages/a.json") == 5
    assert store.digest("stages/a.json") == hashlib.sha256(b"three").hexdigest()
    assert store.names() == ["stages/a.json"] and store.has("stages/a.json")
    store.remove("stages/a.json")
    store.remove("stages/a.json")  # nothing is there: nothing happens
    assert store.names() == [] and store.size("stages/a.json") == 0
    with pytest.raises(RunError):
        store.read("stages/a.json", 10)


def test_json_and_tensors_come_back(store: Store) -> None:
    store.write_json("facts.json", {"a": [1, None, "é"]})
    assert store.read_json("facts.json") == {"a": [1, None, "é"]}
    store.write("facts.json", b"{")
    with pytest.raises(RunError, match=r"facts\.json"):
        store.read_json("facts.json")
    store.save_tensors("w.safetensors", {"x": torch.arange(3)}, {"step": 2})
    tensors, values = store.load_tensors("w.safetensors")
    assert torch.equal(tensors["x"], torch.arange(3)) and values == {"step": 2}
    store.write("w.safetensors", b"damaged")
    with pytest.raises(RunError, match="checksum does not agree"):
        store.load_tensors("w.safetensors")


@pytest.mark.parametrize("forget", ["drop_checkpoints", "remove_checkpoints"])
def test_checkpoints_of_what_was_done_once_more_go_with_the_stage_s(
    store: Store, forget: str
) -> None:
    for stage in ("train", "train-steady", "train-largest"):
        store.save_checkpoint(stage, 4, ({"x": torch.ones(1)}, {"step": 4}))
    store.drop_checkpoints("train", but=()) if forget[0] == "d" else store.remove_checkpoints(
        "train"
    )
    left = [name for name in store.names() if name.endswith("safetensors")]
    assert left == ["checkpoints/train-largest-00000004.safetensors"]


def test_the_last_two_checkpoints_are_kept_and_anchors(store: Store) -> None:
    for step in range(5):
        store.save_checkpoint("search", step, ({"x": torch.ones(1)}, {"step": step}), keep=[0])
    store.save_checkpoint("train", 9, ({}, {"step": 9}))
    names = [f"checkpoints/search-{step:08d}.safetensors" for step in (0, 3, 4)]
    assert store.checkpoints("search") == names and len(store.checkpoints("train")) == 1
    newest = store.load_checkpoint("search")
    assert newest is not None and newest[1]["step"] == 4
    store.write(store.checkpoints("search")[-1], b"damaged")
    with pytest.warns(UserWarning, match="the one before is used"):
        newest = store.load_checkpoint("search")
    assert newest is not None and newest[1]["step"] == 3
    store.remove_checkpoints("search", after=0)
    assert len(store.checkpoints("search")) == 1 and store.load_checkpoint("none") is None


def test_metrics_are_lines_that_can_be_forgotten(store: Store) -> None:
    store.cut_metrics_of("search")  # nothing is there
    store.log(stage="measure", step=1, loss=float("nan"))
    store.log(stage="search", step=2, loss=0.5)
    size = store.size("metrics.jsonl")
    store.log(stage="search", step=3)
    store.cut_metrics(size)
    assert store.read("metrics.jsonl", 1000).splitlines() == [
        b'{"stage": "measure", "step": 1, "loss": null}',
        b'{"stage": "search", "step": 2, "loss": 0.5}',
    ]
    store.cut_metrics_of("search")
    assert store.read("metrics.jsonl", 1000).count(b"\n") == 1


def test_a_stage_is_done_while_its_files_are_what_it_left(store: Store) -> None:
    heard: list[StageMetrics] = []

    class Listening(Callback):
        def on_stage_end(self, metrics: StageMetrics) -> None:
            heard.append(metrics)

    records = Records(store, ALONE, Reporter(quiet=True))
    assert not records.done("search")
    with pytest.raises(RunError, match=r"the stage search .*is not finished"):
        records.require("search")
    with records.stage("search", "a title", Callbacks([Listening()])) as facts:
        store.write("weights", b"good")
        facts |= {"entropy": 0.5, "architecture_steps": 3, "files": ["weights"]}
    assert records.done("search") and records.require("search")["entropy"] == 0.5
    assert [(m.stage, m.facts["entropy"]) for m in heard] == [("search", 0.5)]
    store.write("weights", b"bad")
    assert not records.done("search")
    store.write("weights", b"good")
    with records.stage("train", "upon it"):
        pass
    store.remove("weights")
    message = "weights is missing or was changed after train used it"
    with pytest.raises(RunError, match=message), records.stage("search", "again"):
        pass


def test_a_stage_that_fails_leaves_no_record(store: Store) -> None:
    records = Records(store, ALONE, Reporter(quiet=True))
    with pytest.raises(ValueError, match="mine"), records.stage("search", "a title"):
        raise ValueError("mine")
    assert records.read("search") is None


def test_doing_a_stage_again_forgets_what_follows(store: Store) -> None:
    records = Records(store, ALONE, Reporter(quiet=True))
    for stage in ("search", "derive", "derive-8ms", "train"):
        with records.stage(stage, ""):
            pass
    store.remove("stages/search.json")
    with records.stage("search", "again"):
        pass
    assert [records.read(s) is None for s in ("derive", "derive-8ms", "train")] == [True] * 3
