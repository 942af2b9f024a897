"""Square attack: random search for l∞ perturbations made of squares, without gradients."""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective, check_count
from ntk_robust.attacks._sets import AbstractPerturbationSet, LinfBall

# Queries out of 10,000 after which the area of the squares halves, as published.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square_sides(num_queries: int, height: int, width: int, initial_fraction: float) -> np.ndarray:
    """Side of each query's square (or length of its interval, if there is one row), by the published schedule."""
    progress = np.arange(1, num_queries + 1) * 10_000 // num_queries
    fractions = initial_fraction / 2.0 ** np.searchsorted(_HALVINGS, progress, side="left")
    is_image = min(height, width) > 1
    sides = np.sqrt(fractions * height * width) if is_image else fractions * height * width
    return np.clip(np.round(sides), 1, max(height, width)).astype(np.int32)


class _Best(NamedTuple):
    delta: Float[Array, "height width channels"]
    value: Float[Array, ""]


class Square(AbstractAttack):
    """Square attack of Andriushchenko et al. for the l∞ ball: needs values of the objective only.

    It starts from random vertical stripes of ±ε. Each query gives one random square of the perturbation one random
    sign per channel, and keeps the change if the objective grows. A strong sign of gradient masking is that it beats an
    attack with gradients.

    Attributes:
        num_queries: Values of the objective taken after the start.
        image_shape: (height, width, channels) of the example, whose coordinates are read in this order; None for a
            vector without such structure, in which intervals take the place of squares.
        initial_fraction: Part of the image that the first squares cover.

    Raises:
        ValueError: If a setting is impossible, if the set is not a `LinfBall`, or if `image_shape` does not fit.

    References:
        Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random search, 2020,
        algorithm 2; the schedule of section 3.2 stretched to `num_queries`.
    """

    num_queries: int = eqx.field(default=5000, static=True)
    image_shape: tuple[int, int, int] | None = eqx.field(default=None, static=True)
    initial_fraction: float = eqx.field(default=0.8, static=True)

    def __check_init__(self) -> None:
        check_count("num_queries", self.num_queries)
        if not 0 < self.initial_fraction <= 1:
            raise ValueError(f"initial_fraction={self.initial_fraction}; give a fraction of the image, in (0, 1]")

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """Best point seen; see `AbstractAttack`."""
        if not isinstance(perturbations, LinfBall):
            raise ValueError(f"Square is made for LinfBall, got {type(perturbations).__name__}; use APGD or PGD there")
        height, width, channels = shape = self.image_shape or (1, x.size, 1)
        if math.prod(shape) != x.size:
            raise ValueError(f"image_shape={shape} holds {math.prod(shape)} coordinates, the example has {x.size}")
        epsilon = perturbations.epsilon.astype(x.dtype)
        rows, columns = (
            jnp.arange(height, dtype=jnp.int32)[:, None, None],
            jnp.arange(width, dtype=jnp.int32)[None, :, None],
        )
        start_key, search_key = jr.split(key)

        def point_at(delta: Float[Array, "height width channels"]) -> Float[Array, "*dims"]:
            return perturbations.project(x, x + delta.reshape(x.shape))

        def value_at(delta: Float[Array, "height width channels"]) -> Float[Array, ""]:
            value = objective(point_at(delta))
            return jnp.where(jnp.isnan(value), -jnp.inf, value)

        def query(best: _Best, inputs: tuple[Int[Array, ""], PRNGKeyArray]) -> tuple[_Best, Float[Array, ""]]:
            side, query_key = inputs
            draws = jr.uniform(query_key, (2 + channels,), x.dtype)
            tall, wide = jnp.minimum(side, height), jnp.minimum(side, width)
            top = jnp.floor(draws[0] * (height + 1 - tall).astype(x.dtype)).astype(jnp.int32)
            left = jnp.floor(draws[1] * (width + 1 - wide).astype(x.dtype)).astype(jnp.int32)
            in_square = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
            signs = jnp.where(draws[2:] < 0.5, -1, 1).astype(x.dtype)
            delta = jnp.where(in_square, epsilon * signs[None, None, :], best.delta)
            value = value_at(delta)
            improved = value > best.value
            best = _Best(jnp.where(improved, delta, best.delta), jnp.where(improved, value, best.value))
            return best, best.value

        stripes = epsilon * jr.rademacher(start_key, (1, width, channels), x.dtype)
        delta = jnp.broadcast_to(stripes, shape)
        start = _Best(delta, value_at(delta))
        sides = jnp.asarray(square_sides(self.num_queries, height, width, self.initial_fraction))
        best, values = lax.scan(query, start, (sides, jr.split(search_key, self.num_queries)))
        return AttackResult(
            x_adv=point_at(best.delta),
            value=best.value,
            values=jnp.concatenate([start.value[None], values]),
            zero_gradients=jnp.zeros((), jnp.int32),
        )
