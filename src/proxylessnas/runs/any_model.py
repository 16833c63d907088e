"""The problem of `--model`: images, classes, and a model of any kind that is narrowed inside.

The model is taught as the network of `--pretrained` is; what is chosen of it is the surgery's
(`proxylessnas.surgery`), and the stages after that are those of all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Images, LoaderImages
from proxylessnas.errors import ArchitectureError, DataError, RunError
from proxylessnas.pretrained.any_model import LIBRARIES, RANDOM, Loaded, load_model, plain_input
from proxylessnas.pretrained.headed import Headed, for_gray, headed
from proxylessnas.runs.defaults import MODEL
from proxylessnas.runs.specialised import (
    LINEAR,
    TEACHER,
    Narrow,
    SpecialisedProblem,
    check_enough,
)
from proxylessnas.session.deploying import as_scored
from proxylessnas.session.finishing import STEADY_NORM
from proxylessnas.session.session import Session
from proxylessnas.surgery.around import uniform_network
from proxylessnas.surgery.attention import opened
from proxylessnas.surgery.brought import Trained, inputs_of
from proxylessnas.surgery.found import Found, find
from proxylessnas.surgery.saved import network_of
from proxylessnas.training.copying import copied
from proxylessnas.training.evaluate import recalibrate

INHERITED = "inherited.safetensors"
STATISTICS = 1000  # images that a normalisation's statistics are taken of, where it has none
SCORING_BATCH = 64  # images of a batch that networks are compared on


class ModelProblem(SpecialisedProblem):
    """A trained model of any kind, taught the user's classes and narrowed to the limit."""

    takes_other_sizes = False
    _known: Found | None = None
    _has_new_statistics = False

    @cached_property
    def _matched(self) -> tuple[Loaded, Images]:  # type: ignore[override]
        name = self.config.model
        assert name is not None
        if self.config.weights is None and name.partition(":")[0] in LIBRARIES:
            self.reporter.say(f"  {name}: its trained weights, which are downloaded once")
        loaded = load_model(name, self.config.weights)  # refused before the data are read
        loaded = replace(loaded, model=opened(loaded.model))
        data = super(SpecialisedProblem, self).data
        channels = data.info.shape[0]
        if not loaded.input.mean:
            loaded = replace(loaded, input=plain_input(channels))
        wanted = len(loaded.input.mean)
        if channels == 1 and wanted == 3:
            self.reporter.say("  gray images: the model's first layer takes one channel")
            loaded = for_gray(loaded)
        elif channels != wanted:
            raise DataError(f"the images have {channels} channels, and {name} takes {wanted}")
        info = replace(data.info, mean=loaded.input.mean, std=loaded.input.std)
        data = replace(data, info=info)
        if isinstance(data, LoaderImages):
            data.check_normalised(data.info.mean, data.info.std)
        check_enough(data)
        self._say(loaded)
        return loaded, data

    def _say(self, loaded: Loaded) -> None:
        mean = ", ".join(f"{value:.3g}" for value in loaded.input.mean)
        self.reporter.say(f"  {loaded.name}: weights {loaded.weights}, pixels less the mean {mean}")
        if not loaded.is_trained:
            self.reporter.say(
                "  WARNING: the weights are RANDOM: the model knows only what these images teach "
                "it, and will be far worse than a trained one (--weights FILE gives it some)"
            )

    @cached_property
    def _headed(self) -> Headed:
        shape = self.data.info.shape
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        network = headed(self._matched[0], images)
        self._has_new_statistics = any(map(_knows_nothing, network.modules()))
        if self._has_new_statistics:
            self.reporter.say(
                "  its batch normalisation has no statistics yet: those of your images"
            )
            recalibrate(network, self.plain_images(self.config), STATISTICS)
        return network.eval()

    def suited(self, config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
        """The settings of trainings where the model has no trained statistics to keep.

        given: the settings that were asked for, which stay.
        """
        _ = self._headed
        if self._matched[0].is_trained and not self._has_new_statistics:
            return config
        untrained = {"frozen_statistics": False, "clip_norm": STEADY_NORM}
        changes = {
            stage: replace(
                getattr(config, stage),
                **{k: v for k, v in untrained.items() if k not in given.get(stage, {})},
            )
            for stage in ("teach", "train")
        }
        return replace(config, **changes)

    @property
    def fits_classes(self) -> bool:
        """Whether the model came with weights of a file, for as many classes as the user has."""
        file = self.config.weights not in (None, "none")
        classes = len(self.data.info.classes)
        return file and self._headed.classifier.out_features == classes

    # --- networks ---

    def as_it_came(self) -> Headed:
        """A copy of the model with the classifier that it came with."""
        return copied(self._headed)

    def new_teacher(self) -> Headed:  # type: ignore[override]
        network = self.as_it_came()
        classes = len(self.data.info.classes)
        network.replace_classifier(nn.Linear(network.classifier.in_features, classes))
        return network

    def teacher(self) -> Headed:  # type: ignore[override]
        network = self.new_teacher()
        self.store.load_weights(TEACHER, network)
        return network.eval()

    def linear(self) -> Headed:  # type: ignore[override]
        network = self.new_teacher()
        tensors, _ = self.store.load_tensors(LINEAR)
        network.classifier.load_state_dict(tensors)
        return network.eval()

    def supernet(self, config: RunConfig) -> Supernet:
        raise RunError("a run of --model has no supernet: its candidates are of tensors")

    def described(self, choices: dict[str, str], attributes: dict[str, int]) -> Architecture:
        """What was chosen, as it is written. attributes: see `surgery.saved.network_of`."""
        settings = {"model": self.config.model, "attributes": attributes}
        return Architecture(space=MODEL, settings=settings, choices=choices, input=self.data.info)

    def network(self, architecture: Architecture, config: RunConfig) -> nn.Module:
        tensors, _ = self.store.load_tensors(INHERITED)
        attributes = architecture.settings["attributes"]
        return network_of(self.new_teacher().model, architecture.choices, attributes, tensors)

    # --- what the surgery takes ---

    def brought(self, session: Session, model: nn.Module) -> Trained:
        """The model with the run's data and records."""
        return Trained(
            model=opened(model).cpu().to(memory_format=torch.contiguous_format).eval(),
            inputs=session.inputs,
            task=self.task,
            train=self.plain_images(session.config),
            valid=self.data.batches("valid", SCORING_BATCH, shuffle=True, seed=session.config.seed),
            runtime=session.runtime,
            measure=session.config.measure,
            seed=session.config.seed,
            reporter=session.reporter,
            records=session.records,
            callbacks=session.callbacks,
            scored=session.config.candidates.score_images,
            deployed=partial(as_scored, session),
            wider="give a higher limit, or fewer pixels (--image-size); the table says what stays",
        )

    def found(self, session: Session) -> Found:
        """What can be narrowed, whatever the weights are."""
        if self._known is None:
            self._known = find(self.brought(session, self.new_teacher().model))
        return self._known

    def narrowed_alike(self, session: Session) -> tuple[Narrow, Narrow]:
        found, taught = self.found(session), self.brought(session, self.teacher().model)

        def fitted(share: float) -> nn.Module:
            return uniform_network(found, share, inputs_of(taught.train), taught)

        return partial(uniform_network, found), fitted


def _knows_nothing(module: nn.Module) -> bool:
    """Whether a normalisation has the statistics that it was made with."""
    if not isinstance(module, _BatchNorm) or module.running_var is None:
        return False
    mean = module.running_mean
    return bool((module.running_var == 1).all()) and (mean is None or not bool(mean.any()))


def narrowed_network(
    architecture: Architecture, tensors: Mapping[str, Tensor], allowed: str | None = None
) -> nn.Module:
    """The network of a run's directory, which its data are not needed for.

    allowed: the `module:factory` that may be imported.

    Raises:
        ArchitectureError: the model is built by code that nobody but the file names.
    """
    name = str(architecture.settings.get("model"))
    if name.partition(":")[0] not in LIBRARIES and name != allowed:
        raise ArchitectureError(
            f"the network is made of {name}, which is not imported because a file says so: name it "
            f"yourself (--space {name})"
        )
    model, attributes = load_model(name, RANDOM).model, architecture.settings["attributes"]
    return network_of(model, architecture.choices, attributes, tensors)
