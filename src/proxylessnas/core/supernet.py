"""The over-parameterised network (paper section 3.1): choices, α, and one path.

`Supernet` finds the mixed operations of any model, groups them into choices, owns the
architecture parameters α as one matrix with a row per choice, and turns an `Architecture`
into an active path or into a plain module.

A *choice* is what the search decides; a *position* is a mixed operation that follows it. Most
mixed operations are choices of their own, named by their module paths. Those that name one
`choice=` (an edge of a cell that is repeated, the width of a whole stage) share a row of α and
one draw of gates, and keep weights of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.core.gates import Gate, Path
from proxylessnas.core.mixed import MixedOp, Residual, Zero, derive
from proxylessnas.errors import ArchitectureError, LimitError, SupernetError, did_you_mean

__all__ = ["MixedOp", "Residual", "Supernet", "Zero", "softmax"]


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
