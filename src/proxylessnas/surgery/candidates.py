"""The choices of a model and their candidates.

A choice is a pair, or a block with all pairs inside it, where the block can be left out: its input
has the shape of its output, so that the identity can take its place. Its candidates are the model's
own layers, the same narrower inside, with smaller kernels, of low rank, and `zero`. A wide layer of
which no channels can go is a choice too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.pretrained.candidates import SHARES, rounded_width
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.kernels import Crop
from proxylessnas.surgery.lowrank import Factors
from proxylessnas.surgery.narrow import Narrowed
from proxylessnas.surgery.pairs import Pair
from proxylessnas.training.freezing import evaluating

Change = Crop | Factors  # of a layer, whatever channels it then has
Changes = Mapping[str, Mapping[str, Change]]  # by their level, and the layer's path

SMALLER = "smaller_kernel"  # a level; the others are of low rank
OWN, LEFT_OUT = "own", "zero"  # as the candidates of the pretrained family call it
NARROWER, LOW_RANK = "narrower", "low_rank"
KINDS = (NARROWER, SMALLER, LOW_RANK, LEFT_OUT)  # of candidates, besides the model's own layers
LEAST = 8  # channels
MOST_PAIRS = 3  # in a block, as of a bottleneck with a gate: more are the body of a network


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """share: of the channels, 1 for the model's own layers and 0 for a block that is left out.

    cuts: what remains of every pair of the choice, where that is less than all. changes: layers
    whose kernel is smaller, or that two of a low rank stand for. level: of these changes, as
    candidates of several choices share it.
    """

    name: str
    share: float
    cuts: tuple[tuple[Pair, Narrowed], ...] = ()
    changes: tuple[Change, ...] = ()
    level: str = ""

    @property
    def kind(self) -> str:
        """One of `KINDS`, or `own`."""
        if self.changes:
            return SMALLER if self.level == SMALLER else LOW_RANK
        return NARROWER if self.cuts else self.name


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """name: of the block, of the pair's first layer, or of a layer without pairs.

    wide: paths of the layers that are of low rank in its candidates.
    """

    name: str
    pairs: tuple[Pair, ...]
    can_leave_out: bool
    wide: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def makers(self) -> tuple[str, ...]:
        """Paths of the layers whose outputs are the choice's channels."""
        cuts = [cut for pair in self.pairs for cut in pair.cuts if cut.axis == 0]
        return tuple(dict.fromkeys(cut.module for cut in cuts if cut.tensor.endswith(".weight")))

    @property
    def layers(self) -> set[str]:
        """Paths of the modules that differ between its candidates, the block's own apart."""
        return {path for pair in self.pairs for path in pair.layers} | set(self.wide)


def kinds_of(candidates: Any) -> tuple[str, ...]:
    """The kinds that `candidates` names, one or several of `KINDS`.

    Raises:
        ConfigError: it names none, or something else.
    """
    several = [candidates] if isinstance(candidates, str) else candidates
    if not isinstance(several, list | tuple | set | frozenset) or not several:
        words = ", ".join(KINDS)
        raise ConfigError(f"candidates is {candidates!r}: give one or several of {words}")
    for kind in several:
        if kind not in KINDS:
            remedy = did_you_mean(str(kind), KINDS)
            raise ConfigError(f"candidates: there is no kind {kind!r}; {remedy}")
    return tuple(kind for kind in KINDS if kind in several)


def choices_of(
    model: nn.Module,
    pairs: Sequence[Pair],
    graph: Graph,
    inputs: tuple[Any, ...],
    wanted: Callable[[str], bool] = lambda path: True,
) -> list[Choice]:
    """The pairs grouped by the innermost block around them that can be left out; the others alone.

    graph: of this model, for these inputs. wanted: whether a block may be left out.
    """
    # Not the branch beside a shortcut: in its place the identity would double the shortcut.
    equal = [
        b for b in filter(wanted, _blocks_with_equal_ends(model, inputs)) if not graph.is_branch(b)
    ]
    counts = {
        b: sum(any(_within(x, b) for x in p.layers) and not _runs_through(p, b) for p in pairs)
        for b in equal
    }
    blocks = {b: count for b, count in counts.items() if _is_part(count, len(pairs))}
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        inside = [b for b in blocks if all(_within(path, b) for path in pair.layers)]
        # Of several around the same pairs the outermost.
        block = min(inside, key=lambda b: (blocks[b], len(b)), default="")
        across = [
            p
            for p in pairs
            if 0 < sum(_within(x, block) for x in p.layers) < len(p.layers)
            and not _runs_through(p, block)
        ]
        # A pair that reaches out of the block would be cut at one end alone.
        groups.setdefault(block if block and not across else pair.name, []).append(pair)
    return [
        # Not where it holds a choice of its own further inside: both could not be chosen freely.
        Choice(name=name, pairs=tuple(group), can_leave_out=blocks.get(name) == len(group))
        for name, group in groups.items()
    ]


