"""What a stage will take at its peak, told from a few small steps, and kept within what is free.

A kernel without memory kills without a word. So before a stage's first step its peak is predicted
for its batch size, which is a line in the number of images. A batch that is too large is computed
in parts where that gives the same result, and else refused with the batch size that fits. On GPUs,
and for loaders of the user's own, nothing is predicted, which is said: an allocator that says by
itself that there is too little is explained by `training.faults`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from proxylessnas.config import parse_bytes
from proxylessnas.core.search import Search
from proxylessnas.data import ImageBatches
from proxylessnas.errors import UserError
from proxylessnas.io.memory import free_bytes, peak_bytes, resident_bytes
from proxylessnas.training.job import Job
from proxylessnas.training.ranks import ALONE
from proxylessnas.training.train import Training

PROBE_PIXELS = 2**18  # of the larger small batch: steps of a fraction of a second
# What malloc holds besides in the long run, as activations of other sizes come and go, and copies
# of the weights: momentum, averages, and those that checkpoints are written from.
FRAGMENTS, COPIES = 1.3, 3


@dataclass(frozen=True)
class Need:
    """Bytes of a stage: those in use before it, those of any step, and those of each image."""

    before: float
    step: float
    image: float

    def peak(self, images: int) -> float:
        """The most that the process will have in memory."""
        return self.before + FRAGMENTS * (self.step + self.image * images)

    def images(self, most: float) -> int:
        """How many fit into so many bytes; 0 where no image does."""
        free = (most - self.before) / FRAGMENTS - self.step
        return max(0, math.floor(free / max(self.image, 1.0)))


def fit_memory(
    job: Job, stage: str, limit: str | None, say: Callable[[str], object] = lambda _: None
) -> None:
    """Say what the stage will take, and let it take no more than there is; or that it is not known.

    Of several ranks each takes its slice of a batch, and those of one machine share its memory.

    limit: the setting `memory`.

    Raises:
        UserError: a batch does not fit and cannot be computed in parts.
    """
    if not isinstance(job, Search | Training) or job.step >= job.total:
        return
    batches, valid = job.train, job.valid if isinstance(job, Search) else None
    if not isinstance(batches, ImageBatches) or job.machine.is_apart:
        what = "on a GPU" if job.machine.is_apart else "for loaders of your own"
        say(f"  memory: not predicted {what}; a step that is too large names a batch that fits")
        return
    whole = max(_size(b) for b in (batches, valid) if isinstance(b, ImageBatches))
    size, here = math.ceil(whole / job.ranks.world), job.ranks.local
    need = _predicted(job, batches.info.shape, size)
    if need is None:
        return
    free = job.ranks.of_main(free_bytes) / here + need.before
    most = free if limit is None else min(free, parse_bytes(limit) / here)
    bound = "free" if most == free else f"allowed (--memory {limit})"
    bound += f" for each of {here} processes" if here > 1 else ""
    say(f"  memory: about {_gb(need.peak(size))} at batch {size}; {_gb(most)} are {bound}")
    if need.peak(size) > most:
        height, width = batches.info.shape[1:]
        words = (
            f"a step of {stage} on {size} images of {height} x {width} needs about "
            f"{_gb(need.peak(size))}, and {_gb(most)} are {bound}"
        )
        _reduce(job, stage, size, need.images(most), words)
        say(f"  batches are computed {job.at_once} images at a time, to the same result")


def _size(batches: ImageBatches) -> int:
    return min(batches.batch_size, len(batches.rows))


def _reduce(job: Search | Training, stage: str, size: int, fitting: int, words: str) -> None:
    """Have the job compute only as many images at once as fit; UserError where it cannot."""
    why = job.whole_batch
    if fitting >= 1 and not why:
        job.at_once = math.ceil(size / math.ceil(size / fitting))
        return
    option = f"--{stage if stage in ('search', 'teach') else 'train'}.batch-size"
    if fitting >= 2:
        remedy = f"it cannot be taken in parts, as {why}: take {option} {fitting}"
    else:
        remedy = "no smaller batch fits: take fewer pixels"
    raise UserError(f"{words}; {remedy} (also: --image-size, --memory)")


def _predicted(job: Search | Training, shape: tuple[int, ...], size: int) -> Need | None:
    """`predict` by each rank on its own, and what rank 0 found, for all."""
    ranks = job.ranks
    try:
        job.ranks = ALONE
        need = predict(job, shape, size)
    finally:
        job.ranks = ranks
    plain = ranks.of_main(lambda: None if need is None else [need.before, need.step, need.image])
    return None if plain is None else Need(*plain)


def predict(job: Search | Training, shape: tuple[int, ...], size: int) -> Need | None:
    """What steps of a job take, from steps on two small batches; None where nothing tells.

    shape: of an image. size: the largest batch.
    """
    larger = min(size, max(4, PROBE_PIXELS // (shape[-2] * shape[-1])))
    smaller = max(1, larger // 3)
    if larger < 4:  # too few images to matter
        return None
    _probe(job, shape, smaller)  # what is made once: threads, compiled kernels
    peaks = [_probe(job, shape, images) for images in (smaller, larger)]
    before = resident_bytes()
    if before is None or None in peaks:
        return None
    less, more = (float(peak or 0) for peak in peaks)
    image = max(0.0, (more - less) / (larger - smaller))
    copies = COPIES * sum(p.numel() * p.element_size() for p in job.model.parameters())
    return Need(before, max(0.0, less - smaller * image) + copies, image)


def _probe(job: Search | Training, shape: tuple[int, ...], images: int) -> float | None:
    """Bytes that a step on so many black images takes besides what is in use before it."""
    before = resident_bytes()
    batch = torch.zeros(images, *shape), torch.zeros(images, dtype=torch.int64)
    peak = peak_bytes(lambda: job.probe(batch))
    return None if before is None or peak is None else float(peak - before)


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
