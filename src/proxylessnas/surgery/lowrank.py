"""Two thin layers in place of a wide dense one, by reduced-rank regression on what it makes.

Of all maps of one rank the nearest to a layer, in the mean over what it reads, is the layer
projected on the leading eigenvectors of its outputs' covariance (Izenman, 1975). A kernel in two or
more dimensions is split: the first layer has all of it but the last dimension, the second the last
one (Jaderberg et al., 2014). What the first one of full rank would make then stands for outputs.
The fit is linear in the weight, so that it goes with whatever channels other choices leave, and
with the refits of those. Where a layer reads fewer numbers than it makes, moments are taken of what
it reads: the eigenvectors wanted are those of the smaller side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from warnings import warn

import torch
from scipy.linalg import eigh  # leading eigenvectors alone
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from proxylessnas.errors import DataError, in_words
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.pretrained.candidates import rounded_width
from proxylessnas.surgery.finding import path_of
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.moments import Statistics, is_transposed, read_rows, statistics_of
from proxylessnas.surgery.narrow import Remaining, matched, precise, replace_tensor
from proxylessnas.surgery.proof import applicable
from proxylessnas.training.copying import copied

SHARES = {"rank 2/3": 2 / 3, "rank 1/2": 1 / 2, "rank 1/3": 1 / 3}  # of a layer's multiplications
WIDE = 24  # outputs, and numbers that each is made of
MOST = 4096  # of the smaller side, whose moments have eigenvectors within a minute
LARGE = 1024  # of a side, from which on single precision does: half the time
ROWS = 512  # of a batch that moments are taken of
# Of the weight's own directions beside those of the outputs: heads see fewer rows than numbers.
RIDGE = 1e-2


@dataclass(frozen=True, eq=False)
class Factors:
    """layer: its path. taps: of its kernel's last dimension, in the second layer; 1 where none are.

    basis: [out * taps, rank], orthonormal. mean: [out * taps], of what the layer makes with each
    tap, a part of its bias with it.
    """

    layer: str
    taps: int
    basis: Tensor
    mean: Tensor
    fitted: ClassVar = ("basis", "mean")

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def apply(self, network: nn.Module, remaining: Remaining) -> None:
        """Put two layers in the place of one. remaining: as `narrow` returns."""
        layer: Any = network.get_submodule(self.layer)
        weight = by_tap(precise(layer.weight), self.taps)
        basis, mean = self.basis.to(weight), self.mean.to(weight)
        rows = remaining.get((f"{self.layer}.weight", 0))
        inverse = basis.mT
        if rows is not None:
            rows = rows.repeat_interleave(self.taps)
            basis, mean = basis[rows][:, : int(rows.sum())], mean[rows]
            inverse = torch.linalg.pinv(basis)
        without = mean - bias_by_tap(layer, self.taps).to(weight)
        two: Any = factored(layer, basis.shape[1], self.taps)
        network.set_submodule(self.layer, two)
        into = (inverse @ weight.flatten(1)).view(-1, *weight.shape[1:])
        out = basis.view(-1, self.taps, basis.shape[1]).mT.reshape(two[1].weight.shape)
        shift = (mean - basis @ (inverse @ without)).view(-1, self.taps).sum(1)
        for name, tensor in (("0.weight", into), ("1.weight", out), ("1.bias", shift)):
            replace_tensor(network, f"{self.layer}.{name}", tensor)
        matched(two[0])

    def attributes(self, model: nn.Module) -> dict[str, int]:
        """Other numbers than the tensors tell."""
        return {}


def bias_by_tap(layer: Any, taps: int) -> Tensor:
    """Of what the layer makes with each tap, [out * taps]."""
    if layer.bias is None:
        return torch.zeros(len(layer.weight) * taps)
    return precise(layer.bias).repeat_interleave(taps) / taps


def by_tap(weight: Tensor, taps: int) -> Tensor:
    """The weight of the first layer at full rank, [out * taps, in, *kernel]."""
    return weight if taps == 1 else weight.movedim(-1, 1).flatten(0, 1).unsqueeze(-1)


def factored(layer: Any, rank: int, taps: int) -> nn.Sequential:
    """A layer of so many outputs without a bias, and one that makes of them as many as before.

    taps: see `Factors`. The first layer's weight is still to be set.
    """
    like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    sides, out = tuple(layer.weight.shape[2:]), len(layer.weight)
    kind: Any = _CONVOLUTIONS[len(sides)] if sides else nn.Linear
    with torch.random.fork_rng(devices=[]):
        if taps == 1:
            first = copied(layer)
            first._parameters["bias"] = None
            second = kind(rank, out, *([1] if sides else []), **like)
        else:
            begin, end = _split(layer)
            first = kind(layer.in_channels, rank, bias=False, **begin, **like)
            second = kind(rank, out, **end, **like)
    return nn.Sequential(first, second).train(layer.training)


def _split(layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a convolution moves by: in all dimensions but the last, and in the last one."""
    begin: dict[str, Any] = {"padding_mode": layer.padding_mode}
    end = dict(begin)
    for name, still in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        sides = getattr(layer, name)
        if isinstance(sides, str):
            begin[name] = end[name] = sides
        else:
            begin[name] = (*sides[:-1], still)
            end[name] = (*[still] * (len(sides) - 1), sides[-1])
    return begin, end


