"""Parquet in folders, and the hub."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import load, picture, pixels_of

from proxylessnas.data import huggingface
from proxylessnas.errors import DataError


def cell(number: int, mode: str = "RGB") -> dict[str, object]:
    buffer = io.BytesIO()
    picture(number, mode=mode).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(
    path: Path,
    labels: list[object],
    *,
    image: str = "img",
    label: str = "label",
    names: tuple[str, ...] | None = ("cat", "dog"),
    plain: bool = False,
    first: int = 0,
) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [cell(first + i) for i in range(len(labels))]
    if plain:  # as other tools write it, without a Hugging Face schema
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({image: [row["bytes"] for row in rows], label: labels}), path)
        return
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    features = datasets.Features({image: datasets.Image(), label: kind})
    made = datasets.Dataset.from_dict({image: rows, label: labels}, features=features)
    made.to_parquet(str(path))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path_factory.getbasetemp() / "hf")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)


def test_parquet_with_a_test_part(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "plain_text" / "train-00000-of-00001.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "plain_text" / "test-00000-of-00001.parquet", [0, 1] * 3, first=50)
    capfd.readouterr()
    data = load(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert data.info.shape == (3, 12, 12) and data.info.classes == ("cat", "dog")
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [20, 18, 2, 6]
    expected = np.array(picture(0)).transpose(2, 0, 1).tobytes()
    assert expected in pixels_of(data, "train") and not pixels_of(data, "train") & pixels_of(
        data, "test"
    )


def test_parquet_with_an_unlabelled_test_part(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "test.parquet", [-1] * 6)
    assert load(str(tmp_path)).size("test") == 4  # held out of train
    write_parquet(tmp_path / "validation.parquet", [0, 1, 1], first=90)
    data = load(str(tmp_path))
    assert data.size("test") == 3 and data.size("train") == 20


def test_parquet_with_names_or_bare_numbers_for_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", ["no", "yes"] * 6, names=None, image="image")
    assert load(str(tmp_path / "a")).info.classes == ("no", "yes")
    write_parquet(tmp_path / "b" / "data.parquet", [3, 7] * 6, plain=True, label="class")
    assert load(str(tmp_path / "b")).info.classes == ("3", "7")


def test_parquet_without_the_columns_needed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", [0, 1] * 6, plain=True, image="x", label="y")
    with pytest.raises(
        DataError, match=r"no image column \(expected: image, or .*\); its columns: x, y"
    ):
        load(str(tmp_path / "a"))
    write_parquet(tmp_path / "b" / "train.parquet", [0, 1] * 6, plain=True, label="z")
    with pytest.raises(
        DataError, match=r"no label column \(expected: label, or .*\); its columns: img, z"
    ):
        load(str(tmp_path / "b"))
    write_parquet(tmp_path / "c" / "train.parquet", [0.5, 1.5] * 6, plain=True)
    with pytest.raises(DataError, match=r"a label is one number or name an image, not 0\.5"):
        load(str(tmp_path / "c"))


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"the parquet in .* cannot be loaded: "):
        load(str(tmp_path))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(-2, "Name or service not known")

    for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(
        DataError, match=r"no folder uoft-cs/cifar10, and .* cannot be reached: Name or service"
    ):
        load("uoft-cs/cifar10")


@pytest.mark.slow
@pytest.mark.skipif(
    "PROXYLESSNAS_DATA" not in os.environ, reason="PROXYLESSNAS_DATA is unset: no CIFAR-10 here"
)
def test_cifar10() -> None:
    seen: list[tuple[int, int]] = []
    data = load(
        str(Path(os.environ["PROXYLESSNAS_DATA"]) / "cifar10"),
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert data.info.shape == (3, 32, 32) and len(data.info.classes) == 10
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [
        *(50_000, 45_000, 5_000, 10_000)
    ]
    assert seen[-1] == (60_000, 60_000)
    labels = torch.cat([y for _, y in data.batches("valid", 1000).epoch(0)])
    assert labels.bincount().tolist() == [500] * 10


def test_a_split_that_is_no_part_is_said() -> None:
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    split = datasets.Dataset.from_dict(
        {"img": [cell(0), cell(1), cell(2)], "label": [0, 1, None]}, features=features
    )
    source = huggingface._from_splits("x", {"train": split, "test": split, "extra": split})
    assert source.left_out == {
        "row of split extra": 3,
        "train image without a label": 1,
        "test image without a label": 1,
    }
