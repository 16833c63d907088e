"""The search space around a trained network: its blocks as mixed operations of their candidates.

The supernet is one as any other: traced, measured, decoded and derived in the same way. Its
candidates carry their fitted weights, so every network of the space works from the first step on,
and α need not begin as noise: the scores of single replacements are its prior.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Choices, Indices, decode
from proxylessnas.core.mixed import MixedOp, Residual, Zero
from proxylessnas.core.supernet import Supernet, softmax
from proxylessnas.pretrained.candidates import BlockFits, blank, rounded_width
from proxylessnas.pretrained.networks import bottleneck
from proxylessnas.pretrained.scores import (
    Candidates,
    Scores,
    as_block,
    mean_scores,
)
from proxylessnas.spaces.blocks import Network
from proxylessnas.spaces.inverted import parse_choice
from proxylessnas.training.callbacks import mean_entropy

Value = TypeVar("Value", int, float)

PRIOR_ENTROPY = 0.5


def space_around(network: Network, candidates: Candidates) -> Network:
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


def candidates_in(
    supernet: Supernet, network: Network, names: Sequence[Iterable[str]]
) -> list[dict[str, nn.Module]]:
    """The candidates of every block, out of a supernet that `space_around` made.

    names: of every block, as for `blank_candidates`.
    """
    choices = iter(supernet.positions)
    found: list[dict[str, nn.Module]] = []
    for block, named in zip(network.blocks, names, strict=True):
        chosen = list(named)
        if len(chosen) > 1:
            (mixed,) = next(choices)
            found.append(dict(mixed.candidates.items()))
        else:
            branch = block.branch if isinstance(block, Residual) else block
            found.append({name: branch for name in chosen})
    return found


def _with_blocks(network: Network, blocks: Sequence[nn.Module]) -> Network:
    return Network(copy.deepcopy(network.stem), blocks, copy.deepcopy(network.head))


def prior(
    space: Choices,
    scores: Scores,
    costs: Costs | None = None,
    *,
    entropy: float = PRIOR_ENTROPY,
) -> Tensor:
    """α with log p = -s·KL - μ·cost + constant, [choices, candidates].

    One s serves all choices, because a nat is worth the same in every block: where KLs add up, the
    most probable network within a limit is the one whose outputs move least, whatever s is. What s
    decides is how much the gates can change. By equation 4 a gradient of α is proportional to
    p(1 - p): at a mean entropy of 0 nothing would move any more, at 1 the scores would say
    nothing. s is such that the mean entropy is halfway.

    scores: see `scores.replacement_scores`; blocks with one candidate are skipped.
    costs: with limits, each cost counting as a share of its limit; μ is then the least with which
        the expected costs keep them. Without, μ is 0 and the teacher the most probable network,
        which would have to learn the limit first.
    """
    rows = [named for named in scores if len(named) > 1]
    kl = torch.zeros(space.mask.shape, dtype=torch.float64)
    for m, (names, named) in enumerate(zip(space.candidates, rows, strict=True)):
        kl[m, : len(names)] = torch.tensor([named[name] for name in names], dtype=torch.float64)

    def entropy_of(alpha: Tensor) -> float:
        return mean_entropy(softmax(alpha, space.mask), space.mask)

    def alpha_of(scale: float) -> Tensor:
        return _within(-scale * kl, space, costs)

    return alpha_of(_least(lambda scale: entropy_of(alpha_of(scale)) <= entropy))


def _within(alpha: Tensor, space: Choices, costs: Costs | None) -> Tensor:
    """α less μ·cost with the least μ that keeps the expected costs within their limits."""
    limited = [] if costs is None else costs.limits.isfinite().nonzero()[:, 0].tolist()
    if costs is None or not limited:
        return alpha
    shares = (costs.per_candidate / costs.limits[:, None, None])[limited].sum(0)

    def keeps(weight: float) -> bool:
        expected = costs.expected(softmax(alpha - weight * shares, space.mask))
        return bool((expected <= costs.limits).all())

    return alpha - _least(keeps) * shares


def _least(holds: Callable[[float], bool], largest: float = 1e9) -> float:
    """The least number from 0 on at which a condition holds that does not cease to; by bisection.

    Where it never holds, about `largest`.
    """
    if holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < largest and not holds(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def rescored(
    space: Choices,
    score: Callable[[Sequence[str]], Scores],
    scores: Scores,
    choose: Callable[[Scores], Indices],
    *,
    rounds: int,
) -> Scores:
    """Scores corrected by those around the networks that they choose.

    In every round a network is chosen by the scores so far, and all candidates are scored in it;
    the mean over the teacher and these networks decides in the next. Returned is the mean that
    chose the network nearest to the teacher.

    score: the scores around a network of these candidates' names, of every block. scores: those
    around the teacher. choose: such as `most_probable` under limits.
    """
    known, best = [scores], (math.inf, scores)
    for _ in range(rounds):
        mean = mean_scores(known)
        indices = iter(choose(mean))
        around = [list(named)[next(indices)] if len(named) > 1 else "" for named in scores]
        known.append(score(around))
        (divergence,) = {row[name] for row, name in zip(known[-1], around, strict=True) if name}
        best = min(best, (divergence, mean), key=lambda pair: pair[0])
    return best[1]


def most_probable(space: Choices, costs: Costs, scores: Scores) -> Indices:
    """The network that scores choose within the limits.

    Raises:
        LimitError: there is none.
    """
    log_p = torch.log_softmax(prior(space, scores).masked_fill(~space.mask, -torch.inf), dim=1)
    costs.check_reachable(space.mask)
    return next(decode(log_p, space.mask, costs))


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


def largest_within(values: Sequence[Value], keeps: Callable[[Value], bool]) -> Value | None:
    """The largest value whose network keeps the limit, by bisection; None where none does.

    values: rising, as are the latencies of their networks (shares of `uniform_network`, input
    sizes of the teacher). keeps: measured.
    """
    low, high = -1, len(values)  # values[low] keeps the limit, values[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if keeps(values[middle]):
            low = middle
        else:
            high = middle
    return None if low < 0 else values[low]
