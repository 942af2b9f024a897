r"""Mercer eigenvalues of zonal kernels on the sphere.

For the uniform distribution on $S^{d-1}$ and the Legendre polynomials $P_k$ of dimension $d$ (Gegenbauer polynomials
with $P_k(1) = 1$), $\kappa(u) = \sum_k \lambda_k N(d, k) P_k(u)$: $\lambda_k$ is the eigenvalue of the spherical
harmonics of degree $k$, of which there are $N(d, k)$, and $\lambda_k N(d, k)$ their share of $\kappa(1)$.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._checks import whole_number
from ntk_robust.kernels._power_series import has_power_coefficients, power_coefficients

Zonal = AbstractKernel | Callable[[np.ndarray], np.ndarray]

# Kernel values carry a few roundings each.
_ROUNDINGS = 16.0
_SERIES_TERMS = 512


class MercerSpectrum(eqx.Module):
    r"""Eigenvalues of a zonal kernel for the uniform distribution on a sphere, one per degree.

    Attributes:
        dim: $d$: the sphere is $S^{d-1}$.
        mass: $\lambda_k N(d, k)$ for $k = 0, 1, …$: the share of degree k in $\kappa(1)$. Their sum over all degrees is
            $\kappa(1)$.
        error: Estimate of the error of each mass, from above: rounding of the kernel values, and the difference of two
            quadratures or the rest of the series. Masses below it are not known to differ from 0.
        total: $\kappa(1)$.
    """

    dim: int
    mass: Float[np.ndarray, " degrees"]
    error: Float[np.ndarray, " degrees"]
    total: float

    @property
    def multiplicities(self) -> Float[np.ndarray, " degrees"]:
        """$N(d, k)$, inf beyond the range of float64."""
        return np.array([_as_float(_num_harmonics(self.dim, k)) for k in range(len(self.mass))])

    @property
    def eigenvalues(self) -> Float[np.ndarray, " degrees"]:
        r"""$\lambda_k$; as computed, so that rounding can make those that vanish negative."""
        return self.mass / self.multiplicities

    @property
    def tail(self) -> float:
        """What the degrees beyond those computed have of the total; nan if an error is as large as the total."""
        return self.total - float(np.sum(self.mass)) if np.max(self.error) < self.total else math.nan


def mercer_spectrum(zonal: Zonal, dim: int, *, num_degrees: int, radius: float = 1.0) -> MercerSpectrum:
    r"""Mercer eigenvalues of degrees below `num_degrees` on the sphere of dimension `dim` - 1.

    By Gauss-Legendre quadrature in the angle, where the kernels of networks are analytic, with the recurrence of $P_k$:
    for any zonal function. Its rounding grows like $\sqrt{N(d, k)}$: in high dimension a kernel known to 16 digits says
    nothing of high degrees. For kernels with a power series of positive coefficients (`power_coefficients`) these are
    turned into masses by the walk $u P_k = \frac{k + d - 2}{2k + d - 2} P_{k+1} + \frac{k}{2k + d - 2} P_{k-1}$, whose
    steps are probabilities, and each degree comes from where its error is smaller.

    Args:
        zonal: A kernel that depends on the points' norms and angle only, taken at points of norm `radius`; or a
            function $\kappa$ of an array of cosines.
        dim: $d ≥ 2$.
        num_degrees: How many degrees, from 0 on.
        radius: Norm of the points, for kernels.

    Returns:
        The spectrum with an error for each degree.

    Raises:
        ValueError: If `dim` is below 2 or not whole, `num_degrees` or `radius` not positive, a kernel value not finite,
            or the kernel depends on more than norms and angle.

    Examples:
        >>> import numpy as np
        >>> found = mercer_spectrum(lambda u: u**2, 3, num_degrees=4)  # u² = 1/3 + (2/3) P_2
        >>> bool(np.allclose(found.mass, [1 / 3, 0, 2 / 3, 0]))
        True

    References:
        Müller, Spherical Harmonics, 1966; Bach, JMLR 2017; Bietti and Mairal, NeurIPS 2019.
    """
    dim, num_degrees = whole_number("dim", dim), whole_number("num_degrees", num_degrees)
    if dim < 2:
        raise ValueError(f"dim is {dim}; give at least 2, a circle")
    if num_degrees < 1 or not radius > 0.0:
        raise ValueError(f"num_degrees is {num_degrees} and radius {radius}; give positive numbers")
    nodes = 256 + 2 * num_degrees + 4 * math.isqrt(dim)
    coarse, fine = _gauss_legendre(nodes), _gauss_legendre(nodes + nodes // 3)
    values = _at_angles(zonal, radius, np.concatenate([[0.0], coarse[0], fine[0]]))
    total = float(values[0])
    mass, rounding = _by_quadrature(values[1 + nodes :], *fine, dim, num_degrees)
    error = np.abs(mass - _by_quadrature(values[1 : 1 + nodes], *coarse, dim, num_degrees)[0]) + rounding
    if isinstance(zonal, AbstractKernel) and has_power_coefficients(zonal):
        other, its_error = _by_series(zonal, dim, num_degrees, radius, total)
        better = its_error < error
        mass, error = np.where(better, other, mass), np.where(better, its_error, error)
    return MercerSpectrum(dim, mass, error, total)


def _at_angles(zonal: Zonal, radius: float, angles: np.ndarray) -> np.ndarray:
    angles = angles.astype(np.float64)
    if isinstance(zonal, AbstractKernel):
        found, turned = (_on_circle(zonal, radius, angles, start) for start in (0.0, 1.0))
        off = np.abs(turned - found)
        if np.max(off) > np.finfo(found.dtype).eps ** 0.5 * np.max(np.abs(found)):
            where = int(np.argmax(off))
            raise ValueError(
                f"at angle {angles[where]} the kernel is {found[where]} and, with both points turned, {turned[where]}: "
                "it depends on more than norms and angle, and has no spectrum by degree; take eigenpairs of a matrix"
            )
    else:
        found = np.asarray(zonal(np.cos(angles)))
        if found.shape != angles.shape:
            raise ValueError(
                f"the function returned shape {found.shape} for {angles.shape[0]} cosines; give one that takes an array"
            )
    if not np.all(np.isfinite(found)):
        where = int(np.argmin(np.isfinite(found)))
        raise ValueError(f"the kernel is {found[where]} at angle {angles[where]}; it must be finite")
    return found


def _on_circle(kernel: AbstractKernel, radius: float, angles: np.ndarray, start: float) -> np.ndarray:
    """The kernel of one point of a circle with points at these angles from it."""
    point, circle = (radius * np.stack([np.cos(a), np.sin(a)], axis=-1) for a in (np.array(start), start + angles))
    try:
        return np.asarray(_pairs(kernel, point, circle))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the kernel cannot be evaluated at points of a circle ({error}); give one that depends on norms and angle "
            "only, of a fully connected network, or take eigenpairs of a matrix"
        ) from error


@eqx.filter_jit
def _pairs(kernel: AbstractKernel, x: Any, z: Any) -> Array:
    return jax.vmap(kernel, (None, 0))(jnp.asarray(x), jnp.asarray(z))


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles from 0 to π and their weights, by Newton's iteration in extended precision where there is one."""
    x = np.cos(np.pi * (np.arange(n, 0, -1, dtype=np.longdouble) - 0.25) / (n + 0.5))
    slope = np.ones_like(x)
    for _ in range(5):
        before, now = np.ones_like(x), x
        for k in range(1, n):
            before, now = now, ((2 * k + 1) * x * now - k * before) / (k + 1)
        slope = n * (x * now - before) / (x * x - 1.0)
        x = x - now / slope
    return 2.0 * np.arctan(np.longdouble(1.0)) * (x + 1.0), 2.0 / ((1.0 - x * x) * slope**2)


