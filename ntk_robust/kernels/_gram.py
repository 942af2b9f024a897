"""Gram matrices in tiles, in host memory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust._core import SilentProgress
from ntk_robust.kernels._base import AbstractKernel

KernelFn = Callable[[Float[Array, "n1 *d"], Float[Array, "n2 *d"] | None], Float[Array, "n1 n2"]]


def gram(
    kernel: AbstractKernel | KernelFn,
    x1: Float[Array | np.ndarray, "n1 *d"],
    x2: Float[Array | np.ndarray, "n2 *d"] | None = None,
    *,
    tile: int = 2048,
    progress: Any = None,
) -> Float[np.ndarray, "n1 n2"]:
    """Kernel matrix in host memory, computed tile by tile; half of a symmetric one.

    All tiles of one kind have one shape (the last of each row and column starts earlier), so that two programs are
    compiled at most.

    Args:
        kernel: A kernel, or a function (x1, x2 or None) → matrix such as a closure over `empirical_ntk`.
        x1: Examples, one per row.
        x2: Examples; None for `x1` with itself, which gives an exactly symmetric matrix.
        tile: Rows and columns of a tile.
        progress: Where to report, an `AbstractProgress`; None is silence.

    Returns:
        A NumPy array of shape (n1, n2) in the kernel's dtype.

    Raises:
        ValueError: If `tile` is not positive or there are no examples.
    """
    if tile < 1:
        raise ValueError(f"tile is {tile}; give a positive number of rows")
    columns = x1 if x2 is None else x2
    if x1.shape[0] == 0 or columns.shape[0] == 0:
        raise ValueError(f"{x1.shape[0]} and {columns.shape[0]} examples make no kernel matrix; give at least one each")
    starts1, starts2 = _starts(x1.shape[0], tile), _starts(columns.shape[0], tile)
    wanted = [(i, j) for i in starts1 for j in starts2 if x2 is not None or j >= i]
    matrix = None
    with (progress or SilentProgress()).task("kernel matrix", total=len(wanted)) as task:
        for i, j in wanted:
            rows = jnp.asarray(x1[i : i + tile])
            on_diagonal = x2 is None and i == j
            block = np.asarray(_tile(kernel, rows, None if on_diagonal else jnp.asarray(columns[j : j + tile])))
            if matrix is None:
                matrix = np.empty((x1.shape[0], columns.shape[0]), block.dtype)
            matrix[i : i + tile, j : j + tile] = block
            if x2 is None and not on_diagonal:
                matrix[j : j + tile, i : i + tile] = block.T
            task.advance()
    assert matrix is not None
    return matrix


def _starts(size: int, tile: int) -> list[int]:
    """First indices of tiles that cover range(size), the last moved back so that it is full."""
    return sorted({min(start, max(size - tile, 0)) for start in range(0, size, tile)})


@eqx.filter_jit
def _tile(kernel: AbstractKernel | KernelFn, rows: Array, columns: Array | None) -> Array:
    return kernel.gram(rows, columns) if isinstance(kernel, AbstractKernel) else kernel(rows, columns)
