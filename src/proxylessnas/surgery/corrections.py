"""How far off a cost model is, by networks that were measured: a Gaussian process.

What a network takes, over what was predicted, is off by a share that all networks have in common,
by one that a device has only now, by shares of its layers, and by something of its own that
networks of much the same layers share with it. The mean of these beliefs goes through what was
measured, and is near no correction for networks that are unlike all of it (Rasmussen and Williams,
2006, eqs. 2.25 and 2.38).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Standard deviations, shares of a network's latency: what they are off by, and noise.
ALL, NOW, LAYERS, ALIKE, NOISE = 0.1, 0.3, 0.2, 0.06, 0.02
LEAST = 0.1  # of what a layer was believed to take, that is left of it


@dataclass(frozen=True, eq=False)
class Corrections:
    """Of a cost model.

    layers: [layers], factors; fixed: of what all networks have. parts: [networks, layers], shares
    of the layers in what was measured. pull: [networks], of what is alike them. near: the squared
    distance of parts that are alike.
    """

    layers: Array
    fixed: float
    parts: Array
    pull: Array
    near: float

    @staticmethod
    def told(parts: Array, off: Array, now: Array) -> Corrections:
        """off: [networks], what was measured over what was predicted, less 1. now: [networks], 1
        where that is of now, and 0 where it is of when the model was fitted.
        """
        apart = ((parts[:, None] - parts[None]) ** 2).sum(axis=-1)
        near = max(float(np.median(apart)), 1e-12)
        linear = np.column_stack([LAYERS * parts, np.full(len(parts), ALL), NOW * now])
        covariance = linear @ linear.T + ALIKE**2 * np.exp(-apart / near)
        pull = np.linalg.solve(covariance + NOISE**2 * np.eye(len(parts)), off)
        *layers, every, today = linear.T @ pull
        fixed = 1 + ALL * every + NOW * today
        return Corrections(
            layers=np.maximum(fixed + LAYERS * np.array(layers), LEAST),
            fixed=max(fixed, LEAST),
            parts=parts,
            pull=pull,
            near=near,
        )

    def alike(self, parts: Array) -> float:
        """The share that a network of these parts is off by, besides its layers."""
        apart = ((self.parts - parts) ** 2).sum(axis=-1)
        return float(ALIKE**2 * np.exp(-apart / self.near) @ self.pull)
