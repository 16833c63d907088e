"""`load_data`: a data spec to images that are checked, split and ready to be batched."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch

from proxylessnas.architecture import InputInfo
from proxylessnas.config import DataSettings
from proxylessnas.data.augment import NONE, Augmentation
from proxylessnas.data.dataset import DataSummary, ImageData, named
from proxylessnas.data.decode import allow_pixels
from proxylessnas.data.image_batches import ImageBatches
from proxylessnas.data.source import Indices, Source
from proxylessnas.data.spec import open_source
from proxylessnas.data.splits import fixed_parts, limited_parts, with_validation
from proxylessnas.data.stores import ImageStore, PixelsInMemory, StreamedImages
from proxylessnas.data.survey import Survey, damaged_among, survey_images
from proxylessnas.data.watching import Progress, silent
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

DAMAGED_SHARE = 0.01  # of the images; more than this is an error
SMALLEST_SIZE = 8  # pixels
EVALUATION_BATCH = 250


def load_data(
    spec: str,
    settings: DataSettings | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageData:
    """Open, split, check and (if small) decode a data set.

    spec: mnist5k, digits, surfaces, a folder of images (one folder a class, with or without
        train/, val/, test/) or a .zip or .tar of one, a .csv of file names and labels or of
        pixels (also within an archive), shards of WebDataset, a folder of
        parquet or of `save_to_disk`, a Hugging Face owner/name[:config], torchvision:NAME.
    settings: how the data are split and augmented, see `DataSettings`. A validation part that
        the data set has itself is used as it is, and is the test part where there is none.
    image_size: side in pixels that images are resized to; None: the images' own where all have
        the same and it is at most 224, else 224.
    seed: of the choice of validation images.
    progress: called with what is done, of how many (0: not known), and what these are.

    Images that cannot be decoded are left out with a warning, and counted in the summary.

    Raises:
        DataError: the data cannot be used, more than 1 % of damaged images included.
    """
    settings = DataSettings() if settings is None else settings
    if image_size is not None and image_size < SMALLEST_SIZE:
        raise DataError(f"image size {image_size} is too small; at least {SMALLEST_SIZE} pixels")
    progress = progress or silent
    allow_pixels(settings.max_pixels)
    source = open_source(spec, settings, progress)
    whole = fixed_parts(source, settings.test_fraction)
    parts = limited_parts(source, whole, settings.limit)
    parse_augmentation = partial(Augmentation.parse, settings.augment)
    survey = survey_images(source, parts, image_size, parse_augmentation, progress)
    _refuse_or_warn(source.name, survey.damaged, survey.examined)
    labels = source.labels[survey.numbers]
    rows = with_validation(survey.rows, labels, source.classes, settings.valid_fraction, seed)
    left_out = {
        **source.left_out,
        "over loading.limit": sum(map(len, whole.values())) - sum(map(len, parts.values())),
        "cannot be decoded": len(survey.damaged),
    }
    counts = np.bincount(labels, minlength=len(source.classes)).tolist()
    return ImageData(
        info=survey.info,
        summary=DataSummary(
            source=source.name,
            parts={part: len(chosen) for part, chosen in rows.items()},
            classes=dict(zip(source.classes, counts, strict=True)),
            file_shapes=survey.file_shapes,
            shape=survey.info.shape,
            damaged=survey.damaged,
            left_out={reason: count for reason, count in left_out.items() if count},
            notes=(*source.notes, *survey.notes),
        ),
        augmentation=parse_augmentation(survey.info),
        store=_store(source, survey, settings),
        rows=rows,
        digests={
            part: (len(source.parts.get(part, ())), *both) for part, both in source.digests.items()
        },
    )


def load_for(
    spec: str, settings: DataSettings, info: InputInfo, progress: Progress = silent
) -> tuple[ImageBatches, str]:
    """The test part of a data set, or all images where it has none, as a network's inputs.

    info: of the network, whose classes the data set must have. Returns what was read, too.

    Raises:
        DataError: the data cannot be used, or their classes are others.
    """
    allow_pixels(settings.max_pixels)
    source = open_source(spec, settings, progress)
    differing = sorted(set(source.classes) ^ set(info.classes))
    if differing:
        raise DataError(
            f"{spec} has other classes than the network: {', '.join(differing[:5])} "
            f"{'is' if len(differing) == 1 else 'are'} not in both"
        )
    part = "test" if "test" in source.parts else "train"
    numbers = source.parts[part]
    order = np.array([info.classes.index(name) for name in source.classes])
    labels = order[source.labels[numbers]]
    counts = np.bincount(labels, minlength=len(info.classes)).tolist()
    damaged = damaged_among(source.reader, numbers, info, progress)
    _refuse_or_warn(spec, tuple(damaged.values()), len(numbers))
    intact = ~np.isin(numbers, list(damaged))
    store = _streamed(source, numbers[intact], labels[intact], info, settings)
    batches = ImageBatches(
        store=store,
        rows=torch.arange(len(store.numbers)),
        info=info,
        part=part,
        batch_size=EVALUATION_BATCH,
        augmentation=NONE,
        shuffle=False,
        seed=0,
    )
    classes = dict(zip(info.classes, counts, strict=True))
    return batches, f"{len(store.numbers):,} images of the {part} part; {named(classes)}"


def _refuse_or_warn(name: str, damaged: tuple[str, ...], examined: int) -> None:
    """A warning for a few damaged images, DataError for more than 1 %."""
    count = len(damaged)
    if not count:
        return
    images = ", ".join(damaged[:3]) + (f" and {count - 3} more" if count > 3 else "")
    which = f"{count} of {examined} images of {name} cannot be decoded"
    if count > DAMAGED_SHARE * examined:
        raise DataError(
            f"{which}: {images}; repair or remove them (up to {DAMAGED_SHARE:.0%} would be skipped)"
        )
    warnings.warn(f"{which} and are skipped: {images}", stacklevel=3)


def _store(source: Source, survey: Survey, settings: DataSettings) -> ImageStore:
    labels = source.labels[survey.numbers]
    if survey.pixels is not None:
        return PixelsInMemory(survey.pixels, torch.from_numpy(labels))
    return _streamed(source, survey.numbers, labels, survey.info, settings)


def _streamed(
    source: Source, numbers: Indices, labels: Indices, info: InputInfo, settings: DataSettings
) -> StreamedImages:
    return StreamedImages(
        reader=source.reader,
        numbers=numbers,
        labels=labels,
        info=info,
        workers=min(usable_cpus(), 8) if settings.workers is None else settings.workers,
        max_pixels=settings.max_pixels,
    )
