"""Settings of a run that begins with trained weights, where they are not given.

A few hundred photos want more epochs than a few thousand, or else there are too few steps to learn
anything; and a hundred thousand want fewer, or else a run takes days. So the defaults are numbers
of steps between bounds. In few steps a low rate is better: from a classifier in closed form, which
is the best one already, a high rate goes down first and has no time to come back (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from proxylessnas.config import RunConfig, merged, parse_settings
from proxylessnas.errors import ConfigError

SPACE, MODEL = "inverted", "model"  # of networks of bottlenecks, and narrowed from any model
DEFAULTS: dict[str, Any] = {
    "search": {"warmup_epochs": 0, "batch_size": 32},
    "derive": {"recalibrate_images": 0},
    "baselines": True,
    "train": {
        "batch_size": 32,
        "average_decay": 0.99,
        "frozen_statistics": True,
        "inherit": True,
    },
}


UNUSED = ("search", "candidates", "derive")  # by a model of any kind, which has no gates


def check_used(config: RunConfig) -> None:
    """Refuse settings of stages that a run of --model does not have.

    Raises:
        ConfigError: one is not its default.
    """
    if config.model is None:
        return
    usual = parse_settings(RunConfig, with_defaults({"model": config.model}))
    for group in UNUSED:
        for field in fields(getattr(config, group)):
            value, default = (getattr(getattr(c, group), field.name) for c in (config, usual))
            if value != default:
                raise ConfigError(
                    f"{group}.{field.name} is {value}, which --model {config.model} does not take: "
                    "its networks are chosen by scores alone; leave it out"
                )


@dataclass(frozen=True)
class Length:
    """How long a stage learns: epochs, but within these numbers of steps."""

    epochs: float
    least: int
    most: int

    def steps(self, epoch_steps: int) -> int:
        return min(max(round(self.epochs * epoch_steps), self.least), self.most)


LENGTH = Length(6, 240, 6000)  # of the teacher's fine-tuning, and of the derived network's
ARCHITECTURE_STEPS = 150  # from the prior on
RATE, RATE_STEPS = 0.003, 300  # the rate of so many steps and more; of fewer a share of it
WARMUP = 0.1  # of the steps


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given over those of the road that they take."""
    of_model = settings.get("model") is not None
    if settings.get("pretrained") in (None, "none") and not of_model:
        return dict(settings)
    return merged({**DEFAULTS, "space": MODEL if of_model else SPACE}, settings)


def suited(
    config: RunConfig, given: Mapping[str, Any], search_images: int, train_images: int
) -> RunConfig:
    """The settings with lengths and rates for so many images, where they were not given.

    given: the settings that were asked for. search_images: without the validation part, which the
    teacher and the architecture learn from. train_images: which the derived network learns from.
    """

    def learning(stage: str, images: int) -> Any:
        settings, asked = getattr(config, stage), given.get(stage, {})
        epoch_steps = -(-images // settings.batch_size)
        steps = LENGTH.steps(epoch_steps)
        if "epochs" in asked:
            steps = max(1, round(settings.epochs * epoch_steps))
        chosen = {
            "epochs": steps / epoch_steps,
            "learning_rate": RATE * min(1.0, steps / RATE_STEPS),
            "warmup_epochs": WARMUP * steps / epoch_steps,
        }
        return replace(settings, **{k: v for k, v in chosen.items() if k not in asked})

    search = config.search
    if "epochs" not in given.get("search", {}):
        epoch_steps = -(-search_images // search.batch_size)
        search = replace(search, epochs=ARCHITECTURE_STEPS / epoch_steps)
    return replace(
        config,
        teach=learning("teach", search_images),
        search=search,
        train=learning("train", train_images),
    )
