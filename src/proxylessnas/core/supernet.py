"""The over-parameterised network (paper section 3.1): mixed operations, α, and one path.

`MixedOp` is a module that holds several candidates and runs them through its gate.
`Supernet` finds the mixed operations of any model, groups them into choices, owns the
architecture parameters α as one matrix with a row per choice, and turns an `Architecture`
into an active path or into a plain module.

A *choice* is what the search decides; a *position* is a mixed operation that follows it. Most
mixed operations are choices of their own, named by their module paths. Those that name one
`choice=` (an edge of a cell that is repeated, the width of a whole stage) share a row of α and
one draw of gates, and keep weights of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.core import gates
from proxylessnas.core.gates import Gate, Path
from proxylessnas.errors import ArchitectureError, LimitError, SupernetError, did_you_mean
from proxylessnas.training.copying import copied
from proxylessnas.training.freezing import ModuleTensors


class MixedOp(nn.Module):
    """Several candidates at one position, of which a gate lets one (or a mixture) through.

    candidates: name -> module, or a list (then named "0", "1", ...). All take the same
        arguments and return the same structure and shapes; tuples, dicts and keyword
        arguments are fine. Outside of a search a mixed operation runs its first candidate.
    choice: the name of a choice that several positions share: the same candidate is chosen at
        all of them, each with weights of its own, and the costs of all add up. Such positions
        have equal candidate names in equal order; their modules may differ (in channels or
        stride, say). None: this mixed operation is a choice of its own.

    Raises:
        SupernetError: there is no candidate, a name cannot name a submodule, or `choice` is
            not a name.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module] | Sequence[nn.Module],
        *,
        choice: str | None = None,
    ) -> None:
        super().__init__()
        if choice is not None and not (isinstance(choice, str) and choice):
            raise SupernetError(
                f"a MixedOp's choice is {choice!r}: it must be a string that is not empty, the "
                "same at every position that shares it; leave it out where none does"
            )
        if not isinstance(candidates, Mapping):
            candidates = {str(i): candidate for i, candidate in enumerate(candidates)}
        if not candidates:
            raise SupernetError("a MixedOp needs at least one candidate")
        for name, candidate in candidates.items():
            _check_candidate(name, candidate)
        try:
            self.candidates = nn.ModuleDict(dict(candidates))
        except (KeyError, TypeError) as error:
            raise SupernetError(f"a MixedOp's candidates cannot be named so: {error}") from None
        self.choice = choice
        self.gate: Gate = Path(0)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.candidates)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Which candidate runs is the gate's, set from outside for each step: a module that drew
        # its own gate could not be repeated, frozen or agreed upon between ranks.
        return gates.run(self.gate, tuple(self.candidates.values()), args, kwargs)


def _check_candidate(name: object, candidate: object) -> None:
    """Raises SupernetError where a candidate is no module."""
    if isinstance(candidate, nn.Module):
        return
    if candidate is None:
        remedy = "None: use nn.Identity() to pass the input on, or Zero() to leave it out"
    elif isinstance(candidate, type) and issubclass(candidate, nn.Module):
        remedy = f"the class {candidate.__name__}: make a module of it, {candidate.__name__}(...)"
    else:
        kind = type(candidate).__name__
        remedy = f"of type {kind}, not a torch module: put it into the forward of an nn.Module"
    raise SupernetError(f"the candidate {name!r} of a MixedOp is {remedy}")


class Zero(nn.Module):
    """The candidate that computes nothing: zeros of its siblings' output shape.

    `shape` (without the batch dimension) is what its siblings return; tracing a model with
    example inputs (`hardware.trace`) fills it in. None means: the shape of the input.
    """

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else tuple(shape)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.new_zeros(x.shape if self.shape is None else (x.shape[0], *self.shape))


