"""What a user brings to be specialised, and what is tried of it before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves

from proxylessnas.config import MeasureSettings
from proxylessnas.data import Batches
from proxylessnas.errors import DataError, SupernetError, foreign
from proxylessnas.hardware.examples import check_examples, run_once
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.io.console import Reporter
from proxylessnas.surgery.attention import opened
from proxylessnas.training.copying import copied
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.job import Job
from proxylessnas.training.task import Task, call, counted, scalar, split

SCORED = 256  # examples, of at most so many batches, see `around`


class Records(Protocol):
    """What stages need of `session.records.Records`, a room above this one."""

    store: Any

    def done(self, stage: str) -> bool: ...

    def below(self, folder: str) -> Records: ...

    def undo(self, stage: str) -> object: ...

    def drive(self, stage: str, job: Job, words: str, callbacks: Any = ()) -> object: ...

    def stage(
        self, name: str, title: str, callbacks: Any = None
    ) -> AbstractContextManager[dict[str, Any]]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What was brought: a trained model on the CPU, its task and its batches.

    inputs: the arguments of the forward pass that is measured. records: of finished stages, with
    the store of what they left (`session.records`). callbacks: that are told of them. scored:
    examples of the validation part that networks are compared on. deployed: what a network's
    device computes in its place.
    wider: what to do where no network keeps a limit.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    task: Task
    train: Batches
    valid: Batches
    runtime: Runtime
    measure: MeasureSettings
    seed: int
    reporter: Reporter
    records: Records
    callbacks: Any = None
    scored: int = SCORED
    deployed: Callable[[nn.Module], AbstractContextManager[nn.Module]] = nullcontext
    wider: str = "give a higher limit, or blocks='auto' where blocks= left layers out"

    def stage(self, name: str, title: str) -> AbstractContextManager[dict[str, Any]]:
        """A stage of the call, recorded; the block fills in its facts."""
        return self.records.stage(name, title, self.callbacks)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, out of `torch.compile` and data parallelism."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the CPU in evaluation mode, of which no part is wrapped.

    Attention of torch is `attention.Attention` in it.
    """
    copy = copied(unwrapped(model))
    for path, module in list(copy.named_modules()):
        if path and unwrapped(module) is not module:
            copy.set_submodule(path, unwrapped(module))
    return opened(copy).cpu().eval()


def inputs_of(batches: Batches, most: int | None = None) -> Iterator[Any]:
    """The inputs of an epoch's first batches."""
    for count, batch in enumerate(batches.epoch(0)):
        if count == most:
            return
        yield split(batch)[0]


def try_batches(brought: Trained) -> None:
    """One batch of each loader through model, loss and `correct`, before anything is measured.

    Raises:
        DataError, SupernetError: one fails, or there are numbers in it that are none.
    """
    _check_weights(brought.model)
    check_examples(brought.inputs)
    run_once(brought.model, brought.inputs)
    if _source(brought.train) is _source(brought.valid):
        brought.reporter.say(
            "  WARNING: `valid` is `train`: no score says what the networks do with new data"
        )
    for name, batches in (("train", brought.train), ("valid", brought.valid)):
        batch = next(batches.epoch(0))
        inputs, target = split(batch)
        with evaluating(brought.model):
            with foreign(DataError, f"the model fails on the first batch of {name}"):
                output = call(brought.model, inputs)
            if any(bool(v.isnan().any()) for v in tree_leaves(output) if isinstance(v, Tensor)):
                raise DataError(
                    f"the model's output on the first batch of {name} is not a number (NaN) in "
                    "places; give inputs as it was trained on, and in a type wide enough for it"
                )
            with foreign(DataError, f"the loss fails on the first batch of {name}"):
                loss = scalar(brought.task.loss(output, target))
            if not bool(loss.isfinite()):
                raise DataError(
                    f"the loss is {float(loss)} on the first batch of {name}, where the model's "
                    "output is finite: the loss, or the target, is at fault"
                )
            if brought.task.correct is not None:
                with foreign(DataError, f"correct fails on the first batch of {name}"):
                    counted(brought.task.correct(output, target))


def _source(batches: Batches) -> Any:
    """The data set of a loader, or what else batches come from."""
    loader = getattr(batches, "loader", batches)
    return getattr(loader, "dataset", loader)


def _check_weights(model: nn.Module) -> None:
    """Buffers may hold infinities, as masks of attention do; statistics may not.

    Raises:
        SupernetError: a weight has numbers that are not finite.
    """
    statistics = {
        n: b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))
    }
    for name, tensor in (*model.named_parameters(), *statistics.items()):
        wrong = tensor.detach()[~tensor.detach().isfinite()]
        if len(wrong):
            raise SupernetError(
                f"the model's {name} holds {len(wrong)} of {tensor.numel()} numbers that are not "
                f"finite ({wrong[0].item()}): load weights of a training that did not diverge"
            )
