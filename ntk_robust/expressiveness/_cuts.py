"""Constraints that a fit has generated so far, with the Gram matrix of their points."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ntk_robust.expressiveness._expansion import cross_gram
from ntk_robust.kernels import AbstractKernel


class Cuts(NamedTuple):
    r"""Constraints $\sigma_j h(x_j) ≥ b_j$, up to the $t$ of their set.

    Attributes:
        points: $x_j$.
        signs: $\sigma_j = ±1$.
        offsets: $b_j$.
        sets: The set that $x_j$ belongs to.
        gram: $K_{jk}$ of the points, symmetric.
    """

    points: Float[np.ndarray, "n d"]
    signs: Float[np.ndarray, " n"]
    offsets: Float[np.ndarray, " n"]
    sets: Int[np.ndarray, " n"]
    gram: Float[np.ndarray, "n n"]

    @property
    def matrix(self) -> Float[np.ndarray, "n n"]:
        """Q, the Gram matrix with the signs."""
        return self.signs[:, None] * self.gram * self.signs[None, :]

    def kept(self, which: Int[np.ndarray, " k"]) -> "Cuts":
        """Some of them."""
        return Cuts(
            self.points[which],
            self.signs[which],
            self.offsets[which],
            self.sets[which],
            self.gram[np.ix_(which, which)],
        )


def make_cuts(
    kernel: AbstractKernel,
    points: Float[np.ndarray, "n d"],
    signs: Float[np.ndarray, " n"],
    offsets: Float[np.ndarray, " n"],
    sets: Int[np.ndarray, " n"],
) -> Cuts:
    """Constraints with a Gram matrix computed for them."""
    gram = cross_gram(kernel, points, points)
    return Cuts(points, signs, offsets, sets, (gram + gram.T) / 2)


def extended(kernel: AbstractKernel, cuts: Cuts, new: Cuts) -> Cuts:
    """Both; only the new rows of the Gram matrix are computed (`new.gram` is that of the new points)."""
    across = cross_gram(kernel, new.points, cuts.points)
    gram = np.block([[cuts.gram, across.T], [across, new.gram]])
    return Cuts(
        np.concatenate([cuts.points, new.points]),
        np.concatenate([cuts.signs, new.signs]),
        np.concatenate([cuts.offsets, new.offsets]),
        np.concatenate([cuts.sets, new.sets]),
        gram,
    )
