"""What networks are worth before any training (zero-cost proxies), beside what shared weights say.

Shared weights are weights of the first epochs: what learns fast (a pooling, a shortcut, one wide
layer in place of two) is scored too high by them, and what many more epochs would make of a network
is not seen. Figures of a network at its random initialisation err otherwise. How much each is
worth, and all together, was measured on the two tables whose every answer is known (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import SupernetError, foreign
from proxylessnas.selection.explore import Score
from proxylessnas.selection.predictor import Array

BATCH = 16  # images of noise
DRAWS = 2  # of the initialisation and the noise, whose mean is taken


class ZeroCost:
    """Figures of untrained networks of a supernet; the supernet's weights do not matter.

    shape: of one input, without the batch: channels, then any. seed: of weights and noise, the
    same for all networks.
    """

    def __init__(self, supernet: Supernet, shape: Sequence[int], seed: int = 0) -> None:
        self.supernet, self.shape, self.seed = supernet, tuple(shape), seed
        self.blocks = blocks_of(supernet)

    def __call__(self, network: Indices) -> Array:
        """[progressivity, complexity], of which more is better: two of the four of AZ-NAS.

        Progressivity: by how much the features' `spectral_entropy` grows in a block that is
        searched, for noise; the mean of the lower half of the blocks. (Lee and Ham, CVPR 2024,
        take the least growth, which is that of one block, and noisy.) Complexity: the logarithm
        of the MACs.

        Raises:
            SupernetError: the model does not run on noise of this shape, or a block's features
                have no channels.
        """
        # Not from the global state: what is drawn here changes nothing that is drawn elsewhere.
        with torch.random.fork_rng(devices=[]):
            figures = [self._drawn(network, draw) for draw in range(DRAWS)]
        return np.asarray(np.mean(figures, axis=0), np.float64)

    def _drawn(self, network: Indices, draw: int) -> tuple[float, float]:
        torch.manual_seed(self.seed + draw)
        model = initialised(self.supernet.derive(network).cpu())
        with foreign(SupernetError, "the model fails on noise in place of data", kind=True):
            macs, growth = self._macs(model.eval()), sorted(self._growth(model.train()))
        return float(np.mean(growth[: -(-len(growth) // 2)])), math.log1p(macs)

    @torch.no_grad()
    def _macs(self, model: nn.Module) -> int:
        """Of one input."""
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *self.shape))
        return int(counter.get_total_flops()) // 2

    @torch.no_grad()
    def _growth(self, model: nn.Module) -> list[float]:
        """Of every block, by how much the spectral entropy grows in it."""
        with _compared(model, self.blocks) as growth:
            model(torch.randn(BATCH, *self.shape))
        return growth


def blocks_of(supernet: Supernet) -> list[str]:
    """The module paths of the blocks that are searched, in order.

    Such a block is the part of a sequence that holds a position; outside of any, the position.
    """
    modules = dict(supernet.model.named_modules())

    def block(path: str) -> str:
        ends = [i for i, letter in enumerate(path) if letter == "."] + [len(path)]
        for before, end in zip([0, *ends], ends, strict=False):
            if isinstance(modules[path[:before]], nn.Sequential):
                return path[:end]
        return path

    return list(dict.fromkeys(map(block, supernet.paths.values())))


def initialised(model: nn.Module) -> nn.Module:
    """The model with new random weights: He's for convolutions and linear layers."""
    for module in model.modules():
        reset: Callable[[], Any] | None = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_normal_(module.weight)
    return model


def spectral_entropy(features: Tensor) -> float:
    """Of the normalised eigenvalues of the channels' covariance, in nats; 0 to ln(channels).

    features: [examples, channels, ...]; all places of all examples are samples.

    Raises:
        SupernetError: they have no channels.

    >>> spectral_entropy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # one direction
    0.0
    """
    if not isinstance(features, Tensor) or features.dim() < 2:
        raise SupernetError("a block's features are not a tensor of [examples, channels, ...]")
    samples = features.detach().double().transpose(0, 1).flatten(1)
    samples = samples - samples.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(samples @ samples.T).clamp_min(0.0)
    shares = values / values.sum().clamp_min(1e-300)
    return abs(float(torch.special.entr(shares).sum()))


@contextmanager
def _compared(model: nn.Module, paths: Sequence[str]) -> Iterator[list[float]]:
    """By how much the spectral entropy grows from what a block reads to what it returns."""
    seen: list[float] = []

    def compare(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(spectral_entropy(output) - spectral_entropy(inputs[0]))

    handles = [model.get_submodule(path).register_forward_hook(compare) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# --- together with a score ---


def beside(
    score: Callable[[Indices], Score],
    zero_cost: Callable[[Indices], Array],
    reference: Sequence[Indices],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Callable[[Indices], Score]:
    """The score and the zero-cost figures together, each of which counts the same.

    reference: random networks, by which opinions of different kinds become comparable: to the score
    is added the normal score of each figure among theirs, times the standard deviation of their
    scores (1 where these are all alike). progress: called with (networks done, all).

    A score that is not a number stays that.
    """
    scores: dict[Indices, Score] = {}
    figures: dict[Indices, Array] = {}
    distinct = list(dict.fromkeys(reference))
    for done, network in enumerate(distinct, start=1):
        scores[network], figures[network] = score(network), zero_cost(network)
        progress(done, len(distinct))
    laws = [_normal_scores(column) for column in np.array(list(figures.values())).T]

    def ranked(row: Array) -> float:
        return float(sum(np.interp(value, *law) for value, law in zip(row, laws, strict=True)))

    finite = [value for value, _ in scores.values() if math.isfinite(value)]
    unit = (float(np.std(finite)) if finite else 0.0) or 1.0

    def together(network: Indices) -> Score:
        if network not in scores:
            scores[network], figures[network] = score(network), zero_cost(network)
        (value, batches), more = scores[network], unit * ranked(figures[network])
        return value + more, tuple(batch + more for batch in batches)

    return together


def _normal_scores(values: Array) -> tuple[Array, Array]:
    """The distinct values in order, and of each the mean normal score of those that equal it."""
    distinct, ranks = np.unique(np.sort(values), return_inverse=True)
    normal = [NormalDist().inv_cdf((i + 0.5) / len(values)) for i in range(len(values))]
    return distinct, np.bincount(ranks, normal) / np.bincount(ranks)
