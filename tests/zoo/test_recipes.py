"""Every recipe is read, complete, and its space takes a step of each kind on tiny data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from proxylessnas import recipes
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import make_estimator
from proxylessnas.core.objective import Linear, make_objective
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.errors import ConfigError
from proxylessnas.spaces import build, build_supernet
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

# What makes one step of a recipe's space quick: fewer and smaller blocks, nothing else.
TINY: dict[str, dict[str, Any]] = {
    "mobile": {"input_shape": [3, 64, 64], "depths": [2, 2, 2, 2, 2, 1], "classes": 4},
    "tree": {"blocks": [2, 2, 2], "input_shape": [3, 16, 16], "classes": 4},
    "macro": {"classes": 4},
}


def test_a_recipe_says_where_it_is_from() -> None:
    assert len(recipes.NAMES) >= 6
    for name in recipes.NAMES:
        assert recipes.path(name).read_text().startswith("# ")
    with pytest.raises(ConfigError, match="did you mean cifar10_tree"):
        recipes.load("cifar_tree")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_two_steps(name: str) -> None:
    """One step of each kind of the search, and two of the training, with the recipe's settings."""
    config = recipes.load(name)
    tiny = dict(TINY[config.space])
    if name == "mnist":
        tiny = {"input_shape": [1, 28, 28], "classes": 4}
    supernet = build_supernet(config.space, {**config.space_settings, **tiny})
    shape = supernet.settings["input_shape"]
    batches = LoaderBatches([(torch.randn(4, *shape), torch.arange(4))] * 2, name="tiny")
    search = Search(
        supernet=supernet,
        task=Task.classification(config.search.label_smoothing),
        train=batches,
        valid=batches,
        costs=Costs.one(
            "latency", supernet.mask.double(), fixed=1.0, limit=len(supernet.names) + 2.0, unit="ms"
        ),
        schedule=Schedule.of(config.search, 1),
        objective=Linear(0.0),
        estimator=make_estimator(config.search.estimator),
        settings=config.search,
    )
    search.objective = make_objective(
        config.search, search.costs, search.schedule.architecture_steps
    )
    search.model.train()
    before = supernet.alpha.detach().clone()
    search.weight_step()
    assert torch.equal(supernet.alpha, before)
    search.architecture_step()
    assert not torch.equal(supernet.alpha, before)
    found = supernet.most_probable()
    settings = {**found.settings, **config.train.space_settings}
    network = build(replace(found, settings=settings))
    training = Training(network, Task.classification(), batches, replace(config.train, epochs=1))
    run_loop(training)
    assert training.loss is not None and training.loss.isfinite()


def test_published_settings() -> None:
    """Against docs/paper.md, "Settings of the published search"."""
    mobile = recipes.load("imagenet_mobile")
    search, train = mobile.search, mobile.train
    assert (search.warmup_epochs, search.epochs, search.arch_every) == (40, 120, 5)
    assert (search.warmup_learning_rate, search.learning_rate) == (0.05, 0.025)
    assert search.arch_delay_epochs == 1
    assert (train.epochs, train.learning_rate, train.batch_size) == (300, 0.05, 256)
    assert "jitter" in (train.augment or "")
    dropout = [
        recipes.load(f"imagenet_{d}").train.space_settings["dropout"]
        for d in ("gpu", "cpu", "mobile")
    ]
    assert dropout == [0.3, 0.2, 0.1]
    assert round(1_281_167 * mobile.loading.valid_fraction, -3) == 50_000
    tree = recipes.load("cifar10_tree").train
    assert (tree.epochs, tree.learning_rate, tree.weight_decay) == (600, 0.1, 1e-4)
    assert tree.augment == "crop+flip+cutout16"
