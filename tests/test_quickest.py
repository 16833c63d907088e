"""The memory format that the Python call chooses by a trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxylessnas import MixedOp, search
from proxylessnas.api import WORTH_A_TRIAL, Result
from proxylessnas.calibrate import quickest
from proxylessnas.config import MachineSettings, SearchSettings

BATCHES = 10
LONG = SearchSettings(warmup_epochs=WORTH_A_TRIAL // BATCHES - 1, epochs=1)


class Viewing(nn.Module):
    """A convolution whose output is flattened by `view`: not in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(len(y), -1).reshape(y.shape)


class Net(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        candidates = [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), last]
        self.op, self.head = MixedOp(candidates), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.op(x)).mean((2, 3)))


def pointwise() -> nn.Module:
    return nn.Conv2d(3, 4, 1)


def searched(last: Callable[[], nn.Module], settings: SearchSettings = LONG, **more: Any) -> Result:
    torch.manual_seed(0)
    data = [(torch.randn(4, 3, 6, 6), torch.randint(2, (4,))) for _ in range(BATCHES)]
    return search(
        Net(last()),
        train=data,
        valid=data,
        loss=nn.functional.cross_entropy,
        example_inputs=(torch.zeros(1, 3, 6, 6),),
        settings=settings,
        quiet=True,
        **more,
    )


def test_the_format_is_recorded_and_repeats_the_search() -> None:
    """The trial leaves no trace in the model, α or batches."""
    tried = searched(pointwise)
    assert tried.machine.memory_format in ("contiguous", "channels_last")
    again = searched(pointwise, machine=tried.machine)
    assert torch.equal(tried.supernet.alpha, again.supernet.alpha)
    for one, other in zip(
        tried.supernet.model.parameters(), again.supernet.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_candidate_that_cannot_do_channels_last_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylessnas.calibrate.fastest", _prefer_channels_last)
    assert searched(pointwise).machine.memory_format == "channels_last"
    assert searched(Viewing).machine.memory_format == "contiguous"


def _prefer_channels_last(variants: dict[str, Any], *, rounds: int) -> dict[str, float]:
    for variant in variants.values():
        for _ in range(rounds):
            variant()
    return {name: 1.0 / (1 + int(name)) for name in variants}  # the last one


def test_nothing_is_tried_where_it_would_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("tried")

    monkeypatch.setattr("proxylessnas.calibrate.fastest", never)
    short = searched(pointwise, SearchSettings(warmup_epochs=1, epochs=1))
    assert short.machine.memory_format == "contiguous"
    named = searched(pointwise, machine=MachineSettings(memory_format="channels_last"))
    assert named.machine.memory_format == "channels_last" and named.machine.autocast is False


@pytest.mark.parametrize(
    ("device", "given", "tried"),
    [
        ("cpu", {}, [("contiguous", False), ("channels_last", False)]),
        (
            "cuda:0",
            {},
            [
                ("contiguous", False),
                ("channels_last", False),
                ("contiguous", True),
                ("channels_last", True),
            ],
        ),
        ("cuda:0", {"memory_format": "contiguous"}, [("contiguous", False), ("contiguous", True)]),
        ("cuda:0", {"autocast": False}, [("contiguous", False), ("channels_last", False)]),
        ("cpu", {"autocast": True}, [("contiguous", True), ("channels_last", True)]),
        ("cuda:0", {"memory_format": "channels_last", "autocast": False}, []),
    ],
)
def test_what_is_left_open_is_tried_and_the_fastest_taken(
    device: str, given: dict[str, Any], tried: list[tuple[str, bool]]
) -> None:
    """The last variant is made the fastest one."""
    seen: list[tuple[str, bool | None]] = []

    def probe(on: MachineSettings) -> Any:
        seen.append((on.memory_format, on.autocast))
        wait = 0.01 * (len(tried) - len(seen))
        return SimpleNamespace(step=0, weight_step=lambda: time.sleep(wait))

    settings = MachineSettings(device=device, **given)
    found = quickest(settings, probe, rounds=2)
    assert seen == tried
    last = tried[-1] if tried else ("channels_last", False)
    assert (found.memory_format, found.autocast) == last and found.device == device
