"""One batch through model, loss, `correct`, reward and a backward pass; what fails is one line."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from proxylessnas.core.gates import Path
from proxylessnas.core.search import Search
from proxylessnas.data.arguments import describe, in_words
from proxylessnas.errors import DataError, UserError, foreign, one_line
from proxylessnas.training.faults import out_of_memory
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.optimizers import beside_parameters
from proxylessnas.training.task import batch_size, call, is_integer, not_numbers, scalar, split


def placed(job: Search, words: str, batch: Any) -> Any:
    """A batch on the device that the search runs on.

    Raises:
        DataError: it cannot be copied there, as a tensor without data.
    """
    with foreign(DataError, f"{words} cannot be copied to {job.machine.device}"):
        return job.machine.put(batch)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One batch of the loader `name`, on the model's device. size: its examples."""

    job: Search
    name: str
    words: str
    batch: Any
    size: int

    # --- what the batch goes through ---

    def weight_steps(self) -> None:
        """Every candidate forward; backward until something in the model has a gradient."""
        self.job.model.train()
        learned = False
        for _ in self._on_paths():
            with self._fails("the backward pass"):
                loss = self._loss(training=True)
                if not learned and loss.requires_grad:
                    self._check_leaves(loss)
                    loss.backward()  # type: ignore[no-untyped-call]
                    learned = any(p.grad is not None for p in self.job.model.parameters())
        if not learned:
            raise UserError(
                f"the loss of {self.words} has no gradient: it does not depend on the model's "
                "weights (is it detached, made of .item(), argmax or numpy, or under no_grad?)"
            )

    def architecture_step(self) -> None:
        """As the estimator takes it; α stays."""
        self.job.model.train()
        for _ in self._on_paths():
            with torch.no_grad():
                self._loss(training=False)
        self._check_reward()
        with self._fails("the architecture step"):
            estimator = self.job.estimator
            estimator.step(self.job.context(self.batch), torch.Generator().manual_seed(0))

    def calibration(self) -> None:
        """Forward with batch statistics."""
        self.job.model.train()
        for _ in self._on_paths():
            with torch.no_grad():
                self._output()

    def score(self) -> None:
        """In evaluation mode, as a derived network is scored."""
        with evaluating(self.job.model):
            for _ in self._on_paths():
                output = self._output()
                self._loss_of(output, training=False)
            self._check_correct(output)

    def retry(self, batch: Any) -> None:
        """For `explained`: the training step on a smaller batch."""
        loss = dataclasses.replace(self, batch=batch)._loss(training=True)
        loss.backward()  # type: ignore[no-untyped-call]

    def other(self, words: str, batch: Any) -> Trial:
        """Another batch of the same loader."""
        words = words.format(name=self.name)
        batch = placed(self.job, words, batch)
        size = batch_size(*reversed(split(batch)))
        if not size:
            raise DataError(f"{words} is empty: {describe(batch)}")
        return dataclasses.replace(self, batch=batch, size=size, words=words)

    def labels(self, low: int, high: int) -> None:
        """The loss takes every label that the loader gives, of which a batch has only some."""
        inputs, target = split(self.batch)
        if not isinstance(target, Tensor) or target.dim() != 1 or len(target) < 2:
            return
        with evaluating(self.job.model):
            output = self._output()
            if not isinstance(output, Tensor) or output.dim() != 2:
                return
            if low < 0 or high >= output.shape[1]:  # where losses differ in what they allow
                changed = target.clone()
                changed[0], changed[1] = low, high
                words = "a batch of {name} with the lowest and the highest label there"
                other = self.other(words, (inputs, changed))
                other._loss_of(output, training=self.name == "train")

    def _on_paths(self) -> Iterator[None]:
        """The model on each of these paths."""
        for path in self._paths():
            with self.job.supernet.gated([Path(j) for j in path]):
                yield

    def _paths(self) -> Iterator[list[int]]:
        """Paths through every candidate that the limits allow."""
        rows = [[j for j, on in enumerate(row) if on] for row in self.job.supernet.mask.tolist()]
        for i in range(max(map(len, rows))):
            yield [allowed[min(i, len(allowed) - 1)] for allowed in rows]

    # --- its parts ---

    def _loss(self, *, training: bool) -> Tensor:
        return self._loss_of(self._output(), training=training)

    def _output(self) -> Any:
        inputs, _ = split(self.batch)
        with self._fails("the model"), self.job.machine.precision():
            return call(self.job.model, inputs)

    def _loss_of(self, output: Any, *, training: bool) -> Tensor:
        (inputs, target), task = split(self.batch), self.job.task
        with (
            self._fails("the loss", output),
            self.job.machine.precision(),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            if training:
                loss = scalar(task.weight_loss(output, target, inputs))
            else:
                loss = scalar(task.loss(output, target))
        if any("due to broadcasting" in str(warning.message) for warning in caught):
            raise UserError(
                f"the loss of {self.words} compares every example with every other: the output is "
                f"{describe(output)} and the target {describe(target)}; give both one shape, as "
                "with .squeeze(1) or .unsqueeze(1)"
            )
        if not bool(loss.isfinite()):
            cause = not_numbers(self.batch, "its data are the cause")
            cause = cause or "its data are finite: look at the loss (0/0? the logarithm of 0?)"
            raise DataError(
                f"the loss of {self.words} is {float(loss):g} before any step was taken; {cause}"
            )
        return loss

    # --- what is refused ---

    def other_size(self, example: tuple[Any, ...]) -> str:
        """Words where images are of another size than the example inputs; empty where not.

        Raises:
            DataError: inputs have another number of dimensions than the example inputs.
        """
        inputs, _ = split(self.batch)
        inputs = inputs if isinstance(inputs, tuple | list) else (inputs,)
        pairs = [pytree.tree_leaves(inputs), pytree.tree_leaves(example)]
        if isinstance(split(self.batch)[0], dict) or len(pairs[0]) != len(pairs[1]):
            return ""
        for value, other in zip(*pairs, strict=True):
            if not isinstance(value, Tensor) or not isinstance(other, Tensor):
                continue
            if value.dim() != other.dim():
                raise DataError(
                    f"the batches of {self.name} have inputs {describe(value)}, of "
                    f"{value.dim()} dimensions, and the example inputs {describe(other)} have "
                    f"{other.dim()}: give batches of what is measured, [batch, ...]"
                )
            if value.dim() == 4 and value.shape[2:] != other.shape[2:]:
                images = "1 image" if self.size == 1 else f"{self.size} images"
                return (
                    f"the first batch of {self.name} is {images} of {_size(value)}, and the "
                    f"example inputs, whose latency counts, are of {_size(other)}"
                )
        return ""

    def _check_leaves(self, loss: Tensor) -> None:
        """Everything that the loss has a gradient for is trained."""
        job = self.job
        trained = {
            id(p) for p in (*job.model.parameters(), *beside_parameters(job.losses).values())
        }
        trained |= {id(leaf) for leaf in pytree.tree_leaves(self.batch)}
        for leaf in leaves_of(loss):
            if id(leaf) not in trained:
                raise UserError(
                    f"the loss depends on a tensor {describe(leaf)} that requires a gradient and "
                    "that neither the model nor a module in the loss registers: it would stay as "
                    "it is; make it an nn.Parameter of a module given as `loss` (or of the model; "
                    "a plain list of layers is none of it), or detach it"
                )

    def _check_correct(self, output: Any) -> None:
        correct, (_, target) = self.job.task.correct, split(self.batch)
        if correct is None:
            return
        with self._fails("`correct`", output):
            value = correct(output, target)
        count, must = _number(value), f"it must be how many of the {self.size} examples are right"
        if count is None:
            add = ": add .sum()" if isinstance(value, Tensor) else ""
            raise UserError(f"`correct` returned {describe(value)}; {must}, one number{add}")
        if not 0 <= count <= self.size:
            raise UserError(
                f"`correct` returned {count:g} on {self.words}; {must}: where an example has many "
                "answers, such as pixels, give each the share that is right"
            )
        if is_mean(correct, output, target, self.size):
            raise UserError(f"`correct` returns a mean; {must}: .sum(), not .mean()")

    def _check_reward(self) -> None:
        reward = getattr(self.job.estimator, "reward", None)
        if reward is None:
            return
        path = next(self._paths())
        with self._fails("the reward"):
            value = reward(0.5, path)
        if _number(value) is None:
            raise UserError(f"the reward returned {describe(value)}; it must be one number")

    # --- words ---

    @contextmanager
    def _fails(self, what: str, output: Any = None) -> Iterator[None]:
        """Whatever the user's functions raise, as a line with what they were given."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            shapes = in_words(self.batch)
            shapes += "" if output is None else f", output {describe(output)}"
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
            raise UserError(
                f"{what} fails on {self.words} ({shapes}): {reason}{_clue(self, error, output)}"
            ) from error


def leaves_of(loss: Tensor) -> Iterator[Tensor]:
    """The tensors at the ends of a loss's graph, which a backward pass gives gradients."""
    nodes, visited = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            yield leaf
        nodes += [following for following, _ in node.next_functions]


def is_mean(correct: Any, output: Any, target: Any, size: int) -> bool:
    """Whether `correct` returns a share of the batch instead of a number of examples.

    Seen at two halves of a batch, whose counts add up; where classes are guessed, of a batch that
    is all right.
    """
    if size < 2 or not all(isinstance(x, Tensor) and len(x) == size for x in (output, target)):
        return False
    if output.dim() == target.dim() + 1 and is_integer(target):
        target = output.argmax(1).to(target.dtype)
    half = size // 2
    try:
        parts = [(output[:half], target[:half]), (output[half : 2 * half], target[half : 2 * half])]
        first, second = (float(correct(*part)) for part in parts)
        whole = float(correct(output[: 2 * half], target[: 2 * half]))
    except Exception:  # it may keep count, or know the size of its batch
        return False
    return 0 < whole <= 1 and abs(whole - (first + second) / 2) < 1e-6 < first + second - whole


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _size(images: Tensor) -> str:
    return "x".join(map(str, images.shape[2:]))


def _clue(trial: Trial, error: Exception, output: Any) -> str:
    """What is probably wrong, by the values alone; empty where they look right."""
    inputs, target = split(trial.batch)
    if trial.size == 1 and "more than 1 value per channel" in str(error):
        return (
            "; batch normalisation needs two: take another batch size, or leave that batch out, "
            "as DataLoader(drop_last=True) does"
        )
    leaves = pytree.tree_leaves((inputs, target))
    if any(type(leaf).__module__ == "numpy" for leaf in leaves):
        return "; the batch holds numpy arrays: convert them with torch.from_numpy"
    dtypes = {p.dtype for p in trial.job.model.parameters() if p.is_floating_point()}
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype not in dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            return f"; the model computes in {names}: convert the inputs, as with .float()"
    if isinstance(output, Tensor) and isinstance(target, Tensor) and target.numel():
        if is_integer(target) and output.dim() == target.dim() + 1 > 1:
            low, high, classes = int(target.min()), int(target.max()), output.shape[1]
            if low < 0 or high >= classes:
                return f"; labels are {low} to {high}, and the output has {classes} classes"
    return ""
