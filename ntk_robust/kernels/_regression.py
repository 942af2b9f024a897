"""Kernel ridge regression and gradient flow from Gram matrices, exactly, with the conditioning in the result."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

Matrix = Array | np.ndarray


class KernelRegression(eqx.Module):
    r"""A function $f(x) = \sum_i \alpha_i k(x, x_i)$ fitted to targets.

    Attributes:
        dual: $\alpha$, one row per training example.
        ridge: $\lambda$ that was added to the diagonal, in the unit of the kernel.
        condition_number: Estimate (within a small factor, from below) of the 1-norm condition number of $K + \lambda
            I$;
            about this many times the rounding unit is the relative error of `dual`.
        residual: $\|(K + \lambda I) \alpha - y\|_F / \|y\|_F$ as computed; 0 for zero targets.
    """

    dual: Float[Matrix, "n k"]
    ridge: float
    condition_number: float
    residual: float

    def __call__(self, k_test_train: Float[Matrix, "n_test n"]) -> Float[Matrix, "n_test k"]:
        """Predictions from the kernel between test examples (rows) and training examples."""
        return k_test_train @ self.dual


def kernel_regression(
    k_train_train: Float[Matrix, "n n"], targets: Float[Matrix, "num_train k"], *, ridge: float
) -> KernelRegression:
    r"""Kernel ridge regression, $\alpha = (K + \lambda I)^{-1} y$, by Cholesky on the host.

    For the ensemble of trained infinitely wide networks give the NTK and ridge 0; for Bayesian inference the NNGP
    kernel and the noise variance.

    Args:
        k_train_train: Positive semi-definite $K$.
        targets: $y$.
        ridge: $\lambda ≥ 0$, absolute, in the unit of `k_train_train`.

    Returns:
        The fit, with its conditioning.

    Raises:
        ValueError: If the ridge is negative, shapes disagree, an entry is not finite, or $K + \lambda I$ is not
            numerically positive definite (with a ridge that makes it so). Nothing is added silently.
    """
    matrix, y = _checked(k_train_train, targets, ridge)
    norm = scipy.linalg.norm(matrix, 1)
    factor = _cholesky(matrix, ridge)
    dual = scipy.linalg.cho_solve((factor, True), y)
    pocon = _lapack("pocon", factor)
    reciprocal = float(pocon(factor, norm, uplo="L")[0])
    misfit = matrix @ dual - y
    size = float(np.linalg.norm(y))
    return KernelRegression(
        dual=dual,
        ridge=float(ridge),
        condition_number=1.0 / reciprocal if reciprocal > 0.0 else float("inf"),
        residual=float(np.linalg.norm(misfit)) / size if size > 0.0 else 0.0,
    )


def cross_validation_residuals(
    k_train_train: Float[Matrix, "n n"],
    targets: Float[Matrix, "num_train k"],
    *,
    ridge: float,
    folds: Sequence[Any] | None = None,
) -> Float[np.ndarray, "n k"]:
    r"""$y_i - f_{-B}(x_i)$, where $f_{-B}$ was fitted without the fold $B$ of example i: in closed form, from one
    inverse.

    For a fold $B$ the residuals are $(G_{BB})^{-1} \alpha_B$ with $G = (K + \lambda I)^{-1}$; for folds of one example
    $\alpha_i / G_{ii}$.

    Args:
        k_train_train: Positive semi-definite $K$.
        targets: $y$.
        ridge: $\lambda ≥ 0$, absolute.
        folds: Arrays of indices that split the examples; None leaves out one at a time.

    Returns:
        Residuals, in the unit of the targets.

    Raises:
        ValueError: As `kernel_regression`, and for folds that do not hold every example exactly once.
    """
    matrix, y = _checked(k_train_train, targets, ridge)
    factor = _cholesky(matrix, ridge)
    inverse = scipy.linalg.cho_solve((factor, True), np.eye(len(y), dtype=matrix.dtype))
    dual = inverse @ y
    if folds is None:
        return dual / np.diagonal(inverse)[:, None]
    held = np.sort(np.concatenate([np.asarray(fold, dtype=int) for fold in folds]))
    if not np.array_equal(held, np.arange(len(y))):
        raise ValueError(f"the folds hold {held.size} indices for {len(y)} examples; give every example exactly once")
    residuals = np.empty_like(y)
    for fold in folds:
        rows = np.asarray(fold, dtype=int)
        residuals[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
    return residuals


class GradientFlow(eqx.Module):
    r"""Gradient flow on $\frac{1}{2} \sum_i \|f(x_i) - y_i\|^2$ with a constant kernel, started at $f = 0$.

    $f_t(x) = K_{x,X} \, g_t(K) \, y$ with $g_t(\lambda) = (1 - e^{-\lambda t})/\lambda$, computed on the eigenvalues
    so that it is exact at
    $t = 0$ and $t = ∞$ and never divides by an eigenvalue that is only rounding. For the mean over n examples and k
    outputs
    (the loss of neural-tangents' predict) divide its time by n k.

    Attributes:
        eigenvalues: Of $K$, ascending, as computed: rounding can make those of singular matrices negative.
        eigenvectors: One per column.
        targets: $y$.
        cutoff: Eigenvalues up to here (n times the rounding unit times the largest) are taken as 0: such directions
            are not fitted at $t = ∞$ and grow like t before.
    """

    eigenvalues: Float[Matrix, " n"]
    eigenvectors: Float[Matrix, "n n"]
    targets: Float[Matrix, "n k"]
    cutoff: float

    @property
    def rank(self) -> int:
        """Eigenvalues above `cutoff`: directions that training fits in the end."""
        return int(np.sum(np.asarray(self.eigenvalues) > self.cutoff))

    @property
    def condition_number(self) -> float:
        """Largest eigenvalue over the smallest one above `cutoff`."""
        kept = np.asarray(self.eigenvalues)[np.asarray(self.eigenvalues) > self.cutoff]
        return float(kept[-1] / kept[0]) if kept.size else float("nan")

    def dual(self, time: float) -> Float[np.ndarray, "n k"]:
        r"""$g_t(K) y$: the coefficients of $f_t$.

        Raises:
            ValueError: If `time` is negative or nan.
        """
        values, vectors = np.asarray(self.eigenvalues), np.asarray(self.eigenvectors)
        filtered = self._filter(values, time)[:, None] * (vectors.T @ np.asarray(self.targets))
        return vectors @ filtered

    def mean(self, k_test_train: Float[Matrix, "n_test n"], time: float) -> Float[np.ndarray, "n_test k"]:
        """$f_t$ at test examples, from their NTK with the training examples; also the mean over initializations."""
        return np.asarray(k_test_train) @ self.dual(time)

    def covariance(
        self,
        k_test_train: Float[Matrix, "n_test n"],
        nngp_test_test: Float[Matrix, "n_test n_test"],
        nngp_test_train: Float[Matrix, "n_test n"],
        nngp_train_train: Float[Matrix, "n n"],
        time: float,
    ) -> Float[np.ndarray, "n_test n_test"]:
        r"""Covariance of $f_t$ over initializations with NNGP covariance: $\mathrm{Cov}(f_0(x) - A f_0(X))$, $A =
        K_{x,X} g_t(K)$.

        References:
            Lee et al., NeurIPS 2019, equation 16.
        """
        values, vectors = np.asarray(self.eigenvalues), np.asarray(self.eigenvectors)
        response = ((np.asarray(k_test_train) @ vectors) * self._filter(values, time)[None, :]) @ vectors.T
        crossed = response @ np.asarray(nngp_test_train).T
        return np.asarray(nngp_test_test) - crossed - crossed.T + response @ np.asarray(nngp_train_train) @ response.T

    def _filter(self, values: np.ndarray, time: float) -> np.ndarray:
        if not time >= 0.0:
            raise ValueError(f"time is {time}; give a number of at least 0, or inf")
        kept = values > self.cutoff
        safe = np.where(kept, values, 1.0)
        if np.isinf(time):
            return np.where(kept, 1.0 / safe, 0.0)
        return np.where(kept, -np.expm1(-safe * time) / safe, time).astype(values.dtype)


def gradient_flow(k_train_train: Float[Matrix, "n n"], targets: Float[Matrix, "num_train k"]) -> GradientFlow:
    """The flow of a constant kernel, from its eigen-decomposition on the host.

    Args:
        k_train_train: Positive semi-definite kernel of the training examples.
        targets: What is to be fitted, minus the outputs at the start.

    Returns:
        The flow at any time; singular matrices are fine.

    Raises:
        ValueError: If shapes disagree or an entry is not finite.
    """
    matrix, y = _checked(k_train_train, targets, 0.0)
    values, vectors = scipy.linalg.eigh(matrix)
    cutoff = len(y) * float(np.finfo(matrix.dtype).eps) * max(float(values[-1]), 0.0)
    return GradientFlow(values, vectors, y, cutoff)


def _checked(k: Matrix, targets: Matrix, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Matrix plus ridge, as a new array, and targets."""
    matrix, y = np.array(k), np.asarray(targets)
    if matrix.shape != (len(y), len(y)):
        raise ValueError(
            f"the kernel matrix has shape {matrix.shape} for {len(y)} targets; give one row and column each"
        )
    if not (np.isfinite(ridge) and ridge >= 0.0):
        raise ValueError(f"ridge is {ridge}; give a finite number of at least 0")
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(y))):
        raise ValueError("the kernel matrix or the targets hold nan or infinite entries; find out where they come from")
    matrix[np.diag_indices_from(matrix)] += matrix.dtype.type(ridge)
    return matrix, y.astype(matrix.dtype, copy=False)


def _cholesky(matrix: np.ndarray, ridge: float) -> np.ndarray:
    """Lower factor of a matrix that already has its ridge."""
    factor, info = _lapack("potrf", matrix)(matrix, lower=True)
    # a last pivot that is only rounding is not positive definiteness
    unit = len(matrix) * float(np.finfo(matrix.dtype).eps) * float(np.max(np.abs(np.diagonal(matrix)), initial=0.0))
    if info == 0 and float(np.min(np.diagonal(factor), initial=np.inf)) ** 2 <= unit * 1e-2:
        info = int(np.argmin(np.diagonal(factor))) + 1
    if info != 0:
        raise ValueError(
            f"the kernel matrix with ridge {ridge:g} is not numerically positive definite in {matrix.dtype} (pivot "
            f"{info} of {len(matrix)}), as with examples that coincide; give a ridge of at least "
            f"{10 * unit + ridge:.1e}, "
            "or float64, or gradient_flow, which takes singular matrices"
        )
    return factor


def _lapack(name: str, matrix: np.ndarray) -> Any:
    """The LAPACK routine of this name for the dtype of `matrix`."""
    return scipy.linalg.get_lapack_funcs((name,), (matrix,))[0]
