"""What can be cut is tried: the narrow model computes what the model does without its channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import in_words
from proxylessnas.surgery.narrow import Narrowed, narrowed
from proxylessnas.surgery.norms import over_some
from proxylessnas.surgery.pairs import Cut, Norm, Pair, Refused
from proxylessnas.training.copying import copied
from proxylessnas.training.freezing import evaluating

TOLERANCE = 1e-4  # of the outputs' largest number: what the order of float32 sums may change

ALL = -1  # the part that all pairs are in

Reasons = list[tuple[Pair, str]]  # of pairs that stay


@torch.no_grad()
def proven(
    model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...]
) -> tuple[list[Pair], list[Refused]]:
    """The pairs that cut what the model computes with, and the others.

    With the weights zero that read the channels which go, and norms over the others alone, the
    model computes what it computes without these channels. That is tried on the example inputs: a
    number of channels that is written in the model's code, say, shows. So does an attribute that
    only happens to be as many. Pairs that can only be cut alike, as where the code takes the width
    of heads for that of the stream around them, become one.
    """
    good, bad = _sifted(model, pairs, inputs, [])
    ties = _tied([pair for pair, _ in bad])
    joint, _ = _sifted(model, list(ties), inputs, good)
    tied = {pair for each in joint for pair in ties[each]}
    refused = [
        Refused(name=pair.name, kind=pair.kind, shape=pair.shape, reason=reason)
        for pair, reason in bad
        if pair not in tied
    ]
    return [*good, *joint], refused


def _sifted(
    model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...], before: Sequence[Pair]
) -> tuple[list[Pair], Reasons]:
    """The pairs that can be cut, and the others. before: pairs that are cut with them.

    All are tried at once, and halves where that fails. Then some are cut and the others are not, of
    any two of them once the one alone: two that the model's code keeps alike show there. Where one
    of them goes, the other is tried again without it.
    """
    good, bad = list(pairs), Reasons()
    numbers = {pair.name: k for k, pair in enumerate((*before, *pairs), 1)}
    part = ALL
    while good and part < len(numbers).bit_length():
        known = len(bad)
        good = _halved(model, good, inputs, before, numbers, part, bad)
        part = ALL if part > ALL and len(bad) > known else part + 1
    return good, bad


def _halved(
    model: nn.Module,
    pairs: list[Pair],
    inputs: tuple[Any, ...],
    before: Sequence[Pair],
    numbers: Mapping[str, int],
    part: int,
    bad: Reasons,
) -> list[Pair]:
    """The pairs that can be cut in this part; the others are added to the bad ones."""
    good, waiting = list(before), [pairs]

    def fails(tried: Sequence[Pair]) -> str:
        return _difference(model, _cuts([*good, *tried], numbers, part), inputs)

    while waiting:
        several = waiting.pop()
        if not (reason := fails(several)):
            good += several
        elif len(several) > 1:
            half = len(several) // 2
            waiting += [several[half:], several[:half]]
        else:
            fewer = _with_fewer_sizes(several[0], pairs)
            if other := next((p for p in fewer if not fails([p])), None):
                good.append(other)
            else:
                bad.append((several[0], reason))
    return good[len(before) :]


def _cuts(
    pairs: Iterable[Pair], numbers: Mapping[str, int], part: int
) -> list[tuple[Pair, Narrowed]]:
    """A half to three quarters of the channels go; with a part, of the pairs in it alone.

    numbers: of the pairs. Two of them are not in all parts together.
    """
    steps = {
        pair: (2 + k % 3 if part == ALL else 1 + (k >> part) % 2)
        for pair in pairs
        for k in [numbers[pair.name]]
    }
    return [
        (pair, Narrowed(torch.arange(0, pair.width, step), {}))
        for pair, step in steps.items()
        if step > 1
    ]


def _tied(pairs: Sequence[Pair]) -> dict[Pair, list[Pair]]:
    """One pair for those of as many numbers each, as heads and the stream around them are."""
    alike: dict[int, list[Pair]] = {}
    for pair in pairs:
        numbers = max(cut.places.numel() for cut in pair.consumers)
        alike.setdefault(numbers, []).append(pair)
    ties = {}
    for numbers, several in alike.items():
        width = min(pair.width for pair in several)
        readers = [cut.tensor for pair in several for cut in pair.consumers]
        whole = all(pair.width % width == 0 for pair in several)
        if len(several) > 1 and width > 1 and whole and len(set(readers)) == len(readers):
            ties[_one(several, width, numbers // width)] = several
    return ties


def _one(pairs: Sequence[Pair], width: int, unit: int) -> Pair:
    """Several pairs as one of fewer channels, which are channels of each side by side."""

    def joined(pair: Pair, channels: Tensor) -> Tensor:
        return torch.where(channels < 0, channels, channels * width // pair.width)

    def cuts(pair: Pair, several: Iterable[Cut]) -> Iterator[Cut]:
        return (replace(cut, channels=joined(pair, cut.channels)) for cut in several)

    return replace(
        pairs[0],
        width=width,
        unit=unit,
        producers=tuple(path for pair in pairs for path in pair.producers),
        gates=tuple(path for pair in pairs for path in pair.gates),
        consumers=tuple(cut for pair in pairs for cut in cuts(pair, pair.consumers)),
        cuts=tuple(cut for pair in pairs for cut in cuts(pair, pair.cuts)),
        sizes=tuple(
            replace(size, times=size.times * pair.width // width)
            for pair in pairs
            for size in pair.sizes
        ),
        norms=tuple(
            Norm(norm.module, norm.axis, joined(pair, norm.channels))
            for pair in pairs
            for norm in pair.norms
        ),
    )


def _with_fewer_sizes(pair: Pair, others: Iterable[Pair]) -> Iterator[Pair]:
    """The pair without attributes that others claim, or one of several that are as many."""
    claimed = {(s.module, s.attribute) for p in others if p is not pair for s in p.sizes}
    sizes = tuple(s for s in pair.sizes if (s.module, s.attribute) not in claimed)
    if sizes != pair.sizes:
        yield replace(pair, sizes=sizes)
    for size in pair.sizes:
        alike = [s for s in pair.sizes if (s.module, s.times) == (size.module, size.times)]
        if len(alike) > 1:
            yield replace(pair, sizes=tuple(s for s in pair.sizes if s is not size))


def _difference(
    model: nn.Module, cuts: Sequence[tuple[Pair, Narrowed]], inputs: tuple[Any, ...]
) -> str:
    """Why these channels cannot be cut; empty where they can."""
    if not cuts:
        return ""
    silenced = copied(model)
    for pair, kept in cuts:
        silence(silenced, pair, kept.channels)
    with over_some(silenced, [(pair, kept.channels) for pair, kept in cuts]):
        expected = outputs(silenced, inputs)
    try:
        actual = outputs(narrowed(model, cuts), inputs)
    except Exception as error:  # whatever the model's own code raises
        return f"the model fails with fewer of its channels: {in_words(error)}"
    for a, b in zip(actual, expected, strict=True):
        if not _agree(a, b):
            return (
                "the model's outputs depend on its channels in a way that the graph does not show"
            )
    return ""


def applicable(
    model: nn.Module, changes: Mapping[str, Any], inputs: tuple[Any, ...], *, exact: bool = False
) -> set[str]:
    """The layers, by their paths, whose change leaves the model running, its outputs of one shape.

    exact: and its outputs what they were. Tried of all at once, and of each where that fails.
    """
    before = outputs(model, inputs)

    def runs(several: Iterable[Any]) -> bool:
        network = copied(model)
        for change in several:
            change.apply(network, {})
        try:
            both = list(zip(outputs(network, inputs), before, strict=True))
        except Exception:  # whatever the model's own code raises
            return False
        return all(a.shape == b.shape and (not exact or _agree(a, b)) for a, b in both)

    if not changes or runs(changes.values()):
        return set(changes)
    return {path for path, change in changes.items() if runs([change])}


def _agree(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max().clamp_min(1e-12))
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * scale


def silence(model: nn.Module, pair: Pair, channels: Tensor) -> None:
    """Let the layers that read a pair's channels not read the others than these."""
    for cut in pair.consumers:
        gone = torch.ones(len(cut.channels), dtype=torch.bool)
        gone[cut.remaining(channels)] = False
        weight = model.get_parameter(cut.tensor).detach()
        weight.index_fill_(cut.axis, gone.nonzero()[:, 0].to(weight.device), 0.0)


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of floating point that a model returns, in evaluation mode."""
    args, kwargs = arguments_of(inputs)
    with evaluating(model), torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [v.float() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
