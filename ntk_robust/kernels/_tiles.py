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
    tile: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]

    @property
    def num_bytes(self) -> int:
        """Size of the matrix."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def tile_bytes(self) -> int:
        """Size of a tile."""
        return self.tile[0] * self.tile[1] * self.dtype.itemsize

    def cut(self, start: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the tile that starts here."""
        (i, j), (height, width) = start, self.tile
        return slice(i, min(i + height, self.shape[0])), slice(j, min(j + width, self.shape[1]))

    @staticmethod
    def of(kernel: KernelLike, x1: Any, x2: Any, tile: tuple[int, int]) -> "TilePlan":
        """The plan for these arguments with tiles of this size, or of that of the matrix where it is smaller.

        Raises:
            ValueError: If `tile` is not positive or there are no examples.
        """
        columns = x1 if x2 is None else x2
        n1, n2 = x1.shape[0], columns.shape[0]
        if n1 == 0 or n2 == 0:
            raise ValueError(f"{n1} and {n2} examples make no kernel matrix; give at least one each")
        if min(tile) < 1:
            raise ValueError(f"tile is {min(tile)}; give a positive number of rows")
        height, width = min(tile[0], n1), min(tile[1], n2)
        row = jax.ShapeDtypeStruct((1, *x1.shape[1:]), jax.dtypes.canonicalize_dtype(x1.dtype))
        dtype = np.dtype(jax.eval_shape(lambda a, b: evaluate(kernel, a, b), row, row).dtype)
        starts = ((i, j) for i in range(0, n1, height) for j in range(0, n2, width))
        return TilePlan(
            (n1, n2), dtype, x2 is None, (height, width), tuple((i, j) for i, j in starts if x2 is not None or j >= i)
        )


def balanced(size: int, largest: int) -> int:
    """Rows of the fewest equal tiles of at most about `largest` rows, so that the last one is not mostly padding."""
    rows = -(-size // -(-size // largest))
    return min(size, -(-rows // 16) * 16)


def evaluate(kernel: KernelLike, rows: Array, columns: Array | None) -> Array:
    """The matrix of a kernel, or of a function (x1, x2 or None) → matrix."""
    return kernel.gram(rows, columns) if isinstance(kernel, AbstractKernel) else kernel(rows, columns)


def tile_values(kernel: KernelLike, x1: Any, x2: Any, plan: TilePlan, start: tuple[int, int]) -> np.ndarray:
    """The tile whose first row and column are `start`, cut at the edges, in host memory."""
    rows, columns = plan.cut(start)
    whole = padded_tile(kernel, x1, x2, plan, start)
    return np.asarray(whole)[: rows.stop - rows.start, : columns.stop - columns.start]


def padded_tile(kernel: KernelLike, x1: Any, x2: Any, plan: TilePlan, start: tuple[int, int]) -> Array:
    """The tile on the device, at full size: rows of zeros stand for those beyond the edge.

    So one program serves all tiles, and a tile has the same bits whenever it is computed.
    """
    i, j = start
    rows = padded(x1, i, plan.tile[0])
    other = None if plan.symmetric and i == j else padded(x1 if x2 is None else x2, j, plan.tile[1])
    return _compiled(kernel, rows, other)


def program_bytes(kernel: KernelLike, x: Any, plan: TilePlan) -> int:
    """Memory of the device while one tile is computed: arguments, temporaries and result, as the compiler plans them.

    The compiled program is kept and serves the tiles.
    """
    # 1e-3 and not 0: some kernels refuse nothing, but a row of zeros is a special case
    rows, columns = (np.full((size, *x.shape[1:]), 1e-3, x.dtype) for size in plan.tile)
    starts_on_diagonal = [plan.symmetric and i == j for i, j in plan.pairs]
    needed = 0
    for diagonal in set(starts_on_diagonal):
        compiled: Any = _compiled
        lowered = compiled.lower(kernel, rows, None if diagonal else columns)
        stats = lowered.compile().compiled.memory_analysis()
        if stats is None:  # backends need not say
            needed = max(needed, 8 * plan.tile_bytes + rows.nbytes + columns.nbytes)
        else:
            parts = (stats.argument_size_in_bytes, stats.temp_size_in_bytes, stats.output_size_in_bytes)
            needed = max(needed, sum(parts))
    return needed


def padded(x: Any, start: int, size: int) -> np.ndarray:
    """`size` rows from `start` on, with zeros beyond the end."""
    rows = np.asarray(x[start : start + size])
    return np.pad(rows, [(0, size - rows.shape[0])] + [(0, 0)] * (rows.ndim - 1)) if len(rows) < size else rows


@eqx.filter_jit
def _compiled(kernel: KernelLike, rows: Any, columns: Any) -> Array:
    return evaluate(kernel, jnp.asarray(rows), None if columns is None else jnp.asarray(columns))
