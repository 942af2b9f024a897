"""Preconditioned conjugate gradients for kernel systems that a factorization cannot hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float, Num

from ntk_robust._core import SilentProgress
from ntk_robust.kernels._matvec import Matvec

# An iterate's energy error is estimated, from below, by how much this many further steps gained.
_DELAY = 4


class IterativeSolution(eqx.Module):
    r"""An approximate solution of $(K + \lambda I) \alpha = y$ for every column of $y$.

    Attributes:
        dual: $\alpha$.
        residual: $\|r\| / \|y\|$ with $r = y - (K + \lambda I) \alpha$ from one more product at the end, not as updated
            on the way.
        error_bound: Upper bound of $\|\alpha - \alpha_*\| / \|y\|$, the residual over $\lambda$ (the smallest
            eigenvalue is at least $\lambda$); inf for ridge 0.
        rkhs_error_bound: Upper bound of $\|f - f_*\|_{\mathcal H}$, $\|r\| / (2 \sqrt\lambda)$, in output units per
            √(unit of the kernel): predictions err by at most this times $\sqrt{k(x, x)}$ everywhere. inf for ridge 0.
        energy_error: Estimate of $\|\alpha - \alpha_*\|_{K + \lambda I} / \|\alpha_*\|_{K + \lambda I}$, needing no
            ridge: what the last four steps gained, which estimates the error before them from below.
        num_products: Products with the matrix.
        converged: Whether every residual is at most the tolerance.
    """

    dual: Float[np.ndarray, "n k"]
    residual: Float[np.ndarray, " k"]
    error_bound: Float[np.ndarray, " k"]
    rkhs_error_bound: Float[np.ndarray, " k"]
    energy_error: Float[np.ndarray, " k"]
    num_products: int
    converged: bool


def conjugate_gradients(
    matvec: Matvec,
    targets: Num[np.ndarray, "n k"],
    *,
    ridge: float,
    preconditioner: Callable[[np.ndarray], np.ndarray] | None = None,
    tolerance: float = 1e-6,
    max_products: int = 500,
    progress: Any = None,
) -> IterativeSolution:
    r"""Conjugate gradients for all columns of $(K + \lambda I) \alpha = y$ at once: one product with $K$ a step.

    Vectors are float64 whatever the dtype of the product. When the updated residual says that it is done and the
    measured one does not, because products are rounded, the iteration starts again on the measured residual, as long as
    that gains a factor of two.

    Args:
        matvec: Product with $K$, without the ridge: `kernel_matvec`, `stored_matvec`, or `K.__matmul__`.
        targets: $y$.
        ridge: $\lambda ≥ 0$.
        preconditioner: `pivoted_cholesky`, `nystrom`, or any symmetric positive definite function; None for none.
        tolerance: Relative residual at which a column is done. Products in float32 allow about $10^{-7} \|K\|
            \|\alpha\| / \|y\|$.
        max_products: After which the result says that it did not converge.
        progress: Where to report, an `AbstractProgress`; None is silence.

    Returns:
        The best solution found, in the dtype of the targets (float64 for integers), with its residual and errors;
        finite also where the matrix is singular or, by rounding, indefinite, and then not converged unless the residual
        is small.

    Raises:
        ValueError: If the ridge is negative, the tolerance not positive, the targets are not a matrix, or a target or
            product is not finite.

    References:
        Hestenes and Stiefel, 1952; Strakoš and Tichý, ETNA 2002, for the estimate of the energy error.
    """
    y = np.asarray(targets, np.float64)
    if not 0.0 <= ridge < np.inf:
        raise ValueError(f"ridge is {ridge}; give a finite number of at least 0")
    if not tolerance > 0.0 or max_products < 1:
        raise ValueError(f"tolerance is {tolerance} and max_products {max_products}; give positive numbers")
    if y.ndim != 2:
        raise ValueError(f"the targets have shape {y.shape}; give a column for each output, y[:, None] for one")
    if not np.all(np.isfinite(y)):
        raise ValueError("the targets hold nan or infinite entries; find out where they come from")

    def system(v: np.ndarray) -> np.ndarray:
        task.advance()
        product = np.asarray(matvec(v), np.float64) + ridge * v
        if not np.all(np.isfinite(product)):
            raise ValueError("a product with the kernel matrix is nan or infinite; find out which examples cause it")
        return product

    size = np.linalg.norm(y, axis=0)
    scale = np.where(size > 0.0, size, 1.0)
    solution, residual, misfit = np.zeros_like(y), y, size / scale
    energy, gained, products = np.zeros(y.shape[1]), np.zeros(y.shape[1]), 0
    with (progress or SilentProgress()).task("conjugate gradients", total=max_products) as task:
        while np.any(misfit > tolerance) and products < max_products:
            found = _descend(system, residual, preconditioner, tolerance * scale, max_products - products - 1)
            products += found.num_products + 1
            candidate = solution + found.correction
            left = y - system(candidate)
            after = np.linalg.norm(left, axis=0) / scale
            improved = after < misfit
            solution = np.where(improved, candidate, solution)
            residual = np.where(improved, left, residual)
            energy, gained = energy + found.energy, found.gained
            halved = np.any(after <= 0.5 * misfit)
            misfit = np.minimum(after, misfit)
            if not halved or found.num_products == 0:
                break
    norms = misfit * size
    return IterativeSolution(
        dual=solution.astype(targets.dtype if np.issubdtype(targets.dtype, np.floating) else np.float64),
        residual=misfit,
        error_bound=misfit / ridge if ridge > 0.0 else np.where(misfit > 0.0, np.inf, 0.0),
        rkhs_error_bound=norms / (2.0 * ridge**0.5) if ridge > 0.0 else np.where(misfit > 0.0, np.inf, 0.0),
        energy_error=np.sqrt(gained / np.where(energy > 0.0, energy, 1.0)),
        num_products=products,
        converged=bool(np.all(misfit <= tolerance)),
    )


class _Descent(NamedTuple):
    correction: np.ndarray
    energy: np.ndarray  # squared energy norm gained in all steps
    gained: np.ndarray  # and in the last few of each column
    num_products: int


def _descend(system: Matvec, target: np.ndarray, preconditioner: Any, goal: np.ndarray, budget: int) -> _Descent:
    """Conjugate gradients from zero until the updated residual is at its goal in every column."""
    apply = preconditioner or (lambda v: v)
    solution, residual = np.zeros_like(target), target.copy()
    direction = conditioned = apply(residual)
    inner = np.sum(residual * conditioned, axis=0)
    energy, recent = np.zeros(target.shape[1]), np.zeros((_DELAY, target.shape[1]))
    for steps in range(budget):
        active = (np.linalg.norm(residual, axis=0) > goal) & (inner > 0.0)
        if not np.any(active):
            return _Descent(solution, energy, recent.sum(axis=0), steps)
        product = system(direction)
        curvature = np.sum(direction * product, axis=0)
        active &= curvature > 0.0  # not so for directions that rounding made indefinite: those columns stay
        step = np.where(active, inner / np.where(active, curvature, 1.0), 0.0)
        solution += step * direction
        residual = residual - step * product  # not in place: without a preconditioner the direction is this array
        conditioned = apply(residual)
        following = np.sum(residual * conditioned, axis=0)
        direction = conditioned + np.where(active, following / np.where(active, inner, 1.0), 0.0) * direction
        energy += step * inner
        recent = np.where(active, np.concatenate([recent[1:], (step * inner)[None]]), recent)
        # a column that stays would try the same direction for ever
        inner = np.where(active, following, 0.0)
    return _Descent(solution, energy, recent.sum(axis=0), budget)
