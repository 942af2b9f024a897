"""Which tiles a kernel matrix has, and one of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_robust.kernels._base import AbstractKernel

KernelFn = Callable[[Any, Any], Any]
KernelLike = AbstractKernel | KernelFn
_DEFAULT_TILE = 2048


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """The tiles of one matrix.

    Attributes:
        shape: Of the matrix.
        dtype: Of the matrix.
        symmetric: Whether only tiles on and above the diagonal are computed.
        tile: Rows and columns of a tile; those at the edges are cut.
        pairs: First row and column of each tile to compute, in this order.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    symmetric: bool
    tile: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def num_bytes(self) -> int:
        """Size of the matrix."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @staticmethod
    def of(kernel: KernelLike, x1: Any, x2: Any, tile: int | None) -> "TilePlan":
        """The plan for these arguments.

        Raises:
            ValueError: If `tile` is not positive or there are no examples.
        """
        columns = x1 if x2 is None else x2
        n1, n2 = x1.shape[0], columns.shape[0]
        if n1 == 0 or n2 == 0:
            raise ValueError(f"{n1} and {n2} examples make no kernel matrix; give at least one each")
        if tile is not None and tile < 1:
            raise ValueError(f"tile is {tile}; give a positive number of rows")
        tile = min(tile or _DEFAULT_TILE, max(n1, n2))
        row = jax.ShapeDtypeStruct((1, *x1.shape[1:]), jax.dtypes.canonicalize_dtype(x1.dtype))
        dtype = np.dtype(jax.eval_shape(lambda a, b: evaluate(kernel, a, b), row, row).dtype)
        pairs = tuple((i, j) for i in range(0, n1, tile) for j in range(0, n2, tile) if x2 is not None or j >= i)
        return TilePlan((n1, n2), dtype, x2 is None, tile, pairs)


def evaluate(kernel: KernelLike, rows: Array, columns: Array | None) -> Array:
    """The matrix of a kernel, or of a function (x1, x2 or None) → matrix."""
    return kernel.gram(rows, columns) if isinstance(kernel, AbstractKernel) else kernel(rows, columns)


def tile_values(kernel: KernelLike, x1: Any, x2: Any, plan: TilePlan, start: tuple[int, int]) -> np.ndarray:
    """The tile whose first row and column are `start`, cut at the edges.

    Short tiles are computed at full size with rows of zeros and cut, so that one program serves all and a tile has the
    same bits whenever it is computed.
    """
    i, j = start
    columns = x1 if x2 is None else x2
    height, width = min(plan.tile, plan.shape[0] - i), min(plan.tile, plan.shape[1] - j)
    rows = _padded(x1[i : i + height], plan.tile)
    other = None if plan.symmetric and i == j else _padded(columns[j : j + width], plan.tile)
    return np.asarray(_compiled(kernel, rows, other))[:height, :width]


def _padded(rows: Any, size: int) -> np.ndarray:
    rows = np.asarray(rows)
    return np.pad(rows, [(0, size - rows.shape[0])] + [(0, 0)] * (rows.ndim - 1))


@eqx.filter_jit
def _compiled(kernel: KernelLike, rows: Any, columns: Any) -> Array:
    return evaluate(kernel, jnp.asarray(rows), None if columns is None else jnp.asarray(columns))
