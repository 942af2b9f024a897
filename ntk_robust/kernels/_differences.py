r"""Values of a kernel at two points, carried by what sets them apart: nothing is lost as the points meet.

$k(x,x) + k(z,z) - 2k(x,z)$ is of second order in the distance of the points, so that the difference of three rounded
values loses twice the digits that the distance has in front. Here it is a quantity of its own, from the inputs on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_GAUSS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = (_GAUSS[0] + 1.0) / 2.0, _GAUSS[1] / 2.0  # on [0, 1]


class Apart(NamedTuple):
    """A symmetric function of two points: its values at each of them with itself, and how far apart it takes them.

    Attributes:
        xx: Value of the first point with itself.
        zz: Value of the second point with itself.
        gap: `xx - zz`, relatively accurate.
        distance: `xx + zz` minus twice the value of the pair, relatively accurate.
    """

    xx: Float[Array, "..."]
    zz: Float[Array, "..."]
    gap: Float[Array, "..."]
    distance: Float[Array, "..."]

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean of `xx` and `zz`."""
        return 0.5 * (self.xx + self.zz)

    @property
    def xz(self) -> Float[Array, "..."]:
        """The value of the pair."""
        return self.mean - 0.5 * self.distance

    def affine(self, factor: float | Array, constant: float | Array = 0.0) -> "Apart":
        """`factor` times this, plus `constant`."""
        xx, zz = factor * self.xx + constant, factor * self.zz + constant
        return Apart(xx, zz, factor * self.gap, factor * self.distance)

    def plus(self, other: "Apart") -> "Apart":
        """The sum."""
        return Apart(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, other: "Apart") -> "Apart":
        """The product; its distance is a sum of products of which no two large ones cancel."""
        return Apart(
            self.xx * other.xx,
            self.zz * other.zz,
            self.mean * other.gap + other.mean * self.gap,
            0.5 * self.gap * other.gap + self.xz * other.distance + other.mean * self.distance,
        )


Expectations = Callable[[Array, Array, Array, Array], tuple[Array, ...]]


def expectations_apart(expectations: Expectations, before: Apart) -> tuple[Apart, ...]:
    r"""What smooth functions of a Gaussian pair do to it.

    Between near points the second one moves to the first along a line, $g_τ = g_z + τ (g_x - g_z)$. The distance
    $D(τ)$ starts as 0 with derivative 0, so that $D(1) = \int_0^1 (1 - τ) D''(τ) dτ$, where every term of $D''$ is
    as small as the integral; eight Gauss-Legendre nodes give it to rounding. Far points take the difference itself.

    Args:
        expectations: From both variances, the covariance and the determinant of the covariance matrix to one or more
            expectations of a pair.
        before: Variances and distance of the pair.

    Returns:
        One `Apart` for each expectation.
    """
    gap, distance = before.gap, before.distance
    lean = 0.5 * (gap - distance)  # covariance of g_z and g_x - g_z
    determinant = jnp.maximum(before.zz * distance - lean * lean, 0.0)
    near = distance < 0.02 * before.zz / (1.0 + before.zz)

    def itself(q: Array) -> tuple[Array, ...]:
        return expectations(q, q, q, jnp.zeros_like(q))

    def squared_distance(time: Array) -> tuple[Array, ...]:
        q = before.zz + time * (2.0 * lean + time * distance)
        pair = expectations(q, before.zz, before.zz + time * lean, time * time * determinant)
        return tuple(a + b - 2.0 * c for a, b, c in zip(itself(q), itself(before.zz), pair, strict=True))

    def rate(function: Callable[[Array], tuple[Array, ...]], at: Array, direction: Array) -> tuple[Array, ...]:
        return jax.jvp(function, (at,), (direction,))[1]

    def at_node(node: Array, weight: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        one = jnp.ones_like(distance)
        second = rate(lambda time: rate(squared_distance, time, one), node * one, one)
        first = rate(itself, before.zz + node * gap, gap)
        return tuple(weight * (1.0 - node) * d for d in second), tuple(weight * d for d in first)

    nodes, weights = (jnp.asarray(values, distance.dtype) for values in (_NODES, _WEIGHTS))
    distances, gaps = jax.tree.map(lambda terms: jnp.sum(terms, axis=0), jax.vmap(at_node)(nodes, weights))
    at_x, at_z = itself(before.xx), itself(before.zz)
    pairs = expectations(before.xx, before.zz, before.xz, determinant)
    return tuple(
        Apart(xx, zz, jnp.where(near, slope, xx - zz), jnp.where(near, bend, xx + zz - 2.0 * xz))
        for xx, zz, xz, slope, bend in zip(at_x, at_z, pairs, gaps, distances, strict=True)
    )


def change_of(function: Callable[[Array], Array], start: Array, change: Array) -> Array:
    """`function(start + change) - function(start)` elementwise, from derivatives on the way where `change` is small."""
    nodes, weights = (jnp.asarray(values, change.dtype) for values in (_NODES, _WEIGHTS))
    slopes = jax.vmap(lambda node: jax.jvp(function, (start + node * change,), (change,))[1])(nodes)
    near = jnp.abs(change) < 0.25
    return jnp.where(near, jnp.tensordot(weights, slopes, axes=1), function(start + change) - function(start))
