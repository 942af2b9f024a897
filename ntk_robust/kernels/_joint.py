"""The NTK and the NNGP kernel of a network from one pass."""

from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from ntk_robust.kernels._analytic import analytic_nngp, analytic_ntk
from ntk_robust.kernels._checks import check_points
from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._dot_product import AbstractDotProductKernel, matrix_of_pairs
from ntk_robust.kernels._pairs import Pair, coincident_pairs, rows
from ntk_robust.kernels._room import check_matrix_room
from ntk_robust.models import AbstractModel


class NtkAndNngp(NamedTuple):
    """Values of both kernels.

    Attributes:
        ntk: Of the NTK.
        nngp: Of the NNGP kernel.
    """

    ntk: Float[Array, "..."]
    nngp: Float[Array, "..."]


class JointKernel(eqx.Module):
    """Both kernels of one network: one matrix product, and one recursion, for the two of them.

    Attributes:
        ntk: The NTK.
        nngp: The NNGP kernel.
    """

    ntk: AbstractDotProductKernel
    nngp: AbstractDotProductKernel

    def placed(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """As for the kernels, which are of one network."""
        return self.ntk.placed(x)

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> NtkAndNngp:
        """Both kernels of one pair."""
        return NtkAndNngp(self.ntk(x, z), self.nngp(x, z))

    def gram(self, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None) -> NtkAndNngp:
        """Both kernels of all pairs of rows; without `x2` of `x1` with itself, exactly symmetric."""
        check_points(x1, x2, width=self.ntk.input_dim)
        check_matrix_room(x1, x2, 2)
        return matrix_of_pairs(self, x1, x2)

    @compiled
    def diagonal(self, x: Float[Array, "n d"]) -> NtkAndNngp:
        """Both kernels of each row with itself."""
        return self.of_pairs(coincident_pairs(rows(self.placed(x))))

    def of_pairs(self, pairs: Pair) -> NtkAndNngp:
        """Both kernels of pairs whose parts broadcast against each other."""
        if isinstance(self.ntk, DenseKernel) and isinstance(self.nngp, DenseKernel):
            return NtkAndNngp(*self.ntk.of_pairs_with(self.nngp, pairs))
        return NtkAndNngp(self.ntk.of_pairs(pairs), self.nngp.of_pairs(pairs))


def analytic_ntk_and_nngp(model: AbstractModel) -> JointKernel:
    """`analytic_ntk` and `analytic_nngp` of a fully connected network, computed together.

    Args:
        model: A `FullyConnected` or `DeepReluNet`.

    Returns:
        Both kernels; a matrix of both costs little more than one of them.

    Raises:
        ValueError: If no layer of `model` trains, or its output at initialization is exactly 0.
        TypeError: For other models.
    """
    ntk, nngp = analytic_ntk(model), analytic_nngp(model)
    if not (isinstance(ntk, AbstractDotProductKernel) and isinstance(nngp, AbstractDotProductKernel)):
        raise TypeError(
            f"the kernels of a {type(model).__name__} are not functions of norms and angles; call analytic_ntk and "
            "analytic_nngp"
        )
    return JointKernel(ntk, nngp)
