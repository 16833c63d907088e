"""The memory format that the Python call chooses by a trial."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from clock import Clock
from torch import Tensor, nn

from proxylessnas import MixedOp, search
from proxylessnas.api import Result
from proxylessnas.config import MachineSettings, SearchSettings
from proxylessnas.errors import DataError
from proxylessnas.session.tuning import WORTH_A_TRIAL
from proxylessnas.training.autotune import quickest

BATCHES = 10
# Two formats, three candidates and one round to warm up.
LONG = SearchSettings(warmup_epochs=WORTH_A_TRIAL * 2 * (3 + 1) // BATCHES, epochs=1)


class Viewing(nn.Module):
    """A convolution whose output is flattened by `view`: not in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(len(y), -1).reshape(y.shape)


class Particular(Viewing):
    """It says by itself what it wants."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise ValueError("contiguous images, please")
        return self.conv(x)


class Net(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        candidates = [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), last]
        self.op, self.head = MixedOp(candidates), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.op(x)).mean((2, 3)))


def pointwise() -> nn.Module:
    return nn.Conv2d(3, 4, 1)


def searched(
    last: Callable[[], nn.Module],
    settings: SearchSettings = LONG,
    loss: Callable[[nn.Module], Any] = lambda _: nn.functional.cross_entropy,
    **more: Any,
) -> Result:
    torch.manual_seed(0)
    data = [(torch.randn(4, 3, 6, 6), torch.randint(2, (4,))) for _ in range(BATCHES)]
    model = Net(last())
    given = {"train": data, "valid": data, "example_inputs": (torch.zeros(1, 3, 6, 6),), **more}
    return search(model, loss=loss(model), settings=settings, quiet=True, **given)


def penalised(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that holds the model which is searched, where no copy can reach it."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        weight = sum(p.square().sum() for p in model.head.parameters())
        return nn.functional.cross_entropy(output, target) + 0.1 * weight

    return loss


@pytest.mark.parametrize("loss", [lambda _: nn.functional.cross_entropy, penalised])
def test_the_format_is_recorded_and_repeats_the_search(loss: Any) -> None:
    """The trial leaves no trace in the model, its gradients, α or the batches."""
    tried = searched(pointwise, loss=loss)
    assert tried.machine.memory_format in ("contiguous", "channels_last")
    again = searched(pointwise, loss=loss, machine=tried.machine)
    assert tried.machine == again.machine
    assert torch.equal(tried.supernet.alpha, again.supernet.alpha)
    for one, other in zip(
        tried.supernet.model.parameters(), again.supernet.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_candidate_that_cannot_do_channels_last_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylessnas.training.autotune.fastest", _prefer_channels_last)
    assert searched(pointwise).machine.memory_format == "channels_last"
    assert searched(Viewing).machine.memory_format == "contiguous"
    assert searched(Particular).machine.memory_format == "contiguous"


def _prefer_channels_last(variants: dict[str, Any], *, rounds: int, clock: Any) -> dict[str, float]:
    for variant in variants.values():
        for _ in range(rounds):
            variant()
    return {name: 1.0 / (1 + int(name)) for name in variants}  # the last one


def test_one_variant_that_fails_does_not_decide_for_the_others() -> None:
    clock = Clock()

    def probe(on: MachineSettings) -> Any:
        def step() -> None:
            if on.autocast:
                raise RuntimeError("unsafe to autocast")
            clock.sleep(0.001 if on.memory_format == "channels_last" else 0.02)

        return SimpleNamespace(step=0, weight_step=step, prepare=lambda: None)

    found = quickest(MachineSettings(device="cuda:0"), probe, rounds=2, clock=clock)
    assert (found.memory_format, found.autocast) == ("channels_last", False)


def test_candidates_that_a_limit_forbids_are_not_tried() -> None:
    class Big(nn.Upsample):
        ran: ClassVar[list[int]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.ran.append(len(x))
            return super().forward(x)

    def big() -> nn.Module:
        return nn.Sequential(Big(scale_factor=20), nn.Conv2d(3, 4, 1), nn.AvgPool2d(20))

    searched(big, limits={"peak_memory": 0.1})
    assert set(Big.ran) == {1}  # the example input alone
    Big.ran.clear()
    searched(big)
    assert 4 in Big.ran


def test_a_loader_that_gives_nothing_is_one_line() -> None:
    class Empty(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(DataError, match="ended after 0 of 10"):
        searched(pointwise, train=Empty(range(BATCHES)))


def test_nothing_is_tried_where_it_would_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("tried")

    monkeypatch.setattr("proxylessnas.training.autotune.fastest", never)
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
    clock = Clock()
    seen: list[tuple[str, bool | None]] = []

    def probe(on: MachineSettings) -> Any:
        seen.append((on.memory_format, on.autocast))
        wait = 0.01 * (len(tried) - len(seen))
        step = lambda: clock.sleep(wait)  # noqa: E731
        return SimpleNamespace(step=0, weight_step=step, prepare=lambda: None)

    settings = MachineSettings(device=device, **given)
    found = quickest(settings, probe, rounds=2, clock=clock)
    assert seen == tried
    last = tried[-1] if tried else ("channels_last", False)
    assert (found.memory_format, found.autocast) == last and found.device == device
