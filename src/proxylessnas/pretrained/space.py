"""The search space around a trained network: its blocks as mixed operations of their candidates.

The supernet is one as any other: traced, measured, decoded and derived in the same way. Its
candidates carry their fitted weights, so every network of the space works from the first step on,
and α need not begin as noise: the scores of single replacements are its prior.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero, softmax
from proxylessnas.pretrained.candidates import BlockFits, blank, rounded_width
from proxylessnas.pretrained.networks import bottleneck
from proxylessnas.pretrained.scores import Scores, as_block
from proxylessnas.spaces.blocks import Network
from proxylessnas.spaces.inverted import parse_choice
from proxylessnas.training.callbacks import mean_entropy

PRIOR_ENTROPY = 0.5


def space_around(network: Network, candidates: Sequence[Mapping[str, nn.Module]]) -> Network:
    """A copy of the network whose blocks are mixed operations.

    candidates: of every block its own branch first, as `BlockFits.candidates`; a block with a
    single candidate or none stays as it is.
    """
    blocks: list[nn.Module] = []
    for block, named in zip(network.blocks, candidates, strict=True):
        if len(named) < 2:
            blocks.append(copy.deepcopy(block))
            continue
        mixed = MixedOp(dict(named))
        blocks.append(Residual(mixed) if isinstance(block, Residual) else mixed)
    return _with_blocks(network, blocks).eval()


def blank_candidates(
    network: Network, names: Sequence[Iterable[str]]
) -> list[dict[str, nn.Module]]:
    """Candidates of these names with fresh weights, for weights that are loaded afterwards.

    names: of every block, as `BlockFits.candidates` gives them.

    Raises:
        ArchitectureError: a name is not understood.
    """
    blanks: list[dict[str, nn.Module]] = []
    for block, named in zip(network.blocks, names, strict=True):
        layers = bottleneck(block)
        row: dict[str, nn.Module] = {}
        for name in named if layers is not None else ():
            assert layers is not None
            row[name] = Zero() if name == "zero" else blank(layers, *parse_choice(name))
        blanks.append(row)
    return blanks


def _with_blocks(network: Network, blocks: Sequence[nn.Module]) -> Network:
    return Network(copy.deepcopy(network.stem), blocks, copy.deepcopy(network.head))


def prior(supernet: Supernet, scores: Scores, *, entropy: float = PRIOR_ENTROPY) -> Tensor:
    """α with log p = -s·KL + constant, [choices, candidates]; see `scores.replacement_scores`.

    One s serves all choices, because a nat is worth the same in every block: where KLs add up, the
    most probable network within a limit is the one whose outputs move least, whatever s is. What s
    decides is how much the gates can change. By equation 4 a gradient of α is proportional to
    p(1 - p): at a mean entropy of 0 nothing would move any more, at 1 the scores would say
    nothing. s is such that the mean entropy is halfway.

    scores: of the blocks that are choices, in their order; blocks with one candidate are skipped.
    """
    rows = [named for named in scores if len(named) > 1]
    kl = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, (names, named) in enumerate(zip(supernet.candidates, rows, strict=True)):
        kl[m, : len(names)] = torch.tensor([named[name] for name in names], dtype=torch.float64)
    low, high = 0.0, 1.0
    while mean_entropy(softmax(-high * kl, supernet.mask), supernet.mask) > entropy and high < 1e9:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        above = mean_entropy(softmax(-middle * kl, supernet.mask), supernet.mask) > entropy
        low, high = (middle, high) if above else (low, middle)
    return -high * kl


# --- what the search is compared with ---


def uniform_network(network: Network, fits: Sequence[BlockFits | None], share: float) -> Network:
    """All blocks narrowed alike by least squares, to this share of their hidden channels.

    fits: of every block; None where it stays.
    """
    blocks: list[nn.Module] = []
    for block, fit in zip(network.blocks, fits, strict=True):
        if fit is None or not fit.can_narrow:
            blocks.append(copy.deepcopy(block))
            continue
        full = fit.hidden_channels
        width = max(fit.least, rounded_width(share * full, full))
        blocks.append(as_block(block, fit.candidate(fit.teacher.kernel, width)))
    return _with_blocks(network, blocks).eval()


def largest_within(
    values: Sequence[float], latency_ms: Callable[[float], float], limit_ms: float
) -> float | None:
    """The largest value whose network keeps the limit, by bisection; None where none does.

    values: rising, as are the latencies of their networks (shares of `uniform_network`, input
    sizes of the teacher). latency_ms: measured.
    """
    low, high = -1, len(values)  # values[low] keeps the limit, values[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if latency_ms(values[middle]) <= limit_ms:
            low = middle
        else:
            high = middle
    return None if low < 0 else values[low]