_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by their dimensions


def wide_layers(
    model: nn.Module, graph: Graph, inputs: tuple[Any, ...], wanted: Callable[[str], bool]
) -> list[str]:
    """Paths of layers that can be of low rank; that two of full rank are the layer is tried.

    A model of half precision is tried in single precision; where it does not run so, it is warned.
    """
    weights: dict[str, Any] = {path_of(graph, layer): layer.args[1] for layer in graph.layers}
    layers: dict[str, Any] = {
        path: model.get_submodule(path)
        for path, weight in weights.items()
        if wanted(path) and graph.weight(weight) and not graph.is_shared(weight)
    }
    wide = {path: blank(x, path) for path, x in layers.items() if any(_ranks(x).values())}
    if all(precise(p).dtype == p.dtype for p in model.parameters()):
        run = applicable(model, wide, inputs, exact=True)
    else:
        single = tree_map_only(Tensor, lambda t: precise(t) if t.is_floating_point() else t, inputs)
        try:
            run = applicable(copied(model).float(), wide, single, exact=True)
        except Exception as error:  # whatever the model's own code raises
            warn(
                "no low ranks, which are tried in single precision: there the model fails "
                f"({in_words(error)})",
                stacklevel=2,
            )
            return []
    return [path for path in wide if path in run]


def taps_of(layer: Any) -> int:
    """The numbers of a kernel's last dimension, where the second layer takes it over."""
    return layer.kernel_size[-1] if type(layer) in (nn.Conv2d, nn.Conv3d) else 1


def blank(layer: Any, path: str, rank: int | None = None) -> Factors:
    """What is as large as the fitted one; of full rank, without one given, the layer itself."""
    taps = taps_of(layer)
    weight = by_tap(precise(layer.weight), taps).flatten(1)
    (out, into), mean = weight.shape, bias_by_tap(layer, taps)
    if rank is None and into < out:
        return Factors(path, taps, torch.linalg.qr(weight).Q, mean)
    return Factors(path, taps, torch.eye(out, rank or out), mean)


def blank_factors(model: nn.Module, paths: Iterable[str]) -> dict[str, dict[str, Factors]]:
    """By the share of the layer's multiplications and the path; without what a fit tells."""
    layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    ranks = {path: _ranks(layer) for path, layer in layers.items()}
    return {
        level: {p: blank(layers[p], p, every[level]) for p, every in ranks.items() if every[level]}
        for level in SHARES
    }


def too_large(layer: Any) -> str:
    """The size of a layer, in words, where the eigenvectors of neither side are had in time."""
    out, into = _sides(layer)
    return f"{into}x{out} is too large" if min(out, into) > MOST else ""


