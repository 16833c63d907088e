"""What is learned: a batch, a model's answer, and how wrong it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import DataError, UserError


@dataclass(frozen=True)
class Task:
    """The user's loss, and what else is known of the outputs.

    loss: (output, target) -> scalar, of architecture steps and of evaluation.
    train_loss: the same for weight steps (label smoothing); default: `loss`.
    correct: (output, target) -> how many of the batch are right; None where that has no meaning.
    distil_loss: (output, target, inputs) -> scalar, of weight steps in place of `train_loss`: a
        teacher's opinion depends on the inputs (`pretrained.distil`).
    """

    loss: Callable[[Any, Any], Tensor]
    train_loss: Callable[[Any, Any], Tensor] | None = None
    correct: Callable[[Any, Any], Tensor] | None = None
    distil_loss: Callable[[Any, Any, Any], Tensor] | None = None

    def weight_loss(self, output: Any, target: Any, inputs: Any) -> Tensor:
        """The loss of a weight step."""
        if self.distil_loss is not None:
            return self.distil_loss(output, target, inputs)
        return (self.train_loss or self.loss)(output, target)

    @staticmethod
    def classification(label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Task:
        """Cross entropy and top-1 over logits [batch, classes] and labels [batch].

        class_weights: [classes], of the weight steps' loss; see `balanced_weights`.
        """

        def smoothed(output: Tensor, target: Tensor) -> Tensor:
            weight = None if class_weights is None else class_weights.to(output)
            return nn.functional.cross_entropy(
                output, target, weight, label_smoothing=label_smoothing
            )

        return Task(
            loss=nn.functional.cross_entropy,
            train_loss=smoothed,
            correct=lambda output, target: (output.argmax(1) == target).sum(),
        )


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


def batch_size(target: Any) -> int:
    """Examples in a batch, by its target's first tensor."""
    leaves = [leaf for leaf in pytree.tree_leaves(target) if isinstance(leaf, Tensor)]
    return len(leaves[0]) if leaves and leaves[0].dim() else 1
