"""Complete settings of known experiments, as functions and as the YAML beside this file.

    proxylessnas run --config RECIPE.yaml --data ...      recipes.path("imagenet_mobile")
    config = recipes.imagenet_mobile()                    the same as a `RunConfig`

Each file says where its values come from, and what of the published settings it leaves out.
"""

from __future__ import annotations

from pathlib import Path

from proxylessnas.config import RunConfig, read_config
from proxylessnas.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent
NAMES = (
    "imagenet_mobile",
    "imagenet_gpu",
    "imagenet_cpu",
    "cifar10_tree",
    "cifar10_macro",
    "demo",
)


def path(name: str) -> Path:
    """The YAML file of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no recipe {name!r}; {did_you_mean(name, NAMES)}")
    return FOLDER / f"{name}.yaml"


def load(name: str) -> RunConfig:
    """A recipe's settings.

    Raises:
        ConfigError: there is no such recipe.
    """
    return read_config(path(name))


def imagenet_mobile() -> RunConfig:
    """The published ImageNet search for the Pixel 1: 80 ms."""
    return load("imagenet_mobile")


def imagenet_gpu() -> RunConfig:
    """The published ImageNet search with the GPU network's widths: 5.1 ms at batch 8."""
    return load("imagenet_gpu")


def imagenet_cpu() -> RunConfig:
    """The published ImageNet search with the CPU network's widths."""
    return load("imagenet_cpu")


def cifar10_tree() -> RunConfig:
    """The paper's CIFAR-10 search in tree cells, and its 600 epochs of retraining."""
    return load("cifar10_tree")


def cifar10_macro() -> RunConfig:
    """NAS-Bench-Macro's space within 55 million MACs."""
    return load("cifar10_macro")


def demo() -> RunConfig:
    """5,000 MNIST images and this machine's CPU, in minutes."""
    return load("demo")


def training_macs(config: RunConfig, macs: int, images: int) -> tuple[float, float]:
    """Multiply-adds that (the search, the training) of a recipe takes; an estimate.

    macs: of one image through one network of the space. images: in the training part.

    A step costs a forward pass and twice that backward. An architecture step renews no
    weights but runs the second path of its pair forward: as much again.
    """
    search, valid = config.search, config.search.valid_batch_size or config.search.batch_size
    kept = images * (1 - config.loading.valid_fraction)
    weight_steps = 3 * macs * kept * (search.warmup_epochs + search.epochs)
    share = valid / search.batch_size / search.arch_every
    epochs = search.epochs - search.arch_delay_epochs
    architecture_steps = 3 * macs * kept * epochs * share
    return weight_steps + architecture_steps, 3.0 * macs * images * config.train.epochs
