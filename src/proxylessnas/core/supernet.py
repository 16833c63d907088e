"""A model that holds mixed operations, and one path through it.

`MixedOp` is a module that holds several candidates and runs them through the gate it is
given. `Supernet` finds the mixed operations of any model, owns their architecture
parameters α as one matrix, and turns an `Architecture` into an active path or into a
plain module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.core import gates
from proxylessnas.core.gates import Gate, Path
from proxylessnas.errors import ArchitectureError, LimitError, SupernetError, did_you_mean


class MixedOp(nn.Module):
    """Several candidates at one position, of which a gate lets one (or a mixture) through.

    candidates: name -> module, or a list (then named "0", "1", ...). All take the same
    arguments and return the same structure and shapes; tuples, dicts and keyword arguments
    are fine. Outside of a search a mixed operation runs its first candidate.

    Raises:
        SupernetError: there is no candidate, or a name cannot name a submodule.
    """

    def __init__(self, candidates: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__()
        if not isinstance(candidates, Mapping):
            candidates = {str(i): candidate for i, candidate in enumerate(candidates)}
        if not candidates:
            raise SupernetError("a MixedOp needs at least one candidate")
        try:
            self.candidates = nn.ModuleDict(dict(candidates))
        except (KeyError, TypeError) as error:
            raise SupernetError(f"a MixedOp's candidates cannot be named so: {error}") from None
        self.gate: Gate = Path(0)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.candidates)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return gates.run(self.gate, tuple(self.candidates.values()), args, kwargs)


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
    where Zero is chosen the whole block derives to the identity, whose latency is 0.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch
        if isinstance(branch, MixedOp) and isinstance(branch.gate, Path):
            if isinstance(branch.candidates[branch.names[branch.gate.active]], Zero):
                return x
        out: Tensor = branch(x)
        return x + out


class Supernet:
    """A model's mixed operations, their architecture parameters, and paths through them.

    model: any module with at least one `MixedOp`; it is used, not copied.
    space, settings: how the model is built again; kept in the architectures that come out.
    alpha: [mixed operations, candidates] float64 on the CPU, padded to the widest operation.
    mask: the same shape, True where there is a candidate.

    Raises:
        SupernetError: no mixed operation, or one inside another's candidate.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        space: str = "custom",
        settings: Mapping[str, Any] | None = None,
        input: InputInfo | None = None,
    ) -> None:
        found = {n: m for n, m in model.named_modules() if isinstance(m, MixedOp)}
        if not found:
            raise SupernetError(
                f"{type(model).__name__} holds no MixedOp: there is nothing to search"
            )
        for name, mixed in found.items():
            inner = next((m for m in mixed.candidates.modules() if isinstance(m, MixedOp)), None)
            if inner is not None:
                raise SupernetError(
                    f"the MixedOp {name!r} has another MixedOp inside a candidate: nested mixed "
                    "operations cannot be searched, because their cost is not Σ p·cost; put them "
                    "one after the other, or list the combinations as candidates"
                )
        self.model = model
        self.space, self.settings, self.input = space, dict(settings or {}), input
        self.names: tuple[str, ...] = tuple(found)
        self.mixed: tuple[MixedOp, ...] = tuple(found.values())
        self.candidates: tuple[tuple[str, ...], ...] = tuple(m.names for m in self.mixed)
        widest = max(map(len, self.candidates))
        self.mask = torch.tensor([[j < len(c) for j in range(widest)] for c in self.candidates])
        self.alpha = nn.Parameter(torch.zeros(self.mask.shape, dtype=torch.float64))

    # --- probabilities and architectures ---

    def probabilities(self) -> Tensor:
        """p = softmax(α) of every mixed operation, [mixed operations, candidates]; pads are 0."""
        return softmax(self.alpha.detach(), self.mask)

    def log_probabilities(self) -> Tensor:
        """log p, the same shape; -inf at pads."""
        return torch.log_softmax(self.alpha.detach().masked_fill(~self.mask, -torch.inf), dim=1)

    def forbid(self, candidates: Tensor, reason: str) -> None:
        """Take candidates out of the search; `candidates` is bool, shaped as `mask`.

        Raises:
            LimitError: an operation would be left without any.
        """
        left = self.mask & ~candidates
        empty = (~left.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise LimitError(f"no candidate of {self.names[empty[0]]!r} is left: {reason}")
        self.mask = left

    def most_probable(self) -> Architecture:
        """The most probable candidate everywhere, the first among equals."""
        return self.architecture(self.probabilities().argmax(1).tolist())

    def sample(self, generator: torch.Generator, *, uniform: bool = False) -> Architecture:
        p = softmax(torch.zeros_like(self.alpha), self.mask) if uniform else self.probabilities()
        return self.architecture(torch.multinomial(p, 1, generator=generator)[:, 0].tolist())

    def architecture(self, choice: Sequence[int]) -> Architecture:
        """The architecture of one candidate index for each mixed operation."""
        chosen = {
            name: candidates[index]
            for name, candidates, index in zip(self.names, self.candidates, choice, strict=True)
        }
        return Architecture(
            space=self.space, settings=self.settings, choices=chosen, input=self.input
        )

    def indices(self, architecture: Architecture | Sequence[int]) -> tuple[int, ...]:
        """The chosen candidate's index for each mixed operation.

        Raises:
            ArchitectureError: an operation or a candidate is unknown or left out.
        """
        if not isinstance(architecture, Architecture):
            return tuple(architecture)
        choices = architecture.choices
        for name in choices:
            if name not in self.names:
                raise ArchitectureError(
                    f"the model has no mixed operation {name!r}; {did_you_mean(name, self.names)}"
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

    # --- paths ---

    @contextmanager
    def active(self, architecture: Architecture | Sequence[int]) -> Iterator[nn.Module]:
        """Within the block the model computes this architecture."""
        with self.gated([Path(index) for index in self.indices(architecture)]) as model:
            yield model

    @contextmanager
    def gated(self, row: Sequence[Gate]) -> Iterator[nn.Module]:
        """Within the block every mixed operation has its gate of `row`."""
        before = [mixed.gate for mixed in self.mixed]
        try:
            self._set(row)
            yield self.model
        finally:
            self._set(before)

    def _set(self, row: Sequence[Gate]) -> None:
        for mixed, gate in zip(self.mixed, row, strict=True):
            # Past nn.Module's __setattr__, which looks for parameters: several times the price.
            mixed.__dict__["gate"] = gate

    def derive(self, architecture: Architecture | Sequence[int]) -> nn.Module:
        """A plain copy of the model with the chosen candidates alone; weights are inherited."""
        chosen = dict(zip(self.mixed, self.indices(architecture), strict=True))
        return derive(self.model, chosen)


def derive(module: nn.Module, chosen: Mapping[MixedOp, int]) -> nn.Module:
    """Copy `module` with each of its mixed operations replaced by the chosen candidate.

    Candidates that were not chosen are never copied: deepcopy finds the chosen one's copy
    in its memo under the mixed operation's identity.
    """
    memo: dict[int, Any] = {}
    for mixed, index in chosen.items():
        memo[id(mixed)] = copy.deepcopy(mixed.candidates[mixed.names[index]], memo)
    return settle(copy.deepcopy(module, memo))


def settle(module: nn.Module) -> nn.Module:
    """Replace every `Residual` whose branch became Zero by the identity, inside out."""
    for name, child in module.named_children():
        settled = settle(child)
        if settled is not child:
            setattr(module, name, settled)
    if isinstance(module, Residual) and isinstance(module.branch, Zero):
        return nn.Identity()
    return module


def softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Row-wise softmax over the entries where `mask` is True; elsewhere exactly 0.

    By hand: torch's own wakes its threads for every matrix, however small, which takes longer
    than the sums.
    """
    alpha = alpha.masked_fill(~mask, -torch.inf)
    weights = (alpha - alpha.amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True)
