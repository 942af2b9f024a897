"""Kernels that depend on the norms of two points and the angle between them."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._pairs import (
    REPAIR_THRESHOLD,
    Pair,
    Rows,
    coincident_pairs,
    cross_pairs,
    pair,
    rounded_pairs,
    rows,
)

# Half of a symmetric matrix in blocks wins above this many rows; below it costs as much as the whole (two cores).
_MIN_BLOCKED_ROWS = 3000
_BLOCK = 1000  # rows of the blocks off the diagonal; those on it are halved twice
_HALVINGS = 2


class AbstractDotProductKernel(AbstractKernel):
    r"""A kernel $k(x, z) = K(u, \|x\|, \|z\|)$ with the cosine $u$ of the angle.

    Subclasses say $K$ elementwise; pairs, matrices and diagonals follow. Matrices cost one matrix product and one
    pass; pairs that almost coincide (or are almost opposite) are recomputed from differences of rows.
    """

    @abc.abstractmethod
    def of_pairs(self, pairs: Pair) -> Float[Array, "..."]:
        """$K$ of pairs whose parts broadcast against each other."""

    @compiled
    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$k(x, z)$, accurate to rounding relative to $\sqrt{k(x,x) k(z,z)}$ at every angle."""
        return self.of_pairs(pair(x, z))

    def gram(
        self,
        x1: Float[Array, "n1 d"],
        x2: Float[Array, "n2 d"] | None = None,
        *,
        out: Float[Array, "rows columns"] | None = None,
    ) -> Float[Array, "n1 n2"]:
        r"""All pairs; without `x2` half of them, mirrored, with the diagonal exact.

        The cosines come from one matrix product: in float32 their rounding moves the kernel by about 1e-6 (20 layers:
        6e-6) relative to $\sqrt{k(x,x) k(z,z)}$; pairs that almost coincide would be off by 3e-4 and are recomputed.

        Args:
            x1: Points.
            x2: Points; None for `x1`.
            out: A matrix of the result's shape and dtype to overwrite, for symmetric matrices. Donate it to the
                `jax.jit` around: a new matrix costs its pages, on CPU a tenth to a fifth of the time.

        Raises:
            ValueError: If `out` comes with `x2`, or has another shape or dtype.
        """
        n = x1.shape[0]
        if out is not None and x2 is not None:
            raise ValueError("out is for symmetric matrices, and x2 is given; leave one of them out")
        if out is not None and (out.shape, out.dtype) != ((n, n), x1.dtype):
            raise ValueError(f"out is {out.dtype}{out.shape} and the matrix {x1.dtype}{(n, n)}; make them agree")
        return matrix_of_pairs(self, x1, x2, out)

    @compiled
    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """$k(x, x)$ of each row, without a cosine."""
        return self.of_pairs(coincident_pairs(rows(x)))


@compiled
def matrix_of_pairs(
    kernel: Any, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None, out: Any = None
) -> Any:
    """`kernel.of_pairs`, an array or a tree of them, for all pairs of rows."""
    if x2 is not None:
        return _whole(kernel, x1, x2)
    if x1.shape[0] < (_MIN_BLOCKED_ROWS if out is None else 2**_HALVINGS):
        return _whole_and_mirror(kernel, x1)
    return _half_and_mirror(kernel, x1, out)


# Derivatives of matrices are those of `cross_pairs`, not of the loops that fill them.


