r"""Bounds of $h = \sum_j \alpha_j k(·, x_j)$ on sets that hold some of the $x_j$, as robust fits make them.

`certify.local_kernel_bounds` rests on second derivatives, and a ReLU kernel has a cusp at each $x_j$. The terms whose
cusp the set reaches are therefore bounded by themselves: $k(x', x_j) = s\|x'\|\|x_j\|\kappa(\cos\theta)$ with κ
increasing for acute angles, between the smallest and largest norm and angle of the set. What is left is smooth on it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet, LinfBall
from ntk_robust.certify import RkhsFunction, local_kernel_bounds, rkhs_bounds
from ntk_robust.kernels import ZonalKernel

_RELATIVE_ROUNDING = 1e4 * float(np.finfo(np.float64).eps)


@eqx.filter_jit
def zonal_bounds(
    kernel: ZonalKernel,
    points: Float[Array, "s d"],
    coefficients: Float[Array, " s"],
    xs: Float[Array, "n d"],
    perturbations: AbstractPerturbationSet,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Lower and upper bounds on the set of each x: the better of the norm's (`rkhs_bounds`) and the local ones."""
    function = RkhsFunction(kernel, points, coefficients[:, None])

    def bounds(x: Float[Array, " d"]) -> tuple[Array, Array]:
        by_norm = rkhs_bounds(function, x, perturbations)
        near_lower, near_upper, near = _near_terms(kernel, points, coefficients, x, perturbations)
        far = eqx.tree_at(lambda f: f.dual, function, jnp.where(near, 0.0, coefficients)[:, None])
        local = local_kernel_bounds(far, x, perturbations)
        lower, upper = local.lower[0] + near_lower, local.upper[0] + near_upper
        return (
            jnp.fmax(by_norm.lower[0], jnp.where(jnp.isnan(lower), -jnp.inf, lower)),
            jnp.fmin(by_norm.upper[0], jnp.where(jnp.isnan(upper), jnp.inf, upper)),
        )

    # one at a time, so that the differences of all pairs of points need not be in memory at once
    return jax.lax.map(bounds, xs)


def euclidean_radius(perturbations: AbstractPerturbationSet, x: Float[Array, " d"]) -> Float[Array, ""]:
    """Radius of an l2 ball around x that holds the set: an l1 or l2 ball, a cap, or what a box leaves of an l∞ ball."""
    radius = perturbations.epsilon.astype(x.dtype) + 2.0 * perturbations.rounding(x)
    if not isinstance(perturbations, LinfBall):
        return radius
    sizes = jnp.broadcast_to(radius, x.shape)
    if perturbations.box is not None:
        down, up = perturbations.box.room(x)
        sizes = jnp.minimum(sizes, jnp.maximum(up, -down) + 2.0 * perturbations.rounding(x))
    return jnp.linalg.norm(sizes) * (1.0 + _RELATIVE_ROUNDING)


def _near_terms(
    kernel: ZonalKernel,
    points: Float[Array, "s d"],
    coefficients: Float[Array, " s"],
    x: Float[Array, " d"],
    perturbations: AbstractPerturbationSet,
) -> tuple[Array, Array, Array]:
    """Bounds of the sum of the terms whose cusp the set may reach, and which they are."""
    radius, r = euclidean_radius(perturbations, x), jnp.linalg.norm(x)
    lengths = jnp.linalg.norm(points, axis=1)
    cosines = jnp.clip(points @ x / jnp.where(lengths * r > 0.0, lengths * r, 1.0), -1.0, 1.0)
    angles = jnp.arccos(cosines)
    # wider than in local_kernel_bounds, so that every term that it would refuse is here
    spread = jnp.arcsin(jnp.minimum(radius / r, 1.0)) * 1.0002 + 8.0 * float(jnp.finfo(x.dtype).eps) ** 0.5
    near = (angles <= spread) | (radius >= r)
    farthest = jnp.minimum(angles + spread, jnp.pi)

    def values(angle: Array, norm: Array) -> Array:
        """The kernel of unit vectors at these angles, times the norms."""
        there = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        unit = jax.vmap(kernel, (None, 0))(jnp.array([1.0, 0.0], x.dtype), there)
        return unit * norm * lengths

    largest = values(jnp.zeros_like(angles), r + radius) * (1.0 + _RELATIVE_ROUNDING)
    # κ may be negative beyond a right angle, where a large norm makes it smaller
    smallest = jnp.minimum(values(farthest, jnp.maximum(r - radius, 0.0)), values(farthest, r + radius))
    smallest = smallest - _RELATIVE_ROUNDING * largest
    high = jnp.where(coefficients > 0.0, coefficients * largest, coefficients * smallest)
    low = jnp.where(coefficients > 0.0, coefficients * smallest, coefficients * largest)
    return jnp.sum(jnp.where(near, low, 0.0)), jnp.sum(jnp.where(near, high, 0.0)), near
