"""Loaders, losses and counts of a stranger: a search, or one line before anything is measured."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from amounts import seeds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from proxylessnas import MixedOp, SearchSettings, search
from proxylessnas.config import DeriveSettings
from proxylessnas.errors import UserError
from proxylessnas.hardware.runtimes.fake import FakeRuntime

pytestmark = pytest.mark.slow
CLASSES = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = MixedOp([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))])
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor, mask: Any = None, scale: float = 1.0) -> Tensor:
        out: Tensor = self.head(self.op(x * scale))
        return out


# What becomes of a tensor in a batch, and of a whole batch.
TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t,
    lambda t: t.numpy(),
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.long(),
    lambda t: t.bool(),
    lambda t: t.to(torch.complex64),
    lambda t: t[:1],
    lambda t: t[:0],
    lambda t: t[0],
    lambda t: t[None],
    lambda t: t.flatten(),
    lambda t: t.tolist(),
    lambda t: t.float() * float("nan"),
    lambda t: t.float() * float("inf"),
    lambda t: t + 1000,
    lambda t: -t,
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: torch.empty(0),
    lambda t: torch.tensor(3.0),
    lambda t: t.float().requires_grad_(),
    lambda t: list(t),
    lambda t: {"x": t},
    lambda t: (t, None),
    lambda t: [t, 1.0, True, "x"],
    lambda t: np.array(["a", "b"], dtype=object),
    lambda t: None,
    lambda t: "a text",
    lambda t: object(),
    lambda t: 3,
    lambda t: float("nan"),
)
BATCHES: tuple[Callable[[Any, Any], Any], ...] = (
    lambda x, y: (x, y),
    lambda x, y: (x, y),
    lambda x, y: [x, y],
    lambda x, y: (y, x),
    lambda x, y: {"x": x, "labels": y},
    lambda x, y: {"pixel_values": x, "label": y},
    lambda x, y: {"x": x, "y": y, "target": y},
    lambda x, y: {},
    lambda x, y: {1: x, "labels": y},
    lambda x, y: ((x,), y),
    lambda x, y: ((x, None, 1.0), y),
    lambda x, y: ([x, y], None),
    lambda x, y: (x,),
    lambda x, y: (x, y, y),
    lambda x, y: x,
    lambda x, y: None,
    lambda x, y: "xy",
)
LOSSES: tuple[Any, ...] = (
    cross_entropy,
    cross_entropy,
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss,
    nn.CrossEntropyLoss(reduction="none"),
    lambda o, t: o.sum(),
    lambda o, t: o.detach().sum(),
    lambda o, t: o.sum() * float("nan"),
    lambda o, t: o.sum() / 0,
    lambda o, t: o,
    lambda o, t: None,
    lambda o, t: 0.0,
    lambda o, t: (o.sum(), o.sum()),
    lambda o: o.sum(),
    lambda o, t: o.sum().to(torch.complex64),
    lambda o, t: torch.tensor(1.0, requires_grad=True),
    lambda o, t: (_ for _ in ()).throw(KeyError("mine")),
    "mse",
)
COUNTS: tuple[Any, ...] = (
    None,
    None,
    lambda o, t: (o.argmax(1) == t).sum(),
    lambda o, t: o.argmax(1) == t,
    lambda o, t: (o.argmax(1) == t).float().mean(),
    lambda o, t: 10**400,
    lambda o, t: -1,
    lambda o, t: float("inf"),
    lambda o, t: "7",
    lambda o, t: [1],
    lambda o, t: np.float64(1),
    lambda o, t: torch.zeros(0),
    lambda o, t: 1j,
    lambda o: 1,
)


class Lies(list[Any]):
    """A list with another length than it says."""

    def __init__(self, batches: list[Any], says: Any) -> None:
        super().__init__(batches)
        self.says = says

    def __len__(self) -> int:
        length: int = self.says
        return length


class Once:
    """An iterator that is gone through once."""

    def __init__(self, batches: list[Any]) -> None:
        numbers = [torch.full((8, 4), float(i)) for i in range(len(batches))]
        self.rest = iter([(x, torch.zeros(8, dtype=torch.int64)) for x in numbers])
        self.length = len(batches)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.rest)


class Opaque:
    """Batches that are not known before they are drawn, of which a later one is another."""

    def __init__(self, batches: list[Any], later: Any) -> None:
        self.batches = [batches[0], later, *batches[1:]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch


LOADERS: tuple[Callable[[list[Any]], Any], ...] = (
    lambda batches: batches,
    lambda batches: batches,
    lambda batches: tuple(batches),
    lambda batches: DataLoader(batches, batch_size=None),  # type: ignore[arg-type]
    lambda batches: DataLoader(batches, batch_size=2),  # type: ignore[arg-type]
    lambda batches: Lies(batches, 0),
    lambda batches: Lies([], 5),
    lambda batches: Lies(batches, "3"),
    lambda batches: iter(batches),
    Once,
    lambda batches: None,
    lambda batches: 5,
    lambda batches: torch.zeros(3, 4),
    lambda batches: {"a": batches},
)
EXAMPLES: tuple[Any, ...] = (
    (torch.zeros(1, 4),),
    (torch.zeros(1, 4),),
    [torch.zeros(1, 4)],
    (torch.zeros(1, 4), None, 1.0),
    (torch.zeros(1, 4), None, True),
)


def loader(chance: random.Random) -> Any:
    """Batches of eight examples, mostly with one thing that is not as it should be."""
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    x = torch.randn(8, 4, generator=generator)
    y = torch.randint(CLASSES, (8,), generator=generator)
    what = chance.randrange(6)
    pick = chance.choice
    new_x = pick(TENSORS)(x) if what == 0 else x
    new_y = pick(TENSORS)(y) if what == 1 else y
    batch = (pick(BATCHES) if what == 2 else BATCHES[0])(new_x, new_y)
    if what == 5:  # a later batch that is another, of a list or of a loader that does not tell
        other = BATCHES[0](pick(TENSORS)(x), pick(TENSORS)(y))
        other = KeyError("a picture") if chance.random() < 0.2 else other
        opaque = chance.random() < 0.5 or isinstance(other, Exception)
        return Opaque([batch] * 3, other) if opaque else [batch, other, batch]
    return (pick(LOADERS) if what == 3 else LOADERS[0])([batch] * 3)


@pytest.mark.parametrize("seed", seeds(3000, few=250))
def test_a_call_with_strange_loaders(seed: int) -> None:
    chance, runtime, model = random.Random(seed), FakeRuntime(), Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    call = {
        "loss": chance.choice(LOSSES) if chance.random() < 0.3 else cross_entropy,
        "correct": chance.choice(COUNTS) if chance.random() < 0.3 else None,
        "example_inputs": chance.choice(EXAMPLES),
        "train": loader(chance),
        "valid": loader(chance),
    }
    if chance.random() < 0.1:
        call["calibration"] = loader(chance)
    settings = SearchSettings(warmup_epochs=0, epochs=1, learning_rate=0.01)
    derive = DeriveSettings(top_k=2, arch_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            search(
                model,
                **call,
                settings=settings,
                derive=derive,
                runtime=runtime,
                target_latency="1x",
                quiet=True,
            )
        except UserError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
            late = any(isinstance(call.get(p), Opaque) for p in ("train", "valid", "calibration"))
            if late and runtime.loaded:  # then the line says which batch it is
                assert "batch" in str(error), str(error)
                return
            assert runtime.loaded == 0, str(error)
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            assert all(p.grad is None for p in model.parameters())
