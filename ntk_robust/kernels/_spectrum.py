"""Eigenpairs of kernel matrices: all of one in memory, the leading ones of one that is only multiplied."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import scipy  # loads its parts when they are first used
from jaxtyping import Array, Float, Key

from ntk_robust.kernels._matvec import Matvec

_SPARE = 8  # columns beyond the pairs asked for: the last of them converge faster
_BASIS_BLOCKS = 6


class Interval(NamedTuple):
    """Two sides of a number."""

    lower: float
    upper: float


class Eigenpairs(eqx.Module):
    r"""Eigenpairs of a symmetric matrix, largest first.

    Attributes:
        values: $\theta_i$. As Rayleigh-Ritz values they are at most the true i-th eigenvalues, to rounding.
        vectors: $v_i$, orthonormal columns.
        residual: $\|K v_i - \theta_i v_i\|$, in the unit of $K$: within this distance of $\theta_i$ lies an eigenvalue.
        num_products: Products of $K$ with blocks of columns; 0 for a dense decomposition.
        converged: Whether every residual is at most the tolerance times the largest value.
    """

    values: Float[np.ndarray, " num"]
    vectors: Float[np.ndarray, "n num"]
    residual: Float[np.ndarray, " num"]
    num_products: int
    converged: bool

    def effective_dimension(self, *, trace: float, ridge: float) -> Interval:
        r"""Bounds of $\mathrm{tr} K (K + \lambda I)^{-1}$ from the leading eigenvalues and the trace.

        Upper: what the eigenvalues not known would give if they were all equal (concavity, and majorization of the
        diagonal in any basis: true whether or not the pairs have converged). Lower: what they would give if they were
        as large as the smallest known one, within residuals; true if no larger eigenvalue was missed.

        Args:
            trace: Of $K$, the sum of the kernel's `diagonal`.
            ridge: $\lambda > 0$.

        Raises:
            ValueError: If the ridge is not positive.
        """
        known = effective_dimension(self.values, ridge=ridge)
        n, num = self.vectors.shape
        values, errors = self.values.astype(np.float64), self.residual.astype(np.float64)
        left = max(trace - float(values.sum()), 0.0)
        largest = float(values[-1] + errors[-1])
        lower = max(left - float(errors.sum()), 0.0) / (largest + ridge)
        upper = left / (left / (n - num) + ridge) if n > num else 0.0
        return Interval(known + lower if n > num else known, known + upper)


def eigenpairs(gram: Float[Array | np.ndarray, "n n"]) -> Eigenpairs:
    """All eigenpairs of a matrix in memory, by LAPACK on the host.

    Args:
        gram: Symmetric.

    Returns:
        The pairs, largest first, with their residuals.

    Raises:
        ValueError: If the matrix is not square, not symmetric within the root of the rounding unit, or an entry is not
            finite.
    """
    matrix = np.asarray(gram)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"the matrix has shape {matrix.shape}; give a square symmetric one")
    if not np.all(np.isfinite(matrix)):
        raise ValueError("the matrix holds nan or infinite entries; find out where they come from")
    _check_symmetric(matrix)
    values, vectors = scipy.linalg.eigh(matrix)
    values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
    residual = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    return Eigenpairs(values, vectors, residual, 0, True)


def _check_symmetric(matrix: np.ndarray) -> None:
    """LAPACK reads one half only, and would answer for another matrix."""
    size = float(np.max(np.abs(matrix)))
    unit = float(np.finfo(matrix.dtype).eps) if matrix.dtype.kind == "f" else 0.0
    for start in range(0, len(matrix), 1024):  # without a second matrix in memory
        rows = slice(start, start + 1024)
        apart = np.abs(matrix[rows] - matrix[:, rows].T)
        if np.max(apart) > unit**0.5 * size:
            i, j = (int(index) for index in np.unravel_index(int(np.argmax(apart)), apart.shape))
            raise ValueError(
                f"the matrix is not symmetric: {matrix[start + i, j]} at {(start + i, j)} and "
                f"{matrix[j, start + i]} at {(j, start + i)}; give the matrix of a set with itself"
            )


def leading_eigenpairs(
    matvec: Matvec,
    n: int,
    *,
    num: int,
    key: Key[Array, ""],
    tolerance: float = 1e-6,
    max_products: int = 50,
    dtype: Any = np.float64,
) -> Eigenpairs:
    r"""The largest eigenvalues and their vectors from products with blocks of columns, never forming the matrix.

    Block Krylov iteration from a random start with Rayleigh-Ritz on the whole basis, restarted with the best vectors
    when the basis has six blocks. One product is one pass over the matrix, whose cost hardly depends on `num` while
    that is a few dozen. Memory about 20 n (num + 8) numbers.

    Args:
        matvec: Product with $K$: `kernel_matvec`, `stored_matvec`, or `K.__matmul__`.
        n: Rows of $K$.
        num: Pairs, at most n.
        key: Draws the start.
        tolerance: Residual relative to the largest eigenvalue at which all pairs are done; products in float32 allow
            about $10^{-6}$.
        max_products: After which the result says that it did not converge.
        dtype: Of the basis.

    Returns:
        The pairs with their residuals. That no larger eigenvalue hides between them is certain only in probability: a
        random start misses none, but one whose residual has not converged may be missing.

    Raises:
        ValueError: If `num` is not from 1 to n, or the tolerance is not positive.

    References:
        Knyazev, SIAM J. Sci. Comput. 2001; Musco and Musco, NeurIPS 2015.
    """
    if not 1 <= num <= n:
        raise ValueError(f"num is {num} for {n} rows; give a number from 1 to {n}")
    if not tolerance > 0.0 or max_products < 1:
        raise ValueError(f"tolerance is {tolerance} and max_products {max_products}; give positive numbers")
    dtype = np.dtype(dtype)
    width = min(n, -(-(num + _SPARE) // 8) * 8)
    basis, images = np.zeros((n, 0), dtype), np.zeros((n, 0), dtype)
    # drawn in JAX's own precision: float64 in NumPy needs no 64-bit JAX
    block = np.linalg.qr(np.asarray(jax.random.normal(key, (n, width))).astype(dtype))[0]
    products = 0
    while True:
        products += 1
        basis = np.concatenate([basis, block], axis=1)
        images = np.concatenate([images, matvec(block).astype(dtype, copy=False)], axis=1)
        core = basis.T @ images
        values, rotation = scipy.linalg.eigh(0.5 * (core + core.T))
        values, rotation = values[::-1][:width], rotation[:, ::-1][:, :width]
        vectors, moved = basis @ rotation, images @ rotation
        misfit = moved - vectors * values
        residual = np.linalg.norm(misfit, axis=0)
        goal = tolerance * max(float(values[0]), 0.0)
        converged = bool(np.all(residual[:num] <= goal))
        if converged or products == max_products:
            break
        if basis.shape[1] + width > min(n, _BASIS_BLOCKS * width):
            basis, images = vectors, moved
        block = _new_directions(misfit[:, residual > 0.1 * goal], basis)
        if block.shape[1] == 0:
            break
    return Eigenpairs(values[:num], vectors[:, :num], residual[:num], products, converged)


def _new_directions(candidates: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what the candidates add; what is only rounding adds nothing."""
    block = candidates / np.linalg.norm(candidates, axis=0)
    for _ in range(2):
        if block.shape[1] == 0:
            break
        block = block - basis @ (basis.T @ block)
        pivoted: Any = scipy.linalg.qr(block, mode="economic", pivoting=True)
        block, sizes = pivoted[0], np.abs(np.diagonal(pivoted[1]))
        # the first pass measures what is new; the second only takes out the rounding of the first
        block = block[:, sizes > 1e3 * float(np.finfo(block.dtype).eps)]
    return block[:, : max(0, len(basis) - basis.shape[1])]


