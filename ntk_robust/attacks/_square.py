"""Square attack: random search for perturbations made of squares, without gradients."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective
from ntk_robust.attacks._l2 import L2Ball
from ntk_robust.attacks._sets import AbstractPerturbationSet, LinfBall
from ntk_robust.attacks._square_moves import moves

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
    point: Float[Array, "*dims"]
    value: Float[Array, ""]


class Square(AbstractAttack):
    """Square attack of Andriushchenko et al. for the l∞ and the l2 ball: needs values of the objective only.

    For l∞ it starts from random vertical stripes of ±ε, and each query gives one random square of the perturbation one
    random sign per channel. For l2 it starts from tiles, and each query adds a bump in one random square and erases
    another one, so that the norm stays ε. A change is kept if the objective grows. A strong sign of gradient masking is
    that this beats an attack with gradients.

    Attributes:
        num_queries: Values of the objective taken after the start.
        image_shape: (height, width, channels) of the example, whose coordinates are read in this order; None for a
            vector without such structure, in which intervals take the place of squares.
        initial_fraction: Part of the image that the first squares cover.

    Raises:
        ValueError: If a setting is impossible, if the set is neither `LinfBall` nor `L2Ball`, or if `image_shape` does
            not fit.

    References:
        Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random search, 2020,
        algorithms 2 and 3; the schedule of section 3.2 stretched to `num_queries`.
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
        if not isinstance(perturbations, LinfBall | L2Ball):
            name = type(perturbations).__name__
            raise ValueError(f"Square is made for LinfBall and L2Ball, got {name}; use APGD or PGD there")
        shape = self.image_shape or (1, x.size, 1)
        if math.prod(shape) != x.size:
            raise ValueError(f"image_shape={shape} holds {math.prod(shape)} coordinates, the example has {x.size}")
        sides = square_sides(self.num_queries, *shape[:2], self.initial_fraction)
        norm = "linf" if isinstance(perturbations, LinfBall) else "l2"
        search = moves(norm, shape, perturbations.epsilon.astype(x.dtype), sides)
        start_key, search_key = jr.split(key)

        def look(delta: Float[Array, "height width channels"]) -> _Best:
            point = perturbations.project(x, x + delta.reshape(x.shape))
            value = objective(point)
            # The box may have cut the perturbation: l2 moves spend elsewhere what it left.
            return _Best((point - x).reshape(shape), point, jnp.where(jnp.isnan(value), -jnp.inf, value))

        def query(best: _Best, inputs: tuple[Int[Array, ""], PRNGKeyArray]) -> tuple[_Best, Float[Array, ""]]:
            number, query_key = inputs
            new = look(search.change(best.delta, number, key=query_key))
            improved = new.value > best.value
            best = jax.tree.map(lambda a, b: jnp.where(improved, a, b), new, best)
            return best, best.value

        start = look(search.start(key=start_key))
        numbers = jnp.arange(self.num_queries, dtype=jnp.int32)
        best, values = lax.scan(query, start, (numbers, jr.split(search_key, self.num_queries)))
        return AttackResult(
            x_adv=best.point,
            value=best.value,
            values=jnp.concatenate([start.value[None], values]),
            zero_gradients=jnp.zeros((), jnp.int32),
        )
