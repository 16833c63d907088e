"""Which channels a linear layer reads on, and the weights it then has: both in closed form.

A layer that reads channels is linear in them, so with their second moments over a few hundred
examples the best layer that reads some of them alone is the solution of a linear system. A channel
is one number of a row where a 1×1 convolution or a linear layer reads it, and several where a
kernel covers several pixels of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxylessnas.errors import DataError

# As a share of the mean second moment. Examples are few and activations correlated: without a ridge
# the fit would follow the noise of these examples.
RIDGE = 1e-3
COLUMNS_AT_ONCE = 256  # rank of an update of the whole inverse, which copies what remains of it


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Means and centred second moments of what a linear layer reads; float64.

    h: [inputs] of one row, `rows` numbers a channel, those of a channel side by side.
    gram: [inputs, inputs], E[(h - E h)(h - E h)ᵀ]. mean: [inputs], E h.
    weight: [inputs, out], the projection that the layer has, a normalisation behind it folded in.
    residual: [inputs, out], E[(h - E h)(t - Wᵀh)ᵀ] with the output t as the target: what that
        projection leaves unexplained. Zero where h are the layer's own inputs.
    target: [out], E t.
    """

    gram: Tensor
    mean: Tensor
    weight: Tensor
    residual: Tensor
    target: Tensor
    rows: int = 1

    @property
    def channels(self) -> int:
        return len(self.gram) // self.rows

    @property
    def cross(self) -> Tensor:
        """E[(h - E h)(t - E t)ᵀ], [inputs, out]."""
        # Through the residual: without one, the fit of all channels is the layer itself, exactly.
        return self.gram @ self.weight + self.residual

    @property
    def variance(self) -> float:
        """Of what the projection makes of h, summed over the outputs."""
        return float((self.weight * (self.gram @ self.weight)).sum())

    def ridge(self, share: float) -> float:
        """A share of the mean second moment, so that the scale of activations does not matter."""
        return share * float(self.gram.diagonal().mean())

    def inputs_of(self, channels: Tensor) -> Tensor:
        """The inputs that these channels own."""
        return rows_of(channels, self.rows)


def rows_of(channels: Tensor, rows: int) -> Tensor:
    """The indices that channels own where each owns so many, side by side.

    >>> rows_of(torch.tensor([0, 2]), 3).tolist()
    [0, 1, 2, 6, 7, 8]
    """
    return (channels[:, None] * rows + torch.arange(rows)).flatten()


def fit_projection(moments: Moments, channels: Tensor, ridge: float = RIDGE) -> Tensor:
    """The projection [inputs of these channels, out] that comes nearest to the target.

    argmin over W of E|t - Wᵀh|² + λ|W - W₀|², both centred, where W₀ is the layer's own projection
    and λ the share `ridge` of the mean second moment.
    """
    inputs = moments.inputs_of(channels)
    # Products of these rows alone: the whole `cross` would cost as much as the solution.
    rows = moments.gram[inputs]
    factor, weight = _factored(rows[:, inputs], moments, ridge)
    cross = rows @ moments.weight + moments.residual[inputs]
    return torch.cholesky_solve(cross + weight * moments.weight[inputs], factor)


def elimination_order(
    readers: Moments | Sequence[Moments], keep: int, ridge: float = RIDGE
) -> Tensor:
    """Channels, the most needed first; the first n are those of the candidate of width n.

    readers: of the layer that reads the channels, or of several that do; what each loses then
    counts as a share of its output's variance.
    keep: the width at which elimination ends; the first `keep` channels stand as they were.
    """
    several = [readers] if isinstance(readers, Moments) else list(readers)
    eliminations = [_Elimination(moments, ridge) for moments in several]
    weights = [1.0] if len(several) == 1 else [1 / max(m.variance, 1e-300) for m in several]
    remaining, removed = torch.ones(several[0].channels, dtype=torch.bool), []
    for _ in range(len(remaining) - keep):
        costs = sum(
            (w * each.costs() for w, each in zip(weights, eliminations, strict=True)),
            start=torch.zeros((), dtype=torch.float64),
        )
        j = int(costs.masked_fill(~remaining, torch.inf).argmin())
        for each in eliminations:
            each.remove(j)
        remaining[j] = False
        removed.append(j)
    last = torch.tensor(removed[::-1], dtype=torch.long)
    return torch.cat((remaining.nonzero()[:, 0], last))


