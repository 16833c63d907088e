"""Many processes, one run. torchrun starts them; what they must agree on goes through here.

    torchrun --nproc-per-node 2 -m proxylessnas search ...

The same on every rank: weights, α, gates, orders, decisions. Everything random derives from
(seed, purpose, step), so nothing of it is sent; what is sent are gradients, statistics, scores
and what rank 0 alone can know. Different: the slice of each batch, and dropout's masks.

CPU tensors go over gloo, GPU tensors over NCCL. One process is `ALONE`: its calls do nothing.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from proxylessnas.errors import ConfigError, RankError
from proxylessnas.training.freezing import ModuleTensors

T = TypeVar("T")
# Rank 0 measures and exports while the others wait; that one of them died is noticed at once.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """One process among `world`; all of them make the same calls in the same order.

    rank: 0 is the main one, which alone writes, prints and measures.
    restarted: torchrun started all of them again after one died.

    Every method raises RankError where another rank has ended.
    """

    rank: int = 0
    world: int = 1
    restarted: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def local(self) -> int:
        """Ranks of this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) if self.world > 1 else 1

    @property
    def share(self) -> tuple[int, int]:
        """Which slice of each batch is this rank's; see `task.portion`."""
        return self.rank, self.world

    @property
    def stream(self) -> tuple[int, ...]:
        """What a random stream that differs between ranks adds to its name; rank 0's nothing."""
        return (self.rank,) if self.rank else ()

    # --- tensors: one call for each dtype and device, however many they are ---

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the ranks, in place."""
        self._all_reduce(tensors, 1)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its mean over the ranks, in place."""
        self._all_reduce(tensors, self.world)

    def _all_reduce(self, tensors: Sequence[Tensor], divisor: int) -> None:
        if self.world > 1:
            for bucket in _buckets(tensors):
                flat = _flat(bucket)
                with _together():
                    dist.all_reduce(flat)
                _spread(flat / divisor if divisor != 1 else flat, bucket)

    def copy_main(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes rank 0's, in place."""
        if self.world > 1:
            for bucket in _buckets(tensors):
                flat = _flat(bucket)
                with _together():
                    dist.broadcast(flat, src=0)
                _spread(flat, bucket)

    # --- values and decisions ---

    def of_main(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, a plain value as JSON holds it; the others do not make it."""
        text = json.dumps(make()) if self.is_main else ""
        if self.world == 1:  # through JSON too, so that what several ranks cannot share is seen
            alone: T = json.loads(text)
            return alone
        data = list(text.encode())
        size = torch.tensor(len(data))
        self.copy_main([size])
        content = torch.tensor(data or [0] * int(size), dtype=torch.uint8)
        self.copy_main([content])
        value: T = json.loads(content.numpy().tobytes())
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank; also where all wait for the last."""
        count = torch.tensor(int(flag))
        self.sum([count])
        return bool(count)

    def wait(self) -> None:
        """Until all have come here, and rank 0 has written what it writes."""
        self.any(False)

    # --- checks; where one fails, it fails on every rank ---

    def check_equal(self, what: str, tensor: Tensor) -> None:
        """RankError where a rank's tensor is not rank 0's, to the bit."""
        main = tensor.detach().clone()
        self.copy_main([main])
        if self.any(not torch.equal(main, tensor.detach())):
            raise RankError(
                f"{what} is not the same on all ranks: their machines compute differently; use "
                "one kind of machine and one version of torch, and go on with --resume"
            )

    def check_agreed(self, what: str, value: str | int) -> None:
        """RankError where a rank sees another value than rank 0 does."""
        if self.any(self.of_main(lambda: value) != value):
            raise RankError(
                f"the ranks do not agree on {what} (rank {self.rank}: {value}): put --out on a "
                "file system that all nodes share"
            )

    def check_divides(self, setting: str, batch: int) -> None:
        """ConfigError where a batch cannot be shared evenly, two examples a rank at least."""
        if batch % self.world or (self.world > 1 and batch < 2 * self.world):
            least = -(-max(batch, 2 * self.world) // self.world) * self.world
            raise ConfigError(
                f"{setting} is {batch}, the size over all ranks, which {self.world} ranks cannot "
                f"share: it must be a multiple of {self.world}, at least {2 * self.world}; use "
                f"{least}"
            )

    # --- training ---

    def average_step(self, active: Sequence[ModuleTensors], loss: Tensor) -> Tensor:
        """The mean over the ranks of all that a weight step leaves, in one call.

        These are the gradients of the active path, its BN statistics and the loss (returned,
        detached); everything else is the same on all ranks already. A parameter that took part
        on no rank stays without a gradient.
        """
        loss = loss.detach().clone()
        if self.world == 1:
            return loss
        parameters = [p for t in active for p in t.parameters if p.requires_grad]
        took_part = loss.new_tensor([p.grad is not None for p in parameters])
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        statistics = [s for t in active for s in running_statistics(t.batch_norms)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.average([*gradients, *statistics, loss, took_part])
        for parameter, took in zip(parameters, took_part.tolist(), strict=True):
            if not took:
                parameter.grad = None
        return loss

    def replicate(self, model: nn.Module, *, may_skip: bool) -> nn.Module:
        """The model, under DistributedDataParallel where there are several ranks.

        may_skip: whether a batch may leave parameters out, as path drop does.
        """
        if self.world == 1:
            return model
        # BN statistics are averaged by the training itself; broadcasting would lose the others'.
        # The option has another name since torch 2.14.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False, "find_unused_parameters": may_skip}
        return DistributedDataParallel(model, **options)


ALONE = Ranks()


def running_statistics(norms: Sequence[Any]) -> list[Tensor]:
    """The running means and variances of batch normalisations that keep them."""
    tensors = [t for norm in norms for t in (norm.running_mean, norm.running_var)]
    return [t for t in tensors if t is not None]


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """This process's place among those that torchrun started; `ALONE` without torchrun."""
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    environment = os.environ
    world, restarts = int(environment["WORLD_SIZE"]), environment["TORCHELASTIC_RESTART_COUNT"]
    ranks = Ranks(int(environment["RANK"]), world, restarts != "0")
    if world == 1:
        yield ranks
        return
    nodes = environment["GROUP_WORLD_SIZE"]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:  # from here on, "cuda" is this one
        torch.cuda.set_device(int(environment["LOCAL_RANK"]) % gpus)
    # NCCL wants a GPU a rank; gloo takes both kinds of tensors.
    enough = gpus >= int(environment["LOCAL_WORLD_SIZE"])
    backend = "cpu:gloo,cuda:nccl" if enough else "gloo"
    with _together():
        found, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun keeps its store over restarts, with the addresses of those that died. Nodes
        # count restarts differently: docs/scale.md says what several of them need.
        start = environment["TORCHELASTIC_RESTART_COUNT"] if nodes == "1" else "nodes"
        store = PrefixStore(f"start {start}", found)
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=world, timeout=PATIENCE
        )
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise RankError(
            f"another rank ended, or the connection to it did: its own message says why ({reason})"
        ) from None


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors by dtype and device, in an order that is the same on every rank."""
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        buckets.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(buckets.values())


@torch.no_grad()
def _flat(bucket: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in bucket])


@torch.no_grad()
def _spread(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
