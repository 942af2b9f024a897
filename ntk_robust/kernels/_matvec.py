"""Products of kernel matrices with columns, without the matrix in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._forecast import plan_gram
from ntk_robust.kernels._tiles import KernelLike, evaluate, padded

Matvec = Callable[[np.ndarray], np.ndarray]

# Ten columns cost more than sixteen (and one as much as eight): products are tuned for full vector registers.
_COLUMNS = 8


def kernel_matvec(kernel: KernelLike, x: Float[Array | np.ndarray, "n *d"], *, tile: int | None = None) -> Matvec:
    """The product of the kernel matrix of `x` with columns, recomputing half of the tiles every time.

    Nothing is stored, and tiles never leave the device. Sums over tiles are in float64 whatever the kernel's dtype.

    Args:
        kernel: A kernel, or a function (x1, x2 or None) → matrix.
        x: Examples.
        tile: Rows of a tile; None for the largest that fits into memory (at most 2048).

    Returns:
        A function of columns (n, k), for `conjugate_gradients`, `nystrom` and `leading_eigenpairs`.
    """
    x = np.asarray(x)
    plan = plan_gram(kernel, x, None, tile, np.empty(0))  # no new matrix, wherever
    size = plan.tile[0]

    def product(v: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.zeros(v.shape)
        v = _full_registers(np.asarray(v, plan.dtype))
        for i, j in plan.pairs:
            columns = None if i == j else padded(x, j, size)
            parts = _tile_times(kernel, padded(x, i, size), columns, padded(v, i, size), padded(v, j, size))
            for start, part in zip((i, j), parts, strict=i != j):
                rows = result[start : start + size]
                rows += np.asarray(part)[: len(rows), : result.shape[1]]
        return result

    return product


def stored_matvec(matrix: Any, *, tile: int = 2048) -> Matvec:
    """The product of a stored symmetric matrix with columns.

    Of a matrix on disk only the chunks on and above the diagonal are read, the next one while one is multiplied. Sums
    over tiles are in float64 whatever the dtype of the matrix.

    Args:
        matrix: The symmetric array that `gram` returned: a NumPy array (or memory map), or one on disk.
        tile: Rows of a NumPy array at a time; an array on disk is read in its chunks.

    Returns:
        A function of columns (n, k), for `conjugate_gradients`, `nystrom` and `leading_eigenpairs`.

    Raises:
        ValueError: If the matrix is not square.
    """
    n = matrix.shape[0]
    if len(matrix.shape) != 2 or matrix.shape[1] != n:
        raise ValueError(f"the matrix has shape {tuple(matrix.shape)}; give the square one of a set with itself")
    dtype = np.dtype(matrix.dtype.numpy_dtype) if hasattr(matrix.dtype, "numpy_dtype") else np.dtype(matrix.dtype)

    def product(v: np.ndarray) -> np.ndarray:
        columns = _full_registers(np.asarray(v, dtype))
        result = np.zeros(columns.shape)
        if isinstance(matrix, np.ndarray):
            for i in range(0, n, tile):
                result[i : i + tile] = matrix[i : i + tile] @ columns
        else:
            for i, j, block in _upper_chunks(matrix):
                result[i : i + block.shape[0]] += block @ columns[j : j + block.shape[1]]
                if i != j:
                    result[j : j + block.shape[1]] += block.T @ columns[i : i + block.shape[0]]
        return result[:, : v.shape[1]]

    return product


def _upper_chunks(store: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    n, size = store.shape[0], store.chunk_layout.read_chunk.shape[0]
    starts = [(i, j) for i in range(0, n, size) for j in range(i, n, size)]
    read = lambda start: store[start[0] : min(start[0] + size, n), start[1] : min(start[1] + size, n)].read()  # noqa: E731
    following = read(starts[0])
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        block = following.result()
        if after is not None:
            following = read(after)
        yield *start, block


def _full_registers(v: np.ndarray) -> np.ndarray:
    """With columns of zeros up to a multiple of eight; a single column stays alone."""
    missing = -v.shape[1] % _COLUMNS if v.shape[1] > 1 else 0
    return np.pad(v, ((0, 0), (0, missing)))


@eqx.filter_jit
def _tile_times(kernel: KernelLike, rows: Any, columns: Any, v_rows: Any, v_columns: Any) -> tuple[Array, ...]:
    high = jax.lax.Precision.HIGHEST
    if columns is None:
        block = evaluate(kernel, jnp.asarray(rows), None)
        return (jnp.matmul(block, v_rows, precision=high),)
    block = evaluate(kernel, jnp.asarray(rows), jnp.asarray(columns))
    return jnp.matmul(block, v_columns, precision=high), jnp.matmul(block.T, v_rows, precision=high)
