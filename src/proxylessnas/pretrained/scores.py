"""What a candidate is worth: how far the teacher's outputs move when one block alone is replaced.

KL(teacher ‖ network with the candidate), in nats a photo, on photos that the candidates were not
fitted to. The error of the block's own output says less: a network forgives some errors, and
labels are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from proxylessnas.core.supernet import Residual, Zero
from proxylessnas.export.fold import fold
from proxylessnas.spaces.blocks import Network

Scores = list[dict[str, float]]  # of every block, by the candidate's name


@torch.no_grad()
def replacement_scores(
    network: Network,
    candidates: Sequence[Mapping[str, nn.Module]],
    images: Iterable[Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """KL of the outputs for every candidate of every block, 0 for the block itself.

    network: the teacher. candidates: of every block, its own branch first; none where the block
    stays. images: batches as the network takes them. progress: called with (scored, all).
    """
    # Without normalisation as layers of its own a pass takes half the time.
    blocks = [fold(block) for block in network.blocks]
    stem, head = fold(network.stem), fold(network.head)
    replacements = [
        {name: fold(as_block(block, branch)) for name, branch in list(named.items())[1:]}
        for block, named in zip(network.blocks, candidates, strict=True)
    ]
    batches = list(images)
    total, done = len(batches) * sum(map(len, replacements)), 0
    sums = [dict.fromkeys(named, 0.0) for named in candidates]
    for batch in batches:
        # The blocks before the replaced one compute what they always do: their outputs are kept.
        inputs = [stem(batch)]
        for block in blocks:
            inputs.append(block(inputs[-1]))
        teacher = log_softmax(head(inputs[-1]).double(), 1)
        for index, named in enumerate(replacements):
            for name, replacement in named.items():
                x = replacement(inputs[index])
                for block in blocks[index + 1 :]:
                    x = block(x)
                student = log_softmax(head(x).double(), 1)
                kl = kl_div(student, teacher, reduction="sum", log_target=True)
                sums[index][name] += float(kl)
                done += 1
                progress(done, total)
    photos = sum(map(len, batches))
    return [{name: value / photos for name, value in named.items()} for named in sums]


def as_block(block: nn.Module, branch: nn.Module) -> nn.Module:
    """A candidate in a block's place: beside its shortcut, where it has one."""
    if not isinstance(block, Residual):
        return branch
    return nn.Identity() if isinstance(branch, Zero) else Residual(branch)
