"""What is learned: a batch, a model's answer, and how wrong it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from proxylessnas.errors import DataError, UserError
from proxylessnas.training.holding import held_modules

# What logits are divided by, to see what their loss would be if they were calibrated.
TEMPERATURES = tuple(2 ** (k / 4) for k in range(-6, 7))


@dataclass(frozen=True)
class Task:
    """The user's loss, and what else is known of the outputs.

    loss: (output, target) -> scalar, of architecture steps and of evaluation.
    train_loss: the same for weight steps (label smoothing); default: `loss`.
    correct: (output, target) -> how many of the batch are right; None where that has no meaning.
    answers: output -> the class of each example, int64 [batch]; None where there are no classes.
    at_temperatures: (output, target) -> the loss with the output divided by each of `TEMPERATURES`,
        [temperatures]; None where outputs are no logits.
    distil_loss: (output, target, inputs) -> scalar, of weight steps in place of `train_loss`: a
        teacher's opinion depends on the inputs (`pretrained.distil`).
    is_mean: whether every loss is known to be a mean over the examples, each of which counts alike.
    """

    loss: Callable[[Any, Any], Tensor]
    train_loss: Callable[[Any, Any], Tensor] | None = None
    correct: Callable[[Any, Any], Tensor] | None = None
    distil_loss: Callable[[Any, Any, Any], Tensor] | None = None
    answers: Callable[[Any], Tensor] | None = None
    at_temperatures: Callable[[Any, Any], Tensor] | None = None
    is_mean: bool = False

    def weight_loss(self, output: Any, target: Any, inputs: Any) -> Tensor:
        """The loss of a weight step."""
        if self.distil_loss is not None:
            return self.distil_loss(output, target, inputs)
        loss = self.loss if self.train_loss is None else self.train_loss
        return loss(output, target)

    def modules_beside(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules with tensors of their own that the losses hold, but for the model's, by name.

        They are part of what is learned: centres, a classifier inside the loss, log-variances.
        """
        own = set(model.modules())
        return {
            name: module
            for name, module in self.modules().items()
            if module not in own and any(True for _ in own_tensors(module))
        }

    def modules(self) -> dict[str, nn.Module]:
        """Every module that the losses hold, each once, by name."""
        holders = dict.fromkeys(m for f in (self.loss, self.train_loss) for m in held_modules(f))
        names: dict[nn.Module, str] = {}
        for i, holder in enumerate(holders):
            for name, module in holder.named_modules():
                names.setdefault(module, f"{i}.{name}" if name else str(i))
        return {name: module for module, name in names.items()}

    @staticmethod
    def classification(label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Task:
        """Cross entropy and top-1 over logits [batch, classes] and labels [batch].

        class_weights: [classes], of the weight steps' loss; see `balanced_weights`.
        """

        loss = nn.functional.cross_entropy

        def smoothed(output: Tensor, target: Tensor) -> Tensor:
            weight = None if class_weights is None else class_weights.to(output)
            return loss(output, target, weight, label_smoothing=label_smoothing)

        return Task(
            loss=loss,
            train_loss=smoothed,
            correct=lambda output, target: (output.argmax(1) == target).sum(),
            answers=lambda output: output.argmax(1),
            at_temperatures=lambda output, target: torch.stack(
                [loss(output / temperature, target) for temperature in TEMPERATURES]
            ),
            is_mean=class_weights is None,
        )


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers, without its submodules'."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Weights with which all classes count alike in a loss, 1 in the mean over the examples.

    counts: examples of every class; a class without any has the weight 0.
    """
    each = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(each > 0, each.sum() / (each > 0).sum() / each.clamp_min(1), 0.0)
    return weights.float()


def call(model: nn.Module, inputs: Any) -> Any:
    """A tuple or list of inputs is spread over the arguments, a dict over the keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def scalar(loss: Any) -> Tensor:
    """What a loss function returned, if that is one number.

    Raises:
        UserError: it is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"the loss must return a tensor of one number, as .mean() does, not {what}")
    return loss.reshape(())


def counted(correct: Any) -> float:
    """What `correct` returned, if that is one number.

    Raises:
        UserError: it is not.
    """
    try:
        return float(correct)
    except (TypeError, ValueError, RuntimeError):
        is_tensor = isinstance(correct, Tensor)
        what = f"shape {tuple(correct.shape)}" if is_tensor else type(correct).__name__
        raise UserError(
            "correct must return how many of the batch are right, one number, as .sum() does, not "
            + what
        ) from None


def split(batch: Any) -> tuple[Any, Any]:
    """(inputs, target) of a batch.

    Raises:
        DataError: the batch is not a pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"a batch must be a pair (inputs, target); the loader gave {type(batch).__name__}"
            + (f" of {len(batch)}" if isinstance(batch, Sequence) else "")
        )
    return batch[0], batch[1]


def batch_size(*parts: Any) -> int:
    """Examples in a batch, by the first of its parts that tells: the target, then the inputs."""
    return next((size for part in parts if (size := _size(part)) is not None), 1)


def _size(part: Any) -> int | None:
    if isinstance(part, Tensor):
        return len(part) if part.dim() else None
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])
    if isinstance(part, Mapping):
        return next((size for v in part.values() if (size := _size(v)) is not None), None)
    if not isinstance(part, tuple | list):
        return _size(vars(part)) if hasattr(part, "__dict__") else None
    tensors = [v for v in part if isinstance(v, Tensor) and v.dim()]
    if tensors and all(v.dim() == 3 and len(v) in (1, 3) for v in tensors):
        return len(part)  # images, in a list because their sizes may differ
    if tensors and len({len(v) for v in tensors}) == 1:
        return len(tensors[0])  # several tensors of one batch
    if tensors or not part or not isinstance(part[0], tuple | list):
        return len(part)  # an entry an example: boxes of different numbers, words, numbers
    return _size(part[0])


def pieces(batch: Any, at_once: int | None) -> list[tuple[float, Any]]:
    """A batch in parts of so many examples at most, about equal, each with its share of the batch.

    at_once: None is the whole batch, of whatever form.
    """
    size = 0 if at_once is None else batch_size(*reversed(split(batch)))
    if at_once is None or size <= at_once:
        return [(1.0, batch)]
    count = -(-size // at_once)
    edges = [i * size // count for i in range(count + 1)]
    return [
        ((end - start) / size, pytree.tree_map_only(Tensor, itemgetter(slice(start, end)), batch))
        for start, end in pairwise(edges)
    ]


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor may hold labels."""
    others = tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool
    return tensor.layout == torch.strided and not any(others)


def _is_mask(leaf: Tensor) -> bool:
    """Whether it is 0 and minus infinity alone, as what is added to the scores of attention."""
    return bool(((leaf == 0) | (leaf == -torch.inf)).all())


def not_numbers(batch: Any, name: str) -> str:
    """Which tensors of a batch (inputs, target) hold NaN or infinities, and how many; or empty.

    name: of the batch, in words.
    """
    words = []
    for side, part in zip(("inputs", "target"), split(batch), strict=True):
        for path, leaf in pytree.tree_leaves_with_path(part):
            dense = isinstance(leaf, Tensor) and leaf.layout == torch.strided
            if dense and leaf.is_floating_point() and not _is_mask(leaf):
                if count := int(leaf.isfinite().logical_not().sum()):
                    kind = "NaN" if bool(leaf.isnan().any()) else "infinite values"
                    where = side + pytree.keystr(path)
                    words.append(f"{where} holds {kind} ({count} of {leaf.numel()} numbers)")
    return f"{name}: {', '.join(words)}" if words else ""
