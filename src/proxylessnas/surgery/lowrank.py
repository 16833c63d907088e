"""Two thin layers in place of a wide dense one, by reduced-rank regression on what it makes.

Of all maps of one rank the nearest to a layer, in the mean over what it reads, is the layer
projected on the leading eigenvectors of its outputs' covariance (Izenman, 1975). A kernel in two or
more dimensions is split: the first layer has all of it but the last dimension, the second the last
one (Jaderberg et al., 2014). What the first one of full rank would make then stands for outputs.
The fit is linear in the weight, so that it goes with whatever channels other choices leave, and
with the refits of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.errors import DataError
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.pretrained.candidates import rounded_width
from proxylessnas.surgery.finding import path_of
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.moments import Statistics, is_transposed, statistics_of
from proxylessnas.surgery.narrow import Remaining, matched, replace_tensor
from proxylessnas.surgery.proof import applicable
from proxylessnas.training.copying import copied

SHARES = {"rank 2/3": 2 / 3, "rank 1/2": 1 / 2, "rank 1/3": 1 / 3}  # of a layer's multiplications
WIDE = 24  # outputs, and numbers that each is made of
MOST = 2048  # outputs with all taps, whose covariance has eigenvectors within seconds
ROWS = 2048  # of a batch that covariances are taken of


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
        weight = by_tap(layer.weight.detach(), self.taps)
        basis, mean = self.basis.to(weight), self.mean.to(weight)
        rows = remaining.get((f"{self.layer}.weight", 0))
        inverse = basis.mT
        if rows is not None:
            rows = rows.repeat_interleave(self.taps)
            basis, mean = basis[rows][:, : int(rows.sum())], mean[rows]
            inverse = torch.linalg.pinv(basis.float()).to(weight)
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        without = mean - bias.to(weight).repeat_interleave(self.taps) / self.taps
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
    """Paths of layers that can be of low rank; that two of full rank are the layer is tried."""
    weights: dict[str, Any] = {path_of(graph, layer): layer.args[1] for layer in graph.layers}
    layers: dict[str, Any] = {
        path: model.get_submodule(path)
        for path, weight in weights.items()
        if wanted(path) and graph.weight(weight) and not graph.is_shared(weight)
    }
    wide = {path: blank(x, path) for path, x in layers.items() if any(_ranks(x).values())}
    run = applicable(model, wide, inputs, exact=True)
    return [path for path in wide if path in run]


def taps_of(layer: Any) -> int:
    """The numbers of a kernel's last dimension, where the second layer takes it over."""
    return layer.kernel_size[-1] if type(layer) in (nn.Conv2d, nn.Conv3d) else 1


def blank(layer: Any, path: str, rank: int | None = None) -> Factors:
    """What is as large as the fitted one; of full rank, without one given, the layer itself."""
    taps = taps_of(layer)
    out = taps * len(layer.weight)
    return Factors(path, taps, torch.eye(out)[:, :rank], torch.zeros(out))


def blank_factors(model: nn.Module, paths: Iterable[str]) -> dict[str, dict[str, Factors]]:
    """By the share of the layer's multiplications and the path; without what a fit tells."""
    layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    ranks = {path: _ranks(layer) for path, layer in layers.items()}
    return {
        level: {p: blank(layers[p], p, every[level]) for p, every in ranks.items() if every[level]}
        for level in SHARES
    }


def _ranks(layer: Any) -> dict[str, int]:
    """The ranks with about these shares of the layer's multiplications; 0 where there is none."""
    none = dict.fromkeys(SHARES, 0)
    if not isinstance(layer, nn.Linear | Convolution) or is_transposed(layer):
        return none
    out, into = taps_of(layer) * len(layer.weight), layer.weight[0].numel() // taps_of(layer)
    narrow = min(len(layer.weight), into) < WIDE
    if getattr(layer, "groups", 1) > 1 or narrow or out > MOST:
        return none
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

    def made(layer: Any) -> Callable[[Tensor], Statistics]:
        taps, weight = taps_of(layer), layer.weight.detach()
        first: Any = factored(layer, taps * len(weight), taps)[0]
        first.weight = nn.Parameter(by_tap(weight, taps).contiguous(), requires_grad=False)
        bias = 0.0 if layer.bias is None else layer.bias.repeat_interleave(taps) / taps

        def of(x: Tensor) -> Statistics:
            z = rows_made(first, first(x)).float() + bias
            return len(z), z.double().sum(0), (z.T @ z).double()

        return of

    paths = dict.fromkeys(path for level in blanks.values() for path in level)
    readers = {path: made(model.get_submodule(path)) for path in paths}
    sums = statistics_of(model, readers, batches)
    bases = {path: _basis(*each) for path, each in sums.items()}
    return {
        level: {
            path: replace(f, basis=bases[path][0][:, : f.rank], mean=bases[path][1])
            for path, f in factors.items()
        }
        for level, factors in blanks.items()
    }


def rows_made(layer: Any, output: Tensor) -> Tensor:
    """What a layer makes, [rows, out]; some of the places, at random."""
    rows = output.movedim(1 - layer.weight.dim(), -1).reshape(-1, len(layer.weight))
    if len(rows) <= ROWS:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:ROWS]]


def _basis(count: int, total: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of the outputs, those in which they vary most first; and the outputs' mean."""
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    if not bool(covariance.isfinite().all()):
        raise DataError("what layers make of the training batches is not all finite numbers")
    vectors = torch.from_numpy(np.linalg.eigh(covariance.numpy())[1])  # torch's may give up
    return vectors.flip(1).float().contiguous(), mean.float()
