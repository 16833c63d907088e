"""How a folder is read: one folder of images a class, with or without train/, val/ and test/."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from proxylessnas.data.source import SPLIT_ROLES, ImageFiles, Source, SplitPart, assemble
from proxylessnas.errors import DataError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm"),
)
MAX_OTHERS = 100_000  # entries that are no image; a data set has few, a whole disk has many


def folder_source(root: Path) -> Source:
    """One folder a class, or train/ (val/, test/) with one folder a class in each.

    Raises:
        DataError: the layout is another, or a class of val/ or test/ is not one of train/.
    """
    scan = _Scan(root)
    folders = _split_folders(root, scan)
    files = {role: _class_files(folder, scan) for role, folder in folders.items()}
    classes = sorted(files["train"])
    for role, folder in folders.items():
        unknown = sorted(set(files[role]) - set(classes))
        if unknown:
            raise DataError(f"{folder / unknown[0]} is not a class of the training part: {classes}")
    parts = {role: _split_part(paths, classes) for role, paths in files.items()}
    return assemble(str(root), classes, parts, scan.left_out)


@dataclass
class _Scan:
    """What was met under `root`: whoever points at a whole disk is told so, and soon."""

    root: Path
    images: int = 0
    others: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def image_names(self, folders: int, names: list[str]) -> list[str]:
        """The images among the file names of a folder that also holds `folders` folders."""
        images = sorted(name for name in names if _is_image(name))
        self.left_out["not an image file"] += len(names) - len(images)
        self.images += len(images)
        self.others += folders + len(names) - len(images)
        if self.others > max(MAX_OTHERS, self.images):
            raise DataError(
                f"folder {self.root} holds more than {MAX_OTHERS} files and folders that are no "
                f"images, and only {self.images} images so far: give the folder of the data set"
            )
        return images


def _split_folders(root: Path, scan: _Scan) -> dict[str, Path]:
    """Part -> its folder; the root itself is the training part where it is not split."""
    folders = _subfolders(root)
    named = [folder for folder in folders if folder.name.lower() in SPLIT_ROLES]
    roles = [SPLIT_ROLES[folder.name.lower()] for folder in named]
    # A folder "train" that holds images, not folders, is a class of that name.
    if not any(r == "train" and _subfolders(f) for r, f in zip(roles, named, strict=True)):
        return {"train": root}
    if len(set(roles)) < len(roles):
        names = ", ".join(sorted(folder.name for folder in named))
        raise DataError(f"{root} has two folders for one part among {names}; keep one of each")
    scan.left_out["folder that is neither train, val nor test"] += len(folders) - len(named)
    return dict(zip(roles, named, strict=True))


def _class_files(root: Path, scan: _Scan) -> dict[str, list[str]]:
    """Class name -> its image files, sorted; one folder a class directly under `root`."""
    folders = _subfolders(root)
    with os.scandir(root) as entries:
        loose = sum(_is_image(entry.name) for entry in entries)
    if not folders:
        holds = "images but no folders" if loose else "no images"
        raise DataError(f"folder {root} holds {holds}; expected one folder of images a class")
    scan.left_out["image in no class folder"] += loose
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
    visited: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        try:
            status = os.stat(path)
        except OSError:  # it went away meanwhile, or may not be read
            folders.clear()
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in visited:  # a link leads back
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = scan.image_names(len(folders), names)
        yield from (os.path.join(path, name) for name in images)


def _split_part(paths: Mapping[str, list[str]], classes: list[str]) -> SplitPart:
    """The images of all classes, one class after the other."""
    listed = [(path, classes.index(name)) for name in sorted(paths) for path in paths[name]]
    labels = np.array([label for _, label in listed], dtype=np.int64)
    return SplitPart(labels, ImageFiles(tuple(path for path, _ in listed)))


def _subfolders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