def effective_dimension(
    eigenvalues: Float[np.ndarray, " n"],
    *,
    ridge: float,
    multiplicities: Float[np.ndarray, " n"] | None = None,
) -> float:
    r"""Directions that a ridge leaves.

    $\mathrm{tr} K (K + \lambda I)^{-1} = \sum_i m_i \lambda_i / (\lambda_i + \lambda)$.

    Args:
        eigenvalues: $\lambda_i$ of a matrix, or of a kernel's integral operator (`MercerSpectrum`).
        ridge: $\lambda > 0$, in the unit of the eigenvalues (for an operator: the matrix's ridge over n).
        multiplicities: $m_i$; None for 1.

    Returns:
        A number from 0 to the rank. Eigenvalues that rounding made negative count with their (small) value.

    Raises:
        ValueError: If the ridge is not positive, `eigenvalues` is a matrix or not finite, or there is not one
            multiplicity for each.
    """
    if not ridge > 0.0:
        raise ValueError(f"ridge is {ridge}; give a positive number (without one the effective dimension is the rank)")
    values = np.asarray(eigenvalues, np.float64)
    if values.ndim != 1:
        raise ValueError(f"eigenvalues has shape {values.shape}; for a matrix give eigenpairs(matrix).values")
    if not np.all(np.isfinite(values)):
        where = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"eigenvalue {where} is {values[where]}; find out where it comes from")
    if multiplicities is not None and np.shape(multiplicities) != values.shape:
        raise ValueError(
            f"{len(values)} eigenvalues and multiplicities of shape {np.shape(multiplicities)}; give one each"
        )
    terms = values / (values + ridge)
    return float(np.sum(terms if multiplicities is None else terms * np.asarray(multiplicities, np.float64)))
