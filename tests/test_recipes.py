"""Every recipe is read, complete, and its space takes a step of each kind on tiny data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from proxylessnas import recipes
from proxylessnas.config import RunConfig
from proxylessnas.errors import ConfigError
from proxylessnas.gates import Binary, Path
from proxylessnas.spaces import build_supernet

# What makes one step of a recipe's space quick: fewer and smaller blocks, nothing else.
TINY: dict[str, dict[str, Any]] = {
    "mobile": {"input_shape": [3, 64, 64], "depths": [2, 2, 2, 2, 2, 1], "classes": 4},
    "tree": {"blocks": [2, 2, 2], "input_shape": [3, 16, 16], "classes": 4},
    "macro": {"classes": 4},
}


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_is_a_function_and_a_file(name: str) -> None:
    config = getattr(recipes, name)()
    assert isinstance(config, RunConfig) and config == recipes.load(name)
    assert recipes.path(name).read_text().startswith("# ")


def test_every_file_has_a_name() -> None:
    assert {file.stem for file in recipes.FOLDER.glob("*.yaml")} == set(recipes.NAMES)
    with pytest.raises(ConfigError, match="did you mean cifar10_tree"):
        recipes.load("cifar_tree")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_two_steps(name: str) -> None:
    config = recipes.load(name)
    tiny = dict(TINY[config.space])
    if name == "demo":
        tiny = {"input_shape": [1, 28, 28], "classes": 4}
    supernet = build_supernet(config.space, {**config.space_settings, **tiny})
    x, y = torch.randn(4, *supernet.settings["input_shape"]), torch.tensor([0, 1, 2, 3])
    row = supernet.indices(supernet.sample(torch.Generator().manual_seed(0), uniform=True))
    optimizer = torch.optim.SGD(
        supernet.model.parameters(),
        config.search.learning_rate,
        config.search.momentum,
        weight_decay=config.search.weight_decay,
    )
    with supernet.gated([Path(j) for j in row]) as model:
        loss = functional.cross_entropy(model(x), y, label_smoothing=config.search.label_smoothing)
        loss.backward()
    optimizer.step()
    gates = [torch.zeros(len(c), requires_grad=True) for c in supernet.candidates]
    pairs = [Binary(j, ((j + 1) % len(g),), g) for j, g in zip(row, gates, strict=True)]
    with supernet.gated(pairs) as model:
        functional.cross_entropy(model(x), y).backward()
    assert loss.isfinite() and all(g.grad is not None for g in gates)


def test_published_settings() -> None:
    """Against facts.md, section 3."""
    search, train = recipes.imagenet_mobile().search, recipes.imagenet_mobile().train
    assert (search.warmup_epochs, search.epochs, search.arch_every) == (40, 120, 5)
    assert (search.warmup_learning_rate, search.learning_rate) == (0.05, 0.025)
    assert (train.epochs, train.learning_rate, train.batch_size) == (300, 0.05, 256)
    assert round(1_281_167 * recipes.imagenet_mobile().loading.valid_fraction, -3) == 50_000
    tree = recipes.cifar10_tree().train
    assert (tree.epochs, tree.learning_rate, tree.weight_decay) == (600, 0.1, 1e-4)


def test_cost_estimate() -> None:
    """The published ImageNet search: 160 epochs of about 1.2 million images, 24 steps of alpha."""
    search, train = recipes.training_macs(recipes.imagenet_mobile(), 320_427_584, 1_281_167)
    images = 1_281_167 * (1 - 0.039)
    assert search == pytest.approx(3 * 320_427_584 * images * (160 + 120 / 5))
    assert train == pytest.approx(3 * 320_427_584 * 1_281_167 * 300)
