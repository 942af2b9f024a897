"""Kernels that depend on the norms of two points and the angle between them."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._checks import check_points
from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._pairs import (
    REPAIR_THRESHOLD,
    Around,
    Pair,
    Rows,
    coincident_pairs,
    cross_pairs,
    is_round_of_rows,
    pair,
    pairs_around,
    rounded_pairs,
    rows,
)
from ntk_robust.kernels._room import check_matrix_room

# Half of a symmetric matrix in blocks wins above this many rows; below it costs as much as the whole (two cores).
_MIN_BLOCKED_ROWS = 3000
_BLOCK = 1000  # rows of the blocks off the diagonal; those on it are halved twice
_HALVINGS = 2


class AbstractDotProductKernel(AbstractKernel):
    r"""A kernel $k(x, z) = K(u, \|x\|, \|z\|)$ with the cosine $u$ of the angle.

    Subclasses say $K$ elementwise; pairs, matrices and diagonals follow. Matrices cost one matrix product and one
    pass; pairs that almost coincide (or are almost opposite) are recomputed from differences of rows.

    Attributes:
        input_dim: Width of the points that `gram` takes; None for any. Pairs may be given in a plane, since only norms
            and angle count.
    """

    input_dim: int | None = eqx.field(default=None, static=True, kw_only=True)

    @abc.abstractmethod
    def of_pairs(self, pairs: Pair) -> Float[Array, "..."]:
        """$K$ of pairs whose parts broadcast against each other."""

    @compiled
    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$k(x, z)$, accurate to rounding relative to $\sqrt{k(x,x) k(z,z)}$ at every angle."""
        return self.of_pairs(pair(self.placed(x), self.placed(z)))

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
            ValueError: If `out` comes with `x2`, or has another shape or dtype; for points that are no matrix of floats
                with rows, of two widths or of another one than `input_dim`; for a matrix larger than the memory that is
                there.
        """
        check_points(x1, x2, width=self.input_dim)
        n = x1.shape[0]
        if out is not None and x2 is not None:
            raise ValueError("out is for symmetric matrices, and x2 is given; leave one of them out")
        if out is not None and (out.shape, out.dtype) != ((n, n), x1.dtype):
            raise ValueError(f"out is {out.dtype}{out.shape} and the matrix {x1.dtype}{(n, n)}; make them agree")
        if out is None:
            check_matrix_room(x1, x2)
        return matrix_of_pairs(self, x1, x2, out)

    @compiled
    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """$k(x, x)$ of each row, without a cosine."""
        return self.of_pairs(coincident_pairs(rows(self.placed(x))))

    def placed(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Points at which norm and cosine have the derivatives that the kernel has.

        These: a kernel that is not differentiable at the zero vector gets the derivative 0 there.
        """
        return x


@compiled
def matrix_of_pairs(
    kernel: Any, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None, out: Any = None
) -> Any:
    """`kernel.of_pairs`, an array or a tree of them, for all pairs of rows."""
    x1, x2 = kernel.placed(x1), None if x2 is None else kernel.placed(x2)
    if x2 is not None:
        return _whole(kernel, x1, x2)
    if x1.shape[0] < (_MIN_BLOCKED_ROWS if out is None else 2**_HALVINGS):
        return _whole_and_mirror(kernel, x1)
    return _half_and_mirror(kernel, x1, out)


# Derivatives of matrices are those of `cross_pairs`, not of the loops that fill them.


