"""How weights learn: rate, gradients, optimiser; models and optimisers as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.training.device import Machine
from proxylessnas.training.task import Task, call, own_tensors, pieces, scalar, split

KNOWN = ("torch", "torchvision", "timm", "proxylessnas")  # whose layers see each example by itself


def cosine(rate: float, step: int, steps: int) -> float:
    """`rate` at step 0, towards 0 at `steps`."""
    return 0.5 * rate * (1 + math.cos(math.pi * step / max(1, steps)))


def scheduled(rate: float, step: int, steps: int, warmup: float = 0) -> float:
    """The rate of a step: a line up from 0 over `warmup` steps, then the cosine over the rest."""
    if step + 1 <= warmup:
        return rate * (step + 1) / warmup
    return cosine(rate, step - int(warmup), steps - int(warmup))


def adamw(groups: Sequence[dict[str, Any]], *, rate: float) -> torch.optim.AdamW:
    """AdamW in one pass over memory; see `step`."""
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def sgd(groups: Sequence[dict[str, Any]], *, rate: float, momentum: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum, in one pass over memory where torch has that; see `step`."""
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=fused)


def gradients(
    model: nn.Module, task: Task, machine: Machine, batch: Any, at_once: int | None = None
) -> Tensor:
    """The loss of one training batch; its gradients are left in the parameters.

    at_once: examples that memory is there for; their gradients add up to those of the batch, if
        the loss is a mean over its examples and the model sees each by itself (`whole_batch`).
    """
    losses = []
    for share, part in pieces(batch, at_once):
        inputs, target = split(part)
        with machine.precision():
            output = call(model, inputs)
            loss = share * scalar(task.weight_loss(output, target, inputs))
        # Activation checkpointing runs the network again, so within a path's gates. Where a Zero
        # cuts everything off there is nothing to learn.
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        del output, loss  # the next part needs their memory
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def whole_batch(model: nn.Module, task: Task, *, frozen_statistics: bool) -> str:
    """Why a batch cannot be computed in parts with the same result; empty where it can."""
    if not task.is_mean:
        return "the loss is not known to be a mean over the images that count alike"
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if not (frozen_statistics and module.track_running_stats):
                return "batch normalisation takes the statistics of the whole batch"
        elif type(module).__module__.partition(".")[0] not in KNOWN:
            return f"{type(module).__name__} may look at the whole batch"
    return ""


def step(
    optimizer: torch.optim.Optimizer, active: Iterable[nn.Parameter], *, taken: Tensor | None = None
) -> None:
    """One step of the parameters among `active` that have a gradient; the others stay.

    The optimiser does not look at the others at all: a supernet has many times as many.
    taken: a bool on the device; where it is false the fused kernel moves nothing, as it does for
    a `GradScaler`.
    """
    moving = [p for p in active if p.grad is not None]
    for p in moving:
        assert p.grad is not None
        if p.grad.is_sparse:
            for group in optimizer.param_groups:
                group["fused"] = False
        # The fused kernel takes memory as it lies, whatever the strides say.
        elif p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)
        # It wants all buffers or none; one of zeros becomes the first gradient, as usual.
        if optimizer.defaults.get("momentum") and "momentum_buffer" not in optimizer.state[p]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    everything = [group["params"] for group in optimizer.param_groups]
    chosen = {id(p) for p in moving}
    try:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) in chosen]
        if taken is not None:
            optimizer.found_inf = taken.logical_not().float()  # type: ignore[attr-defined]
        optimizer.step()
    finally:
        vars(optimizer).pop("found_inf", None)
        for group, parameters in zip(optimizer.param_groups, everything, strict=True):
            group["params"] = parameters


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`model.name` -> parameters and buffers, those too that a `state_dict` leaves out."""
    saved = model.state_dict()
    others = {k: v for k, v in model.named_buffers(remove_duplicate=False) if k not in saved}
    return {f"model.{k}": v for k, v in saved.items()} | {
        f"unsaved.{k}": v for k, v in others.items()
    }


@torch.no_grad()
def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse."""
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, value in tensors.items():
        if name.startswith("unsaved."):
            buffers[name[8:]].copy_(value)


def beside_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """`loss:name.key` -> the modules' own parameters and buffers; see `Task.modules_beside`."""
    return {
        f"loss:{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in own_tensors(module)
    }


def beside_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters among them."""
    tensors = beside_tensors(modules)
    return {name: p for name, p in tensors.items() if isinstance(p, nn.Parameter)}


def unshared(
    parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter]
) -> list[nn.Parameter]:
    """The parameters without those that are among the others too, each once."""
    before = {id(p) for p in others}
    return list({id(p): p for p in parameters if id(p) not in before}.values())


@torch.no_grad()
def load_beside(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `beside_tensors`."""
    for name, tensor in beside_tensors(modules).items():
        if isinstance(tensor, nn.Parameter) or tensor.shape == tensors[name].shape:
            tensor.copy_(tensors[name])
        else:  # a buffer that grew
            module, _, key = name.removeprefix("loss:").rpartition(".")
            modules[module]._buffers[key] = tensors[name].to(tensor.device, copy=True)


def optimizer_tensors(
    prefix: str, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`prefix.parameter:key` -> tensor, for every parameter that has a state."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        f"{prefix}.{names[id(parameter)]}:{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    prefix: str,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """The inverse: states that the tensors do not name are empty."""
    optimizer.state.clear()
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            parameter, _, key = name[len(prefix) + 1 :].rpartition(":")
            target = parameters[parameter]
            if value.shape == target.shape:  # in the parameter's own strides, see `step`
                value = torch.empty_like(target, dtype=value.dtype).copy_(value)
            elif key != "step":
                value = value.to(target.device)
            optimizer.state[target][key] = value.detach().clone()
