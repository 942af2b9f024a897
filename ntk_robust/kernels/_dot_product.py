"""Kernels that depend on the norms of two points and the angle between them."""

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._pairs import Pair, Rows, coincident_pairs, cross_pairs, pair, rows, self_pairs

# Half of a symmetric matrix in blocks wins above this many rows; below it costs as much as the whole (two cores).
_MIN_BLOCKED_ROWS = 3000
_BLOCK = 500


class AbstractDotProductKernel(AbstractKernel):
    r"""A kernel $k(x, z) = K(u, \|x\|, \|z\|)$ with the cosine $u$ of the angle.

    Subclasses say $K$ elementwise; pairs, matrices and diagonals follow. Matrices cost one matrix product and one
    pass; pairs that almost coincide (or are almost opposite) are recomputed from differences of rows.
    """

    @abc.abstractmethod
    def of_pairs(self, pairs: Pair) -> Float[Array, "..."]:
        """$K$ of pairs whose parts broadcast against each other."""

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$k(x, z)$, accurate to rounding relative to $\sqrt{k(x,x) k(z,z)}$ at every angle."""
        return self.of_pairs(pair(x, z))

    def gram(self, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None) -> Float[Array, "n1 n2"]:
        r"""All pairs; without `x2` half of them, mirrored, with the diagonal exact.

        The cosines come from one matrix product: in float32 their rounding moves the kernel by about 1e-6 relative to
        $\sqrt{k(x,x) k(z,z)}$, where pairs that almost coincide would be off by 3e-4 and are recomputed.
        """
        if x2 is not None:
            return self.of_pairs(cross_pairs(rows(x1), rows(x2)))
        if x1.shape[0] < _MIN_BLOCKED_ROWS:
            return self.of_pairs(self_pairs(rows(x1)))
        return _half_and_mirror(self, x1)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """$k(x, x)$ of each row, without a cosine."""
        return self.of_pairs(coincident_pairs(rows(x)))


@jax.custom_jvp
def _half_and_mirror(kernel: AbstractDotProductKernel, x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """The Gram matrix from the blocks on and above its diagonal.

    The mirror is a second pass over finished blocks: XLA on CPU computes a block twice when both it and its transpose
    are consumed. The last block starts early enough to be full, so that all have one shape.
    """
    n = x.shape[0]
    points = rows(x)
    starts = np.minimum(np.arange(0, n, _BLOCK), n - _BLOCK)
    i, j = np.triu_indices(len(starts))
    first, second = jnp.asarray(starts[i]), jnp.asarray(starts[j])

    def block_of(start: Array) -> Rows:
        return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, start, _BLOCK), points)

    def compute(k: Array, matrix: Array) -> Array:
        pairs = cross_pairs(block_of(first[k]), block_of(second[k]), first[k] == second[k])
        return jax.lax.dynamic_update_slice(matrix, kernel.of_pairs(pairs), (first[k], second[k]))

    def mirror(k: Array, matrix: Array) -> Array:
        block = jax.lax.dynamic_slice(matrix, (first[k], second[k]), (_BLOCK, _BLOCK))
        upper = (first[k] == second[k]) & (jnp.arange(_BLOCK)[:, None] <= jnp.arange(_BLOCK)[None, :])
        return jax.lax.dynamic_update_slice(matrix, jnp.where(upper, block, block.T), (second[k], first[k]))

    matrix = jax.lax.fori_loop(0, len(i), compute, jnp.zeros((n, n), x.dtype))
    return jax.lax.fori_loop(0, len(i), mirror, matrix)


@_half_and_mirror.defjvp
def _half_and_mirror_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return jax.jvp(lambda kernel, x: kernel.of_pairs(self_pairs(rows(x))), primals, tangents)
