"""What networks are worth before any training (zero-cost proxies), beside what shared weights say.

Shared weights are weights of the first epochs: what learns fast (a pooling, a shortcut, one wide
layer in place of two) is scored too high by them, and what many more epochs would make of a network
is not seen. Figures of a network at its random initialisation err otherwise. How much each is
worth, and all together, was measured on the two tables whose every answer is known (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import SupernetError, foreign
from proxylessnas.selection.explore import Score
from proxylessnas.selection.predictor import Array

BATCH = 16  # examples of noise
# Of the initialisation and the noise, whose mean is taken: of many networks the one of the highest
# figure is also one that was lucky in its draws.
DRAWS = 6
QUARTILES = 2 * NormalDist().inv_cdf(0.75)  # standard deviations from one quartile to the other
Law = tuple[Array, Array]  # values in order, and what each counts


class ZeroCost:
    """Figures of untrained networks of a supernet.

    example: an input, of [examples, channels, ...] real numbers; its values do not matter. macs: of
    a network. seed: of weights and noise, the same for all networks.
    """

    def __init__(
        self, supernet: Supernet, example: Tensor, macs: Callable[[Indices], float], seed: int = 0
    ) -> None:
        self.supernet, self.example, self.macs, self.seed = supernet, example, macs, seed
        self.blocks = blocks_of(supernet)

    def __call__(self, network: Indices) -> Array:
        """[progressivity, complexity], of which more is better: two of the four of AZ-NAS.

        Progressivity: by how much the features' `spectral_entropy` grows in a block that is
        searched, for `natural_noise`; the mean of the lower half of the blocks. (Lee and Ham, CVPR
        2024, take white noise and the least growth, which is that of one block, and noisy.) It is
        NaN where features are not finite. Complexity: the logarithm of the MACs.

        Raises:
            SupernetError: the model does not run on noise of this shape, a block's features have no
                channels, or no block that is searched is called.
        """
        model = self.supernet.derive(network).cpu().train()
        growth = np.array([self._growth(model, draw) for draw in range(DRAWS)])
        lower = np.sort(growth)[:, : -(-growth.shape[1] // 2)]
        progressivity = lower.mean() if np.isfinite(growth).all() else math.nan
        return np.array([progressivity, math.log1p(self.macs(network))], np.float64)

    @torch.no_grad()
    def _growth(self, model: nn.Module, draw: int) -> list[float]:
        """Of every block that is called, by how much the spectral entropy grows in it.

        model: a network, whose weights are drawn anew.
        """
        # The state of the CPU's generator alone, where all is drawn: no other draw changes.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed + draw)
        try:
            with foreign(SupernetError, "the model fails on noise in place of data", kind=True):
                reinitialise(model)
                noise = natural_noise((BATCH, *self.example.shape[1:]))
                with _compared(model, self.blocks) as growth:
                    model(noise.to(self.example.dtype))
        finally:
            torch.set_rng_state(state)
        if not growth:
            raise SupernetError("the forward pass calls none of the blocks that are searched")
        return growth


def blocks_of(supernet: Supernet) -> list[str]:
    """The module paths of the blocks that are searched, in order.

    A block is the part of the innermost `nn.Sequential` around a position that holds it; outside of
    any it is the position.
    """
    modules = dict(supernet.model.named_modules())

    def block(path: str) -> str:
        ends = [i for i, letter in enumerate(path) if letter == "."] + [len(path)]
        starts = ["", *(path[:end] for end in ends[:-1])]
        pairs = zip(reversed(starts), reversed(ends), strict=True)
        return next((path[:e] for s, e in pairs if isinstance(modules[s], nn.Sequential)), path)

    return list(dict.fromkeys(map(block, supernet.paths.values())))


def natural_noise(shape: Sequence[int]) -> Tensor:
    """Noise as rough as images are: amplitudes fall with the frequency f as 1/f (Field, 1987).

    shape: [examples, channels, height, width]; each channel of an example has mean 0 and variance
    1. White noise for other shapes. In white noise a pixel says nothing of its neighbours, so a
    kernel that sees them gains nothing.

    >>> natural_noise((2, 3, 8, 8)).var((2, 3), correction=0).allclose(torch.ones(2, 3))
    True
    """
    noise = torch.randn(*shape, dtype=torch.float32)
    if len(shape) != 4 or math.prod(shape[2:]) <= 2:
        return noise
    rows, columns = map(torch.fft.fftfreq, shape[2:])
    frequency = torch.hypot(rows[:, None], columns)
    frequency[0, 0] = math.inf  # no mean
    rough: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    return rough / rough.std((2, 3), correction=0, keepdim=True)


def reinitialise(model: nn.Module) -> None:
    """Give the model new random weights: He's for convolutions and linear layers.

    Frozen weights stay, and so do parameters of modules that cannot reset them (positions, scales
    of layers), with the values that they have in the supernet.
    """
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            continue
        for name in ("reset_parameters", "_reset_parameters"):
            reset = getattr(module, name, None)
            if callable(reset):
                reset()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_normal_(module.weight)


def spectral_entropy(features: Any) -> float:
    """Of the normalised eigenvalues of the channels' covariance, in nats; 0 to ln(channels).

    features: [examples, channels, ...]; all places of all examples are samples. NaN where they are
    not finite.

    Raises:
        SupernetError: they have no channels.

    >>> spectral_entropy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # one direction
    0.0
    """
    if not isinstance(features, Tensor) or features.dim() < 2:
        raise SupernetError("a block's features are not a tensor of [examples, channels, ...]")
    samples = features.detach().double().transpose(0, 1).flatten(1)
    samples = samples - samples.mean(1, keepdim=True)
    covariance = samples @ samples.T
    if not covariance.isfinite().all():
        return math.nan
    values = torch.linalg.eigvalsh(covariance).clamp_min(0.0)
    shares = values / values.sum().clamp_min(1e-300)
    return abs(float(torch.special.entr(shares).sum()))


@contextmanager
def _compared(model: nn.Module, paths: Sequence[str]) -> Iterator[list[float]]:
    """By how much the spectral entropy grows from what a block reads to what it returns."""
    read: list[float] = []
    growth: list[float] = []

    def before(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        # Before the block runs, which may write into what it reads.
        read.append(spectral_entropy(next(iter([*inputs, *named.values()]), None)))

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        growth.append(spectral_entropy(output) - read.pop())

    handles = []
    for block in _present(model, paths):
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
    try:
        yield growth
    finally:
        for handle in handles:
            handle.remove()


def _present(model: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """The modules of these paths, or what stands in place of them (a shortcut alone)."""
    modules, found = dict(model.named_modules(remove_duplicate=False)), {}
    for path in paths:
        while path not in modules:
            path = path.rpartition(".")[0]
        found[id(modules[path])] = modules[path]
    return list(found.values())


# --- together with a score ---


def random_networks(supernet: Supernet, count: int, seed: int) -> list[Indices]:
    """Uniform ones, as they run; in a small space some come twice."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [supernet.sample(generator, uniform=True) for _ in range(count)]
    return [supernet.as_it_runs(supernet.indices(architecture)) for architecture in drawn]


