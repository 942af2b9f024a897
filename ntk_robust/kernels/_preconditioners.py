"""Low-rank preconditioners of kernel systems: greedy pivots and random sketches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # loads its parts when they are first used
from jaxtyping import Array, Float, Key

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._matvec import Matvec
from ntk_robust.kernels._tiles import TilePlan


class Preconditioner(eqx.Module):
    r"""The inverse of $P = U \mathrm{diag}(p) U^\top + \mu (I - U U^\top)$, an approximation of $K + \lambda I$.

    Attributes:
        vectors: $U$, orthonormal columns.
        values: $p$, positive.
        shift: $\mu$, what stands for all other directions.
        trace_left: Trace of $K - U \mathrm{diag}(p - \lambda) U^\top$ over that of $K$: what the approximation has not
            seen; None where the trace of $K$ is not known.
    """

    vectors: Float[np.ndarray, "n rank"]
    values: Float[np.ndarray, " rank"]
    shift: float
    trace_left: float | None = None

    def __call__(self, v: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """$P^{-1} v$, in the dtype of `v`."""
        inside = self.vectors.T @ v.astype(self.vectors.dtype, copy=False)
        weights = 1.0 / self.values.astype(np.float64) - 1.0 / self.shift
        correction = self.vectors @ (weights[:, None] * inside).astype(self.vectors.dtype)
        return v / v.dtype.type(self.shift) + correction.astype(v.dtype, copy=False)


def pivoted_cholesky(
    kernel: AbstractKernel, x: Float[Array | np.ndarray, "n d"], *, rank: int, ridge: float
) -> Preconditioner:
    r"""The preconditioner of the `rank` greedily chosen examples that leave least of the trace of $K$.

    Costs `rank` columns of the kernel and n × rank² operations; memory 3 n × rank. Stops early where nothing is left:
    then $K$ has (numerically) that rank.

    Args:
        kernel: A kernel.
        x: Examples.
        rank: Pivots, at most n.
        ridge: $\lambda$ of the system. The shift is this plus what is left of the diagonal on average.

    Returns:
        The preconditioner, in the dtype of the kernel.

    Raises:
        ValueError: If `rank` is not from 1 to n or the ridge is negative.

    References:
        Harbrecht, Peters, Schneider, Applied Numerical Mathematics 2012; Gardner et al., NeurIPS 2018.
    """
    n = x.shape[0]
    _check(n, rank, ridge)
    points = np.asarray(x)
    dtype = TilePlan.of(kernel, points, points[:1], (1, 1)).dtype
    left = np.array(_diagonal(kernel, points), np.float64)
    total, smallest = float(left.sum()), float(np.finfo(dtype).eps) * float(left.max(initial=0.0))
    factor = np.zeros((n, rank), dtype, order="F")
    for k in range(rank):
        pivot = int(np.argmax(left))
        if left[pivot] <= smallest:
            factor = factor[:, :k]
            break
        values = np.asarray(_column(kernel, points, points[pivot][None]))
        column = (values - factor[:, :k] @ factor[pivot, :k]) / np.sqrt(left[pivot]).astype(dtype)
        factor[:, k] = column
        left = np.maximum(left - column.astype(np.float64) ** 2, 0.0)
        left[pivot] = 0.0
    vectors, sizes, _ = scipy.linalg.svd(factor, full_matrices=False, overwrite_a=True, check_finite=False)
    shift = max(ridge + float(left.sum()) / n, smallest)
    return Preconditioner(vectors, sizes**2 + dtype.type(shift), shift, float(left.sum()) / total if total else 0.0)


def nystrom(
    matvec: Matvec, n: int, *, rank: int, ridge: float, key: Key[Array, ""], dtype: Any = np.float32
) -> Preconditioner:
    r"""The preconditioner of a random Nyström approximation, from one product of $K$ with `rank` random columns.

    With $\Omega$ orthonormal and random, $\hat K = K\Omega (\Omega^\top K \Omega)^{-1} (K\Omega)^\top$, stabilized by a
    multiple of the rounding unit that is taken off again. Needs no access to the kernel but the product, so that it
    serves functions and stored matrices too. Memory about 4 n × rank.

    Args:
        matvec: Product with $K$: `kernel_matvec`, `stored_matvec`, or `K.__matmul__`.
        n: Rows of $K$.
        rank: Columns of the sketch, at most n.
        ridge: $\lambda$ of the system. The shift is this plus the smallest eigenvalue of $\hat K$.
        key: Draws the sketch.
        dtype: Of the sketch and the preconditioner.

    Returns:
        The preconditioner.

    Raises:
        ValueError: If `rank` is not from 1 to n, the ridge is negative, or the matrix is not positive semi-definite to
            rounding on the sketch.

    References:
        Frangella, Tropp, Udell, SIAM J. Matrix Anal. Appl. 2023, algorithm 2.1 and section 5.
    """
    _check(n, rank, ridge)
    dtype = np.dtype(dtype)
    # drawn in JAX's own precision: float64 in NumPy needs no 64-bit JAX
    sketch = np.linalg.qr(np.asarray(jax.random.normal(key, (n, rank))).astype(dtype))[0]
    product = matvec(sketch).astype(dtype, copy=False)
    jitter = float(np.finfo(dtype).eps) * float(np.linalg.norm(product))
    product = product + dtype.type(jitter) * sketch
    core = sketch.T @ product
    factor, info = scipy.linalg.get_lapack_funcs(("potrf",), (core,))[0](0.5 * (core + core.T), lower=False)
    if info != 0:
        raise ValueError(
            f"the matrix is not positive semi-definite on a sketch of rank {rank} in {dtype} (pivot {info}); give a "
            "smaller rank, dtype=float64, or look for errors in the matrix"
        )
    half = scipy.linalg.solve_triangular(factor, product.T, trans=1, overwrite_b=True, check_finite=False).T
    vectors, sizes, _ = scipy.linalg.svd(half, full_matrices=False, overwrite_a=True, check_finite=False)
    values = np.maximum(sizes.astype(np.float64) ** 2 - jitter, 0.0)
    shift = max(ridge + float(values[-1]), float(np.finfo(dtype).eps) * float(values[0]), float(np.finfo(dtype).tiny))
    return Preconditioner(vectors, np.maximum(values + ridge, shift).astype(dtype), shift)


def _check(n: int, rank: int, ridge: float) -> None:
    if not 1 <= rank <= n:
        raise ValueError(f"rank is {rank} for {n} examples; give a number from 1 to {n}")
    if not 0.0 <= ridge < np.inf:
        raise ValueError(f"ridge is {ridge}; give a finite number of at least 0")


@eqx.filter_jit
def _column(kernel: AbstractKernel, x: Any, z: Any) -> Array:
    return kernel.gram(jnp.asarray(x), jnp.asarray(z))[:, 0]


@eqx.filter_jit
def _diagonal(kernel: AbstractKernel, x: Any) -> Array:
    return kernel.diagonal(jnp.asarray(x))
