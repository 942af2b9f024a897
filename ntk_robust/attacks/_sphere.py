"""Caps of the sphere slice on which the theory of Gao et al. lives."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.scipy.special import betainc
from jaxtyping import Array, Float, PRNGKeyArray

from ntk_robust.attacks._sets import AbstractPerturbationSet, Box, as_numbers, check_epsilon, unit


class SphereSlice(AbstractPerturbationSet):
    r"""l2 cap on the sphere slice of x, $\{x' : ‖x'‖ = ‖x‖,\ x'_d = x_d,\ ‖x' - x‖₂ ≤ ε\}$.

    With $x = (u, c)$ and $r = ‖u‖$ the set is the cap of all $u'$ on the sphere of radius $r$ within the angle
    $2 \arcsin(\min(1, ε / 2r))$ of $u$; for three coordinates it is an arc of a circle. All points of the slice have
    the same norm, so projecting and maximizing a linear function are one problem, exact up to rounding.

    Attributes:
        epsilon: Largest chord ‖x' - x‖₂ in input units, one number or one per example (under `vmap`).
        box: None: on the slice every input is valid.

    Raises:
        ValueError: If the radius is negative or not finite, or if x is not a vector of at least 3 coordinates.

    References:
        Gao et al., Convergence of adversarial training in overparametrized neural networks, 2019, sections 4 and 5.
    """

    epsilon: Float[Array, "..."] = eqx.field(converter=as_numbers)
    box: Box | None = eqx.field(default=None, init=False)

    def __check_init__(self) -> None:
        check_epsilon(self.epsilon)

    def max_angle(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Half opening of the cap in radians, as seen from the centre of the slice, at most π; 0 where r = 0."""
        radius = jnp.linalg.norm(x[:-1])
        ratio = self.epsilon.astype(x.dtype) / jnp.where(radius > 0, 2 * radius, 1)
        return jnp.where(radius > 0, 2 * jnp.arcsin(jnp.minimum(ratio, 1)), 0)

    def project(self, x: Float[Array, " d"], point: Float[Array, " d"]) -> Float[Array, " d"]:
        """Nearest point of the cap, exact up to rounding.

        A point that is equally far from all of the cap (its first d - 1 coordinates vanish) goes to x; the point
        antipodal to x goes to an arbitrary but fixed point of the rim.
        """
        _check_vector(x)
        u, target = x[:-1], unit(point[:-1])
        axis = unit(u)
        along = jnp.vdot(axis, target)
        across = _orthogonal_part(target, axis)
        angle = jnp.arctan2(jnp.linalg.norm(across), along)
        # Antipodal (or rounding away from it): any orthogonal direction is as good as any other.
        fallback = _orthogonal_part(jnp.zeros_like(u).at[jnp.argmin(jnp.abs(axis))].set(1), axis)
        has_direction = jnp.linalg.norm(across) > jnp.finfo(x.dtype).eps
        direction = unit(jnp.where(has_direction | (along >= 0), across, fallback))
        moved = _rotate(u, direction, jnp.minimum(angle, self.max_angle(x)))
        return jnp.append(jnp.where(jnp.any(target != 0), moved, u), x[-1])

    def argmax_linear(self, x: Float[Array, " d"], direction: Float[Array, " d"]) -> Float[Array, " d"]:
        """Exact maximizer up to rounding; x itself where the direction has no part in the slice."""
        return self.project(x, direction)

    def norm(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        """Length of the chord."""
        return jnp.linalg.norm(delta)

    def excess(self, x: Float[Array, " d"], x_adv: Float[Array, " d"]) -> Float[Array, ""]:
        """By how much `x_adv` leaves the cap: chord too long, or off the slice (radius or last coordinate changed)."""
        chord = jnp.maximum(self.norm(x_adv - x) - self.epsilon.astype(x.dtype), 0)
        off_sphere = jnp.abs(jnp.linalg.norm(x_adv[:-1]) - jnp.linalg.norm(x[:-1]))
        return jnp.maximum(chord, jnp.maximum(off_sphere, jnp.abs(x_adv[-1] - x[-1])))

    def rounding(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Excess that floating point may cause; the rotation costs a few more roundings than an addition."""
        return 8 * super().rounding(x)

    def sample(self, x: Float[Array, " d"], *, key: PRNGKeyArray) -> Float[Array, " d"]:
        """Uniform in the cap with respect to its surface measure, exactly (the angle's distribution is inverted)."""
        _check_vector(x)
        u = x[:-1]
        normals = jr.normal(key, (u.size + 2,), x.dtype)
        share = jnp.exp(-(normals[-2] ** 2 + normals[-1] ** 2) / 2)  # uniform in (0, 1), as in Box and Muller's method
        across = unit(_orthogonal_part(normals[:-2], unit(u)))
        return jnp.append(_rotate(u, across, _cap_angle(share, self.max_angle(x), u.size)), x[-1])


def _check_vector(x: Float[Array, " d"]) -> None:
    if x.ndim != 1 or x.shape[0] < 3:
        raise ValueError(
            f"the sphere slice needs a vector of at least 3 coordinates (circle and constant), got shape {x.shape}"
        )


def _orthogonal_part(vector: Float[Array, " e"], axis: Float[Array, " e"]) -> Float[Array, " e"]:
    """What remains of `vector` without its part along the unit vector `axis`; twice, since the first pass cancels."""
    for _ in range(2):
        vector = vector - jnp.vdot(axis, vector) * axis
    return vector


def _rotate(u: Float[Array, " e"], direction: Float[Array, " e"], angle: Float[Array, ""]) -> Float[Array, " e"]:
    """`u` turned by `angle` towards the unit vector `direction` ⊥ u, without cancellation at small angles."""
    return u + jnp.linalg.norm(u) * jnp.sin(angle) * direction - 2 * jnp.sin(angle / 2) ** 2 * u


def _cap_angle(share: Float[Array, ""], max_angle: Float[Array, ""], dim: int) -> Float[Array, ""]:
    """Angle below which lies `share` of the cap's area on the sphere of R^dim; the density is sin(angle)^(dim - 2)."""
    if dim == 2:  # an arc
        return share * max_angle
    if dim == 3:  # Archimedes: the area is linear in the height
        return 2 * jnp.arcsin(jnp.sqrt(share) * jnp.sin(max_angle / 2))
    a, b = jnp.asarray((dim - 1) / 2, share.dtype), jnp.asarray(0.5, share.dtype)

    def area(angle: Float[Array, ""]) -> Float[Array, ""]:
        half = betainc(a, b, jnp.clip(jnp.sin(angle) ** 2, 0, 1)) / 2
        return jnp.where(angle <= jnp.pi / 2, half, 1 - half)

    wanted = share * area(max_angle)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = area(middle) < wanted
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = lax.fori_loop(0, jnp.finfo(share.dtype).nmant + 4, halve, (jnp.zeros_like(max_angle), max_angle))
    return (low + high) / 2
