r"""Two-dimensional domains with suprema certified by second derivatives.

Let $|g''| ≤ M$ along straight lines (great circles), and let a triangle lie in a ball of radius ρ around c. Then
$g + \frac M2 |x - c|^2$ is convex on it and largest at a vertex, so that $g ≤ \max_v g(v) + \frac M2 \rho^2$ there. On
a sphere, where the Hessian of half the squared distance is at least $\rho\cot\rho$, it is
$\frac M2 \rho\tan\rho$ with angles. For $g = ±(h - y)$ take $M = \|h\| \sup\|\partial^2 k_x\| + \sup|y''|$: by the
reproducing property $|\partial^2 h(x)| = |\langle h, \partial^2 k_x\rangle|$.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust.expressiveness._expansion import Expansion
from ntk_robust.expressiveness._sets import (
    AbstractSets,
    Goal,
    Worst,
    check_float64,
    measured,
    profile_series,
    target_values,
)
from ntk_robust.kernels import AbstractKernel
from ntk_robust.models import PairedTwoLayerNet

_MAX_TRIANGLES = 400_000
_MAX_LEVELS = 12
_COARSE = 3  # halvings before the search begins: each triangle of that level may give a constraint in one round


class SurfaceSets(AbstractSets):
    r"""A two-dimensional domain as one set, with a function to approximate on it.

    Triangles that can exceed the largest value found are cut into four until none exceeds it by more than the gap: by
    second derivatives, of which the fit's norm bounds its own.

    Attributes:
        triangles: Corners of triangles that cover the domain, in float64: flat, or of great circles.
        target: y, in JAX.
        target_bend: Bound of $|y''|$ along straight lines, or along great circles per squared radian.
        kernel_bend: Bound of $\|\partial^2 k_x\|$ along the same.
        on_sphere: Whether the domain is the sphere of all points with the last coordinate of these.

    Raises:
        ValueError: If the bounds are not finite and positive, or the points not in float64.
    """

    closes: ClassVar[bool] = True
    triangles: Float[Array, "t 3 d"] = eqx.field(converter=jnp.asarray)
    target: Callable[[Float[Array, " d"]], Float[Array, ""]]
    target_bend: float
    kernel_bend: float
    on_sphere: bool

    def __check_init__(self) -> None:
        check_float64(self.triangles)
        if not (0.0 <= self.target_bend < math.inf and 0.0 < self.kernel_bend < math.inf):
            raise ValueError(
                f"target_bend is {self.target_bend} and kernel_bend {self.kernel_bend}; give finite bounds of second "
                "derivatives"
            )

    @property
    def num_sets(self) -> int:
        """One."""
        return 1

    def centers(self) -> tuple[Float[np.ndarray, "1 d"], Float[np.ndarray, " 1"]]:
        """A corner."""
        corner = np.asarray(self.triangles[:1, 0])
        return corner, target_values(self.target, corner)

    def worst(self, h: Expansion, goal: Goal, gap: float, key: Key[Array, ""]) -> Worst:
        """The worst corner in each triangle of a coarse level, and a certified bound; see `AbstractSets`."""
        del key
        bend = h.norm * self.kernel_bend + self.target_bend
        if goal == "margin":
            raise ValueError("a domain with a target function has no margins; give a tolerance")
        outputs, corners = self._outputs(h), np.asarray(self.triangles)
        for _ in range(_COARSE):
            corners = self._cut(corners)
        pieces = np.arange(len(corners))
        best = np.full(len(corners), -np.inf)
        places = corners[:, 0].copy()
        ceiling, spent = -np.inf, 0
        for level in range(_MAX_LEVELS + 1):
            values = self._values(outputs, corners, goal)
            spent += len(corners)
            at = np.argmax(values, axis=1)
            highest = values[np.arange(len(at)), at]
            order = np.argsort(highest)
            order = order[highest[order] > best[pieces[order]]]
            best[pieces[order]], places[pieces[order]] = highest[order], corners[order, at[order]]
            bound = highest + 0.5 * bend * self._squared_radius(corners)
            ripe = bound <= np.max(best) + gap
            if level == _MAX_LEVELS or spent > _MAX_TRIANGLES:
                ripe[:] = True
            ceiling = max(ceiling, float(np.max(bound[ripe], initial=-np.inf)))
            if np.all(ripe):
                break
            corners, pieces = self._cut(corners[~ripe]), np.tile(pieces[~ripe], 4)
        places, first = np.unique(places, axis=0, return_index=True)
        values, upper = best[first], max(ceiling, float(np.max(best))) + h.error
        return Worst(places, np.zeros(len(places), int), target_values(self.target, places), values, np.array([upper]))

    def _outputs(self, h: Expansion) -> Callable[[Float[np.ndarray, "k d"]], Float[np.ndarray, " k"]]:
        r"""The function h; on a sphere, where the kernel is a short series, by $\sum_l \hat g_l T_l(\cos)$."""
        corner = np.asarray(self.triangles[0, 0])
        radius, constant = float(np.linalg.norm(corner[:-1])), float(corner[-1])
        series = profile_series(h.kernel, len(corner), radius, constant) if self.on_sphere else None
        if series is None:
            return h
        centers, coefficients = np.asarray(h.points)[:, :-1], np.asarray(h.coefficients)
        centers, coefficients = centers[coefficients != 0.0], coefficients[coefficients != 0.0]

        def by_series(points: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
            cosines = np.clip(points[:, :-1] @ centers.T / radius**2, -1.0, 1.0)
            return np.polynomial.chebyshev.chebval(cosines, series) @ coefficients

        return by_series

    def _values(
        self,
        outputs: Callable[[Float[np.ndarray, "k d"]], Float[np.ndarray, " k"]],
        corners: Float[np.ndarray, "t 3 d"],
        goal: Goal,
    ) -> Float[np.ndarray, "t 3"]:
        points, back = np.unique(corners.reshape(-1, corners.shape[-1]), axis=0, return_inverse=True)
        values = measured(outputs(points), target_values(self.target, points), goal)
        return values[back].reshape(corners.shape[:2])

    def _cut(self, corners: Float[np.ndarray, "t 3 d"]) -> Float[np.ndarray, "four_t 3 d"]:
        """Four triangles for each, through the middles of its sides."""
        a, b, c = np.moveaxis(corners, 1, 0)
        ab, bc, ca = ((first + second) / 2 for first, second in ((a, b), (b, c), (c, a)))
        if self.on_sphere:
            radius = float(np.linalg.norm(corners[0, 0, :-1]))
            for middle in (ab, bc, ca):
                middle[:, :-1] *= radius / np.linalg.norm(middle[:, :-1], axis=1, keepdims=True)
        parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        return np.concatenate([np.stack(part, axis=1) for part in parts])

    def _squared_radius(self, corners: Float[np.ndarray, "t 3 d"]) -> Float[np.ndarray, " t"]:
        r"""$\rho^2$ of a ball that holds the triangle, or $\rho\tan\rho$ of a cap."""
        a, b, c = np.moveaxis(corners, 1, 0)
        sides = np.sort(np.stack([np.sum((p - q) ** 2, axis=1) for p, q in ((a, b), (b, c), (c, a))]), axis=0)
        shortest, middle, longest = sides
        sixteen_areas = 4 * longest * middle - (longest + middle - shortest) ** 2
        acute = longest < shortest + middle
        around = shortest * middle * longest / np.where(acute, sixteen_areas, 1.0)
        flat = np.where(acute, around, longest / 4) * (1 + 1e-9)
        if not self.on_sphere:
            return flat
        # the cap that the ball cuts out of the sphere
        sines = np.sqrt(flat) / float(np.linalg.norm(corners[0, 0, :-1]))
        angles = np.arcsin(np.minimum(sines, 1.0))
        return np.where(sines < 1.0, angles * np.tan(np.minimum(angles, 1.5)), np.inf)


def whole_sphere(
    kernel: AbstractKernel,
    target: Callable[[Float[Array, " 4"]], Float[Array, ""]],
    target_bend: float,
    constant: float,
) -> SurfaceSets:
    r"""The sphere of all unit vectors of $R^4$ with last coordinate c, as one set.

    $\|\partial^2 k_x\|^2 = \sum_l l^4 \hat g_l$ with $\hat g_l ≥ 0$ the cosine coefficients of the kernel along a great
    circle; what rounding adds to them makes the bound larger.

    Args:
        kernel: A kernel of norms and cosines with smooth activations, such as those of `analytic_ntk`.
        target: The function to approximate, in JAX.
        target_bend: Bound of its second derivative along great circles, per squared radian.
        constant: c, in (-1, 1).

    Raises:
        ValueError: If the constant is out of range, or functions of the kernel have no second derivatives (ReLU).
    """
    if not -1.0 < constant < 1.0:
        raise ValueError(f"constant is {constant}; give a last coordinate between -1 and 1")
    radius = math.sqrt(1.0 - constant**2)
    series = profile_series(kernel, 4, radius, constant)
    if series is None:
        raise ValueError(
            "functions of this kernel have no bounded second derivatives on the sphere (a ReLU kernel has none); use "
            "whole_circle, or PointSets with what they certify"
        )
    bend = float(np.sqrt(np.sum(np.arange(len(series)) ** 4.0 * np.abs(series)))) * (1.0 + 1e-6)
    corners = radius * np.eye(3)
    faces = np.stack([corners * (1 - 2 * np.array(signs))[:, None] for signs in np.ndindex(2, 2, 2)])
    triangles = np.concatenate([faces, np.full((8, 3, 1), constant)], axis=2)
    return SurfaceSets(jnp.asarray(triangles), target, target_bend, bend, True)


def rectangle(
    lower: tuple[float, float],
    upper: tuple[float, float],
    target: Callable[[Float[Array, " 3"]], Float[Array, ""]],
    *,
    target_bend: float,
    kernel_bend: float,
    constant: float = 1.0,
) -> SurfaceSets:
    """The points (u, v, c) with u and v in intervals, as one set.

    Args:
        lower: Lower ends of u and v.
        upper: Upper ends.
        target: The function of (u, v, c) to approximate, in JAX.
        target_bend: Bound of its second derivative along straight lines.
        kernel_bend: Bound of the kernel's, such as `two_layer_bend`.
        constant: c.

    Raises:
        ValueError: If an interval is empty.
    """
    if not (lower[0] < upper[0] and lower[1] < upper[1]):
        raise ValueError(f"lower is {lower} and upper {upper}; give intervals that are not empty")
    a, b, c, d = ((u, v, constant) for u in (lower[0], upper[0]) for v in (lower[1], upper[1]))
    return SurfaceSets(jnp.array([[a, b, c], [b, c, d]], float), target, target_bend, kernel_bend, False)


def two_layer_bend(net: PairedTwoLayerNet, largest_norm: float, *, third: float) -> float:
    r"""Bound of $\|\partial^2 k_x\|$ for the analytic NTK of a two-layer net on $\|x\| ≤ R$: $2 C_2 + \sqrt3\, C_3 R$.

    The features are $\varphi(x) = x\, \sigma'(w · x)$ under $w \sim N(0, I)$, and along a unit vector u
    $\partial^2\varphi = 2u\, \sigma''(w·u) + x\, \sigma'''(w·u)^2$ with $E(w·u)^2 = 1$, $E(w·u)^4 = 3$.

    Args:
        net: The network.
        largest_norm: R.
        third: $C_3 ≥ |\sigma'''|$; $1/(6\sqrt3)$ for softplus, 2 for tanh.
    """
    return 2.0 * net.activation.smoothness + math.sqrt(3.0) * third * largest_norm