def _by_quadrature(
    kernel: np.ndarray, angles: np.ndarray, weights: np.ndarray, dim: int, num_degrees: int
) -> tuple[np.ndarray, np.ndarray]:
    """Masses and their rounding, from the kernel at the angles of a quadrature."""
    density = weights * np.sin(angles) ** (dim - 2)
    density /= density.sum()
    unit = _ROUNDINGS * float(np.finfo(kernel.dtype).eps)
    weighted, cosine = density * kernel, np.cos(angles)
    before, now = np.zeros_like(cosine), np.ones_like(cosine)
    mass, rounding = np.zeros(num_degrees), np.full(num_degrees, np.inf)
    for k in range(num_degrees):
        count = _as_float(_num_harmonics(dim, k))
        if math.isfinite(count):  # beyond the range of float64 nothing is known anyway
            mass[k] = count * np.dot(weighted, now)
            rounding[k] = unit * count * np.dot(np.abs(weighted), np.abs(now))
        up, down = _steps(dim, k)
        before, now = now, (cosine * now - down * before) / up
    return mass, rounding


def _by_series(
    kernel: AbstractKernel, dim: int, num_degrees: int, radius: float, total: float
) -> tuple[np.ndarray, np.ndarray]:
    """Masses, and what the coefficients left out can add."""
    terms = _SERIES_TERMS + 2 * num_degrees
    coefficients = power_coefficients(kernel, terms, radius=radius)
    up, down = np.array([_steps(dim, k) for k in range(terms)]).T
    walk, mass = np.zeros(terms), np.zeros(terms)
    walk[0] = 1.0
    for coefficient in coefficients:
        mass += coefficient * walk
        onwards, back = up * walk, down * walk
        walk = np.concatenate([[0.0], onwards[:-1]]) + np.concatenate([back[1:], [0.0]])
    unit = float(np.finfo(np.float64).eps)
    rest = max(total - float(coefficients.sum()), 0.0) + terms * unit * total
    # P(X_j = k) = N E[u^j P_k] is at most N E|u|^j
    log_moment = math.lgamma((terms + 1) / 2) + math.lgamma(dim / 2) - math.lgamma((terms + dim) / 2)
    log_moment -= 0.5 * math.log(math.pi)
    reach = [log_moment + math.log(_num_harmonics(dim, k)) for k in range(num_degrees)]
    mass = mass[:num_degrees]
    return mass, rest * np.exp(np.minimum(reach, 0.0)) + terms * unit * mass


def _steps(dim: int, k: int) -> tuple[float, float]:
    """Shares of u P_k in P_{k+1} and P_{k-1}."""
    return (1.0, 0.0) if k == 0 else ((k + dim - 2) / (2 * k + dim - 2), k / (2 * k + dim - 2))


def _num_harmonics(dim: int, k: int) -> int:
    return math.comb(k + dim - 1, k) - (math.comb(k + dim - 3, k - 2) if k >= 2 else 0)


def _as_float(count: int) -> float:
    return float(count) if count.bit_length() < 1024 else math.inf
