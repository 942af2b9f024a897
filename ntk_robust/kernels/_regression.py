"""Kernel ridge regression and gradient flow from Gram matrices, exactly, with the conditioning in the result."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
import scipy  # loads its parts when they are first used
from jaxtyping import Array, Float

from ntk_robust.kernels._room import check_room

Matrix = Array | np.ndarray

_ROWS_CHECKED_AT_ONCE = 512


class KernelRegression(eqx.Module):
    r"""A function $f(x) = \sum_i \alpha_i k(x, x_i)$ fitted to targets.

    Attributes:
        dual: $\alpha$, one row per training example.
        factor: Lower Cholesky factor of $K + \lambda I$; what lies above the diagonal is undefined.
        ridge: $\lambda$ that was added to the diagonal, in the unit of the kernel.
        condition_number: Estimate (within a small factor, from below) of the 1-norm condition number of $K + \lambda
            I$.
        residual: $\|(K + \lambda I) \alpha - y\|_F / \|y\|_F$ as computed; 0 for zero targets.
    """

    dual: Float[Matrix, "n k"]
    factor: Float[np.ndarray, "n n"]
    ridge: float
    condition_number: float
    residual: float

    @property
    def relative_error(self) -> float:
        """Estimate of the relative error of `dual`: the condition number times the rounding unit, at most 1."""
        return min(1.0, self.condition_number * float(np.finfo(self.factor.dtype).eps))

    def __call__(self, k_test_train: Float[Matrix, "n_test n"]) -> Float[Matrix, "n_test k"]:
        """Predictions from the kernel between test examples (rows) and training examples."""
        return k_test_train @ self.dual

    def solve(self, v: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        r"""$(K + \lambda I)^{-1} v$ in the dtype of `v`, with the factor in its own.

        As a preconditioner of `conjugate_gradients` with the matrix in float64, a fit in float32 gives solutions to
        float64 rounding for half of the memory and less than half of the time of a factor in float64.
        """
        return scipy.linalg.cho_solve((self.factor, True), v.astype(self.factor.dtype, copy=False)).astype(v.dtype)

    def posterior_covariance(
        self, k_test_test: Float[Matrix, "n_test n_test"], k_test_train: Float[Matrix, "n_test n"]
    ) -> Float[np.ndarray, "n_test n_test"]:
        r"""Covariance of the Gaussian process with this kernel given targets with noise of variance $\lambda$.

        $K_{**} - K_{*X} (K + \lambda I)^{-1} K_{X*}$, of the noiseless function. With the NNGP kernel it is the
        posterior of the Bayesian network.
        """
        half = scipy.linalg.solve_triangular(self.factor, np.asarray(k_test_train).T, lower=True)
        return np.asarray(k_test_test) - half.T @ half

    def covariance(
        self,
        k_test_train: Float[Matrix, "n_test n"],
        nngp_test_test: Float[Matrix, "n_test n_test"],
        nngp_test_train: Float[Matrix, "n_test n"],
        nngp_train_train: Float[Matrix, "n n"],
    ) -> Float[np.ndarray, "n_test n_test"]:
        r"""Covariance over initializations of networks trained to the end, $\mathrm{Cov}(f_0(x) - A f_0(X))$.

        $A = K_{*X} (K + \lambda I)^{-1}$, with the NTK as kernel and the NNGP covariance of $f_0$.
        """
        response = scipy.linalg.cho_solve((self.factor, True), np.asarray(k_test_train).T).T
        return _ensemble_covariance(response, nngp_test_test, nngp_test_train, nngp_train_train)


def kernel_regression(
    k_train_train: Float[Matrix, "n n"], targets: Float[Matrix, "num_train k"], *, ridge: float
) -> KernelRegression:
    r"""Kernel ridge regression, $\alpha = (K + \lambda I)^{-1} y$, by Cholesky on the host.

    For the ensemble of trained infinitely wide networks give the NTK and ridge 0; for Bayesian inference the NNGP
    kernel and the noise variance. n³/3 operations and one more matrix in memory; `conjugate_gradients` takes systems
    beyond that.

    Args:
        k_train_train: Positive semi-definite $K$.
        targets: $y$.
        ridge: $\lambda ≥ 0$, absolute, in the unit of `k_train_train`.

    Returns:
        The fit, with its conditioning.

    Raises:
        ValueError: If the ridge is negative, shapes disagree, the matrix is not symmetric, an entry is not finite, or
            $K + \lambda I$ is not numerically positive definite (with a ridge that makes it so), or there is no room
            for one more matrix. Nothing is added silently.
    """
    k, y = _checked(k_train_train, targets, ridge, copies=1)
    matrix = _ridged(k, ridge)
    norm = scipy.linalg.norm(matrix, 1)
    factor = _cholesky(matrix, ridge)
    dual = scipy.linalg.cho_solve((factor, True), y)
    reciprocal = float(_lapack("pocon", factor)(factor, norm, uplo="L")[0])
    misfit = k @ dual + y.dtype.type(ridge) * dual - y
    size = float(np.linalg.norm(y))
    return KernelRegression(
        dual=dual,
        factor=factor,
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
    k, y = _checked(k_train_train, targets, ridge, copies=2)
    factor = _cholesky(_ridged(k, ridge), ridge)
    inverse = scipy.linalg.cho_solve((factor, True), np.eye(len(y), dtype=k.dtype), overwrite_b=True)
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

    $f_t(x) = K_{x,X} \, g_t(K + \lambda I) \, y$ with $g_t(s) = (1 - e^{-s t})/s$, computed on the eigenvalues so that
    it is exact at $t = 0$ and $t = ∞$ and never divides by an eigenvalue that is only rounding. A ridge $\lambda$ is
    weight decay towards the initialization, $\frac{\lambda}{2} \|W - W_0\|^2$. For the mean over n examples and k
    outputs (the loss of neural-tangents' predict) divide its time by n k.

    Attributes:
        eigenvalues: Of $K$, ascending, as computed: rounding can make those of singular matrices negative.
        eigenvectors: One per column.
        targets: $y$.
        ridge: $\lambda$.
        cutoff: Eigenvalues of $K + \lambda I$ up to here (n times the rounding unit times the largest) are only
            rounding, and such directions are fitted at no time. Training examples would show them from times of about
            1/`cutoff` on.
    """

    eigenvalues: Float[np.ndarray, " n"]
    eigenvectors: Float[np.ndarray, "n n"]
    targets: Float[np.ndarray, "n k"]
    ridge: float
    cutoff: float

    @property
    def rank(self) -> int:
        """Eigenvalues of $K$ above `cutoff`: directions that training fits in the end."""
        return int(np.sum(self.eigenvalues > self.cutoff))

    @property
    def condition_number(self) -> float:
        r"""Largest eigenvalue of $K + \lambda I$ over the smallest one above `cutoff`."""
        kept = (self.eigenvalues + self.ridge)[self.eigenvalues + self.ridge > self.cutoff]
        return float(kept[-1] / kept[0]) if kept.size else float("nan")

    def dual(self, time: float) -> Float[np.ndarray, "n k"]:
        r"""$g_t(K + \lambda I) y$: the coefficients of $f_t$.

        Raises:
            ValueError: If `time` is negative or nan.
        """
        return self.eigenvectors @ (self._filter(time)[:, None] * (self.eigenvectors.T @ self.targets))

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
        r"""Covariance of $f_t$ over initializations.

        $\mathrm{Cov}(f_0(x) - A f_0(X))$ with $A = K_{x,X} g_t(K + \lambda I)$ and the NNGP covariance of $f_0$. With
        the NTK as the flow's kernel all layers train; with the NNGP kernel as the flow's kernel too, the readout
        trains, and at $t = ∞$ without a ridge it is the posterior of the Gaussian process.

        References:
            Lee et al., NeurIPS 2019, equation 16.
        """
        response = ((np.asarray(k_test_train) @ self.eigenvectors) * self._filter(time)[None, :]) @ self.eigenvectors.T
        return _ensemble_covariance(response, nngp_test_test, nngp_test_train, nngp_train_train)

    def _filter(self, time: float) -> np.ndarray:
        if not time >= 0.0:
            raise ValueError(f"time is {time}; give a number of at least 0, or inf")
        values = self.eigenvalues + self.eigenvalues.dtype.type(self.ridge)
        kept = values > self.cutoff
        safe = np.where(kept, values, 1.0)
        return np.where(kept, -np.expm1(-safe * time) / safe, 0.0).astype(values.dtype)


