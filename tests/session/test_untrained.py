"""`derive.zero_cost`: scores beside figures of untrained networks, refused early or counted."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_search import Net, refused, searched
from torch import Tensor, nn

from proxylessnas import MixedOp
from proxylessnas.config import DeriveSettings
from proxylessnas.core.decode import Indices
from proxylessnas.io.console import Reporter
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.zero_cost import random_networks
from proxylessnas.session import deriving, fitting, untrained
from proxylessnas.session.untrained import LEAST

DERIVE = {"arch_steps": 2, "score_images": 16, "recalibrate_images": 16}
BESIDE = DeriveSettings(**DERIVE, zero_cost=9)


def by_network(record: Mapping[str, Any]) -> dict[str, float]:
    return {str(p["choices"]): p["score"] for p in record["proposals"]}


def test_scores_change_and_the_loss_that_is_told_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, beside = [], untrained.Beside

    def counted(score: Any, zero_cost: Any, reference: Any, progress: Any) -> Any:
        asked.append(len(reference))
        return beside(score, zero_cost, reference, progress)

    known, choose = list[int](), deriving.choose

    def told(*args: Any, **named: Any) -> Any:
        known.append(len(named["known"]))
        assert len(set(named["known"])) == len(named["known"])
        return choose(*args, **named)

    monkeypatch.setattr(deriving, "choose", told)
    monkeypatch.setattr(untrained, "Beside", counted)
    alone, both, again = (
        searched(derive=derive).session.records.require("derive")
        for derive in (DeriveSettings(**DERIVE), BESIDE, BESIDE)
    )
    assert asked == [9, 9]
    assert known[0] == 0 and 2 <= known[1] == known[2] <= 9  # the distinct ones
    assert by_network(both) == by_network(again)
    assert alone["validation_loss"] == -alone["score"]
    assert both["validation_loss"] != -both["score"]
    assert both["validation_loss"] in [-score for score in by_network(alone).values()]


def test_figures_are_computed_once_for_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = searched(derive=BESIDE), list[Indices]()
    known, compute = set(result.session.figures), untrained.ZeroCost.__call__

    def counted(zero_cost: Any, network: Indices) -> Any:
        asked.append(network)
        return compute(zero_cost, network)

    monkeypatch.setattr(untrained.ZeroCost, "__call__", counted)
    result.derive(limits={"macs": "0.9x"})
    assert known and len(set(asked)) == len(asked)
    assert not known & set(asked)
    assert set(result.session.figures) == known | set(asked)


class Words(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table(x)[..., 0])


class Odd(nn.Module):
    """Nobody but its author can reset it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.conv.weight, 0.0, std)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Second(Net):
    """It is the second candidate that cannot be had."""

    def __init__(self) -> None:
        super().__init__()
        self.op = MixedOp([nn.Conv2d(1, 4, 1), Odd()])


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        (Words(), {"example_inputs": (torch.zeros(1, 1, 6, 6).long(),)}, "one tensor of real"),
        (Net(), {"derive": DeriveSettings(**DERIVE, zero_cost=3)}, "at least 8"),
        (Second(), {}, "reset_parameters"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_measured(
    model: Net, changes: dict[str, Any], expected: str
) -> None:
    words = refused(model, **{"derive": BESIDE, **changes})
    assert "derive.zero_cost is" in words and expected in words


def with_figures(monkeypatch: pytest.MonkeyPatch, each: float, seconds: float) -> DeriveSettings:
    """Of 20 networks beside 30 random ones in so many seconds, where a figure takes `each`."""
    monkeypatch.setattr(fitting, "measuring_seconds", lambda *_: 0.0)
    monkeypatch.setattr(fitting, "score_images_of", lambda _: 10_000)
    timed = lambda _, d: each if d.zero_cost else 0.0  # noqa: E731
    monkeypatch.setattr(fitting, "seconds_of_figures", timed)
    given = DeriveSettings(top_k=20, recalibrate_images=10_000, zero_cost=30)
    session = SimpleNamespace(
        largest={},
        is_local=False,
        target_ms=None,
        ranks=SimpleNamespace(of_main=lambda make: make()),
        reporter=Reporter(),
    )
    return fitting.fewer_scores(session, given, seconds, {"image": 1e-4})  # type: ignore[arg-type]


def test_a_budget_takes_enough_random_networks_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [with_figures(monkeypatch, 0.0, seconds).zero_cost for seconds in (1e3, 20.0, 2.0)]
    assert taken[0] == 30 and LEAST <= taken[1] < 30 and taken[2] == 0


@pytest.mark.parametrize("each", [0.0, 0.1, 1.0, 5.0, 10.0, 100.0])
def test_a_budget_has_room_for_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], each: float
) -> None:
    fitted = with_figures(monkeypatch, each, 100.0)
    images = (fitted.recalibrate_images + (fitted.score_images or 10_000)) * 1e-4
    figures = each if fitted.zero_cost else 0.0
    taken = (fitted.top_k + fitted.zero_cost) * (images + figures)
    assert (fitted.zero_cost == 30) == (each == 0.0)
    if each < 10:
        assert taken == pytest.approx(100, rel=0.01) and fitted.zero_cost >= LEAST
    else:  # not enough figures fit, so there are none: all 20 networks, on all of their images
        assert (fitted.top_k, fitted.zero_cost, images) == (20, 0, 2.0)
    assert ("no time for figures" in capsys.readouterr().err) == (each >= 10)


def test_figures_are_timed_of_random_networks_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, now, asked = searched(derive=BESIDE).session, [0.0], list[Indices]()

    def computed(_: Any, network: Indices) -> None:
        asked.append(network)
        now[0] += 100 if len(asked) == 1 else len(asked)

    monkeypatch.setattr(untrained.ZeroCost, "__call__", computed)
    monkeypatch.setattr(untrained, "perf_counter", lambda: now[0])
    assert untrained.seconds_of_figures(session, BESIDE) == 3  # of 2, 3 and 4
    seed = derive_seed(session.config.seed, "reference")
    assert asked == random_networks(session.supernet, 4, seed)
    assert untrained.seconds_of_figures(session, DeriveSettings()) == 0
