"""`load_data`: a data spec to images that are checked, split and ready to be batched."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
import torch

from proxylessnas.architecture import InputInfo
from proxylessnas.config import DataSettings
from proxylessnas.data.augment import Augmentation
from proxylessnas.data.dataset import DataSummary, ImageData
from proxylessnas.data.source import Indices, Source
from proxylessnas.data.spec import open_source
from proxylessnas.data.splits import fixed_parts, limited_parts, with_validation
from proxylessnas.data.stores import ImageStore, PixelsInMemory, StreamedImages
from proxylessnas.data.survey import (
    ProgressCallback,
    Survey,
    UnexpectedShape,
    choose_format,
    mean_and_std,
    sample_shapes,
    survey_images,
)
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

DAMAGED_SHARE = 0.01  # of the images; more than this is an error
SMALLEST_SIZE = 8  # pixels


def load_data(
    spec: str,
    settings: DataSettings | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> ImageData:
    """Open, check, split and (if small) decode a data set.

    spec: mnist5k, digits, a folder of images (one folder a class, with or without train/, val/,
        test/), a folder of parquet, a Hugging Face owner/name[:config], torchvision:NAME.
    settings: how the data are split and augmented, see `DataSettings`. A validation part that
        the data set has itself is used as it is, and is the test part where there is none.
    image_size: side in pixels that images are resized to; None: the images' own where all have
        the same and it is at most 224, else 224.
    seed: of the choice of validation images.
    progress: called with (images decoded, images in all).

    Images that cannot be decoded are left out with a warning.

    Raises:
        DataError: the data cannot be used, more than 1 % of damaged images included.
    """
    if image_size is not None and image_size < SMALLEST_SIZE:
        raise DataError(f"image size {image_size} is too small; at least {SMALLEST_SIZE} pixels")
    settings = DataSettings() if settings is None else settings
    source = open_source(spec)
    whole = fixed_parts(source, settings.test_fraction)
    parts = limited_parts(source, whole, settings.limit)
    augmentation, survey = _survey(source, parts, image_size, settings.augment, progress)
    damaged = _refuse_or_warn(source, survey)
    numbers, rows = _undamaged(parts, survey.damaged)
    labels = source.labels[numbers]
    rows = with_validation(rows, labels, source.classes, settings.valid_fraction, seed)
    left_out = {
        **source.left_out,
        "over loading.limit": _images(whole) - _images(parts),
        "cannot be decoded": len(damaged),
    }
    mean, std = mean_and_std(survey.counts)
    return ImageData(
        info=InputInfo(
            shape=tuple(survey.format.shape),
            mean=mean,
            std=std,
            classes=source.classes,
            central_share=survey.format.central_share,
        ),
        summary=_summary(source, survey, rows, labels, left_out, damaged),
        augmentation=augmentation,
        store=_store(source, survey, numbers, labels, settings.workers),
        rows=rows,
    )


def _survey(
    source: Source,
    parts: Mapping[str, Indices],
    image_size: int | None,
    augment: str,
    progress: ProgressCallback | None,
) -> tuple[Augmentation, Survey]:
    """Look at the images of all parts, again where they are not as a sample promised."""
    numbers = np.concatenate(list(parts.values()))
    shapes = sample_shapes(source.reader, numbers)
    while True:
        chosen = choose_format(shapes, len(numbers), image_size)
        # Parsed before the images are decoded, for its errors.
        augmentation = Augmentation.parse(augment, shape=chosen.shape, classes=source.classes)
        try:
            return augmentation, survey_images(
                source.reader, numbers, parts["train"], chosen, shapes, progress
            )
        except UnexpectedShape as unexpected:
            shapes |= {unexpected.shape}


def _refuse_or_warn(source: Source, survey: Survey) -> tuple[str, ...]:
    """Names and reasons of damaged images: a warning for a few, DataError for more than 1 %."""
    damaged = [
        f"{source.reader.describe(number)} ({survey.damaged[number]})"
        for number in sorted(survey.damaged)
    ]
    count, examined = len(damaged), len(survey.examined)
    names = ", ".join(damaged[:3]) + (f" and {count - 3} more" if count > 3 else "")
    if count > DAMAGED_SHARE * examined:
        raise DataError(
            f"{count} of {examined} images of {source.name} cannot be decoded: {names}; "
            f"repair or remove them (up to {DAMAGED_SHARE:.0%} would be skipped)"
        )
    if damaged:
        warnings.warn(
            f"{count} of {examined} images of {source.name} cannot be decoded and are skipped: "
            f"{names}",
            stacklevel=3,
        )
    return tuple(damaged)


def _undamaged(
    parts: Mapping[str, Indices], damaged: Collection[int]
) -> tuple[Indices, dict[str, Indices]]:
    """The numbers of all images that can be decoded, and each part's rows among them."""
    numbers = np.concatenate(list(parts.values()))
    roles = np.repeat(list(parts), [len(part) for part in parts.values()])
    intact = ~np.isin(numbers, list(damaged))
    rows = {part: np.flatnonzero(roles[intact] == part).astype(np.int64) for part in parts}
    return numbers[intact], rows


def _images(parts: Mapping[str, Indices]) -> int:
    return sum(len(numbers) for numbers in parts.values())


def _store(
    source: Source, survey: Survey, numbers: Indices, labels: Indices, workers: int | None
) -> ImageStore:
    """The images `numbers`, in this order: from the survey, or anew from the source."""
    if survey.pixels is None:
        return StreamedImages(
            reader=source.reader,
            numbers=numbers,
            labels=labels,
            shape=survey.format.shape,
            central_share=survey.format.central_share,
            workers=min(usable_cpus(), 8) if workers is None else workers,
        )
    pixels = survey.pixels
    if survey.damaged:
        pixels = pixels[torch.from_numpy(np.isin(survey.examined, numbers))]
    return PixelsInMemory(pixels, torch.from_numpy(labels))


def _summary(
    source: Source,
    survey: Survey,
    rows: Mapping[str, Indices],
    labels: Indices,
    left_out: Mapping[str, int],
    damaged: tuple[str, ...],
) -> DataSummary:
    counts = np.bincount(labels, minlength=len(source.classes)).tolist()
    heights = [shape.height for shape in survey.shapes]
    widths = [shape.width for shape in survey.shapes]
    return DataSummary(
        source=source.name,
        parts={part: len(chosen) for part, chosen in rows.items()},
        classes=dict(zip(source.classes, counts, strict=True)),
        heights=(min(heights), max(heights)),
        widths=(min(widths), max(widths)),
        shape=survey.format.shape,
        damaged=damaged,
        left_out={reason: count for reason, count in left_out.items() if count},
    )
