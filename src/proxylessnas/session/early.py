"""What fails late is tried early: a batch of each loader through everything that will see it.

Model, loss, `correct`, reward, a backward pass and an architecture step, in the modes that the
search uses, before anything is measured. Nothing learns, and nothing is left: buffers, gradients,
modes, random generators are as they were, and loaders are iterated anew by the search.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import estimator_of
from proxylessnas.core.gates import Path
from proxylessnas.core.objective import Alone
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.data import WHOLE, Batches, LoaderBatches
from proxylessnas.data.arguments import register_dataclasses
from proxylessnas.errors import DataError, UserError, one_line
from proxylessnas.session.loaders import (
    check_repeats,
    label_range,
    single_example,
    warn_of_sharing,
)
from proxylessnas.session.problem import Part
from proxylessnas.session.session import Session
from proxylessnas.training.evaluate import batch_norms
from proxylessnas.training.faults import explained, out_of_memory
from proxylessnas.training.freezing import evaluating, undisturbed
from proxylessnas.training.optimizers import beside_parameters, unshared
from proxylessnas.training.task import batch_size, call, describe, not_numbers, scalar, split

NAMES: dict[Part, str] = {
    "search": "train",  # as the argument is called
    "valid": "valid",
    "calibration": "calibration",
    "scoring": "scoring",
}


def try_early(session: Session) -> None:
    """Take one batch of each loader through all that the search and deriving do with it.

    Raises:
        UserError: something fails, or returns what the search cannot use; one line says what, on
            which batch, and what to do.
    """
    job, device = _spoilable(session)
    modules = [*job.model.modules(), *job.losses.values()]
    parts = _loaders(session)
    warn_of_sharing({name: batches for name, batches in parts.values()})
    _say_learning_losses(session, job)
    other_sizes: dict[str, str] = {}
    try:
        with undisturbed(modules), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the search gives them again
            for part, (name, batches) in parts.items():
                other_sizes |= _try_loader(session, job, part, name, batches)
    finally:
        job.model.to(device)
    _judge_sizes(other_sizes)


def _judge_sizes(others: dict[str, str]) -> None:
    """Images of another size than the example inputs, by the loader's name.

    Training on other sizes than the network is for is a known practice, and so are single images
    of any size; validation batches of a size that nothing else has are an accident.
    """
    for name, words in others.items():
        if name != "train" and "train" not in others and "1 image" not in words:
            raise DataError(
                f"{words}; train's are of the examples' size: resize those of {name}, or give "
                "example inputs of the size that is deployed"
            )
        warnings.warn(words, stacklevel=3)


def _spoilable(session: Session) -> tuple[Search, torch.device]:
    """A search that takes no step, on the session's own model; and where that was before.

    Copies would need more memory, and not every model can be copied.
    """
    supernet, config = session.supernet, session.config
    reward = session.problem.reward
    if reward is None and config.search.objective == "reward":  # its costs are not measured yet
        reward = lambda accuracy, _: accuracy  # noqa: E731
    settings = dataclasses.replace(config.search, objective="constraint", reinforce_samples=1)
    device = next((p.device for p in supernet.model.parameters()), torch.device("cpu"))
    train = session.problem.batches("search", config)
    costs = Costs.free(*supernet.mask.shape)
    job = Search(
        supernet=supernet,
        task=session.problem.task,
        train=train,
        valid=session.problem.batches("valid", config),
        costs=costs,
        objective=Alone(),
        estimator=estimator_of(settings, costs, reward),
        settings=settings,
        schedule=Schedule.of(settings, len(train)),
        seed=config.seed,
        # Weights laid out otherwise would be measured otherwise.
        machine=dataclasses.replace(session.machine, channels_last=False),
        alpha=supernet.alpha.detach().clone(),
    )
    return job, device


def _loaders(session: Session) -> dict[Part, tuple[str, Batches]]:
    """The name and the batches of each part that has batches of its own."""
    parts: dict[Part, tuple[str, Batches]] = {}
    for part, name in NAMES.items():
        batches = session.problem.batches(part, session.config)
        own = part in ("search", "valid") or isinstance(batches, LoaderBatches)
        if own and not any(batches is other for _, other in parts.values()):
            parts[part] = (name, batches)
    return parts


def _say_learning_losses(session: Session, job: Search) -> None:
    """What else than the model learns is said: a network inside the loss may be meant to stay."""
    losses = unshared(beside_parameters(job.losses).values(), job.model.parameters())
    if learning := [p for p in losses if p.requires_grad]:
        numbers = sum(p.numel() for p in learning)
        kinds = {type(m).__name__: None for m in job.losses.values() if m._parameters}
        session.reporter.say(
            f"the loss has {numbers} parameters of its own ({', '.join(kinds)}), which learn with "
            "the weights; what must stay takes requires_grad_(False)"
        )


def _try_loader(
    session: Session, job: Search, part: Part, name: str, batches: Batches
) -> dict[str, str]:
    """Returns {name: words} where images are of another size than the example inputs."""
    batch = _first_batch(name, batches)
    inputs, target = split(batch)
    size = batch_size(target, inputs)
    if size == 0:
        raise DataError(f"the first batch of {name} is empty: {describe(batch)}")
    register_dataclasses(batch)
    words = f"the first batch of {name}"
    trial = Trial(job=job, name=name, words=words, batch=job.machine.put(batch), size=size)
    other_size = trial.other_size(session.inputs)
    with explained(lambda: trial.batch, trial.retry):
        if part == "search":
            trial.weight_steps()
        elif part == "calibration":
            trial.calibration()
        else:
            trial.score()
        if part == "valid":
            trial.architecture_step()
    single = single_example(batches, trial.batch, size) if batch_norms(job.model) else None
    if part != "scoring" and single is not None:
        trial.other("a batch of one example, as there is in {name}", single).calibration()
    labels = label_range(batches)
    if part in ("search", "valid") and labels is not None:
        trial.labels(*labels)
    return {name: other_size} if other_size else {}


def _first_batch(name: str, batches: Batches) -> Any:
    """The first of epoch 0; of our own images two, which are as good as all and cost less."""
    share = WHOLE
    if not isinstance(batches, LoaderBatches) and hasattr(batches, "batch_size"):
        share = (0, max(1, batches.batch_size // 2))
    try:
        with explained():
            batch = next(batches.epoch(0, share=share))
            check_repeats(name, batches, batch)
    except UserError:
        raise
    except StopIteration:
        raise DataError(
            f"the data ended after 0 of {len(batches)} batches: {name} must give them again and "
            "again, epoch after epoch"
        ) from None
    except Exception as error:  # whatever the user's own data set raises
        raise DataError(f"{name} fails on its first batch: {_last_line(error)}") from error
    return batch


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
        for path in self._paths():
            with self.job.supernet.gated([Path(j) for j in path]), self._fails("the backward pass"):
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
        for path in self._paths():
            with self.job.supernet.gated([Path(j) for j in path]), torch.no_grad():
                self._loss(training=False)
        self._check_reward()
        with self._fails("the architecture step"):
            estimator = self.job.estimator
            estimator.step(self.job.context(self.batch), torch.Generator().manual_seed(0))

    def calibration(self) -> None:
        """Forward with batch statistics."""
        self.job.model.train()
        with torch.no_grad():
            self._output()

    def score(self) -> None:
        """In evaluation mode, as a derived network is scored."""
        with evaluating(self.job.model):
            output = self._output()
            self._loss_of(output, training=False)
            self._check_correct(output)

    def retry(self, batch: Any) -> None:
        """For `explained`: the training step on a smaller batch."""
        loss = dataclasses.replace(self, batch=batch)._loss(training=True)
        loss.backward()  # type: ignore[no-untyped-call]

    def other(self, words: str, batch: Any) -> Trial:
        """Another batch of the same loader."""
        words, batch = words.format(name=self.name), self.job.machine.put(batch)
        return dataclasses.replace(self, batch=batch, size=1, words=words)

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
        with self._fails("the loss", output), self.job.machine.precision():
            if training:
                loss = scalar(task.weight_loss(output, target, inputs))
            else:
                loss = scalar(task.loss(output, target))
        if bool(loss.isnan()):
            cause = not_numbers(self.batch, "its data are the cause")
            cause = cause or "its data hold no NaN: look at the loss (0/0? the logarithm of 0?)"
            raise DataError(f"the loss of {self.words} is NaN before any step was taken; {cause}")
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
            inputs, target = split(self.batch)
            shapes = f"inputs {describe(inputs)}, target {describe(target)}"
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
    if output.dim() == target.dim() + 1 and not target.is_floating_point():
        target = output.argmax(1).to(target.dtype)
    half = size // 2
    try:
        parts = [(output[:half], target[:half]), (output[half : 2 * half], target[half : 2 * half])]
        first, second = (float(correct(*part)) for part in parts)
        whole = float(correct(output[: 2 * half], target[: 2 * half]))
    except Exception:  # it may keep count, or know the size of its batch
        return False
    return 0 < whole <= 1 and abs(whole - (first + second) / 2) < 1e-6 < first + second - whole


def _last_line(error: Exception) -> str:
    """An error in one line; of a worker's, which comes with its traceback, the last one."""
    text = str(error)
    if "Original Traceback" in text:
        return text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {one_line(error)}"


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
        return "; batch normalisation needs two: leave it out, as DataLoader(drop_last=True) does"
    leaves = pytree.tree_leaves((inputs, target))
    if any(type(leaf).__module__ == "numpy" for leaf in leaves):
        return "; the batch holds numpy arrays: convert them with torch.from_numpy"
    dtypes = {p.dtype for p in trial.job.model.parameters() if p.is_floating_point()}
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype not in dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            return f"; the model computes in {names}: convert the inputs, as with .float()"
    if isinstance(output, Tensor) and isinstance(target, Tensor) and target.numel():
        if not target.is_floating_point() and output.dim() == target.dim() + 1 > 1:
            low, high, classes = int(target.min()), int(target.max()), output.shape[1]
            if low < 0 or high >= classes:
                return f"; labels are {low} to {high}, and the output has {classes} classes"
    return ""
