"""Strides that follow from the size of the images: said, and measured where there is a choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from proxylessnas.config import RunConfig
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.whole_networks import measure_networks
from proxylessnas.limits import parse_latency
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.spaces import build, build_supernet, complete_settings
from proxylessnas.training.ranks import Ranks

ROUNDS = 5
LEAST = 2  # pixels that the last layers see with the larger stride, for it to be a choice


def with_strides(
    config: RunConfig, problem: ConfiguredProblem, runtime: Runtime, ranks: Ranks
) -> dict[str, Any]:
    """Every setting of the space, with the strides decided that were not given.

    Small images keep their resolution in the stem, which makes a network at 32 pixels slower than
    at 96. So the smallest and the largest network are measured with either stride; the larger one
    is taken where the limit is under what the smaller one reaches.
    """
    info, given = problem.data.info, config.space_settings
    settings = complete_settings(config.space, given, info)
    open_ = [name for name in ("stem_stride", "strides") if name in settings and name not in given]
    if not open_:
        return settings
    if "stem_stride" in open_ and settings["stem_stride"] == 1 and config.table is None:
        larger = complete_settings(config.space, {**given, "stem_stride": 2}, info)
        if _last(larger, problem) >= LEAST:
            settings = _measured(config, problem, runtime, ranks, settings, larger)
    stages, last = " ".join(map(str, settings["strides"])), _last(settings, problem)
    problem.reporter.say(
        f"  strides for {min(info.shape[1:])} pixels: {settings['stem_stride']} of the stem, then "
        f"{stages}; the last layers see {last} x {last}"
    )
    return settings


def _last(settings: Mapping[str, Any], problem: ConfiguredProblem) -> int:
    """Pixels of a side that the last layers see."""
    across: int = settings["stem_stride"] * math.prod(settings["strides"])
    return math.ceil(min(problem.data.info.shape[1:]) / across)


def _measured(
    config: RunConfig,
    problem: ConfiguredProblem,
    runtime: Runtime,
    ranks: Ranks,
    *choices: dict[str, Any],
) -> dict[str, Any]:
    networks = {
        f"{settings['stem_stride']}{end}": network
        for settings in choices
        for end, network in _ends(config.space, settings).items()
    }
    settings = dataclasses.replace(config.measure, network_rounds=ROUNDS, energy=None)
    inputs = problem.example_inputs(config)

    def measured() -> list[float]:
        report = measure_networks(networks, runtime, inputs, settings, seed=config.seed)
        return [report[name].raw_ms for name in networks]

    low, high, low_2, high_2 = ranks.of_main(measured)
    limit, is_factor = parse_latency(config.target_latency or "1x")
    larger = not is_factor and limit < low
    problem.reporter.say(
        f"  networks take {low:.3g} to {high:.3g} ms with a stem of stride 1, {low_2:.3g} to "
        f"{high_2:.3g} with 2: {2 if larger else 1} is taken (--space-settings '{{stem_stride: "
        f"{1 if larger else 2}}}' takes the other)"
    )
    return choices[larger]


def _ends(space: str, settings: dict[str, Any]) -> dict[str, nn.Module]:
    """The smallest and the largest network of a space."""
    with torch.random.fork_rng(devices=[]):
        supernet = build_supernet(space, settings)
        smallest = [names.index("zero") if "zero" in names else 0 for names in supernet.candidates]
        largest = [len(names) - 1 - (names[-1] == "zero") for names in supernet.candidates]
        ends = {"smallest": smallest, "largest": largest}
        return {name: build(supernet.architecture(i)) for name, i in ends.items()}
