"""What a candidate is worth: how far the teacher's outputs move when it takes its block's place.

KL(teacher ‖ network with the candidate), in nats a photo, on photos that the candidates were not
fitted to. The error of the block's own output says less: a network forgives some errors, and
labels are not needed.

First one block alone is replaced in the teacher. But KLs do not quite add up: of two blocks with
shortcuts in a row either may be left out, not both. So candidates can be scored again in the
network that was chosen by the first scores, whose other blocks are no longer the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from proxylessnas.core.mixed import Residual, Zero
from proxylessnas.export.fold import fold
from proxylessnas.spaces.blocks import Network

Scores = list[dict[str, float]]  # of every block, by the candidate's name
Candidates = Sequence[Mapping[str, nn.Module]]  # of every block; its own branch first, or none


@torch.no_grad()
def replacement_scores(
    network: Network,
    candidates: Candidates,
    images: Iterable[Tensor],
    *,
    around: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """KL of the outputs for every candidate of every block, in place of the block there.

    network: the teacher. images: batches as the network takes them.
    around: the name of every block's candidate in the network around the replaced one (anything
        where a block has but one); default: the teacher, whose own branches score 0.
    progress: called with (scored, all).
    """
    # Without normalisation as layers of its own a pass takes half the time.
    teacher = [fold(block) for block in network.blocks]
    stem, head = fold(network.stem), fold(network.head)
    choices = [
        {name: fold(as_block(block, branch)) for name, branch in named.items()}
        for block, named in zip(network.blocks, candidates, strict=True)
    ]
    names = around or [next(iter(named), "") for named in candidates]
    chain = [
        named[name] if len(named) > 1 else block
        for name, named, block in zip(names, choices, teacher, strict=True)
    ]
    batches = list(images)
    total, done = len(batches) * sum(map(len, choices)), 0
    sums = [dict.fromkeys(named, 0.0) for named in candidates]
    for batch in batches:
        # The blocks before the replaced one compute what they always do: their outputs are kept.
        inputs = [stem(batch)]
        for block in chain:
            inputs.append(block(inputs[-1]))
        wanted = log_softmax(head(_through(teacher, inputs[0])).double(), 1)
        unchanged = _divergence(head(inputs[-1]), wanted)
        for index, named in enumerate(choices):
            for name, choice in named.items():
                if name == names[index] or len(named) == 1:
                    sums[index][name] += unchanged
                else:
                    x = _through([choice, *chain[index + 1 :]], inputs[index])
                    sums[index][name] += _divergence(head(x), wanted)
                done += 1
                progress(done, total)
    photos = sum(map(len, batches))
    return [{name: value / photos for name, value in named.items()} for named in sums]


def _through(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _divergence(logits: Tensor, wanted: Tensor) -> float:
    """Σ over the batch of KL(teacher ‖ network). wanted: the teacher's log probabilities."""
    student = log_softmax(logits.double(), 1)
    return float(kl_div(student, wanted, reduction="sum", log_target=True))


def mean_scores(several: Sequence[Scores]) -> Scores:
    """The mean of a candidate's scores, each less the least of its block."""
    return [
        {name: sum(row[name] - min(row.values()) for row in rows) / len(rows) for name in rows[0]}
        for rows in zip(*several, strict=True)
    ]


def tempered(scores: Scores) -> Scores:
    """Scores whose blocks weigh the square root of what they did.

    How much a block matters to the teacher, which has learned all it will, is only half of how much
    it will matter to a network that goes on learning: by the scores alone the last blocks, on which
    a teacher of a few thousand photos leans least, would keep nothing to learn with. Within a block
    the proportions stay. Chosen on images of CIFAR-10, see docs/log.md.
    """
    widest = [max((v for k, v in named.items() if k != "zero"), default=0.0) for named in scores]
    return [
        {name: value / math.sqrt(most) if most > 0 else value for name, value in named.items()}
        for named, most in zip(scores, widest, strict=True)
    ]


def as_block(block: nn.Module, branch: nn.Module) -> nn.Module:
    """A candidate in a block's place: beside its shortcut, where it has one."""
    if not isinstance(block, Residual):
        return branch
    return nn.Identity() if isinstance(branch, Zero) else Residual(branch)
