"""The l1 ball intersected with the valid input box."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ntk_robust.attacks._sets import AbstractPerturbationSet, Box, as_numbers, check_epsilon, reflect_into_box


class L1Ball(AbstractPerturbationSet):
    r"""l1 ball ∩ box, {x' valid : Σ|x'_i - x_i| ≤ ε}.

    `project` is exact up to rounding: δ = clip(soft(v, λ), box - x) with one unknown λ, found by bisection down to one
    linear piece of Σ|δ|(λ) and then in closed form. `argmax_linear` is exact: it fills the coordinates in the order of
    |direction|, each up to its face.

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

    def _caps(self, x: Float[Array, "*dims"], direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """How far each coordinate may move along the sign of `direction`; 0 where that is 0."""
        if self.box is None:
            room = jnp.broadcast_to(self.epsilon.astype(x.dtype), x.shape)
        else:
            down, up = self.box.room(x)
            room = jnp.where(direction > 0, up, -down)
        return jnp.where(direction == 0, 0, room)

    def project(self, x: Float[Array, "*dims"], point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Nearest point, exact up to rounding."""
        epsilon = self.epsilon.astype(x.dtype)
        sizes, caps = jnp.abs(point - x), self._caps(x, point - x)
        valid = point if self.box is None else self.box.clip(point)

        def kept(threshold: Float[Array, ""]) -> Float[Array, "*dims"]:
            return jnp.clip(sizes - threshold, 0, caps)

        def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket  # Σ kept(low) > ε ≥ Σ kept(high)
            middle = low + (high - low) / 2
            too_much = jnp.sum(kept(middle)) > epsilon
            return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

        bracket = (jnp.zeros((), x.dtype), jnp.max(sizes, initial=0))
        low, high = lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 8, halve, bracket)
        middle = low + (high - low) / 2
        slope = jnp.sum((sizes > middle) & (sizes - caps < middle)).astype(x.dtype)
        threshold = jnp.clip(low + (jnp.sum(kept(low)) - epsilon) / jnp.maximum(slope, 1), low, high)
        delta = kept(threshold)
        delta = delta * jnp.minimum(1, epsilon / jnp.maximum(jnp.sum(delta), jnp.finfo(x.dtype).tiny))
        projected = x + delta * jnp.sign(point - x)
        inside = self.norm(valid - x) <= epsilon
        return jnp.where(inside, valid, projected if self.box is None else self.box.clip(projected))

    def argmax_linear(self, x: Float[Array, "*dims"], direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Exact maximizer; without a box it moves one coordinate, the first of those with the largest |direction|."""
        caps = self._caps(x, direction).ravel()
        order = jnp.argsort(-jnp.abs(direction.ravel()))
        wanted = caps[order]
        spent = jnp.cumsum(wanted) - wanted
        sizes = jnp.clip(self.epsilon.astype(x.dtype) - spent, 0, wanted)
        delta = jnp.zeros_like(caps).at[order].set(sizes).reshape(x.shape) * jnp.sign(direction)
        return x + delta if self.box is None else self.box.clip(x + delta)

    def norm(self, delta: Float[Array, "*dims"]) -> Float[Array, ""]:
        """Sum of absolute coordinates."""
        return jnp.sum(jnp.abs(delta))

    def sample(self, x: Float[Array, "*dims"], *, key: PRNGKeyArray) -> Float[Array, "*dims"]:
        """Random point, uniform in the ball when there is no box (exponential spacings with random signs).

        With a box the same holds and fails as for `L2Ball.sample`: coordinates are reflected where possible, then the
        point is projected.
        """
        spacings = jr.laplace(key, (x.size + 1,), x.dtype)
        shares = spacings[: x.size] / jnp.sum(jnp.abs(spacings))
        delta = self.epsilon.astype(x.dtype) * shares.reshape(x.shape)
        if self.box is not None:
            delta = reflect_into_box(x, delta, self.box)
        return self.project(x, x + delta)