@jax.custom_jvp
def _whole(kernel: Any, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Any:
    return _one_block(kernel, rows(x1), rows(x2), same=False)


@_whole.defjvp
def _whole_jvp(primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(lambda kernel, x1, x2: kernel.of_pairs(cross_pairs(rows(x1), rows(x2))), primals, tangents)


@jax.custom_jvp
def _whole_and_mirror(kernel: Any, x: Float[Array, "n d"]) -> Any:
    points = rows(x)
    return jax.tree.map(_symmetric, _one_block(kernel, points, points, same=True))


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

    # Which tiles, of the size of the smallest blocks, hold pairs that almost coincide; the last tile ends where the
    # matrix ends.
    num_tiles = -(-n // small)
    flags = jnp.zeros((num_tiles, num_tiles), bool)

    def fill(state: tuple[Any, Array], block: _Block, *, same: bool = False) -> tuple[Any, Array]:
        matrices, flags = state
        values, cosines = _values(kernel, points, points, block, same=same)
        start = (block.row, block.column)
        matrices = jax.tree.map(lambda m, v: jax.lax.dynamic_update_slice(m, v, start), matrices, values)
        row_has_close = jnp.pad(
            _has_close(cosines, jnp.eye(*block.shape, dtype=bool) if same else None), (0, -block.shape[0] % small)
        )
        tall, wide = (-(-side // small) for side in block.shape)
        found = jnp.broadcast_to(jnp.any(row_has_close.reshape(tall, small), axis=1)[:, None], (tall, wide))
        return matrices, jax.lax.dynamic_update_slice(flags, found, (block.row // small, block.column // small))

    def blocks(
        state: tuple[Any, Array], size: int, first: np.ndarray, second: np.ndarray, same: bool = False
    ) -> tuple[Any, Array]:
        if first.size == 0:  # a single large block
            return state
        starts = jnp.asarray(np.stack([first, second]))
        return jax.lax.fori_loop(
            0,
            first.size,
            lambda k, state: fill(state, _Block(starts[0, k], starts[1, k], (size, size)), same=same),
            state,
        )

    i, j = np.triu_indices(done // large, 1)
    state = blocks((matrices, flags), large, i * large, j * large)
    size = large
    while size > small:
        size //= 2
        starts = np.arange(0, done, 2 * size)
        state = blocks(state, size, starts, starts + size)
    starts = np.arange(0, done, small)
    state = blocks(state, small, starts, starts, same=True)
    if done < n:
        state = fill(state, _Block(0, done, (n, n - done)))
    matrices, flags = state
    flagged = jnp.argsort(~flags.ravel(), stable=True)

    def mend_tile(k: Array, matrices: Any) -> Any:
        row, column = (jnp.minimum(tile * small, n - small) for tile in jnp.divmod(flagged[k], num_tiles))
        block = _Block(row, column, (small, small))
        cosines = _cosines(block.rows_of(points), block.columns_of(points))
        return _mended(kernel, matrices, (points, points), block, jnp.where(_diagonal(block), 0.0, cosines))

    matrices = jax.lax.fori_loop(0, jnp.sum(flags), mend_tile, matrices)
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


def _one_block(kernel: Any, x: Rows, z: Rows, *, same: bool) -> Any:
    block = _Block(0, 0, (x.lengths.shape[0], z.lengths.shape[0]))
    values, cosines = _values(kernel, x, z, block, same=same)
    if same:
        cosines = jnp.where(jnp.eye(*block.shape, dtype=bool), 0.0, cosines)
    return _mended(kernel, values, (x, z), block, cosines)


def _values(kernel: Any, x: Rows, z: Rows, block: _Block, *, same: bool) -> tuple[Any, Array]:
    """The block as accurate as its cosines, and these.

    With `same` the rows and columns of the block are the same points, and its diagonal is exact.
    """
    of_rows, of_columns = block.rows_of(x), block.columns_of(z)
    cosines = _cosines(of_rows, of_columns)
    pairs = rounded_pairs(of_rows, of_columns, cosines)
    if same:
        diagonal = jnp.eye(*block.shape, dtype=bool)
        pairs = pairs._replace(complement=jnp.where(diagonal, 0.0, pairs.complement), acute=diagonal | pairs.acute)
    return kernel.of_pairs(pairs), cosines


def _cosines(x: Rows, z: Rows) -> Float[Array, "n1 n2"]:
    return jnp.matmul(x.directions, z.directions.T, precision=jax.lax.Precision.HIGHEST)


def _diagonal(block: _Block) -> Bool[Array, "rows columns"]:
    """Where a row meets itself, for a block at traced places."""
    i, j = block.row + jnp.arange(block.shape[0]), block.column + jnp.arange(block.shape[1])
    return i[:, None] == j[None, :]


def _has_close(cosines: Float[Array, "rows columns"], without: Array | None = None) -> Bool[Array, " rows"]:
    """Which rows hold cosines that rounding moves too far."""
    threshold = REPAIR_THRESHOLD.get(str(cosines.dtype))
    if threshold is None:
        return jnp.zeros(cosines.shape[0], bool)
    sizes = jnp.abs(cosines) if without is None else jnp.where(without, 0.0, jnp.abs(cosines))
    # row by row: XLA on CPU vectorizes this reduction, and not one over everything
    return jnp.max(sizes, axis=1, initial=0.0) > 1.0 - threshold


def _mended(
    kernel: Any, matrices: Any, points: tuple[Rows, Rows], block: _Block, cosines: Float[Array, "rows columns"]
) -> Any:
    """`matrices` with those pairs of a block recomputed that almost coincide, of the points of rows and of columns."""
    threshold = REPAIR_THRESHOLD.get(str(cosines.dtype))
    if threshold is None:
        return matrices
    i = jnp.arange(block.shape[0])

    def mend(state: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        done, cosines, matrices = state
        one_a_row, sizes = is_round_of_rows(done), jnp.abs(cosines)
        close = sizes > 1.0 - threshold
        # Without the barrier XLA computes what does not change from round to round before the loop: for every block,
        # although almost none has a close pair.
        of_rows, of_columns = jax.lax.optimization_barrier(points)
        here, there = block.rows_of(of_rows), block.columns_of(of_columns)

        def around() -> Around:
            return pairs_around(here.points[jnp.argmax(jnp.sum(close, axis=1))], here.points, there.points)

        def nothing() -> Around:
            return Around(jnp.zeros_like(cosines), jnp.zeros_like(cosines), jnp.zeros_like(close))

        found = jax.lax.cond(one_a_row, nothing, around)
        partner = jnp.argmax(sizes, axis=1)

        def partners(k: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
            cosines, matrices = state
            j = jnp.where(one_a_row, partner, k)

            def from_differences() -> tuple[Any, ...]:
                exact = jax.vmap(pair)(here.points, there.points[j])
                return exact.complement, exact.gap, close[i, j]

            def from_product() -> tuple[Any, ...]:
                return found.complement[:, k], found.gap[:, k], found.is_known[:, k] & close[:, k]

            complement, gap, chosen = jax.lax.cond(one_a_row, from_differences, from_product)
            exact = kernel.of_pairs(Pair(complement, cosines[i, j] >= 0.0, here.lengths, there.lengths[j], gap))

            def put(matrix: Array, values: Array) -> Array:
                row, column = block.row + i, block.column + j
                return matrix.at[row, column].set(jnp.where(chosen, values, matrix[row, column]))

            left = cosines.at[i, j].set(jnp.where(chosen, 0.0, cosines[i, j]))
            return left, jax.tree.map(put, matrices, exact)

        count = jnp.where(one_a_row, 1, block.shape[1])
        return done + 1, *jax.lax.fori_loop(0, count, partners, (cosines, matrices))

    start = (jnp.zeros((), jnp.int32), cosines, matrices)
    return jax.lax.while_loop(lambda state: jnp.any(_has_close(state[1])), mend, start)[2]
