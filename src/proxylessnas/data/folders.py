"""Folders of images, one folder a class, with or without train/, val/ and test/."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from proxylessnas.data.source import SPLIT_ROLES, Part, Source, assemble
from proxylessnas.errors import DataError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm"),
)


MAX_OTHERS = 100_000  # entries that are no image; a data set has few, a disk has many


@dataclass
class _Scan:
    """What was seen under `root`: whoever points at a whole disk is told so, and soon."""

    root: Path
    images: int = 0
    others: int = 0

    def see(self, folders: int, names: list[str]) -> list[str]:
        """The images among the names."""
        images = [name for name in names if _is_image(name)]
        self.images += len(images)
        self.others += folders + len(names) - len(images)
        if self.others > max(MAX_OTHERS, self.images):
            raise DataError(
                f"folder {self.root} holds more than {MAX_OTHERS} files and folders that are no "
                f"images, and only {self.images} images so far: give the folder of the data set"
            )
        return images


@dataclass(frozen=True)
class _Files:
    paths: tuple[str, ...]

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def where(self, index: int) -> str:
        return self.paths[index]


def folder_source(root: Path) -> Source:
    """One folder a class, or train/ (val/, test/) with one folder a class in each."""
    folders = _subfolders(root)
    roles = {folder: SPLIT_ROLES.get(folder.name.lower()) for folder in folders}
    split = {folder: role for folder, role in roles.items() if role}
    # A folder "train" that holds images, not folders, is a class of that name.
    if not any(role == "train" and _subfolders(folder) for folder, role in split.items()):
        split = {root: "train"}
    if len(set(split.values())) < len(split):
        names = ", ".join(sorted(folder.name for folder in split))
        raise DataError(f"{root} has two folders for one part among {names}; keep one of each")
    scan = _Scan(root)
    found = {role: _class_files(folder, scan) for folder, role in split.items()}
    classes = sorted(found["train"])
    for folder, role in split.items():
        unknown = sorted(set(found[role]) - set(classes))
        if unknown:
            raise DataError(f"{folder / unknown[0]} is not a class of the training part: {classes}")
    parts = {}
    for role, files in found.items():
        listed = [(path, classes.index(name)) for name in sorted(files) for path in files[name]]
        labels = np.array([label for _, label in listed], dtype=np.int64)
        parts[role] = Part(labels, _Files(tuple(path for path, _ in listed)))
    return assemble(str(root), classes, parts)


def _subfolders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]


def _class_files(root: Path, scan: _Scan) -> dict[str, list[str]]:
    """Class name -> its image files, sorted; one folder a class directly under `root`."""
    folders = _subfolders(root)
    if not folders:
        loose = any(_is_image(entry.name) for entry in os.scandir(root))
        holds = "images but no folders" if loose else "no images"
        raise DataError(f"folder {root} holds {holds}; expected one folder of images a class")
    files = {folder.name: list(_walk(folder, scan)) for folder in folders}
    for folder in folders:
        if not files[folder.name]:
            raise DataError(
                f"class folder {folder} holds no image (looked for {' '.join(IMAGE_SUFFIXES)}); "
                "remove it or fill it"
            )
    if len(folders) == 1:
        inner = len(_subfolders(folders[0])) >= 2
        hint = f"; did you mean {folders[0]}?" if inner else "; one folder a class is expected"
        raise DataError(
            f"folder {root} holds 1 class ({folders[0].name}), at least 2 are needed{hint}"
        )
    return files


def _walk(folder: Path, scan: _Scan) -> Iterator[str]:
    """Image files under a folder in sorted order; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        try:
            state = os.stat(here)
        except OSError:  # it went away meanwhile, or may not be read
            folders.clear()
            continue
        if (
            state.st_dev,
            state.st_ino,
        ) in seen:  # a link back to a folder already walked
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = scan.see(len(folders), names)
        yield from (os.path.join(here, name) for name in sorted(images))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