class Beside:
    """The score and the zero-cost figures together: a score as well.

    reference: random networks, by which opinions of different kinds become comparable: to the score
    is added the normal score of each figure among theirs, times the deviation of their scores (1
    where these are all alike). Beyond their least and greatest figure it goes on in a line.
    progress: called with (networks done, all of them).

    A score that is not a number stays that; where a figure is none, the score becomes NaN.
    """

    def __init__(
        self,
        score: Callable[[Indices], Score],
        zero_cost: Callable[[Indices], Array],
        reference: Sequence[Indices],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.score, self.zero_cost = score, zero_cost
        self.reference = list(dict.fromkeys(reference))
        self._known: dict[Indices, Score] = {}
        figures = []
        for done, network in enumerate(self.reference, start=1):
            self._known[network] = score(network)
            figures.append(zero_cost(network))
            progress(done, len(self.reference))
        self._laws = [_law(column) for column in np.array(figures).T]
        self._unit = _deviation([value for value, _ in self._known.values()]) or 1.0
        added = map(self._sum, figures)
        self._added: dict[Indices, float] = dict(zip(self.reference, added, strict=True))

    def __call__(self, network: Indices) -> Score:
        if network not in self._known:
            self._known[network] = self.score(network)
        (value, batches), more = self._known[network], self.added(network)
        return value + more, tuple(batch + more for batch in batches)

    def added(self, network: Indices) -> float:
        """What the figures add to a network's score."""
        if network not in self._added:
            self._added[network] = self._sum(self.zero_cost(network))
        return self._added[network]

    def _sum(self, figures: Array) -> float:
        rows = zip(self._laws, figures.tolist(), strict=True)
        return self._unit * sum(_counted(law, value) for law, value in rows)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation by the quartiles, so that a network that diverged does not matter."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0
    low, high = np.quantile(finite, [0.25, 0.75])
    return float(high - low) / QUARTILES


def _law(values: Array) -> Law:
    """The distinct values in order, and the mean normal score of those that are equal."""
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return np.zeros(1), np.zeros(1)
    distinct, ranks = np.unique(finite, return_inverse=True)
    normal = [NormalDist().inv_cdf((i + 0.5) / len(finite)) for i in range(len(finite))]
    return distinct, np.bincount(ranks, normal) / np.bincount(ranks)


def _counted(law: Law, value: float) -> float:
    """What a value counts by a law; beyond its ends by the line through its quartiles."""
    values, normal = law
    inside = float(np.interp(value, values, normal))
    beyond = value - float(np.clip(value, values[0], values[-1]))
    width = float(np.ptp(np.quantile(values, [0.25, 0.75])))
    return inside + beyond * (QUARTILES / width if width else 0.0)