def gradient_flow(
    k_train_train: Float[Matrix, "n n"], targets: Float[Matrix, "num_train k"], *, ridge: float = 0.0
) -> GradientFlow:
    r"""The flow of a constant kernel, from its eigen-decomposition on the host.

    Args:
        k_train_train: Positive semi-definite kernel of the training examples.
        targets: What is to be fitted, minus the outputs at the start.
        ridge: $\lambda ≥ 0$ of the weight decay, in the unit of `k_train_train`.

    Returns:
        The flow at any time; singular matrices are fine.

    Raises:
        ValueError: If shapes disagree, the matrix is not symmetric, the ridge is negative, an entry is not finite, or
            there is no room for two more matrices.
    """
    k, y = _checked(k_train_train, targets, ridge, copies=2)
    values, vectors = scipy.linalg.eigh(k)
    cutoff = len(y) * float(np.finfo(k.dtype).eps) * max(float(values[-1]), 0.0)
    return GradientFlow(values, vectors, y, float(ridge), cutoff)


def _ensemble_covariance(response: np.ndarray, test_test: Any, test_train: Any, train_train: Any) -> np.ndarray:
    crossed = response @ np.asarray(test_train).T
    return np.asarray(test_test) - crossed - crossed.T + response @ np.asarray(train_train) @ response.T


