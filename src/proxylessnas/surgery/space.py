"""The search space around a model: its pairs as choices of widths, its blocks left out.

A choice is a pair, or a block with all pairs inside it, where the block can be left out: its input
has the shape of its output, so that the identity can take its place. Its candidates are the model's
own layers, the same narrower inside, and `zero`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.data.arguments import arguments_of
from proxylessnas.pretrained.candidates import SHARES, rounded_width
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.in_place import put_back
from proxylessnas.surgery.kernels import Crop
from proxylessnas.surgery.narrow import Narrowed, narrow, sizes_of
from proxylessnas.surgery.pairs import Pair
from proxylessnas.training.copying import copied
from proxylessnas.training.freezing import evaluating

SMALLER = "smaller_kernel"
OWN, LEFT_OUT = "own", "zero"  # as the candidates of the pretrained family call it
LEAST = 8  # channels
MOST_PAIRS = 3  # in a block, as of a bottleneck with a gate: more are the body of a network


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """share: of the channels, 1 for the model's own layers and 0 for a block that is left out.

    cuts: what remains of every pair of the choice, where that is less than all. crops: layers whose
    kernel is smaller.
    """

    name: str
    share: float
    cuts: tuple[tuple[Pair, Narrowed], ...] = ()
    crops: tuple[Crop, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """name: of the block, or of the pair's first layer."""

    name: str
    pairs: tuple[Pair, ...]
    can_leave_out: bool
    candidates: tuple[Candidate, ...] = ()

    @property
    def makers(self) -> tuple[str, ...]:
        """Paths of the layers whose outputs are the choice's channels."""
        cuts = [cut for pair in self.pairs for cut in pair.cuts if cut.axis == 0]
        return tuple(dict.fromkeys(cut.module for cut in cuts if cut.tensor.endswith(".weight")))


class Space:
    """Choices with their candidates, as decoding, the prior and the costs take them.

    names, candidates: of the choices, as in a `Supernet`. mask: [choices, candidates], True where
    there is a candidate. alpha: the same shape, float64.
    """

    def __init__(self, model: nn.Module, choices: Sequence[Choice]) -> None:
        self.model, self.choices = model, tuple(choices)
        self.names = tuple(choice.name for choice in choices)
        self.candidates = tuple(tuple(c.name for c in choice.candidates) for choice in choices)
        widest = max(map(len, self.candidates))
        self.mask = torch.tensor([[j < len(c) for j in range(widest)] for c in self.candidates])
        self.alpha = torch.zeros(self.mask.shape, dtype=torch.float64)

    def log_probabilities(self) -> Tensor:
        """log softmax of α, -inf at pads."""
        return torch.log_softmax(self.alpha.masked_fill(~self.mask, -torch.inf), dim=1)

    def as_it_runs(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The same network: every candidate matters."""
        return tuple(indices)

    def network(self, indices: Sequence[int]) -> nn.Module:
        """A plain copy of the model with one candidate for every choice."""
        network = copied(self.model)
        self._shape(network, indices)
        return network.eval()

    @contextmanager
    def in_place(self, indices: Sequence[int]) -> Iterator[nn.Module]:
        """The same within the block, out of a copy that all these networks share."""
        with put_back(self._shared):
            self._shape(self._shared, indices)
            yield self._shared

    @cached_property
    def _shared(self) -> nn.Module:
        return copied(self.model).eval()

    def _shape(self, network: nn.Module, indices: Sequence[int]) -> None:
        chosen = [c.candidates[i] for c, i in zip(self.choices, indices, strict=True)]
        remaining = narrow(network, [cut for candidate in chosen for cut in candidate.cuts])
        for crop in (crop for candidate in chosen for crop in candidate.crops):
            axis = int(network.get_submodule(crop.layer).groups == 1)
            crop.apply(network, remaining.get((f"{crop.layer}.weight", axis)))
        for choice, candidate in zip(self.choices, chosen, strict=True):
            if candidate.name == LEFT_OUT:
                network.set_submodule(choice.name, nn.Identity().eval())

    def chosen(self, indices: Sequence[int]) -> dict[str, str]:
        """Choice -> candidate."""
        rows = zip(self.names, self.candidates, indices, strict=True)
        return {name: candidates[index] for name, candidates, index in rows}

    def attributes(self, indices: Sequence[int]) -> dict[str, int]:
        """Of modules, by their paths, what a network has other numbers in than the model."""
        chosen = [c.candidates[i] for c, i in zip(self.choices, indices, strict=True)]
        cuts = [cut for candidate in chosen for cut in candidate.cuts]
        return {
            f"{size.module}.{size.attribute}".removeprefix("."): value
            for size, value in sizes_of(cuts).items()
        } | {
            name: value
            for candidate in chosen
            for crop in candidate.crops
            for name, value in crop.attributes(self.model).items()
        }

    def nearest(self, share: float) -> tuple[int, ...]:
        """The network of candidates that are as near as can be to one share of the channels."""
        return tuple(
            min(
                (j for j, c in enumerate(choice.candidates) if c.share and not c.crops),
                key=lambda j: abs(choice.candidates[j].share - share),
            )
            for choice in self.choices
        )

    @property
    def cropped(self) -> tuple[int, ...]:
        """The network of smaller kernels, all channels in it."""
        each = ([j for j, c in enumerate(x.candidates) if c.crops] for x in self.choices)
        return tuple(max(indices, default=0) for indices in each)

    def modules_of(self, choice: int) -> set[str]:
        """Paths of the modules that differ between the candidates of a choice."""
        chosen = self.choices[choice]
        inside = {path for pair in chosen.pairs for path in pair.layers}
        inside |= {size.module for pair in chosen.pairs for size in pair.sizes}
        return inside | {chosen.name} if chosen.can_leave_out else inside

    @cached_property
    def own(self) -> tuple[int, ...]:
        """The model itself."""
        return (0,) * len(self.choices)

    @property
    def smallest(self) -> tuple[int, ...]:
        """The network of the last candidates."""
        return tuple(len(choice.candidates) - 1 for choice in self.choices)


# --- making it ---


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


def with_candidates(
    choice: Choice,
    fits: Mapping[Pair, Mapping[int, Narrowed]],
    crops: Mapping[str, Crop],
    shares: Sequence[float] = SHARES,
) -> Choice:
    """The choice with its candidates. crops: of layers, by their paths."""
    candidates = {OWN: Candidate(name=OWN, share=1.0)}
    if own := tuple(crops[path] for path in choice.makers if path in crops):
        candidates[SMALLER] = Candidate(name=SMALLER, share=1.0, crops=own)
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
    return Choice(
        name=choice.name,
        pairs=choice.pairs,
        can_leave_out=choice.can_leave_out,
        candidates=tuple(candidates.values()),
    )


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
