"""The names in a folder: images by folder, and counts of everything else.

Nothing but names, sizes and times is read. How the folders are meant says `folders.py`.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from proxylessnas.data.formats import IMAGE_SUFFIXES, MAGIC, UNREADABLE_SUFFIXES, remedy
from proxylessnas.data.watching import Progress, silent
from proxylessnas.errors import DataError

SYSTEM_FOLDERS = {  # thumbnails, bins and snapshots that file systems put beside images
    *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "@sharebin"),
    *("__macosx", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
}
UNREADABLE_SHARE = 0.01  # of the images; more than this is an error
MAX_OTHERS = 100_000  # entries that are no image; a data set has few, a whole disk has many
MAX_DEPTH = 64  # folders in folders

Stamp = tuple[int, int]  # size in bytes, and time in ns (in a zip file: a checksum)


@dataclass(eq=False)
class Folder:
    """One folder: its images, path relative to the root -> stamp, and its folders by name.

    identity: tells whether two are one and the same folder of a disk, through a link.
    """

    path: str
    images: dict[str, Stamp] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    identity: tuple[int, int] | None = None

    def all_images(self) -> dict[str, Stamp]:
        """The images of this folder and of those under it, of each folder once."""
        images: dict[str, Stamp] = {}
        visited, waiting = set(), [self]
        while waiting:
            folder = waiting.pop()
            if folder.identity is None or folder.identity not in visited:
                visited.add(folder.identity)
                images.update(folder.images)
                waiting += reversed(folder.folders.values())
        return images

    @property
    def has_images(self) -> bool:
        return bool(self.images) or any(f.has_images for f in self.folders.values())


@dataclass
class Scan:
    """What was met under `root`: whoever points at a whole disk is told so, and soon."""

    root: str
    progress: Progress = silent
    images: int = 0
    others: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)

    def tell(self) -> None:
        self.progress(self.images, 0, "images listed")

    def is_image(self, name: str, begins: Callable[[], bytes]) -> bool:
        """Whether a file of this name is read; counted either way.

        begins: the file's first bytes, which tell where the name does not.
        """
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            self._other("hidden file")
        elif suffix.startswith(IMAGE_SUFFIXES) or (not suffix and begins().startswith(MAGIC)):
            self.images += 1  # .jpg_large as well
            return True
        elif suffix in UNREADABLE_SUFFIXES:
            self.unreadable[suffix] += 1
        else:
            self._other(f"{suffix:.10} file" if suffix else "file without an extension")
        return False

    def is_read(self, folder: str) -> bool:
        """Whether a folder of this name is looked into; counted if it is not."""
        if folder.startswith("."):
            self._other("hidden folder")
        elif folder.lower() in SYSTEM_FOLDERS:
            self._other(f"folder {folder} of the system")
        else:
            self._other(None)
            return True
        return False

    def _other(self, reason: str | None) -> None:
        self.others += 1
        if reason is not None:
            self.left_out[reason] += 1
        if self.others > max(MAX_OTHERS, self.images):
            raise DataError(
                f"folder {self.root} holds more than {MAX_OTHERS} files and folders that are no "
                f"images, and only {self.images} images so far: give the folder of the data set"
            )

    def facts(self) -> dict[str, int]:
        """Reason -> files that are left out.

        Raises:
            DataError: more than 1 % of the images are of kinds that cannot be read.
        """
        count = sum(self.unreadable.values())
        kinds = ", ".join(sorted(self.unreadable))
        if count > UNREADABLE_SHARE * (count + self.images):
            raise DataError(
                f"{count:,} of {count + self.images:,} images in {self.root} are {kinds}, which "
                f"cannot be read: {remedy(set(self.unreadable))}"
            )
        rare = dict(self.left_out.most_common()[8:])
        facts = {k: v for k, v in self.left_out.items() if k not in rare}
        return {**facts, "other file": sum(rare.values()), f"{kinds}, which cannot be read": count}


def read_folder(root: Path, scan: Scan) -> Folder:
    """All folders under the root; links are followed, but not back.

    Raises:
        DataError: a folder cannot be read, or the root is a whole disk.
    """

    def read(path: str, above: frozenset[tuple[int, int]]) -> Folder | None:
        full = os.path.join(root, path) if path else str(root)
        folder, below = Folder(path), []
        try:
            status = os.stat(full)
            folder.identity = (status.st_dev, status.st_ino)
            if folder.identity in above or path.count("/") > MAX_DEPTH:
                return None  # a link leads back
            with os.scandir(full) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = f"{path}/{entry.name}" if path else entry.name
                    if _is_folder(entry):
                        below += [name] if scan.is_read(entry.name) else []
                    elif scan.is_image(entry.name, partial(_beginning, entry.path)):
                        folder.images[name] = _stamp(entry)
        except OSError as error:
            raise DataError(f"folder {full} cannot be read: {error.strerror}") from error
        above |= {folder.identity}
        inner = ((os.path.basename(name), read(name, above)) for name in below)
        folder.folders = {name: child for name, child in inner if child is not None}
        return folder

    tree = read("", frozenset())
    assert tree is not None  # nothing is above it
    return tree


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb") if os.path.isfile(path) else io.BytesIO() as file:  # never a pipe
            return file.read(8)
    except OSError:
        return b""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere: damaged, as will be said
        return -1, -1
    return status.st_size, status.st_mtime_ns


def folder_in(root: Folder, path: list[str], scan: Scan) -> Folder | None:
    """The folder of a path, made where it is new; None where it is left out."""
    if len(path) > MAX_DEPTH:
        return None
    folder = root
    for name in path:
        if name not in folder.folders:
            if not scan.is_read(name):
                return None
            folder.folders[name] = Folder(f"{folder.path}/{name}" if folder.path else name)
        folder = folder.folders[name]
    return folder


def unwrapped(folder: Folder) -> Folder:
    """The one folder of several that a chain of single folders leads to, as in most archives."""
    inner = folder
    while len(inner.folders) == 1 and not inner.images:
        (inner,) = inner.folders.values()
    return inner if len(inner.folders) > 1 else folder


def in_order(folder: Folder) -> Folder:
    """The folder with all names sorted."""
    inner = {name: in_order(folder.folders[name]) for name in sorted(folder.folders)}
    return Folder(folder.path, dict(sorted(folder.images.items())), inner)
