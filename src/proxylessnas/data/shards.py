"""Shards of WebDataset: tar files of samples, `0001.jpg` beside `0001.cls`, its class.

A sample is all files of one name up to the first dot. The shards' names say the parts, as
`train-000000.tar` and `val-000000.tar` do, or their folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path

from proxylessnas.data.archives import DAMAGES, Archive, archive_of, reader_of
from proxylessnas.data.formats import IMAGE_SUFFIXES
from proxylessnas.data.labels import class_numbers
from proxylessnas.data.parts import parts_among
from proxylessnas.data.source import Source, SplitPart, assemble, digest, joined
from proxylessnas.data.watching import Progress, silent, watched
from proxylessnas.errors import DataError, one_line

LABEL = "cls"
MOST_LABEL = 1000  # bytes of a class


def holds_shards(path: Path) -> bool:
    """Whether a tar file, or the first one of a folder, holds labels beside images."""
    shards = _shards(path)
    if not shards:
        return False
    return any(_parted(name)[1] == LABEL for name in archive_of(shards[0]).files)


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted((*path.glob("*.tar"), *path.glob("*/*.tar")))


def _parted(name: str) -> tuple[str, str]:
    """A file's sample, and what of it the file holds: `a/1.seg.png` -> (`a/1`, `seg.png`)."""
    folder, _, file = name.rpartition("/")
    key, _, kind = file.partition(".")
    return f"{folder}/{key}" if folder else key, kind.lower()


def shards_source(path: Path, progress: Progress = silent) -> Source:
    """One tar file, or a folder of several, with or without parts in their names or folders.

    Raises:
        DataError: a shard is damaged, or a sample has several images.
    """
    shards = _shards(path)
    parts = _parts(str(path), shards)
    samples: dict[Path, dict[str, str | None]] = {}

    def read() -> None:
        for shard in chain.from_iterable(parts.values()):
            samples[shard] = _samples(shard)

    tell = lambda: progress(sum(map(len, [*samples.values()])), 0, "images listed")  # noqa: E731
    watched(read, tell)
    labels = {
        role: [label for shard in of_part for label in samples[shard].values()]
        for role, of_part in parts.items()
    }
    classes, numbers = class_numbers(str(path), labels, None)
    readers = {
        role: joined(
            [reader_of(shard)(tuple(samples[shard])) for shard in of_part],
            [0, *accumulate(len(samples[shard]) for shard in of_part)],
        )
        for role, of_part in parts.items()
    }
    return assemble(
        str(path),
        classes,
        {role: SplitPart(numbers[role], readers[role]) for role in parts},
        {"shard of no part": len(shards) - sum(map(len, parts.values()))},
        notes=[
            f"shards of WebDataset, labels from .{LABEL}",
            *(f"{role} from {len(s)} such as {s[0].name}" for role, s in parts.items()),
        ],
        digests={
            role: digest(
                {f"{s.name}/{n}": archive_of(s).files[n] for s in of_part for n in samples[s]}
            )
            for role, of_part in parts.items()
        },
    )


def _parts(name: str, shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Part -> its shards, by their names without numbers, or else by their folders."""
    names = {shard: re.sub(r"\d+", "", shard.stem) for shard in shards}
    for words in (names, {shard: shard.parent.name for shard in shards}):
        named = parts_among(set(words.values()))
        if named and "train" not in named:
            raise DataError(f"{name} has shards of {', '.join(named)} and none of a part train")
        if named:
            return {
                role: [shard for shard in shards if words[shard] in meant]
                for role, meant in named.items()
            }
    return {"train": list(shards)}


def _samples(shard: Path) -> dict[str, str | None]:
    """The image of every sample, and its label; None where it has none."""
    archive = archive_of(shard)
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name in archive.files:
        key, kind = _parted(name)
        if kind == LABEL:
            labels[key] = _label(archive, shard, name)
        elif f".{kind}".startswith(IMAGE_SUFFIXES) and not os.path.basename(key).startswith("."):
            if key in images:
                raise DataError(
                    f"{shard}: the sample {key} has several images, {images[key]} and {name}; one "
                    "an image is expected"
                )
            images[key] = name
    return {name: labels.get(key) for key, name in images.items()}


def _label(archive: Archive, shard: Path, name: str) -> str:
    try:
        return archive.read(name, MOST_LABEL).decode("utf-8", "backslashreplace").strip()
    except DAMAGES as error:
        raise DataError(f"{shard}/{name} cannot be read: {one_line(error)}") from error
