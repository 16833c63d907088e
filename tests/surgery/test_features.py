"""The distance inside: by hand, of what keeps its shape alone, and gone after the block."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from trained_model import batches, specialised

import proxylessnas
from proxylessnas.pretrained.distil import TEMPERATURE
from proxylessnas.surgery.features import compared_inside, features_of
from proxylessnas.surgery.scores import distance_for
from proxylessnas.surgery.specialise import FINETUNE


@pytest.fixture(scope="module")
def result() -> proxylessnas.Specialised:
    return specialised()


def variance_shares(a: Any, b: Any) -> float:
    return float(((a - b) ** 2).mean() / ((b - b.mean()) ** 2).mean())


def test_it_is_the_mean_over_what_keeps_its_shape(result: proxylessnas.Specialised) -> None:
    brought, x = result.around.brought, batches(0)[0][0]
    student = copy.deepcopy(brought.model)
    student[3] = nn.Conv2d(32, 20, 3, stride=2, padding=1)  # of fewer channels: not compared
    student[4] = nn.Sequential(nn.ReLU(), nn.Conv2d(20, 24, 1))
    paths = ["3", "9", "11", "no longer there"]
    teacher = brought.model
    with torch.no_grad(), compared_inside(brought, student, paths, 0.5) as distance:
        output, wanted = student(x), teacher(x)
        actual = float(distance(output, wanted))
    with torch.no_grad(), compared_inside(brought, student, paths, 0.0) as distance:
        plain = float(distance(output, wanted))
        inside = [variance_shares(student[: k + 1](x), teacher[: k + 1](x)) for k in (9, 11)]
    assert actual == pytest.approx(plain + 0.5 * sum(inside) / 2, rel=1e-4)
    assert not any(m._forward_hooks for m in (*student.modules(), *teacher.modules()))


def test_layers_that_read_and_blocks_are_compared(result: proxylessnas.Specialised) -> None:
    space = result.around.space
    blocks = {c.name for c in space.choices if c.can_leave_out}
    assert blocks and blocks < set(features_of(space)) and "11" in features_of(space)


def test_a_network_is_taught_by_what_is_inside(result: proxylessnas.Specialised) -> None:
    """With the features' weight it ends nearer to the model inside."""
    brought, x = result.around.brought, batches(1)[0][0]
    settings = replace(FINETUNE, keep_best="never", epochs=3)
    plain = distance_for(brought.task.loss, TEMPERATURE)
    paths, inside = features_of(result.around.space), {}
    for weight in (0.0, 5.0):
        again = replace(result)
        again.finetune(settings=settings, features=weight)
        with torch.no_grad(), compared_inside(brought, again.network, paths, 1.0) as distance:
            output, wanted = again.network(x), brought.model(x)
            inside[weight] = float(distance(output, wanted) - plain(output, wanted))
    assert 0 < inside[5.0] < inside[0.0]