class Residual(nn.Module):
    """x + branch(x), where the branch may be a mixed operation.

    The shortcut belongs to this block: a candidate's latency includes the addition, and
    where Zero is chosen the whole block derives to the identity, whose latency is 0. A path
    through Zero therefore makes no zeros to add; binary gates go through the branch, because
    ∂L/∂g needs its output.

    The paper's "skip this block" candidate can be written as Zero beside a shortcut or as
    Identity instead of the whole residual block. Both give α the same gradient: eq. 4 sees
    ∂L/∂g_j only in differences, and with y the block's output ⟨∂L/∂y, x + o_j(x)⟩ exceeds
    ⟨∂L/∂y, o_j(x)⟩ by ⟨∂L/∂y, x⟩ for every candidate alike, the identity (o_j = 0) included.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.branch, MixedOp) and runs_zero(self.branch):
            return x
        out: Tensor = self.branch(x)
        return x + out


def runs_zero(module: nn.Module) -> bool:
    """Whether a module is Zero, or a mixed operation whose only active candidate is."""
    if isinstance(module, MixedOp):
        if not isinstance(module.gate, Path):
            return False
        module = module.candidates[module.names[module.gate.active]]
    return isinstance(module, Zero)


class Supernet:
    """A model's choices, their architecture parameters, and paths through the model.

    model: any module with at least one `MixedOp`; it is used, not copied.
    space, settings: how the model is built again; kept in the architectures that come out.

    names: of the choices, in the order of their first positions in the model.
    candidates: the candidates' names of every choice.
    positions: the mixed operations of every choice, one or several.
    paths: the module path of every mixed operation.
    alpha: [choices, candidates] float64 on the CPU, padded to the widest choice.
    mask: the same shape, True where there is a candidate.

    Raises:
        SupernetError: no mixed operation, one inside another's candidate, or positions that
            cannot share their choice.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        space: str = "custom",
        settings: Mapping[str, Any] | None = None,
        input: InputInfo | None = None,
    ) -> None:
        choices = _choices(model)
        self.model = model
        self.space, self.settings, self.input = space, dict(settings or {}), input
        self.names: tuple[str, ...] = tuple(choices)
        self.positions: tuple[tuple[MixedOp, ...], ...] = tuple(
            tuple(positions.values()) for positions in choices.values()
        )
        self.paths: Mapping[MixedOp, str] = {
            mixed: path for positions in choices.values() for path, mixed in positions.items()
        }
        self.candidates: tuple[tuple[str, ...], ...] = tuple(p[0].names for p in self.positions)
        # One matrix for all choices: drawing, equation 4 and the optimiser then work on all rows at
        # once. Choices differ in their number of candidates, so short rows have pads, which the
        # mask keeps at probability 0.
        widest = max(map(len, self.candidates))
        self.mask = torch.tensor([[j < len(c) for j in range(widest)] for c in self.candidates])
        self.alpha = nn.Parameter(torch.zeros(self.mask.shape, dtype=torch.float64))

    # --- probabilities and architectures ---

    def probabilities(self) -> Tensor:
        """p = softmax(α) of every choice, [choices, candidates]; pads are 0."""
        return softmax(self.alpha.detach(), self.mask)

    def log_probabilities(self) -> Tensor:
        """log p, the same shape; -inf at pads. Finite where a probability rounds to 0."""
        return torch.log_softmax(self.alpha.detach().masked_fill(~self.mask, -torch.inf), dim=1)

    def forbid(self, candidates: Tensor, reason: str) -> None:
        """Take candidates out of the search; `candidates` is bool, shaped as `mask`.

        Raises:
            LimitError: a choice would be left without any.
        """
        # Masked as pads are: neither drawn nor learned nor decoded from here on.
        left = self.mask & ~candidates
        empty = (~left.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise LimitError(f"no candidate of {self.names[empty[0]]!r} is left: {reason}")
        self.mask = left

    def largest(self, count: int = 1) -> list[list[int]]:
        """For every choice so many of its candidates, those of the most parameters first."""
        rows = []
        for positions, mask in zip(self.positions, self.mask.tolist(), strict=True):
            sizes = [
                sum(p.numel() for mixed in positions for p in mixed.candidates[name].parameters())
                for name in positions[0].names
            ]
            allowed = [j for j, on in enumerate(mask) if on]
            rows.append(sorted(allowed, key=lambda j: -sizes[j])[:count])
        return rows

    def most_probable(self) -> Architecture:
        """The most probable candidate everywhere, the first among equals."""
        return self.architecture(self.probabilities().argmax(1).tolist())

    def sample(self, generator: torch.Generator, *, uniform: bool = False) -> Architecture:
        """An architecture drawn from p, or uniformly from all."""
        p = softmax(torch.zeros_like(self.alpha), self.mask) if uniform else self.probabilities()
        return self.architecture(torch.multinomial(p, 1, generator=generator)[:, 0].tolist())

    def architecture(self, indices: Sequence[int]) -> Architecture:
        """The architecture of one candidate index for each choice."""
        chosen = {
            name: candidates[index]
            for name, candidates, index in zip(self.names, self.candidates, indices, strict=True)
        }
        return Architecture(
            space=self.space, settings=self.settings, choices=chosen, input=self.input
        )

    def indices(self, architecture: Architecture | Sequence[int]) -> tuple[int, ...]:
        """The chosen candidate's index for each choice.

        Raises:
            ArchitectureError: a choice or a candidate is unknown or left out.
        """
        if not isinstance(architecture, Architecture):
            return tuple(architecture)
        choices = architecture.choices
        for name in choices:
            if name not in self.names:
                raise ArchitectureError(
                    f"the model has no choice {name!r}; {did_you_mean(name, self.names)}"
                )
        indices = []
        for name, candidates in zip(self.names, self.candidates, strict=True):
            chosen = choices.get(name)
            if chosen is None:
                raise ArchitectureError(f"the architecture chooses nothing for {name!r}")
            if chosen not in candidates:
                raise ArchitectureError(
                    f"{name!r} has no candidate {chosen!r}; {did_you_mean(chosen, candidates)}"
                )
            indices.append(candidates.index(chosen))
        return tuple(indices)

    def as_it_runs(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The network of the same function of which every candidate matters.

        A model in whose forward pass some candidates have no effect beside others (the operations
        of a branch that leads nowhere) says so by a method `as_it_runs(names)`, from the chosen
        candidates' names to those of this network.
        """
        rule = getattr(self.model, "as_it_runs", None)
        if rule is None:
            return tuple(indices)
        names = rule([row[i] for row, i in zip(self.candidates, indices, strict=True)])
        return tuple(row.index(name) for row, name in zip(self.candidates, names, strict=True))

    # --- paths ---

    @contextmanager
    def active(self, architecture: Architecture | Sequence[int]) -> Iterator[nn.Module]:
        """Within the block the model computes this architecture."""
        with self.gated([Path(index) for index in self.indices(architecture)]) as model:
            yield model

    @contextmanager
    def gated(self, row: Sequence[Gate]) -> Iterator[nn.Module]:
        """Within the block every position has the gate that `row` holds for its choice."""
        before = [(mixed, mixed.gate) for positions in self.positions for mixed in positions]
        try:
            for positions, gate in zip(self.positions, row, strict=True):
                for mixed in positions:
                    # Past nn.Module's __setattr__, which looks for parameters: several times
                    # the price.
                    mixed.__dict__["gate"] = gate
            yield self.model
        finally:
            for mixed, gate in before:
                mixed.__dict__["gate"] = gate

    def derive(self, architecture: Architecture | Sequence[int]) -> nn.Module:
        """A plain copy of the model with the chosen candidates alone; weights are inherited.

        The copy holds no mixed operation and nothing of this library but the candidates' layers.
        """
        rows = zip(self.positions, self.indices(architecture), strict=True)
        return derive(self.model, {mixed: index for row, index in rows for mixed in row})


# --- choices and their positions ---


def _choices(model: nn.Module) -> dict[str, dict[str, MixedOp]]:
    """Choice -> module path -> mixed operation, in the model's order."""
    mixed_ops = {path: m for path, m in model.named_modules() if isinstance(m, MixedOp)}
    if not mixed_ops:
        raise SupernetError(f"{type(model).__name__} holds no MixedOp: there is nothing to search")
    choices: dict[str, dict[str, MixedOp]] = {}
    for path, mixed in mixed_ops.items():
        if any(isinstance(module, MixedOp) for module in mixed.candidates.modules()):
            raise SupernetError(
                f"the MixedOp {path!r} has another MixedOp inside a candidate: nested mixed "
                "operations cannot be searched, because their cost is not Σ p·cost; put them "
                "one after the other, or list the combinations as candidates"
            )
        name = path if mixed.choice is None else mixed.choice
        if name in mixed_ops and mixed_ops[name].choice != mixed.choice:
            raise SupernetError(
                f"the choice {name!r} of the MixedOp {path!r} is the module path of another "
                "MixedOp, which does not share it: give the choice another name"
            )
        choices.setdefault(name, {})[path] = mixed
    for name, positions in choices.items():
        _check_alike(name, positions)
    return choices


def _check_alike(choice: str, positions: Mapping[str, MixedOp]) -> None:
    """All positions of a choice have equal candidate names in equal order: one row of α.

    Raises:
        SupernetError: two do not; it names them and the candidates that differ.
    """
    (first, model), *others = positions.items()
    for path, mixed in others:
        if mixed.names == model.names:
            continue
        alone = {
            first: set(model.names) - set(mixed.names),
            path: set(mixed.names) - set(model.names),
        }
        words = [f"{where!r} alone has {sorted(names)}" for where, names in alone.items() if names]
        raise SupernetError(
            f"the positions {first!r} and {path!r} of the choice {choice!r} have different "
            f"candidates ({', '.join(words) or f'in the orders {model.names} and {mixed.names}'}): "
            "all must have the same names in the same order"
        )


# --- plain networks ---


def derive(module: nn.Module, chosen: Mapping[MixedOp, int]) -> nn.Module:
    """Copy `module` with each of its mixed operations replaced by the chosen candidate."""
    # The memo says what stands for an object already copied. With the chosen candidate's copy
    # entered under the mixed operation's identity, copying the model puts it in that place,
    # and the supernet's other candidates, most of its memory, are never copied.
    memo: dict[int, Any] = {}
    for mixed, index in chosen.items():
        candidate = mixed.candidates[mixed.names[index]]
        memo[id(mixed)] = copied(candidate, memo, within=module)
    return collapse_residuals(copied(module, memo, within=module))


def collapse_residuals(module: nn.Module) -> nn.Module:
    """Replace every `Residual` whose branch became Zero by the identity, inside out."""
    for name, child in module.named_children():
        collapsed = collapse_residuals(child)
        if collapsed is not child:
            setattr(module, name, collapsed)
    if isinstance(module, Residual) and isinstance(module.branch, Zero):
        return nn.Identity()
    return module


# --- what learns in a step, and what must stay ---


@dataclass(frozen=True, eq=False)
class SupernetTensors:
    """Parameters and buffers: of what always runs, and of every candidate.

    candidates: of every choice; a candidate's are those of all positions together, because
        they run, learn and are frozen together.
    """

    fixed: ModuleTensors
    candidates: tuple[tuple[ModuleTensors, ...], ...]

    def of(self, path: Sequence[Sequence[int]]) -> Iterator[ModuleTensors]:
        """The fixed part's and, for each choice, those of the candidates listed in `path`."""
        yield self.fixed
        for tensors, indices in zip(self.candidates, path, strict=True):
            for index in indices:
                yield tensors[index]


def collect_tensors(supernet: Supernet, beside: Iterable[nn.Module] = ()) -> SupernetTensors:
    """Walk the model once; steps then find their tensors without a walk of their own.

    beside: modules that learn with the model's fixed part, such as those of the loss.
    """
    candidates = {c for mixed in supernet.paths for c in mixed.candidates.values()}
    # `memo` holds what the walk has visited already: it does not enter the candidates. A module
    # that a candidate shares with the rest always runs, and is part of both.
    fixed = [module for _, module in supernet.model.named_modules(memo=set(candidates))]
    return SupernetTensors(
        fixed=ModuleTensors.of([*fixed, *beside]),
        candidates=tuple(
            tuple(
                ModuleTensors.of(m for mixed in positions for m in mixed.candidates[name].modules())
                for name in names
            )
            for names, positions in zip(supernet.candidates, supernet.positions, strict=True)
        ),
    )


# --- probabilities ---


def softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Row-wise softmax over the entries where `mask` is True; elsewhere exactly 0.

    alpha, mask: [choices, candidates]; a row has at least one entry.

    >>> softmax(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    # Written out because torch's own wakes its threads for every matrix, however small, which
    # takes longer than the sums. Less the row's largest α, no exponential overflows.
    alpha = alpha.masked_fill(~mask, -torch.inf)
    weights = (alpha - alpha.amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True)
