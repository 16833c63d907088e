"""Exactness over a zoo: whatever is cut of any model, what remains computes what it computed."""

from __future__ import annotations

import pytest
import torch
from amounts import THOROUGH
from exactness import check_exact, count, pairs_of, share
from trained_zoo import NAMES, trained

from proxylessnas.surgery.narrow import Narrowed, narrowed

FEW = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "timm:convnext_atto", "mnasnet0_5")


@pytest.mark.parametrize("name", NAMES if THOROUGH else FEW)
def test_narrowed_networks_compute_what_zeroed_ones_do(name: str) -> None:
    model, x = trained(name)
    model, every, stays = pairs_of(model, (x,))
    check_exact(model, every, (x,))
    quarters = [(p, Narrowed(torch.arange(-(-p.width // 4)), {})) for p in every]
    left = count(narrowed(model, quarters)) / count(model)
    row = (name, len(every), f"{100 * share(model, every):.0f} %", f"{100 * left:.0f} %")
    print("|", *row, len(stays), sep=" | ")
