"""The run directory: whole files or none, checksums, one process at a time."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from proxylessnas.config import RunConfig, left_to_defaults, read_config
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.io.files import write_atomic
from proxylessnas.runs.directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 2), value), "steps": torch.tensor(4)}


def test_a_checkpoint_comes_back(directory: RunDirectory) -> None:
    directory.save_checkpoint("search", 4, (tensors(1.5), {"step": 4, "objective": [0.25]}))
    loaded = directory.load_checkpoint("search")
    assert loaded is not None
    assert torch.equal(loaded[0]["weight"], tensors(1.5)["weight"])
    assert loaded[1]["objective"] == [0.25]


def test_the_last_two_are_kept(directory: RunDirectory) -> None:
    for step in (1, 2, 3, 10):
        directory.save_checkpoint("search", step, (tensors(step), {}))
    directory.save_checkpoint("train", 7, (tensors(7), {}))
    names = sorted(p.name for p in directory.file("checkpoints").glob("search-*.safetensors"))
    assert names == ["search-00000003.safetensors", "search-00000010.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flip", "no checksum"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    directory: RunDirectory, damage: str
) -> None:
    directory.save_checkpoint("search", 1, (tensors(1), {"step": 1}))
    newest = directory.file(directory.save_checkpoint("search", 2, (tensors(2), {"step": 2})))
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        newest.write_bytes(data)
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    with pytest.warns(UserWarning, match="the one before is used"):
        loaded = directory.load_checkpoint("search")
    assert loaded is not None
    assert loaded[1]["step"] == 1


def test_a_pickle_is_not_a_checkpoint(directory: RunDirectory) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (directory.file("executed"),))

    name = "weights.safetensors"
    directory.save_tensors(name, tensors(1))
    data = pickle.dumps(Evil())
    directory.file(name).write_bytes(data)
    import hashlib

    directory.file(name + ".sha256").write_text(hashlib.sha256(data).hexdigest())
    with pytest.raises(RunError, match="not a checkpoint"):
        directory.load_tensors(name)
    assert not directory.has("executed")


def test_a_plain_safetensors_file_is_not_a_checkpoint_of_ours(directory: RunDirectory) -> None:
    import hashlib

    data = safetensors.torch.save(tensors(1))
    directory.file("weights.safetensors").write_bytes(data)
    directory.file("weights.safetensors.sha256").write_text(hashlib.sha256(data).hexdigest())
    with pytest.raises(RunError):
        directory.load_tensors("weights.safetensors")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"before")
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("/dev/full is not here")
    blocked = tmp_path / "sub"
    blocked.write_text("a file where a directory should be")
    with pytest.raises(RunError, match="cannot write"):
        write_atomic(blocked / "x.json", b"after")
    assert path.read_bytes() == b"before"
    assert not list(tmp_path.glob(".*.tmp"))


def _try_to_lock(path: str, queue: multiprocessing.Queue[str]) -> None:
    try:
        RunDirectory(Path(path)).lock()
        queue.put("locked")
    except RunError as error:
        queue.put(str(error))


def test_a_second_process_is_refused_and_the_lock_dies_with_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    with RunDirectory(tmp_path).held():
        process = context.Process(target=_try_to_lock, args=(str(tmp_path), queue))
        process.start()
        assert "another process works in" in queue.get(timeout=30)
        process.join()
    with RunDirectory(tmp_path).held():
        pass


def test_metrics_are_cut_back_to_the_checkpoint(directory: RunDirectory) -> None:
    directory.log(stage="search", step=1)
    directory.save_checkpoint("search", 1, (tensors(1), {}))
    directory.log(stage="search", step=2)
    loaded = directory.load_checkpoint("search")
    assert loaded is not None
    directory.cut_metrics(loaded[1]["metrics_size"])
    lines = directory.file("metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


def test_metrics_of_a_stage_that_begins_again_are_forgotten(directory: RunDirectory) -> None:
    directory.log(stage="search", step=1)
    directory.log(stage="train", step=1)
    with directory.file("metrics.jsonl").open("a") as file:
        file.write('{"stage": "tr')  # killed while writing
    directory.cut_metrics_of("train")
    lines = directory.file("metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["search"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search: [", "not YAML"),
        ("- 1\n- 2\n", "not a mapping"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("search: {epochs: three}\n", "epochs"),
        ("serch: {}\n", "did you mean"),
    ],
)
def test_a_config_from_a_stranger(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95, 0.99])
def test_settings_that_were_cut_short_are_not_filled_with_defaults(
    tmp_path: Path, share: float
) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_config(RunConfig(data="digits"))
    assert directory.read_config() == RunConfig(data="digits")
    whole = (tmp_path / "config.yaml").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "config.yaml").write_text("".join(lines[: int(share * len(lines))]))
    with pytest.raises((RunError, ConfigError), match=r"is missing|must be"):
        directory.read_config()


def without(text: str, *keys: str) -> str:
    """The settings without these lines, of the top level or within a group."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.strip().partition(":")[0] not in keys)


def test_a_setting_that_came_later_is_as_the_version_before_had_it(tmp_path: Path) -> None:
    """Wherever it stands but at the very end, where a file that was cut ends."""
    directory, path = RunDirectory(tmp_path), tmp_path / "config.yaml"
    directory.write_config(RunConfig(data="digits", seed=3))
    whole = path.read_text()
    assert left_to_defaults(path) == []
    path.write_text(
        without(whole, "ridge", "precision", "quantise", "images", "float_blocks", "aware_epochs")
    )
    assert directory.read_config() == RunConfig(data="digits", seed=3)
    assert left_to_defaults(path) == ["precision", "candidates.ridge", "quantise"]
    path.write_text(without(whole, "fused_batch_norm"))
    with pytest.raises(ConfigError, match=r"is not whole: machine\.fused_batch_norm is missing"):
        directory.read_config()
    path.write_text(whole.replace("seed: 3", "sed: 3"))
    with pytest.raises(ConfigError, match="there is no 'sed'"):
        directory.read_config()
