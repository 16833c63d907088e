"""Scores beside figures of untrained networks (`derive.zero_cost`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np
from torch import Tensor

from proxylessnas.config import DeriveSettings, RunConfig
from proxylessnas.core.decode import Indices
from proxylessnas.errors import ConfigError, SupernetError
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import ScoreFunction
from proxylessnas.selection.predictor import Array
from proxylessnas.selection.zero_cost import Beside, ZeroCost, random_networks
from proxylessnas.session.session import Session

TIMED = 3  # networks, whose figures tell how long those of others take
LEAST = 8  # random networks, by which figures of different kinds become comparable


def check_setting(config: RunConfig, settings: DeriveSettings) -> None:
    """Refuse what needs no model to be refused.

    Raises:
        ConfigError: too few random networks, or trained weights.
    """
    count = settings.zero_cost
    if 0 < count < LEAST:
        raise ConfigError(
            f"derive.zero_cost is {count}: it must be 0, or at least {LEAST} random networks"
        )
    if count and config.pretrained not in (None, "none"):
        raise ConfigError(
            f"derive.zero_cost is {count}, and what untrained networks could do says nothing of "
            f"the trained weights of {config.pretrained}: set it to 0"
        )


def check_zero_cost(session: Session, settings: DeriveSettings) -> None:
    """Figures of every candidate, where they are asked for: what cannot be had is refused early.

    Raises:
        ConfigError: see `check_setting`; or the model does not take one tensor of real numbers, or
            fails on noise, or a block's features have no channels.
    """
    check_setting(session.config, settings)
    if settings.zero_cost:
        rows = session.supernet.candidates
        with _remedy(settings):
            zero_cost = _zero_cost(session, settings, lambda network: 0.0)
            for j in range(max(map(len, rows))):
                zero_cost(tuple(min(j, len(row) - 1) for row in rows))


def with_zero_cost(
    session: Session, settings: DeriveSettings, score: ScoreFunction
) -> tuple[ScoreFunction, list[Indices]]:
    """The score, beside figures of untrained networks where the settings ask for them.

    And the random networks that were scored for it.
    """
    if not settings.zero_cost:
        return score, []
    reference = random_networks(session.supernet, settings.zero_cost, _seed(session))
    costs, ranks = session.unlimited_costs, session.ranks
    zero_cost = _zero_cost(session, settings, lambda network: costs.cost_of("macs", network))

    def figures(network: Indices) -> Array:
        """Computed once, whatever the limits; the same on all ranks, which choose by them."""
        if network not in session.figures:
            computed = ranks.of_main(lambda: zero_cost(network).tolist())
            session.figures[network] = np.array(computed)
        return session.figures[network]

    with _remedy(settings), session.reporter.bar("scoring random networks") as update:
        beside = Beside(score, figures, reference, update)
    return beside, beside.reference


def _seed(session: Session) -> int:
    """Of the random networks."""
    return derive_seed(session.config.seed, "reference")


def seconds_of_figures(session: Session, settings: DeriveSettings) -> float:
    """That the figures of a network take, the mean of a few random ones; 0 where none count."""
    if not settings.zero_cost:
        return 0.0
    zero_cost = _zero_cost(session, settings, lambda network: 0.0)
    first, *timed = random_networks(session.supernet, 1 + TIMED, _seed(session))
    zero_cost(first)  # the first one takes longer
    start = perf_counter()
    for network in timed:
        zero_cost(network)
    return (perf_counter() - start) / TIMED


def _zero_cost(
    session: Session, settings: DeriveSettings, macs: Callable[[Indices], float]
) -> ZeroCost:
    """Of the session's supernet, for noise in the shape of its inputs."""
    inputs = session.inputs
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        raise ConfigError(
            f"derive.zero_cost is {settings.zero_cost}, and the model does not take one tensor of "
            "real numbers, in whose place noise could be: set it to 0"
        )
    seed = derive_seed(session.config.seed, "zero-cost")
    return ZeroCost(session.supernet, inputs[0], macs, seed)


@contextmanager
def _remedy(settings: DeriveSettings) -> Iterator[None]:
    """What the model does not allow, with what to do."""
    try:
        yield
    except SupernetError as error:
        raise ConfigError(
            f"derive.zero_cost is {settings.zero_cost}, and the figures cannot be had ({error}): "
            "set it to 0"
        ) from error