def widths_of(choices: Iterable[Choice], shares: Sequence[float] = SHARES) -> dict[Pair, list[int]]:
    """The widths of every pair's candidates, from wide to narrow, its own left out."""
    widths: dict[Pair, list[int]] = {}
    for pair in (pair for choice in choices for pair in choice.pairs):
        rounded = {width_of(pair, share) for share in shares}
        widths[pair] = sorted(
            (w for w in rounded if w * pair.unit >= LEAST and w < pair.width), reverse=True
        )
    return widths


def width_of(pair: Pair, share: float) -> int:
    """The channels of a share, such that runtimes like the numbers that they are."""
    if pair.unit == 1:
        return rounded_width(share * pair.width, pair.width)
    step = max(1, LEAST // pair.unit)
    return min(pair.width, max(step, round(share * pair.width / step) * step))


def with_wide(choices: Sequence[Choice], paths: Iterable[str]) -> list[Choice]:
    """The choices with the wide layers that are of them; layers of none are choices of their own.

    A layer is of the block around it, else of the pair with the fewest layers.
    """
    wide: dict[str, list[str]] = {}
    for path in paths:
        inside = [c for c in choices if c.can_leave_out and _within(path, c.name)]
        inside = inside or [c for c in choices if any(path in pair.layers for pair in c.pairs)]
        own = min(inside, key=lambda c: (len(c.layers), path not in c.makers), default=None)
        wide.setdefault(own.name if own else path, []).append(path)
    with_own = [replace(c, wide=tuple(wide.pop(c.name, ()))) for c in choices]
    alone = [Choice(name=path, pairs=(), can_leave_out=False, wide=(path,)) for path in wide]
    return with_own + alone


def with_candidates(
    choice: Choice,
    fits: Mapping[Pair, Mapping[int, Narrowed]],
    changes: Changes,
    shares: Sequence[float] = SHARES,
) -> Choice:
    """The choice with its candidates."""
    candidates = {OWN: Candidate(name=OWN, share=1.0)}
    for level, by_path in changes.items():
        own = changes_of(choice, level, by_path)
        ranks = "_".join(str(change.rank) for change in own if isinstance(change, Factors))
        if own:
            name = f"rank{ranks}" if ranks else level
            candidates.setdefault(name, Candidate(name=name, share=1.0, changes=own, level=level))
    for share in shares:
        widths = [width_of(pair, share) for pair in choice.pairs]
        cuts = tuple(
            (pair, fits[pair][width])
            for pair, width in zip(choice.pairs, widths, strict=True)
            if width in fits[pair]
        )
        name = "_".join(f"w{width}" for width in widths)
        if cuts:
            candidates.setdefault(name, Candidate(name=name, share=share, cuts=cuts))
    if choice.can_leave_out:
        candidates[LEFT_OUT] = Candidate(name=LEFT_OUT, share=0.0)
    return replace(choice, candidates=tuple(candidates.values()))


def changes_of(choice: Choice, level: str, by_path: Mapping[str, Change]) -> tuple[Change, ...]:
    """Of a choice's layers, those of a level."""
    paths = choice.makers if level == SMALLER else choice.wide
    return tuple(by_path[path] for path in paths if path in by_path)


def _is_part(inside: int, pairs: int) -> bool:
    """Whether a module of so many pairs is a block of the network, and not most of it."""
    return inside <= MOST_PAIRS and (inside < pairs or pairs == 1)


def _within(path: str, block: str) -> bool:
    return path.startswith(f"{block}.")


def _runs_through(pair: Pair, block: str) -> bool:
    """Whether a block adds to channels that come from outside: the stream of its shortcut."""
    inside = [_within(path, block) for path in pair.producers if path not in pair.gates]
    return any(inside) and not all(inside)


def _blocks_with_equal_ends(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """Paths of modules that take one tensor, and return one of its shape, once in a pass."""
    calls: dict[str, list[bool]] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            both = (*args, output)
            plain = len(args) == 1 and not kwargs and all(isinstance(v, Tensor) for v in both)
            alike = plain and args[0].shape == output.shape and args[0].dtype == output.dtype
            calls.setdefault(path, []).append(alike)

        return hook

    modules = [(path, m) for path, m in model.named_modules() if path and any(m.children())]
    handles = [m.register_forward_hook(look(path), with_kwargs=True) for path, m in modules]
    try:
        args, kwargs = arguments_of(inputs)
        with evaluating(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {path for path, alike in calls.items() if alike == [True]}
