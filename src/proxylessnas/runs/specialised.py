"""The problem of `--pretrained`: images, classes, and the space around a trained network.

What the stages `teach` and `candidates` leave in the store is part of the problem from then on:
the teacher with its weights, and its candidates with theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig
from proxylessnas.core.costs import Costs
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches, Images, LoaderImages
from proxylessnas.data.arguments import in_words
from proxylessnas.errors import DataError, RunError, foreign
from proxylessnas.io.console import Reporter
from proxylessnas.pretrained.candidates import PHOTOS, BlockFits, block_inputs
from proxylessnas.pretrained.distil import distilled
from proxylessnas.pretrained.loading import load_pretrained
from proxylessnas.pretrained.networks import Pretrained, bottleneck, shape_of
from proxylessnas.pretrained.scores import Scores, replacement_scores, tempered
from proxylessnas.pretrained.space import (
    blank_candidates,
    candidates_in,
    most_probable,
    prior,
    rescored,
    space_around,
    uniform_network,
)
from proxylessnas.pretrained.teach import gentle, matched
from proxylessnas.runs.configured import SCORING_BATCH, ConfiguredProblem
from proxylessnas.runs.defaults import SPACE, suited
from proxylessnas.session.early import first_batch
from proxylessnas.session.problem import Part
from proxylessnas.session.session import Session
from proxylessnas.session.store import Store
from proxylessnas.spaces import build
from proxylessnas.spaces.blocks import Network
from proxylessnas.training.faults import explained, first_examples
from proxylessnas.training.task import Task, split

TEACHER, LINEAR = "teacher.safetensors", "linear.safetensors"
CANDIDATES, SCORES = "candidates.safetensors", "scores.json"
SCORES_WITHIN = "scores_within.json"

Narrow = Callable[[float], nn.Module]  # of a share of the channels


def begin_specialised(
    session: Session, problem: SpecialisedProblem, given: Mapping[str, Any]
) -> Session:
    """The session with every automatic setting decided, before its first stage.

    given: the settings that were asked for, which stay.

    A network that cannot be loaded, or does not suit the images, is refused first.

    Memory format and kernels are not tried: images in channels_last with folded normalisation and
    strips for wide depthwise kernels are fastest on the CPUs that were tried (docs/log.md).
    """
    session.reporter.say(f"trained network: {problem.trained.name}")
    machine, device = session.config.machine, session.machine.device
    layout = machine.memory_format if machine.memory_format != "auto" else "channels_last"
    strips = machine.depthwise_strips
    machine = replace(
        machine,
        device=str(device),
        threads=machine.threads or torch.get_num_threads(),
        memory_format=layout,
        autocast=bool(machine.autocast),
        compile=bool(machine.compile),
        depthwise_strips=device.type == "cpu" if strips is None else strips,
        fused_batch_norm=bool(machine.fused_batch_norm),
    )
    images = [problem.data.size(part) for part in ("search", "train")]
    config = suited(replace(session.config, machine=machine), given, *images)
    session = session.configured(config)
    _try_early(session, problem)
    return session


def _try_early(session: Session, problem: SpecialisedProblem) -> None:
    """A few images of every part through the network and the loss, and one way back.

    Raises:
        DataError: that fails; the line says on which part's images, and how.
    """
    with torch.random.fork_rng(devices=[]):
        network = session.machine.place(problem.new_teacher()).eval()
    config = session.config
    for part, name in (("teach", "train"), ("scoring", "valid"), ("test", "test")):
        batches = problem.batches(part, config)  # type: ignore[arg-type]
        batch = session.machine.put(first_examples(2, first_batch(name, batches)))
        words = f"{problem.trained.name} fails on the first images of {name} ({in_words(batch)})"
        with foreign(DataError, words), explained(), session.machine.precision():
            inputs, target = split(batch)
            loss = problem.task_of_labels(config).weight_loss(network(inputs), target, inputs)
            loss.backward()  # type: ignore[no-untyped-call]


class SpecialisedProblem(ConfiguredProblem):
    """A trained network, taught the user's classes and cut to the limit.

    takes_other_sizes: whether the teacher computes something at a smaller input, too.
    """

    takes_other_sizes = True

    def __init__(
        self,
        config: RunConfig,
        reporter: Reporter,
        store: Store,
        loaders: Mapping[str, Batches] | None = None,
    ) -> None:
        super().__init__(config, reporter, loaders)
        self.store = store

    @cached_property
    def _matched(self) -> tuple[Pretrained, Images]:
        name = self.config.pretrained
        assert name is not None
        trained = load_pretrained(name)  # refused before the data are read
        data = super().data
        if data.info.shape[0] == 1 and trained.input.shape[0] == 3:
            self.reporter.say("  gray images: the network's first layer takes one channel")
        trained, data = matched(trained, data)
        if isinstance(data, LoaderImages):
            data.check_normalised(data.info.mean, data.info.std)
        check_enough(data)
        return trained, data

    @property
    def trained(self) -> Pretrained:
        """The network as it was loaded, with the classes that it was trained for."""
        return self._matched[0]

    @property
    def data(self) -> Images:
        """The images with the mean and the deviation that the weights want."""
        return self._matched[1]

    # --- networks ---

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the teacher as an architecture."""
        settings, info = shape_of(self.trained.network), self.data.info
        own = {"input_shape": list(info.shape), "classes": len(info.classes)}
        return {**asdict(settings), **own}

    def new_teacher(self) -> Network:
        """The trained network with a classifier of the user's classes, which knows nothing yet."""
        network = copy.deepcopy(self.trained.network)
        classes = len(self.data.info.classes)
        network.replace_classifier(nn.Linear(network.classifier.in_features, classes))
        return network

    def teacher(self) -> Network:
        """The teacher as the stage `teach` left it, in evaluation mode.

        Raises:
            RunError: the stage is not finished.
        """
        network = build(Architecture(space=SPACE, settings=self.settings, choices={}))
        assert isinstance(network, Network)
        self.store.load_weights(TEACHER, network)
        return network.eval()

    def linear(self) -> Network:
        """The trained network with the linear classifier, before it was fine-tuned."""
        network = self.new_teacher()
        tensors, _ = self.store.load_tensors(LINEAR)
        network.classifier.load_state_dict(tensors)
        return network.eval()

    def supernet(self, config: RunConfig) -> Supernet:
        """The space around the teacher, with the weights that the stage `candidates` fitted."""
        if not self.store.has(SCORES):
            raise RunError("the candidates are not cut yet: the stage candidates comes first")
        model = space_around(self.teacher(), blank_candidates(self.teacher(), self.scores))
        self.store.load_weights(CANDIDATES, model)
        return Supernet(model, space=SPACE, settings=self.settings, input=self.data.info)

    @property
    def scores(self) -> Scores:
        """Of every block its candidates' scores, see `pretrained.scores`."""
        return self._read_scores(SCORES)

    def _read_scores(self, name: str) -> Scores:
        scores: Scores = self.store.read_json(name)
        if not isinstance(scores, list) or not all(isinstance(named, dict) for named in scores):
            raise RunError(f"{self.store.file(name)} is damaged: do candidates again")
        return scores

    def search_parts(
        self, config: RunConfig, supernet: Supernet, costs: Costs, epoch_steps: int
    ) -> Mapping[str, Any]:
        """α begins at its prior and learns alone; weights and statistics are the teacher's."""
        steps = Schedule.of(config.search, epoch_steps).architecture_steps
        return {
            "alpha": prior(supernet, tempered(self._scores_within(config, supernet, costs)), costs),
            "schedule": Schedule.architecture_alone(steps),
            "frozen_statistics": True,
        }

    def _scores_within(self, config: RunConfig, supernet: Supernet, costs: Costs) -> Scores:
        """The scores, corrected around the networks that they choose under the limits.

        Single replacements add up only near the teacher, and limits lead far from it. Kept in the
        store, so that a search that goes on finds the same prior.
        """
        if not bool(costs.limits.isfinite().any()):
            return self.scores
        if not self.store.has(SCORES_WITHIN):
            self.reporter.say("  scoring candidates around the networks within the limit")
            teacher = self.teacher()
            candidates = candidates_in(supernet, teacher, self.scores)
            photos = self.plain_images(config)
            images = list(images_of(photos, self.held_out(config)))
            corrected = rescored(
                supernet,
                lambda around: replacement_scores(teacher, candidates, images, around=around),
                self.scores,
                partial(most_probable, supernet, costs),
                rounds=config.candidates.score_rounds,
            )
            self.store.write_json(SCORES_WITHIN, corrected)
        return self._read_scores(SCORES_WITHIN)

    def held_out(self, config: RunConfig) -> int:
        """Photos that candidates are scored on, and not fitted to."""
        return min(config.candidates.score_images, self.data.size("search") // 4)

    def architecture(self, architecture: Architecture, config: RunConfig) -> Architecture:
        return replace(architecture.with_input(self.data.info), space=SPACE, settings=self.settings)

    def network(self, architecture: Architecture, config: RunConfig) -> nn.Module:
        return build(architecture)

    def training_task(self, config: RunConfig) -> Task:
        """With the teacher's opinion beside the labels."""
        share = config.train.teacher_share
        task = self.task_of_labels(config)
        return distilled(task, self.teacher(), share=share) if share else task

    def narrowed_alike(self, session: Session) -> tuple[Narrow, Narrow]:
        """All blocks narrowed to a share of their channels: of that size alone, and fitted."""
        teacher = self.teacher()
        inputs = block_inputs(teacher, images_of(self.plain_images(session.config), PHOTOS))
        fits = [
            None if bottleneck(block) is None else BlockFits(block, x)
            for block, x in zip(teacher.blocks, inputs, strict=True)
        ]
        fitted = partial(uniform_network, teacher, fits)
        return fitted, fitted

    # --- batches ---

    def batches(self, part: Part, config: RunConfig) -> Batches:
        if part == "teach":
            size, augment = config.teach.batch_size, config.teach.augment or gentle(self.data)
            return self.data.batches(
                "search", size, augment=augment, shuffle=True, seed=config.seed
            )
        return super().batches(part, config)

    def plain_images(self, config: RunConfig) -> Batches:
        """Training images as the network will see them, in random order."""
        return self.data.batches("search", SCORING_BATCH // 4, shuffle=True, seed=config.seed)


def check_enough(data: Images) -> None:
    """DataError where a linear classifier cannot be fitted: now, and not after the features."""
    images, classes = data.size("search"), len(data.info.classes)
    if images <= classes:
        raise DataError(
            f"{images} images are left to learn {classes} classes from, beside those held out for "
            "validation and test: too few, at least two of most classes are needed; add images"
        )


def images_of(batches: Batches, most: int, *, skip: int = 0) -> Iterator[Tensor]:
    """The inputs of an epoch's batches: after `skip` images, about `most`."""
    count = 0
    for inputs, _ in batches.epoch(0):
        rest = inputs[max(0, skip - count) :]  # a small set is a single batch
        if len(rest):
            yield rest
        count += len(inputs)
        if count >= skip + most:
            return
