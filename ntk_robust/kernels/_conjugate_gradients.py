"""Preconditioned conjugate gradients for kernel systems that a factorization cannot hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._forecast import plan_gram
from ntk_robust.kernels._tiles import KernelLike, TilePlan, tile_values

Matvec = Callable[[np.ndarray], np.ndarray]


class IterativeSolution(eqx.Module):
    r"""An approximate solution of $(K + \lambda I) \alpha = y$.

    Attributes:
        dual: $\alpha$.
        residual: $\|(K + \lambda I) \alpha - y\| / \|y\|$ per column, from one more product at the end.
        error_bound: Upper bound of $\|\alpha - \alpha_*\| / \|y\|$ per column, the residual over $\lambda$ (the
            smallest
            eigenvalue is at least $\lambda$); inf for ridge 0.
        num_iterations: Products with the matrix.
        converged: Whether every residual is at most the tolerance.
    """

    dual: Float[np.ndarray, "n k"]
    residual: Float[np.ndarray, " k"]
    error_bound: Float[np.ndarray, " k"]
    num_iterations: int
    converged: bool


class Preconditioner(NamedTuple):
    r"""$(L L^\top + \mu I)^{-1}$ with a pivoted partial Cholesky factor $L$, applied by the Woodbury identity.

    Attributes:
        factor: $L$, one column per pivot.
        inner: Lower Cholesky factor of $\mu I + L^\top L$.
        shift: $\mu$.
        trace_left: Trace of $K - L L^\top$ over that of $K$: what the pivots have not seen.
    """

    factor: np.ndarray
    inner: np.ndarray
    shift: float
    trace_left: float

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """The preconditioner times columns."""
        return (v - self.factor @ scipy.linalg.cho_solve((self.inner, True), self.factor.T @ v)) / self.shift


def pivoted_cholesky(
    kernel: AbstractKernel, x: Float[Array | np.ndarray, "n d"], *, rank: int, ridge: float
) -> Preconditioner:
    r"""The preconditioner of the `rank` greedily chosen examples that leave least of the trace of $K$.

    Costs `rank` columns of the kernel and n × rank² operations; memory n × rank.

    Args:
        kernel: A kernel.
        x: Examples.
        rank: Pivots, at most n.
        ridge: $\lambda$ of the system. The shift is this plus what is left of the diagonal on average.

    Returns:
        The preconditioner, in the dtype of the kernel.

    Raises:
        ValueError: If `rank` is not from 1 to n or the ridge is negative.
    """
    n = x.shape[0]
    if not 1 <= rank <= n:
        raise ValueError(f"rank is {rank} for {n} examples; give a number from 1 to {n}")
    if not ridge >= 0.0:
        raise ValueError(f"ridge is {ridge}; give a number of at least 0")
    points = np.asarray(x)
    plan = TilePlan.of(kernel, points, points[:1], (1, 1))
    left = np.array(kernel.diagonal(jnp.asarray(points)))
    total = float(left.sum())
    factor = np.zeros((n, rank), plan.dtype)
    column = eqx.filter_jit(lambda kernel, x, z: kernel.gram(x, z)[:, 0])
    smallest = float(np.finfo(plan.dtype).eps) * float(left.max(initial=0.0))
    for k in range(rank):
        pivot = int(np.argmax(left))
        if left[pivot] <= smallest:
            factor = factor[:, :k]
            break
        values = np.asarray(column(kernel, points, points[pivot][None]))
        factor[:, k] = (values - factor[:, :k] @ factor[pivot, :k]) / np.sqrt(left[pivot])
        left = np.maximum(left - factor[:, k] ** 2, 0.0)
        left[pivot] = 0.0
    shift = max(ridge + float(left.sum()) / n, smallest)
    inner = factor.T @ factor
    inner[np.diag_indices_from(inner)] += inner.dtype.type(shift)
    return Preconditioner(factor, np.linalg.cholesky(inner), shift, float(left.sum()) / total if total > 0.0 else 0.0)


def kernel_matvec(kernel: KernelLike, x: Any, *, tile: int | None = None) -> Matvec:
    """The product of the kernel matrix of `x` with columns, recomputing tiles every time: nothing is stored.

    Args:
        kernel: A kernel, or a function (x1, x2 or None) → matrix.
        x: Examples.
        tile: Rows of a tile; None for 2048.

    Returns:
        A function of columns, for `conjugate_gradients`.
    """
    plan = plan_gram(kernel, x, None, tile, x)

    def product(v: np.ndarray) -> np.ndarray:
        result = np.zeros_like(v)
        for i, j in plan.pairs:
            _accumulate(result, v, tile_values(kernel, x, None, plan, (i, j)), (i, j))
        return result

    return product


def stored_matvec(store: Any, *, tile: int = 2048) -> Matvec:
    """The product of a symmetric matrix read in rows from a store of `gram_on_disk` with columns.

    Args:
        store: The array that `gram_on_disk` returned.
        tile: Rows read at a time.

    Returns:
        A function of columns, for `conjugate_gradients`.
    """
    n = store.shape[0]

    def product(v: np.ndarray) -> np.ndarray:
        return np.concatenate([store[i : min(i + tile, n)].read().result() @ v for i in range(0, n, tile)])

    return product


def conjugate_gradients(
    matvec: Matvec,
    targets: Float[np.ndarray, "n k"],
    *,
    ridge: float,
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> IterativeSolution:
    r"""Conjugate gradients for all columns of $(K + \lambda I) \alpha = y$ at once: one product with $K$ an iteration.

    Args:
        matvec: Product with $K$, without the ridge: `kernel_matvec`, `stored_matvec`, or `K.__matmul__`.
        targets: $y$.
        ridge: $\lambda ≥ 0$.
        preconditioner: `pivoted_cholesky`, or None.
        tolerance: Relative residual at which a column is done.
        max_iterations: After which the result says that it did not converge.

    Returns:
        The solution with its residual as measured at the end, not as updated on the way.

    Raises:
        ValueError: If the ridge is negative or a target is not finite.
    """
    if not ridge >= 0.0:
        raise ValueError(f"ridge is {ridge}; give a number of at least 0")
    y = np.asarray(targets)
    if not np.all(np.isfinite(y)):
        raise ValueError("the targets hold nan or infinite entries; find out where they come from")
    size = np.linalg.norm(y, axis=0)
    scale = np.where(size > 0.0, size, 1.0)
    apply = preconditioner or (lambda v: v)
    solution, residual = np.zeros_like(y), y.copy()
    direction = conditioned = apply(residual)
    inner = np.sum(residual * conditioned, axis=0)
    iterations = 0
    while iterations < max_iterations and np.any(np.linalg.norm(residual, axis=0) > tolerance * scale):
        product = matvec(direction) + y.dtype.type(ridge) * direction
        curvature = np.sum(direction * product, axis=0)
        step = np.where(curvature > 0.0, inner / np.where(curvature > 0.0, curvature, 1.0), 0.0)
        solution = solution + step * direction
        residual = residual - step * product
        conditioned = apply(residual)
        following = np.sum(residual * conditioned, axis=0)
        growth = np.where(inner > 0.0, following / np.where(inner > 0.0, inner, 1.0), 0.0)
        direction, inner = conditioned + growth * direction, following
        iterations += 1
    misfit = np.linalg.norm(matvec(solution) + y.dtype.type(ridge) * solution - y, axis=0) / scale
    bound = misfit / ridge if ridge > 0.0 else np.full_like(misfit, np.inf)
    return IterativeSolution(solution, misfit, bound, iterations, bool(np.all(misfit <= 2.0 * tolerance)))


def _accumulate(result: np.ndarray, v: np.ndarray, block: np.ndarray, start: tuple[int, int]) -> None:
    i, j = start
    height, width = block.shape
    result[i : i + height] += block @ v[j : j + width]
    if i != j:
        result[j : j + width] += block.T @ v[i : i + height]
