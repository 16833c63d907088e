"""`load_data`: a spec to images that are checked, split and ready to be batched."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from proxylessnas.data.augment import Policy
from proxylessnas.data.decode import (
    SAMPLE,
    Progress,
    Surprise,
    decode,
    evenly,
    look,
    make_plan,
    mean_and_std,
    read_headers,
    value_counts,
)
from proxylessnas.data.image_batches import Batches, Stream
from proxylessnas.data.info import ImageInfo
from proxylessnas.data.source import Indices, Source
from proxylessnas.data.sources import open_source
from proxylessnas.data.splits import hold_out, spread
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

PARTS = ("train", "search", "valid", "test")
DAMAGED_SHARE = 0.01  # of the images; more than this is an error


class ImageData:
    """A data set with fixed parts: train = search + valid, and test; made by `load_data`.

    info: what was read from the images.
    augmentation: what `batches(augment=True)` does, such as "crop+flip".
    in_memory: whether the images are decoded already; else they stream through workers.
    skipped: images that could not be decoded, each with the reason.
    """

    def __init__(
        self,
        info: ImageInfo,
        *,
        store: Tensor | Stream,
        rows: dict[str, Indices],
        labels: Indices,
        policy: Policy,
        skipped: list[str],
    ) -> None:
        self.info = info
        self.augmentation = policy.text
        self.in_memory = isinstance(store, Tensor)
        self._store = store
        self._rows = rows
        self._labels = labels
        self._policy = policy
        self._skipped = skipped

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(self._skipped)

    def size(self, part: str) -> int:
        """The number of images of "train", "search", "valid" or "test"."""
        return len(self._part(part))

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        augment: bool | str = False,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> Batches:
        """The batches of a part; shuffles and augmentation depend on `seed`, part and epoch.

        part: "train" all training images, "search" those without "valid", "valid" the held-out
            ones, "test". ValueError for any other.
        augment: True: as the data were loaded for; or another `policy` in words.
        DataError where `drop_last` would leave no batch at all.
        """
        rows, policy = self._part(part), self._policy if augment else None
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: at least 1")
        if drop_last and batch_size > len(rows):
            raise DataError(
                f"a batch of {batch_size} is more than the {len(rows)} images of the {part} part "
                f"of {self.info.name}; choose a smaller batch"
            )
        return Batches(
            self._store,
            rows=rows,
            labels=self._labels[rows],
            info=self.info,
            part=part,
            batch_size=batch_size,
            policy=self.policy(augment) if isinstance(augment, str) else policy,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )

    def policy(self, text: str) -> Policy:
        """The augmentation that `text` names, see `Policy`, for these images.

        Raises:
            DataError: the text is not understood.
        """
        info = self.info
        return Policy.parse(text, channels=info.channels, classes=info.classes, height=info.height)

    def _part(self, part: str) -> Indices:
        if part not in self._rows:
            raise ValueError(f"part {part!r}: one of {', '.join(PARTS)}")
        return self._rows[part]


def load_data(
    spec: str,
    *,
    image_size: int | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.2,
    workers: int | None = None,
    limit: int | None = None,
    augment: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageData:
    """Find, check, split and (if small) decode a data set.

    spec: mnist5k, digits, a folder of images (one folder a class, with or without train/, val/,
        test/), a folder of parquet, a Hugging Face owner/name[:config], torchvision:NAME.
    image_size: side in pixels that images are resized to; None: the images' own where all have
        the same and it is at most 224, else 224.
    valid_fraction: of the training images, held out for "valid", stratified, by `seed`. A
        validation part that the data set has itself is used instead (and is the test part where
        there is no test part).
    test_fraction: held out for "test" where the data set has no such part; whatever the seed.
    workers: processes that decode a streamed set; None: one a processor, up to 8. They change
        nothing in what is computed.
    limit: at most so many images of each part, in proportion of the classes.
    augment: see `Policy`: auto, none, or crop or shift, flip, jitter, cutoutN joined by +.
    progress: called with (images decoded, images in all).

    DataError says in one line what is wrong with the data. Single images that cannot be decoded
    are skipped with a warning; more than 1 % of them is an error.
    """
    _check_settings(image_size, valid_fraction, test_fraction, workers)
    source = open_source(spec)
    parts = _parts(source, test_fraction, limit)
    numbers = np.concatenate(list(parts.values()))

    headers = read_headers(source.reader, numbers)
    while True:
        plan = make_plan(headers, len(numbers), image_size)
        policy = Policy.parse(  # before the decoding, for its errors
            augment,
            channels=plan.frame.channels,
            classes=source.classes,
            height=plan.frame.height,
        )
        if not plan.in_memory:
            pixels = None
            checked = numbers if len(numbers) <= SAMPLE else evenly(parts["train"], SAMPLE)
            survey = look(source.reader, checked, parts["train"], plan, progress)
            break
        try:
            checked = numbers
            pixels, survey = decode(source.reader, numbers, plan, headers, progress)
            break
        except Surprise as surprise:  # not all images are like those of the sample
            headers.add(surprise.header)

    skipped = _refuse_or_warn(source, survey.damaged, len(checked))
    good = ~np.isin(numbers, list(survey.damaged))
    kept, labels = numbers[good], source.labels[numbers[good]]
    role = np.repeat(list(parts), [len(part) for part in parts.values()])[good]
    rows = {name: np.flatnonzero(role == name).astype(np.int64) for name in parts}
    if pixels is not None:
        if skipped:
            pixels = pixels[torch.from_numpy(good)]
        sample = torch.from_numpy(evenly(rows["train"], SAMPLE))
        counts = value_counts(pixels.index_select(0, sample))
    else:
        assert not isinstance(survey.counts, int)
        counts = survey.counts
    mean, std = mean_and_std(counts)
    info = ImageInfo(
        name=source.name,
        channels=plan.frame.channels,
        height=plan.frame.height,
        width=plan.frame.width,
        classes=source.classes,
        mean=mean,
        std=std,
        central_share=plan.central_share,
    )
    store: Tensor | Stream
    if pixels is not None:
        store = pixels
    else:
        store = Stream(
            source.reader,
            kept,
            labels,
            plan.frame,
            share=plan.central_share,
            workers=min(usable_cpus(), 8) if workers is None else workers,
            on_damaged=_record_into(skipped),
        )
    return ImageData(
        info,
        store=store,
        rows=_with_validation(rows, labels, source, valid_fraction, seed),
        labels=labels,
        policy=policy,
        skipped=skipped,
    )


def _check_settings(
    image_size: int | None,
    valid_fraction: float,
    test_fraction: float,
    workers: int | None,
) -> None:
    for name, share in (
        ("valid_fraction", valid_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 < share < 1:
            raise DataError(f"{name} {share} is not between 0 and 1")
    if image_size is not None and image_size < 8:
        raise DataError(f"image size {image_size} is too small; at least 8 pixels")
    if workers is not None and workers < 0:
        raise DataError(f"workers {workers} is negative")


def _parts(source: Source, test_fraction: float, limit: int | None) -> dict[str, Indices]:
    """Image numbers of train, test and, if the set has it, valid; no seed changes them."""
    train, test = source.train, source.test
    if test is None:
        kept, held = hold_out(
            source.labels[train],
            test_fraction,
            seed=0,
            name="test",
            classes=source.classes,
            keep=1 if source.valid is not None else 2,
        )
        train, test = train[kept], train[held]
    parts = {"train": train, "test": test}
    if source.valid is not None:
        parts["valid"] = source.valid
    if limit is None:
        return parts
    least = 2 * len(source.classes)
    if limit < least:
        raise DataError(
            f"limit {limit} is too small for {len(source.classes)} classes; at least {least}"
        )
    for name, part in parts.items():
        chosen = spread(
            source.labels[part],
            limit,
            seed=0,
            name=f"limit/{name}",
            each=2 if name == "train" else 1,
        )
        parts[name] = part[chosen]
    return parts


def _with_validation(
    rows: dict[str, Indices],
    labels: Indices,
    source: Source,
    fraction: float,
    seed: int,
) -> dict[str, Indices]:
    """train, search, valid and test: the set's own validation part, or a held-out one."""
    if "valid" in rows:
        search, valid = rows["train"], rows["valid"]
        train = np.concatenate([search, valid])
    else:
        train = rows["train"]
        kept, held = hold_out(
            labels[train],
            fraction,
            seed=seed,
            name="valid",
            classes=source.classes,
            keep=1,
        )
        search, valid = train[kept], train[held]
    return {"train": train, "search": search, "valid": valid, "test": rows["test"]}


def _refuse_or_warn(source: Source, damaged: dict[int, str], checked: int) -> list[str]:
    """Names and reasons of damaged images: a warning for a few, DataError for more than 1 %."""
    names = [f"{source.reader.where(n)} ({damaged[n]})" for n in sorted(damaged)]
    if not names:
        return names
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(names) > DAMAGED_SHARE * checked:
        raise DataError(
            f"{len(names)} of {checked} images of {source.name} cannot be decoded: {shown}; "
            f"repair or remove them (up to {DAMAGED_SHARE:.0%} would be skipped)"
        )
    warnings.warn(
        f"{len(names)} of {checked} images of {source.name} cannot be decoded and are skipped: "
        f"{shown}",
        stacklevel=3,
    )
    return names


def _record_into(names: list[str]) -> Callable[[str], None]:
    """Notes, once each, images of a stream that turn out to be damaged."""

    def record(name: str) -> None:
        if name not in names:
            names.append(name)
            warnings.warn(f"image cannot be decoded and is left out: {name}", stacklevel=2)

    return record
