"""Fine-tuning with a teacher: beside the labels its outputs (Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import Task, call

TEMPERATURE, TEACHER_SHARE = 2.0, 0.7


def distilled(
    task: Task,
    teacher: nn.Module,
    *,
    temperature: float = TEMPERATURE,
    share: float = TEACHER_SHARE,
    distance: Callable[[Any, Any], Tensor] | None = None,
) -> Task:
    """The task, of whose training loss `share` is the distance to the teacher's outputs.

    teacher: gives outputs for the same inputs; it is run in evaluation mode, without gradients, on
    the device that it is on. Architecture steps and evaluation keep the task's own loss.
    distance: (output, the teacher's) -> scalar; default: of logits [batch, classes] KL(teacher ‖
    network) at a temperature.
    """
    if distance is None:
        distance = partial(divergence, temperature=temperature)

    def loss(output: Any, target: Any, inputs: Any) -> Tensor:
        with evaluating(teacher):
            wanted = call(teacher, inputs)
        own: Tensor = (1 - share) * task.weight_loss(output, target, inputs)
        return own + share * distance(output, wanted)

    return replace(task, distil_loss=loss)


def divergence(output: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL of the softened outputs, mean over the batch; logits [batch, classes].

    Times the square of the temperature: so the gradient keeps its size, whatever that is.
    """
    kl = kl_div(
        log_softmax(output / temperature, 1),
        log_softmax(wanted / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * kl