@jax.custom_jvp
def _whole(kernel: Any, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Any:
    return _fill(kernel, None, rows(x1), rows(x2), _Block(0, 0, (x1.shape[0], x2.shape[0])))


@_whole.defjvp
def _whole_jvp(primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(lambda kernel, x1, x2: kernel.of_pairs(cross_pairs(rows(x1), rows(x2))), primals, tangents)


@jax.custom_jvp
def _whole_and_mirror(kernel: Any, x: Float[Array, "n d"]) -> Any:
    points = rows(x)
    matrices = _fill(kernel, None, points, points, _Block(0, 0, (x.shape[0], x.shape[0])), same=True)
    return jax.tree.map(_symmetric, matrices)


@jax.custom_jvp
def _half_and_mirror(kernel: Any, x: Float[Array, "n d"], out: Any) -> Any:
    """The matrices from large blocks above the diagonal, ever smaller ones towards it, and a strip for the rest.

    The mirror is a second pass over finished blocks: XLA on CPU computes a block twice when both it and its transpose
    are consumed.
    """
    n = x.shape[0]
    points = rows(x)
    small = n // (-(-n // _BLOCK) * 2**_HALVINGS)  # rows of a block on the diagonal
    large = small * 2**_HALVINGS
    done = n // large * large
    matrices = out
    if out is None:
        like = jax.eval_shape(kernel.of_pairs, coincident_pairs(points))
        matrices = jax.tree.map(lambda leaf: jax.lax.empty((n, n), leaf.dtype), like)

    def blocks(matrices: Any, size: int, first: np.ndarray, second: np.ndarray, same: bool = False) -> Any:
        if first.size == 0:  # a single large block
            return matrices
        starts = jnp.asarray(np.stack([first, second]))

        def body(k: Array, matrices: Any) -> Any:
            block = _Block(starts[0, k], starts[1, k], (size, size))
            return _fill(kernel, matrices, points, points, block, same=same)

        return jax.lax.fori_loop(0, first.size, body, matrices)

    i, j = np.triu_indices(done // large, 1)
    matrices = blocks(matrices, large, i * large, j * large)
    size = large
    while size > small:
        size //= 2
        starts = np.arange(0, done, 2 * size)
        matrices = blocks(matrices, size, starts, starts + size)
    starts = np.arange(0, done, small)
    matrices = blocks(matrices, small, starts, starts, same=True)
    if done < n:
        matrices = _fill(kernel, matrices, points, points, _Block(0, done, (n, n - done)))
    return jax.tree.map(lambda matrix: _mirrored(matrix, done, small), matrices)


def _symmetrized_jvp(primals: tuple, tangents: tuple) -> tuple:
    def values(kernel: Any, x: Array) -> Any:
        return jax.tree.map(_symmetric, kernel.of_pairs(cross_pairs(rows(x), rows(x), same=True)))

    return jax.jvp(values, primals[:2], tangents[:2])  # but for `out`, which is overwritten


_whole_and_mirror.defjvp(_symmetrized_jvp)
_half_and_mirror.defjvp(_symmetrized_jvp)


def _symmetric(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    # jnp.tri and no comparison of aranges: XLA on CPU takes minutes to compile those from 1000 rows on.
    return jnp.where(jnp.tri(matrix.shape[0], k=-1, dtype=bool), matrix.T, matrix)


def _mirrored(matrix: Float[Array, "n n"], done: int, size: int) -> Float[Array, "n n"]:
    """The matrix with what stands above the diagonal copied below it."""
    n = matrix.shape[0]
    i, j = np.triu_indices(done // size)
    starts = jnp.asarray(np.stack([i, j]) * size)

    def body(k: Array, matrix: Array) -> Array:
        row, column = starts[0, k], starts[1, k]
        block = jax.lax.dynamic_slice(matrix, (row, column), (size, size))
        mirrored = jnp.where(row == column, _symmetric(block), block.T)
        return jax.lax.dynamic_update_slice(matrix, mirrored, (column, row))

    matrix = jax.lax.fori_loop(0, i.size, body, matrix)
    if done < n:
        corner = _symmetric(matrix[done:, done:])
        matrix = matrix.at[done:, :done].set(matrix[:done, done:].T).at[done:, done:].set(corner)
    return matrix


class _Block(NamedTuple):
    """Where a block stands.

    Attributes:
        row: First row.
        column: First column.
        shape: Rows and columns.
    """

    row: Any
    column: Any
    shape: tuple[int, int]

    def rows_of(self, x: Rows) -> Rows:
        """The points of its rows."""
        return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, self.row, self.shape[0]), x)

    def columns_of(self, z: Rows) -> Rows:
        """The points of its columns."""
        return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, self.column, self.shape[1]), z)


def _fill(kernel: Any, matrices: Any, x: Rows, z: Rows, block: _Block, *, same: bool = False) -> Any:
    """`matrices` with this block computed; without them the block itself, which must then be all of it.

    With `same` the rows and columns of the block are the same points, and its diagonal is exact.
    """
    of_rows, of_columns = block.rows_of(x), block.columns_of(z)
    cosines = jnp.matmul(of_rows.directions, of_columns.directions.T, precision=jax.lax.Precision.HIGHEST)
    diagonal = jnp.eye(*block.shape, dtype=bool)
    pairs = rounded_pairs(of_rows, of_columns, cosines)
    if same:
        pairs = pairs._replace(complement=jnp.where(diagonal, 0.0, pairs.complement), acute=diagonal | pairs.acute)
    values = kernel.of_pairs(pairs)
    if matrices is not None:
        start = (block.row, block.column)
        values = jax.tree.map(lambda m, v: jax.lax.dynamic_update_slice(m, v, start), matrices, values)
    threshold = REPAIR_THRESHOLD.get(str(cosines.dtype))
    if threshold is None:
        return values
    i = jnp.arange(block.shape[0])

    def closeness(cosines: Array) -> Array:
        return jnp.where(diagonal, 0.0, jnp.abs(cosines)) if same else jnp.abs(cosines)

    def any_close(state: tuple[Array, Any]) -> Array:
        # row by row: XLA on CPU vectorizes this reduction, and not one over everything
        return jnp.any(jnp.max(closeness(state[0]), axis=1) > 1.0 - threshold)

    def one_a_row(state: tuple[Array, Any]) -> tuple[Array, Any]:
        cosines, matrices = state
        sizes = closeness(cosines)
        j = jnp.argmax(sizes, axis=1)
        close = sizes[i, j] > 1.0 - threshold
        # Without the barrier XLA computes what does not change from round to round before the loop: for every block,
        # although almost none has a close pair.
        j, all_x, all_z = jax.lax.optimization_barrier((j, x, z))
        exact = kernel.of_pairs(jax.vmap(pair)(block.rows_of(all_x).points, all_z.points[block.column + j]))

        def put(matrix: Array, values: Array) -> Array:
            row, column = block.row + i, block.column + j
            return matrix.at[row, column].set(jnp.where(close, values, matrix[row, column]))

        return cosines.at[i, j].set(jnp.where(close, 0.0, cosines[i, j])), jax.tree.map(put, matrices, exact)

    return jax.lax.while_loop(any_close, one_a_row, (cosines, values))[1]
