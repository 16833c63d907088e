"""When numbers are not finite: a step that updates nothing, then a return with a lower rate.

A bad step is skipped and named. After a few in a row the job goes back to its last anchor,
a state kept every `ANCHOR_EVERY` steps, and goes on with half the rate; after a few returns
it gives up. Anchors lie at fixed steps, so that a run that was killed and resumed returns
to the same one. On a GPU the device itself skips a bad step, and the host, which must not wait
for it, learns of that a step later.

Also here: what a step that runs out of memory or loses a worker says.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import DataError, UserError
from proxylessnas.io.workers import BROKEN, lost_worker
from proxylessnas.training import optimizers
from proxylessnas.training.freezing import BufferSnapshot
from proxylessnas.training.task import batch_size, split

MAX_BAD_STEPS = 5  # in a row, of one kind
MAX_RETURNS = 3
LOWER = 0.5  # the rate after a return, as a share of the one before
ANCHOR_EVERY = 500  # steps

State = tuple[dict[str, Tensor], dict[str, Any]]


class Diverged(UserError):
    """Numbers were not finite again and again, whatever the rate."""


@dataclass
class Recovery:
    """bad: steps in a row that were not finite, by kind. anchors: steps of the last two.
    unread: steps that only the device knows about yet, the oldest first. data: what is wrong with
    the batch of the latest step that was not finite, if anything is."""

    bad: dict[str, int] = field(default_factory=dict)
    returns: int = 0
    anchors: list[int] = field(default_factory=list)
    unread: list[tuple[str, int, Callable[[], str], Tensor, Callable[[], str]]] = field(
        default_factory=list
    )
    data: str = ""

    @property
    def factor(self) -> float:
        """What every learning rate is multiplied with."""
        return LOWER**self.returns

    def report(
        self,
        kind: str,
        step: int,
        taken: bool | Tensor,
        active: Callable[[], str] = str,
        data: Callable[[], str] = str,
    ) -> None:
        """A step that was taken or, not being finite, updated nothing.

        active: names its path. data: says what is wrong with its batch, if anything is.
        """
        if isinstance(taken, Tensor):
            self.unread.append((kind, step, active, taken, data))
        elif taken:
            self.bad[kind] = 0
        else:
            self._failed(kind, step, active(), data())

    def read(self, but: int = 0) -> None:
        """Learn of the steps that only the device knows about, but for the latest so many."""
        while len(self.unread) > but and not self.lost:
            kind, step, active, taken, data = self.unread.pop(0)
            self.report(kind, step, bool(taken), active, data)

    def _failed(self, kind: str, step: int, active: str, data: str) -> None:
        self.bad[kind] = self.bad.get(kind, 0) + 1
        self.data = data
        path = f" (active: {active})" if active else ""
        cause = f": {data}" if data else ""
        warnings.warn(
            f"the {kind} step's value was not finite at step {step}{path}{cause}; nothing was "
            "updated",
            stacklevel=3,
        )

    @property
    def failure(self) -> str:
        """What was not finite most often in a row."""
        kind = max(self.bad, key=self.bad.__getitem__)
        return f"the {kind} step's value was not finite"

    @property
    def lost(self) -> bool:
        """Whether it is time to go back."""
        return max(self.bad.values(), default=0) >= MAX_BAD_STEPS

    # --- anchors ---

    def anchor_due(self, step: int) -> bool:
        """Whether the state before this step is to be kept; then it counts as kept.

        The first step has one; the others lie at fixed steps, so that a run that was killed and
        resumed returns to the same ones, and never in the middle of a series of bad steps.
        """
        if self.anchors and step % ANCHOR_EVERY:
            return False
        self.read()
        due = not any(self.bad.values()) and step not in self.anchors
        if due:
            self.anchors = [*self.anchors[-1:], step]
        return due

    def count_return(self, step: int, rate: str) -> None:
        """One more return, from a step.

        Raises:
            Diverged: the job has gone back too often.
        """
        if self.data:  # a lower rate does not help
            raise Diverged(
                f"{self.failure} {MAX_BAD_STEPS} times in a row, last at step {step}, because the "
                f"data are not: {self.data}; mend or leave out these examples"
            )
        if self.returns >= MAX_RETURNS:
            raise Diverged(
                f"{self.failure} {MAX_BAD_STEPS} times in a row, last at step {step}, also after "
                f"going back {self.returns} times and lowering the rate to {self.factor:g} of what "
                f"was asked: lower {rate}, or look at the loss and the data"
            )
        self.returns += 1

    # --- state ---

    def state(self) -> dict[str, Any]:
        self.read()
        return {"bad": dict(self.bad), "returns": self.returns, "anchors": list(self.anchors)}

    @staticmethod
    def of(state: dict[str, Any]) -> Recovery:
        return Recovery(
            bad={str(kind): int(n) for kind, n in state["bad"].items()},
            returns=min(MAX_RETURNS, max(0, int(state["returns"]))),
            anchors=[int(step) for step in state["anchors"]],
        )


def guarded(
    optimizer: torch.optim.Optimizer,
    active: Sequence[nn.Parameter],
    loss: Tensor,
    snapshots: Iterable[BufferSnapshot],
    *,
    later: bool,
) -> bool | Tensor:
    """`optimizers.step` where the loss and all gradients are finite; else nothing moves.

    snapshots: the buffers before the step; restored where the step is not taken.
    later: do not wait for the device; whether the step was taken is then its tensor.
    """
    gradients = [p.grad for p in active]
    taken = finite(loss, gradients)
    fused = all(group["fused"] for group in optimizer.param_groups)
    if later and fused and not any(g is not None and g.is_sparse for g in gradients):
        optimizers.step(optimizer, active, taken=taken)
        for snapshot in snapshots:
            snapshot.restore(unless=taken)
        return taken
    if bool(taken):
        optimizers.step(optimizer, active)
        return True
    for snapshot in snapshots:
        snapshot.restore()
    return False


def finite(value: Tensor, gradients: Iterable[Tensor | None] = ()) -> Tensor:
    """Whether all numbers are: one bool on the device, however many tensors.

    A gradient counts by its norm: one that overflows is too large as well.
    """
    dense = [g._values() if g.is_sparse else g for g in gradients if g is not None]
    norms = torch._foreach_norm([value.detach(), *dense])
    return torch.stack([n.to(value.dtype) for n in norms]).isfinite().all()


# --- what a step may run into ---


@contextmanager
def explained(
    batch: Callable[[], Any] = lambda: None, retry: Callable[[Any], object] = lambda _: None
) -> Iterator[None]:
    """Out of memory and a lost worker as one line.

    batch: the batch of the step that failed, None before there is one. retry: computes a step
    on a batch, to find a size that fits; what it leaves behind is of no use.

    Raises:
        UserError: the step is too large for the memory; the largest half that fits is named.
        DataError: a process that loads data died.
    """
    try:
        yield
        return
    except (RuntimeError, *BROKEN) as error:
        if lost := lost_worker(error):
            raise DataError(
                f"a process that loads data died ({lost}): is there too little memory? lower the "
                "number of workers (none: --loading.workers 0, DataLoader(num_workers=0))"
            ) from None
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the memory of the step
    except MemoryError as error:
        traceback.clear_frames(error.__traceback__)
    raise UserError(_advice(batch(), retry))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory."""
    allocator = re.search(r"can't allocate memory|not enough memory", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or allocator is not None


def _advice(batch: Any, retry: Callable[[Any], object]) -> str:
    if batch is None:
        return "the network and its batch need too much memory: lower the batch size"
    size = batch_size(*reversed(split(batch)))
    half = size // 2
    while half:
        try:
            retry(first_examples(half, batch))
        except Exception as error:
            if not out_of_memory(error):
                break
            half //= 2
        else:
            return f"a step on a batch of {size} needs too much memory: a batch of {half} fits"
    return f"a step on a batch of {size} needs too much memory; no smaller batch fits either"


def first_examples(examples: int, batch: Any) -> Any:
    """The first so many examples of every tensor of a batch."""
    return pytree.tree_map_only(Tensor, lambda t: t[:examples] if t.dim() else t, batch)


def named(names: Iterable[str], candidates: Iterable[str], most: int = 6) -> str:
    """`blocks.0=e3_k3 blocks.1=zero and 4 more`."""
    pairs = [f"{name}={candidate}" for name, candidate in zip(names, candidates, strict=True)]
    more = f" and {len(pairs) - most} more" if len(pairs) > most else ""
    return " ".join(pairs[:most]) + more