def _sides(layer: Any) -> tuple[int, int]:
    """What a wide dense layer makes, with each tap, and reads for that; zeros of other layers."""
    dense = isinstance(layer, nn.Linear | Convolution) and not is_transposed(layer)
    if not dense or getattr(layer, "groups", 1) > 1:
        return 0, 0
    taps, out = taps_of(layer), len(layer.weight)
    into = layer.weight[0].numel() // taps
    return (out * taps, into) if min(out, into) >= WIDE else (0, 0)


def _ranks(layer: Any) -> dict[str, int]:
    """The ranks with about these shares of the layer's multiplications; 0 where there is none."""
    out, into = _sides(layer)
    if not out or too_large(layer):
        return dict.fromkeys(SHARES, 0)
    full = out * into / (out + into)  # of as many multiplications as the layer
    ranks = {k: rounded_width(share * full, min(out, into)) for k, share in SHARES.items()}
    return {k: rank if rank < full else 0 for k, rank in ranks.items()}


@torch.no_grad()
def fitted_factors(
    model: nn.Module, blanks: Mapping[str, Mapping[str, Factors]], batches: Iterable[Any]
) -> dict[str, dict[str, Factors]]:
    """The factors fitted to what their layers make of these batches.

    Raises:
        DataError: that is not all finite.
    """
    most: dict[str, int] = {}
    for path, factors in (item for level in blanks.values() for item in level.items()):
        most[path] = max(most.get(path, 0), factors.rank)
    layers = {path: _First(model.get_submodule(path)) for path in most}
    sums = statistics_of(model, {path: first.rows for path, first in layers.items()}, batches)
    bases = {path: layers[path].basis(rank, *sums.pop(path)) for path, rank in most.items()}
    return {
        level: {
            path: replace(f, basis=bases[path][0][:, : f.rank], mean=bases[path][1])
            for path, f in factors.items()
        }
        for level, factors in blanks.items()
    }


class _First:
    """The first of two layers at full rank, as a matrix. weight: [out * taps, inputs]."""

    def __init__(self, layer: Any) -> None:
        taps = taps_of(layer)
        self.layer: Any = factored(layer, len(layer.weight) * taps, taps)[0]
        self.layer.weight = nn.Parameter(by_tap(layer.weight, taps), requires_grad=False)
        self.weight = precise(self.layer.weight).flatten(1)
        self.bias = bias_by_tap(layer, taps)
        self.reads_fewer = self.weight.shape[1] < len(self.weight)

    def rows(self, x: Tensor) -> Statistics:
        """Of what it reads or makes, whichever is fewer; at some of the places, at random."""
        rows = read_rows(self.layer, x.to(self.weight), ROWS, torch.Generator().manual_seed(0))
        if not self.reads_fewer:
            rows = rows @ self.weight.T + self.bias
        return len(rows), rows.double().sum(0), (rows.T @ rows).double()

    def basis(
        self, rank: int, count: int, total: Tensor, products: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The directions in which the outputs vary most, those first; and the outputs' mean."""
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        if not bool(covariance.isfinite().all()):
            raise DataError("what layers make of the training batches is not all finite numbers")
        weight, variance = self.weight.double(), covariance.diagonal()
        if not self.reads_fewer:
            ridge = RIDGE * float(variance.sum() / weight.square().sum().clamp_min(1e-30))
            return leading(covariance + ridge * weight @ weight.T, rank).float(), mean.float()
        covariance.diagonal().add_(RIDGE * variance.mean())
        # Of W Σ Wᵀ = Q (R Σ Rᵀ) Qᵀ, with orthonormal Q, the eigenvectors are Q times the middle's.
        q, r = torch.linalg.qr(self.weight if max(weight.shape) > LARGE else weight)
        vectors = leading(r.double() @ covariance @ r.double().T, rank)
        return (q @ vectors.to(q)).float(), (weight @ mean + self.bias).float()


def leading(covariance: Tensor, rank: int) -> Tensor:
    """So many eigenvectors, those of the largest eigenvalues first, [size, rank]."""
    size = len(covariance)
    moments = (covariance.float() if size > LARGE else covariance).numpy()
    vectors = eigh(moments, subset_by_index=[max(0, size - rank), size - 1], overwrite_a=True)[1]
    return torch.from_numpy(vectors).flip(1)
