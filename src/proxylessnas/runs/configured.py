"""The problem that a configuration names: a data set, and a space of networks for images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.config import RunConfig
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Augmentation, Batches, Images, load_data, look_at
from proxylessnas.errors import RunError
from proxylessnas.hardware.costs import CostFunction, check_names
from proxylessnas.io.console import Reporter
from proxylessnas.io.importing import imported
from proxylessnas.seeds import derive_seed
from proxylessnas.session.problem import Part, Problem
from proxylessnas.spaces import build, build_supernet, complete_settings
from proxylessnas.training.task import Task, balanced_weights

SCORING_BATCH, LEAST_BATCH = 250, 16
SCORING_PIXELS = 1 << 20  # of a batch: activations of more take gigabytes
LOADERS = "loaders"  # the data of a run whose images came from loaders, by the Python call


class ConfiguredProblem(Problem):
    """Images, classes, and networks of a space; the data are read when they are first needed.

    config: names the data and how they are read; settings of the stages come with each call.
    loaders: part -> batches, in place of data that the settings name.
    check_data: called with the data when they are read, for its errors.
    """

    def __init__(
        self, config: RunConfig, reporter: Reporter, loaders: Mapping[str, Batches] | None = None
    ) -> None:
        self.config, self.reporter, self.loaders = config, reporter, loaders
        self.task = Task.classification(config.search.label_smoothing)
        self.check_data: Callable[[Images], None] = lambda data: None

    @cached_property
    def functions(self) -> Mapping[str, CostFunction]:  # type: ignore[override]
        """The user's own costs, imported."""
        check_names(list(self.config.costs))
        return {name: imported(code, "the cost") for name, code in self.config.costs.items()}

    @cached_property
    def data(self) -> Images:
        config = self.config
        self.reporter.say(f"data: {config.data}")
        if config.data == LOADERS:
            return self._looked_at()
        with self.reporter.bar("reading the data") as update:
            data = load_data(
                config.data,
                config.loading,
                image_size=config.side,
                seed=config.seed,
                progress=update,
            )
        self.reporter.say("  " + str(data.summary).replace("\n", "\n  "))
        self.check_data(data)
        for augment in filter(None, (config.teach.augment, config.train.augment)):
            Augmentation.parse(augment, data.info)  # before the search is paid for
        return data

    def _looked_at(self) -> Images:
        if not self.loaders:
            raise RunError(
                "the run's images came from loaders: give them to the Python call again, "
                "search(pretrained=..., train=..., valid=..., out=...)"
            )
        with self.reporter.bar("looking at the batches") as update:
            images = look_at(self.loaders, progress=update)
        self.reporter.say(f"  {images}")
        if "test" not in self.loaders:
            self.reporter.say("  no test batches: accuracies are of the validation images")
        return images.resized(self.config.side)

    def input(self) -> InputInfo:
        return self.data.info

    def example_inputs(self, config: RunConfig) -> tuple[Any, ...]:
        """One batch of noise of the real shape."""
        shape = (config.measure.batch, *self.data.info.shape)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

    def supernet(self, config: RunConfig) -> Supernet:
        """The space with this run's fresh weights."""
        torch.manual_seed(derive_seed(config.seed, "weights"))
        return build_supernet(config.space, config.space_settings, input=self.data.info)

    def spare(self, config: RunConfig) -> tuple[Supernet, Task]:
        return self.supernet(config), self.task

    def batches(self, part: Part, config: RunConfig) -> Batches:
        search, train = config.search, config.train
        batches = partial(self.data.batches, seed=config.seed, shuffle=part != "test")
        if part == "search":
            return batches("search", search.batch_size, augment=True)
        if part == "valid":
            return batches("valid", search.valid_batch_size or search.batch_size, augment=True)
        if part == "train":
            source = "search" if train.keeps_best else "train"
            return batches(source, train.batch_size, augment=train.augment or True)
        # Plain images, as the network will see them. Shuffled: many sets come sorted by class,
        # and statistics and scores are taken from a part.
        source = {"calibration": "search", "scoring": "valid"}.get(part, part)
        fits = SCORING_PIXELS // math.prod(self.data.info.shape[1:])
        return batches(source, max(LEAST_BATCH, min(SCORING_BATCH, fits)))

    def training_task(self, config: RunConfig) -> Task:
        return self.task_of_labels(config)

    def task_of_labels(self, config: RunConfig) -> Task:
        """The training's loss as far as it is of labels: smoothed, and weighted by class."""
        settings, weights = config.train, None
        if settings.class_weights == "balanced":
            weights = balanced_weights(self.data.class_counts("train"))
        return Task.classification(settings.label_smoothing, weights)

    def architecture(self, architecture: Architecture, config: RunConfig) -> Architecture:
        """With the data's input, and the training's dropout and the like."""
        settings = {**architecture.settings, **config.train.space_settings}
        settings = complete_settings(config.space, settings, None)
        return replace(architecture.with_input(self.data.info), settings=settings)

    def network(self, architecture: Architecture, config: RunConfig) -> nn.Module:
        return build(architecture, allow=[config.space])