def _checked(k: Matrix, targets: Matrix, ridge: float, *, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and targets in one dtype, on the host, where there is room for this many more of such matrices."""
    matrix, y = np.asarray(k), np.asarray(targets)
    if y.ndim != 2:
        raise ValueError(f"the targets have shape {y.shape}; give a column for each output, y[:, None] for one")
    if not np.issubdtype(matrix.dtype, np.floating):
        raise ValueError(f"the kernel matrix holds {matrix.dtype}; give floating point numbers")
    if matrix.shape != (len(y), len(y)):
        raise ValueError(
            f"the kernel matrix has shape {matrix.shape} for {len(y)} targets; give one row and column each"
        )
    if not (np.isfinite(ridge) and ridge >= 0.0):
        raise ValueError(f"ridge is {ridge}; give a finite number of at least 0")
    check_room(
        copies * matrix.nbytes,
        f"an exact solution for a matrix of {len(y)} x {len(y)} {matrix.dtype}",
        "take conjugate_gradients, which copies no matrix",
    )
    blocks = range(0, len(y), _ROWS_CHECKED_AT_ONCE)
    if not (np.all(np.isfinite(y)) and all(np.all(np.isfinite(matrix[i : i + _ROWS_CHECKED_AT_ONCE])) for i in blocks)):
        raise ValueError("the kernel matrix or the targets hold nan or infinite entries; find out where they come from")
    largest = asymmetry = 0.0
    for i in blocks:
        rows, columns = matrix[i : i + _ROWS_CHECKED_AT_ONCE], matrix[:, i : i + _ROWS_CHECKED_AT_ONCE].T
        largest = max(largest, float(np.max(np.abs(rows))))
        asymmetry = max(asymmetry, float(np.max(np.abs(rows - columns))))
    if asymmetry > 1e3 * float(np.finfo(matrix.dtype).eps) * largest:
        raise ValueError(
            f"entries of the kernel matrix and of its transpose differ by up to {asymmetry:.1e}, and the largest is "
            f"{largest:.1e}; give the symmetric matrix of a set with itself"
        )
    return matrix, y.astype(matrix.dtype, copy=False)


def _ridged(matrix: np.ndarray, ridge: float) -> np.ndarray:
    """A copy with the ridge, columns first as LAPACK has it, to be overwritten."""
    copy = np.array(matrix, order="F")
    copy[np.diag_indices_from(copy)] += copy.dtype.type(ridge)
    return copy


def _cholesky(matrix: np.ndarray, ridge: float) -> np.ndarray:
    """Lower factor of a matrix that already has its ridge, in its memory."""
    largest = float(np.max(np.abs(np.diagonal(matrix)), initial=0.0))
    factor, info = _lapack("potrf", matrix)(matrix, lower=True, overwrite_a=True, clean=False)
    # a last pivot that is only rounding is not positive definiteness
    unit = len(matrix) * float(np.finfo(matrix.dtype).eps) * largest
    if info == 0 and float(np.min(np.diagonal(factor), initial=np.inf)) ** 2 <= unit * 1e-2:
        info = int(np.argmin(np.diagonal(factor))) + 1
    if info != 0 and largest + ridge == 0.0:
        raise ValueError("the kernel matrix is zero; look at what made it, or give a positive ridge")
    if info != 0:
        raise ValueError(
            f"the kernel matrix with ridge {ridge:g} is not numerically positive definite in {matrix.dtype} (pivot "
            f"{info} of {len(matrix)}), as with examples that coincide; give a ridge of at least "
            f"{10 * unit + ridge:.1e}, or float64, or gradient_flow, which takes singular matrices"
        )
    return factor


def _lapack(name: str, matrix: np.ndarray) -> Any:
    """The LAPACK routine of this name for the dtype of `matrix`."""
    return scipy.linalg.get_lapack_funcs((name,), (matrix,))[0]