class _Elimination:
    """One reader while channels are removed.

    With A the ridged Gram matrix, P its inverse and W the fit, removing channel j with its rows J
    and refitting the others costs tr(W_Jᵀ P_JJ⁻¹ W_J) (Hassibi and Stork, 1993), leaves the fit
    W - P_:J P_JJ⁻¹ W_J and the inverse P - P_:J P_JJ⁻¹ P_J:, an update of as low a rank.

    left: of every channel its place in the tensors, which lose those that are removed now and then.
    """

    def __init__(self, moments: Moments, ridge: float) -> None:
        size = len(moments.gram)
        self.channels, self.rows = moments.channels, moments.rows
        self.inverse, weight = _inverse(moments, ridge)
        self.fit = self.inverse @ (moments.cross + weight * moments.weight)
        rows_by_channel = torch.arange(size).view(self.channels, self.rows)
        self.blocks = self.inverse[rows_by_channel[:, :, None], rows_by_channel[:, None, :]]
        self.left, self.gone = torch.arange(self.channels), torch.zeros(size, dtype=torch.bool)
        # Updating the whole inverse at each step is bound by memory. So updates are kept as
        # columns, columns of the inverse are made current when they are needed, and all of them
        # enter the inverse in one product of matrices.
        self.pending = torch.zeros(size, 0, dtype=torch.float64)

    def costs(self) -> Tensor:
        """What removing each channel costs, [channels]; of those that are removed, anything."""
        return _removal_costs(self.fit, self.blocks)[self.left]

    def remove(self, j: int) -> None:
        if self.pending.shape[1] >= COLUMNS_AT_ONCE:
            self._catch_up()
        place = int(self.left[j])
        rows = torch.arange(self.rows) + place * self.rows
        columns = self.inverse[:, rows] - self.pending @ self.pending[rows].T
        columns = columns.masked_fill(self.gone[:, None], 0.0)
        # With P_JJ = L Lᵀ and U = P_:J L⁻ᵀ, the inverse loses U Uᵀ and the fit U L⁻¹ W_J.
        factor = torch.linalg.cholesky(columns[rows])
        update = torch.linalg.solve_triangular(factor, columns.T, upper=False).T
        lost = torch.linalg.solve_triangular(factor, self.fit[rows], upper=False)
        self.fit.addmm_(update, lost, alpha=-1)
        by_channel = update.reshape(-1, self.rows, self.rows)
        self.blocks -= by_channel @ by_channel.mT
        self.pending = torch.cat((self.pending, update), 1)
        self.gone[rows] = True
        self.fit[rows] = 0.0
        self.blocks[place] = torch.eye(self.rows, dtype=torch.float64)

    def _catch_up(self) -> None:
        """Let all updates enter the inverse, without the channels that are gone."""
        stay = ~self.gone
        pending = self.pending[stay]
        self.inverse = self.inverse[stay][:, stay].addmm_(pending, pending.T, alpha=-1)
        self.pending, self.fit = pending[:, :0], self.fit[stay]
        remain = stay.view(-1, self.rows)[:, 0]
        self.blocks, self.gone = self.blocks[remain], self.gone[stay]
        self.left = (remain.cumsum(0) - 1).clamp_min(0)[self.left]


def _inverse(moments: Moments, ridge: float) -> tuple[Tensor, float]:
    """The inverse of the ridged Gram matrix, and the ridge; see `_factored`."""
    factor, weight = _factored(moments.gram, moments, ridge)
    return torch.cholesky_inverse(factor), weight


def _factored(gram: Tensor, moments: Moments, ridge: float) -> tuple[Tensor, float]:
    """The Cholesky factor of some rows and columns of the ridged Gram matrix, and the ridge.

    Where activations vary by less than sums of float32 are exact to, the matrix may have negative
    eigenvalues, and of a layer that is dead it is zero: the ridge then grows until it has none.

    Raises:
        DataError: there are activations that are no numbers.
    """
    if not bool(gram.isfinite().all()):
        raise DataError("the activations that channels are chosen on are not all finite numbers")
    weight, identity = moments.ridge(ridge), torch.eye(len(gram), dtype=torch.float64)
    while True:
        factor, info = torch.linalg.cholesky_ex(gram + weight * identity)
        if not int(info):
            return factor, weight
        weight = 10 * max(weight, moments.ridge(1e-9), 1e-30)


def _removal_costs(fit: Tensor, blocks: Tensor) -> Tensor:
    """tr(W_Jᵀ P_JJ⁻¹ W_J) of every channel. blocks: its P_JJ, [channels, rows, rows]."""
    channels, rows, _ = blocks.shape
    if rows == 1:
        return fit.square().sum(1) / blocks[:, 0, 0].clamp_min(1e-300)
    weights = fit.view(channels, rows, -1)
    # tr(P⁻¹ W Wᵀ): systems of as many right sides as a channel has rows, not as there are outputs.
    solved = torch.linalg.solve(blocks, weights @ weights.mT)
    costs: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1)
    return costs
