"""The l2 ball intersected with the valid input box."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ntk_robust.attacks._saturation import time_to_reach
from ntk_robust.attacks._sets import AbstractPerturbationSet, Box, as_numbers, check_epsilon, reflect_into_box, unit


class L2Ball(AbstractPerturbationSet):
    r"""l2 ball ∩ box, {x' valid : ‖x' - x‖₂ ≤ ε}.

    `project` and `argmax_linear` are exact up to rounding. Both have the form δ = clip(t v, box - x) with one unknown
    t ≥ 0, because every coordinate is either free or at its face. In s = t² the squared norm Σ min(s v², c²) is concave
    and piecewise linear, so that Newton's method finds it in finitely many steps.

    Attributes:
        epsilon: Radius in input units, one number or one per example (under `vmap`).
        box: The valid inputs, or None.

    Raises:
        ValueError: If the radius is negative or not finite.
    """

    epsilon: Float[Array, "..."] = eqx.field(converter=as_numbers)
    box: Box | None = None

    def __check_init__(self) -> None:
        check_epsilon(self.epsilon)

    def project(self, x: Float[Array, "*dims"], point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Nearest point, exact up to rounding."""
        epsilon = self.epsilon.astype(x.dtype)
        delta = point - x
        if self.box is None:
            return jnp.where(self.norm(delta) <= epsilon, point, x + epsilon * unit(delta))
        clipped = jnp.clip(delta, *self.box.room(x))
        shrunk = _longest(delta, self.box.room(x), epsilon)
        inside = self.norm(clipped) <= epsilon
        return self.box.clip(jnp.where(inside, point, x + shrunk))

    def argmax_linear(self, x: Float[Array, "*dims"], direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Exact maximizer up to rounding; x itself where the direction is zero."""
        epsilon = self.epsilon.astype(x.dtype)
        if self.box is None:
            return x + epsilon * unit(direction)
        return self.box.clip(x + _longest(direction, self.box.room(x), epsilon))

    def norm(self, delta: Float[Array, "*dims"]) -> Float[Array, ""]:
        """Euclidean norm over all coordinates."""
        return jnp.linalg.norm(delta.ravel())

    def sample(self, x: Float[Array, "*dims"], *, key: PRNGKeyArray) -> Float[Array, "*dims"]:
        """Random point, uniform in the ball when there is no box.

        With a box, coordinates that leave it are reflected at x where that brings them back, and the result is
        projected. This is still uniform in ball ∩ box when every coordinate of x is on a face or at least ε from it;
        otherwise the mass beyond the faces ends on the boundary of the set.
        """
        # The first d coordinates of a uniform point on the sphere of R^(d+2) are uniform in the ball of R^d.
        on_sphere = unit(jr.normal(key, (x.size + 2,), x.dtype))
        delta = self.epsilon.astype(x.dtype) * on_sphere[: x.size].reshape(x.shape)
        if self.box is not None:
            delta = reflect_into_box(x, delta, self.box)
        return self.project(x, x + delta)


def _longest(
    direction: Float[Array, "*dims"],
    room: tuple[Float[Array, "*dims"], Float[Array, "*dims"]],
    epsilon: Float[Array, ""],
) -> Float[Array, "*dims"]:
    """clip(t · direction, room) with the t ≥ 0 that gives it norm ε, or t = ∞ if the norm stays below."""
    # Scale both sides to order one, so that no square under- or overflows in float32.
    largest = jnp.max(jnp.abs(direction), initial=0)
    weights = jnp.abs(direction) / jnp.where(largest > 0, largest, 1)
    down, up = room
    caps = jnp.where(direction > 0, up, -down) / jnp.where(epsilon > 0, epsilon, 1)
    caps = jnp.where(weights > 0, jnp.minimum(caps, 1), 0)
    s = time_to_reach(jnp.ones((), direction.dtype), weights**2, caps**2)  # s = t²
    sizes = jnp.minimum(jnp.sqrt(s) * jnp.where(weights > 0, weights, 1), caps)
    sizes = sizes / jnp.maximum(jnp.linalg.norm(sizes.ravel()), 1)  # rounding must not leave the ball
    return epsilon * sizes * jnp.sign(direction)
