"""Zip and tar files: their names, and images and tables read out of them; nothing is unpacked."""

from __future__ import annotations

import functools
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from proxylessnas.data.tree import Folder, Scan, Stamp, folder_in, in_order, unwrapped
from proxylessnas.errors import DataError, foreign, one_line

SUFFIXES = (".zip", ".tar")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
MAX_BYTES = 1 << 29  # of an image or a table in an archive
# RuntimeError is of encrypted files and of compressions that are not known.
DAMAGES = (
    *(zipfile.BadZipFile, tarfile.TarError, RuntimeError, OSError, ValueError, EOFError),
    zlib.error,
)


class Archive(Protocol):
    """An open archive.

    files: name -> stamp; of several files of a name the last one counts.
    encrypted: names of files that cannot be read without a password.
    """

    files: dict[str, Stamp]
    encrypted: frozenset[str]

    def read(self, name: str, most: int = -1) -> bytes:
        """A file's content, or its first bytes; a damaged one raises one of `DAMAGES`."""
        ...


class _Zip:
    def __init__(self, path: str) -> None:
        self._file = zipfile.ZipFile(path)
        entries = [entry for entry in self._file.infolist() if not entry.is_dir()]
        self.files = {entry.filename: (entry.file_size, entry.CRC) for entry in entries}
        self.encrypted = frozenset(e.filename for e in entries if e.flag_bits & 1)

    def read(self, name: str, most: int = -1) -> bytes:
        with self._file.open(name) as file:
            return file.read(most)


class _Tar:
    """Not compressed, so that a file in it can be read without all those before it."""

    encrypted: frozenset[str] = frozenset()

    def __init__(self, path: str) -> None:
        with tarfile.open(path, "r:") as archive:
            members = {member.name: member for member in archive if member.isreg()}
            end = archive.offset
        with open(path, "rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it was cut short")  # tarfile takes what is there for all
        self._path = path
        self._offsets = {name: member.offset_data for name, member in members.items()}
        self.files = {name: (m.size, int(m.mtime)) for name, m in members.items()}

    def read(self, name: str, most: int = -1) -> bytes:
        size = self.files[name][0]
        with open(self._path, "rb") as file:  # thousands of shards are not held open
            file.seek(self._offsets[name])
            content = file.read(size if most < 0 else min(size, most))
        if most < 0 and len(content) < size:
            raise EOFError("the archive ends within the file")
        return content


def stamp_of(path: str | Path) -> Stamp:
    """DataError where there is no such file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def archive_of(path: str | Path, stamp: Stamp | None = None) -> Archive:
    """The archive as it was at the time of `stamp`, which by default is now.

    Raises:
        DataError: there is none, or it is damaged.
    """
    is_zip = Path(path).suffix.lower() == ".zip"
    # Each process has a zip file of its own, because a position in it is shared.
    return _opened(str(path), stamp or stamp_of(path), os.getpid() if is_zip else 0)


@functools.lru_cache(maxsize=4096)
def _opened(path: str, stamp: Stamp, process: int) -> Archive:
    kind, word = (_Zip, "zip") if process else (_Tar, "tar")
    with foreign(DataError, f"{path} is no whole {word} file"):
        return kind(path)


def read_archive(path: Path, scan: Scan) -> Folder:
    """The folders of an archive, without the one that holds all others.

    Raises:
        DataError: it is damaged or encrypted.
    """
    root, archive = Folder(""), archive_of(path)
    for entry, stamp in archive.files.items():
        *above, name = entry.replace("\\", "/").split("/")
        folder = folder_in(root, [part for part in above if part not in ("", ".")], scan)
        if folder is None or not scan.is_image(name, partial(_beginning, archive, entry)):
            continue
        if entry in archive.encrypted:
            raise DataError(f"{path} is encrypted: unpack it and give the folder")
        folder.images[entry] = stamp
    scan.tell()
    return in_order(unwrapped(root))


def _beginning(archive: Archive, entry: str) -> bytes:
    try:
        return archive.read(entry, 8)
    except DAMAGES:
        return b""


def read_file(path: Path, name: str) -> bytes:
    """A file of an archive that is no image, such as a table.

    Raises:
        DataError: it is damaged, encrypted or too large.
    """
    archive = archive_of(path)
    if archive.files[name][0] > MAX_BYTES:
        raise DataError(f"{path}/{name} is larger than {MAX_BYTES:,} bytes")
    with foreign(DataError, f"{path}/{name} cannot be read"):
        return archive.read(name)


@dataclass(frozen=True)
class ArchivedImages:
    """Reads images out of an archive."""

    path: str
    names: tuple[str, ...]
    stamp: Stamp

    def open(self, index: int) -> Image.Image:
        archive, name = archive_of(self.path, self.stamp), self.names[index]
        size = archive.files[name][0]
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, more than {MAX_BYTES:,}")
        try:
            return Image.open(io.BytesIO(archive.read(name)))
        except DAMAGES as error:
            raise OSError(one_line(error)) from error

    def describe(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"


def reader_of(path: str | Path) -> Callable[[tuple[str, ...]], ArchivedImages]:
    """Readers of images by their names in the archive, as it is now."""
    stamp = stamp_of(path)
    return lambda names: ArchivedImages(str(path), names, stamp)


def tables_in(path: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """The tables of an archive: path in it -> as the archive writes it."""
    names = {os.path.normpath(name.replace("\\", "/")): name for name in archive_of(path).files}
    return {name: names[name] for name in sorted(names) if _is_table(name, suffixes)}


def _is_table(name: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(suffixes) and not hidden


def table_in(spec: Path, suffixes: tuple[str, ...]) -> tuple[Path, str] | None:
    """The archive and the name of the table of `photos.zip/labels.csv`; None of other paths.

    Raises:
        DataError: the archive has no such file.
    """
    for above in spec.parents:
        if above.suffix.lower() in SUFFIXES and above.is_file():
            wanted = spec.relative_to(above).as_posix()
            tables = tables_in(above, suffixes)
            if wanted in tables:
                return above, tables[wanted]
            raise DataError(
                f"{above} holds no {wanted}; its tables: {', '.join([*tables][:8]) or 'none'}"
            )
    return None
