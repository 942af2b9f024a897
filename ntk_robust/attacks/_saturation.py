"""Sums whose terms grow in proportion until each is full: where such a sum reaches a given height."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Each step at least quarters (remaining height x slope), so this many reach machine precision; typical is 3 to 8.
_MAX_NEWTON_STEPS = 64


def time_to_reach(
    height: Float[Array, ""], slopes: Float[Array, "*dims"], limits: Float[Array, "*dims"]
) -> Float[Array, ""]:
    """The smallest t ≥ 0 with Σ min(t · slopes, limits) = height, or infinity if the sum stays below.

    The sum is concave and piecewise linear in t, so Newton's method from the left is monotone and ends after finitely
    many steps: when no further term has become full.

    Args:
        height: Height to be reached, ≥ 0.
        slopes: Slope of each term, ≥ 0.
        limits: Limit of each term, ≥ 0; 0 where the slope is 0.
    """

    def num_full(t: Float[Array, ""]) -> Array:
        return jnp.sum(t * slopes >= limits)

    def newton(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        t, full, _, step = state
        growing = t * slopes < limits
        slope = jnp.sum(jnp.where(growing, slopes, 0))
        gap = height - jnp.sum(jnp.where(growing, 0, limits))
        # No growing term: the sum has reached all that it can.
        t = jnp.where(slope > 0, jnp.maximum(t, gap / jnp.where(slope > 0, slope, 1)), jnp.inf)
        return t, num_full(t), full, step + 1

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, full, previously, step = state
        return (full != previously) & (step < _MAX_NEWTON_STEPS)

    start = jnp.zeros((), slopes.dtype)
    t, *_ = lax.while_loop(unfinished, newton, (start, num_full(start), jnp.asarray(-1), jnp.asarray(0)))
    return t
