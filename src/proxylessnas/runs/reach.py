"""Limits that no network around a trained one keeps, refused before anything is learned.

What candidates cost does not depend on their weights. So counted costs are those of the space with
fresh weights, and of latencies the smallest network's is measured, and the teacher's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from proxylessnas.config import RunConfig
from proxylessnas.core.mixed import Zero
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import LimitError
from proxylessnas.limits import parse_limit
from proxylessnas.pretrained.candidates import candidate_names
from proxylessnas.pretrained.space import blank_candidates, largest_within, space_around
from proxylessnas.runs.by_hand import LEAST_SIZE, SIZE_STEP, measured
from proxylessnas.runs.defaults import SPACE
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.session.pipeline import check_names_of_limits
from proxylessnas.session.session import Session
from proxylessnas.spaces.blocks import Network

MARGIN = 0.95  # a limit above this share of the fastest network's latency may still be kept


class _Uncut(SpecialisedProblem):
    """The problem before its candidates are cut."""

    def __init__(self, problem: SpecialisedProblem) -> None:
        _ = problem.data  # read once, for both
        vars(self).update(vars(problem))

    def supernet(self, config: RunConfig) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            teacher = self.new_teacher()
            named = blank_candidates(teacher, [candidate_names(block) for block in teacher.blocks])
            model = space_around(teacher, named)
        return Supernet(model, space=SPACE, settings=self.settings, input=self.data.info)


def check_reach(session: Session, problem: SpecialisedProblem) -> None:
    """Refuse limits out of reach of the space around the network.

    Raises:
        LimitError: one is; of a latency the range is named, and which smaller input would do.
        ConfigError: there is no such cost.
    """
    check_names_of_limits(session)
    if not session.limits:
        return
    uncut = replace(session, problem=_Uncut(problem))
    if session.config.table is not None:
        uncut.check_limits()
        return
    if set(session.limits) - {"latency"}:
        uncut.check_counted_limits()
    if "latency" in session.limits:
        session.ranks.of_main(lambda: _check_latency(session, problem))


def smallest_network(teacher: Network) -> Network:
    """Of every block the last candidate: left out, or the narrowest of the smallest kernel."""
    last = [candidate_names(block)[-1:] for block in teacher.blocks]
    blocks: list[nn.Module] = []
    for block, named in zip(teacher.blocks, blank_candidates(teacher, last), strict=True):
        (branch,) = named.values() or [block]
        blocks.append(nn.Identity() if isinstance(branch, Zero) else branch)
    return Network(teacher.stem, blocks, teacher.head).eval()


def _check_latency(session: Session, problem: SpecialisedProblem) -> None:
    with torch.random.fork_rng(devices=[]):
        teacher = problem.new_teacher()
        fastest = smallest_network(teacher)
    side, name = problem.data.info.shape[1], problem.trained.name
    low = _latency(session, fastest, side)
    written = session.limits["latency"]
    value, relative = parse_limit("latency", written, "ms")
    if not relative and value >= MARGIN * low:
        return
    high = _latency(session, teacher, side)
    limit = value * high if relative else value
    if limit >= MARGIN * low:
        return
    sizes = list(range(LEAST_SIZE, side, SIZE_STEP))
    size = largest_within(sizes, lambda size: _latency(session, fastest, size) <= limit)
    raise LimitError(
        f"no network around {name} at {side} pixels keeps a latency of {limit:.4g} ms"
        f"{f' ({written})' if relative else ''}: they take from about {low:.4g} to {high:.4g} ms; "
        + (
            f"no smaller input does either, down to {LEAST_SIZE} pixels: give a higher limit"
            if size is None
            else f"an input of {size} pixels would reach it: --image-size {size} "
            f"--target-latency {limit:.4g}ms"
        )
    )


def _latency(session: Session, network: nn.Module, side: int) -> float:
    """Milliseconds at an input of so many pixels a side."""
    return measured(session, {"one": (network, side)})["one"].raw_ms
