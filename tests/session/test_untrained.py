"""`derive.zero_cost`: scores beside figures of untrained networks, refused early or counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from small_search import Net, refused, searched
from torch import Tensor, nn

from proxylessnas.config import DeriveSettings
from proxylessnas.session import untrained

DERIVE = {"arch_steps": 2, "score_images": 16, "recalibrate_images": 16}
BESIDE = DeriveSettings(**DERIVE, zero_cost=6)


def by_network(record: Mapping[str, Any]) -> dict[str, float]:
    return {str(p["choices"]): p["score"] for p in record["proposals"]}


def test_scores_change_and_the_loss_that_is_told_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, beside = [], untrained.beside

    def counted(score: Any, zero_cost: Any, reference: Any, progress: Any) -> Any:
        asked.append(len(reference))
        return beside(score, zero_cost, reference, progress)

    monkeypatch.setattr(untrained, "beside", counted)
    alone, both, again = (
        searched(derive=derive).session.records.require("derive")
        for derive in (DeriveSettings(**DERIVE), BESIDE, BESIDE)
    )
    assert asked == [6, 6]
    assert by_network(both) == by_network(again)
    assert alone["validation_loss"] == -alone["score"]
    assert both["validation_loss"] != -both["score"]
    assert both["validation_loss"] in [-score for score in by_network(alone).values()]


class Words(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table(x)[..., 0])


def test_a_model_of_other_inputs_is_refused_before_anything_is_measured() -> None:
    words = refused(Words(), derive=BESIDE, example_inputs=(torch.zeros(1, 1, 6, 6).long(),))
    assert "derive.zero_cost is 6" in words and "set it to 0" in words
