"""Mixed operations (paper section 3.1), and the plain network that is left of a model with them.

`MixedOp` is a module that holds several candidates and runs them through its gate; `Zero` is the
candidate that computes nothing, `Residual` the block whose shortcut it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from proxylessnas.core import gates
from proxylessnas.core.gates import Gate, Path
from proxylessnas.errors import SupernetError
from proxylessnas.training.copying import copied


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

    __module__ = "proxylessnas.core.supernet"  # its name in the keys of latency tables

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

    __module__ = "proxylessnas.core.supernet"  # its name in the keys of latency tables

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
