"""Which harmonics a kernel lacks on a sphere, or on a slice of it."""

import math

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from ntk_robust.expressiveness._expansion import cross_gram
from ntk_robust.kernels import AbstractKernel, mercer_spectrum


class HarmonicSupport(eqx.Module):
    r"""How much each degree of spherical harmonics has of a kernel, and which degrees have nothing.

    A kernel that lacks a degree cannot approximate the harmonics of this degree at all, at any norm; on the whole
    sphere it is universal exactly if it lacks none. What is computed is finite: all degrees below `len(mass)`.

    Attributes:
        dim: The harmonics are those of the sphere in $R^{dim}$.
        mass: Share of each degree in $k(x, x)$.
        error: Upper estimate of the error of each: quadrature and rounding of kernel values.
        total: $k(x, x)$.
    """

    dim: int
    mass: Float[np.ndarray, " degrees"]
    error: Float[np.ndarray, " degrees"]
    total: float

    @property
    def present(self) -> Bool[np.ndarray, " degrees"]:
        """Degrees whose mass is positive beyond its error."""
        return self.mass > self.error

    @property
    def missing(self) -> Bool[np.ndarray, " degrees"]:
        """Degrees whose mass is within its error of 0, which says something only where `error` is small."""
        return np.abs(self.mass) <= self.error

    @property
    def margin(self) -> float:
        """The smallest mass minus error over the degrees that are present, relative to the total."""
        return float(np.min((self.mass - self.error)[self.present])) / self.total

    def parity(self) -> str:
        """In words: the degrees that are present, as far as was computed."""
        degrees = np.arange(len(self.mass))
        found = {degree for degree in degrees if self.present[degree]}
        even, odd = (set(degrees[degrees % 2 == rest]) for rest in (0, 1))
        if found == even | odd:
            return "all"
        for name, parity, other in (("even", even, odd), ("odd", odd, even)):
            if found >= parity:
                extra = sorted(found & other)
                return name if not extra else f"{name} and {', '.join(str(degree) for degree in extra)}"
        return ", ".join(str(degree) for degree in sorted(found))


def harmonic_support(
    kernel: AbstractKernel, dim: int, *, num_degrees: int, constant: float | None = None
) -> HarmonicSupport:
    r"""Masses of the degrees of a kernel that depends on norms and cosines only.

    Args:
        kernel: A kernel of `analytic_ntk` or `analytic_nngp`, or sums, products and multiples of those.
        dim: Dimension of the inputs, at least 2 (3 with a constant).
        num_degrees: How many degrees, from 0 on.
        constant: None for the whole unit sphere of $R^{dim}$; c for its slice of points with last coordinate c, which
            is a sphere of one dimension less, with harmonics of that.

    Raises:
        ValueError: If a number is out of range.

    References:
        Micchelli, Xu and Zhang, JMLR 2006; section 4 of docs/theory/gao2019.
    """
    if constant is None:
        found = mercer_spectrum(kernel, dim, num_degrees=num_degrees)
        return HarmonicSupport(dim, found.mass, found.error, found.total)
    if not -1.0 < constant < 1.0 or dim < 3:
        raise ValueError(
            f"constant is {constant} and dim {dim}; give a last coordinate in (-1, 1) and at least 3 dimensions"
        )
    radius = math.sqrt(1.0 - constant**2)

    def zonal(cosines: np.ndarray) -> np.ndarray:
        cosines = cosines.astype(np.float64)
        sines = np.sqrt(np.maximum(1.0 - cosines**2, 0.0))
        points = np.zeros((len(cosines) + 1, dim))
        points[:, -1] = constant
        points[0, 0] = radius
        points[1:, 0], points[1:, 1] = radius * cosines, radius * sines
        return cross_gram(kernel, points[1:], points[:1])[:, 0]

    found = mercer_spectrum(zonal, dim - 1, num_degrees=num_degrees)
    return HarmonicSupport(dim - 1, found.mass, found.error, found.total)
