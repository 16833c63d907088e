"""Scores beside figures of untrained networks (`derive.zero_cost`)."""

from __future__ import annotations

import torch
from torch import Tensor

from proxylessnas.config import DeriveSettings
from proxylessnas.errors import ConfigError
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import ScoreFunction
from proxylessnas.selection.zero_cost import ZeroCost, beside
from proxylessnas.session.session import Session


def check_zero_cost(session: Session) -> None:
    """One network's figures, where they are asked for: what cannot be had is refused early.

    Raises:
        ConfigError: the model does not take one tensor of real numbers.
        SupernetError: it fails on noise, or a block's features have no channels.
    """
    if session.config.derive.zero_cost:
        zero_cost_of(session)(session.supernet.indices(session.supernet.most_probable()))


def zero_cost_of(session: Session) -> ZeroCost:
    """Of the session's supernet, for noise in the shape of its inputs."""
    inputs = session.inputs
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        raise ConfigError(
            f"derive.zero_cost is {session.config.derive.zero_cost}, and the model does not take "
            "one tensor of real numbers, in whose place noise could be: set it to 0"
        )
    seed = derive_seed(session.config.seed, "zero-cost")
    return ZeroCost(session.supernet, inputs[0].shape[1:], seed)


def with_zero_cost(
    session: Session, settings: DeriveSettings, score: ScoreFunction
) -> ScoreFunction:
    """The score, beside figures of untrained networks where the settings ask for them."""
    if not settings.zero_cost:
        return score
    supernet, seed = session.supernet, derive_seed(session.config.seed, "reference")
    generator = torch.Generator().manual_seed(seed)
    drawn = [supernet.sample(generator, uniform=True) for _ in range(settings.zero_cost)]
    reference = [supernet.as_it_runs(supernet.indices(architecture)) for architecture in drawn]
    with session.reporter.bar("scoring random networks") as update:
        return beside(score, zero_cost_of(session), reference, update)
