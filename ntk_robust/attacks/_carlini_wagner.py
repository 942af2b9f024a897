"""Carlini and Wagner's attack: the smallest Euclidean perturbation by penalized minimization."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import (
    AbstractAttack,
    AttackResult,
    Objective,
    check_positive,
    count_zero,
)
from ntk_robust.attacks._l2 import L2Ball
from ntk_robust.attacks._nearest import Nearest, end_at_nearest, nearer, no_point
from ntk_robust.attacks._sets import AbstractPerturbationSet, Box, as_numbers

# Inputs on a face of the box would be infinitely far out in the variable of the search.
_SHRINK = 1 - 1e-6
_LARGEST_PENALTY = 1e10


class _Search(NamedTuple):
    variable: Float[Array, "*dims"]
    optimizer: optax.OptState
    nearest: Nearest
    is_found: Bool[Array, ""]  # in this search
    zero_gradients: Int[Array, ""]


class _Outer(NamedTuple):
    penalty: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    nearest: Nearest
    last: Float[Array, "*dims"]
    zero_gradients: Int[Array, ""]


class CarliniWagner(AbstractAttack):
    r"""Attack of Carlini and Wagner for the l2 norm: minimizes $\|x' - x\|_2^2 + c \max(-\text{objective}(x'), 0)$.

    The objective must be a margin that is positive exactly for adversarial points, such as `Margin`. Each of
    `num_searches` runs of Adam keeps the nearest adversarial point of all its iterates; after it the penalty c is
    halved in its bracket (or multiplied by ten while nothing was found). In a box the search runs over $w$ with $x' =
    \text{lower} + (\text{upper} - \text{lower}) (1 + \tanh w) / 2$, so that every iterate is valid. What follows is
    that of `FAB`: a short bisection towards x, then the set.

    Attributes:
        num_steps: Gradients of each search.
        num_searches: Values of the penalty.
        learning_rate: Adam's step, in units of $w$ (input units without a box).
        first_penalty: The first c.

    Raises:
        ValueError: If a count is not a whole number ≥ 1, a number is not positive, or the set is not an `L2Ball`.

    References:
        Carlini and Wagner, Towards evaluating the robustness of neural networks, 2017, section VI with κ = 0.
    """

    num_steps: int = eqx.field(default=200, static=True)
    num_searches: int = eqx.field(default=9, static=True)
    learning_rate: Float[Array, ""] = eqx.field(default=0.01, converter=as_numbers)
    first_penalty: Float[Array, ""] = eqx.field(default=0.01, converter=as_numbers)

    def __check_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_count("num_searches", self.num_searches)
        check_positive("learning_rate", self.learning_rate)
        check_positive("first_penalty", self.first_penalty)

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """Nearest adversarial point if it is in the set; see `AbstractAttack`."""
        del key
        if not isinstance(perturbations, L2Ball):
            raise ValueError(
                f"CarliniWagner measures in the l2 norm, got {type(perturbations).__name__}; give an L2Ball, or use FAB"
            )
        start = _variable(perturbations.box, x)
        adam = optax.scale_by_adam()

        def step(state: _Search, penalty: Float[Array, ""]) -> _Search:
            point, pull = jax.vjp(lambda variable: _point(perturbations.box, variable), state.variable)
            value, gradient = jax.value_and_grad(objective)(point)
            # Points that are adversarial already only come nearer.
            slope = 2 * (point - x) - penalty * jnp.where(value > 0, 0, gradient)
            (slope,) = pull(slope)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer step count
                update, optimizer = adam.update(slope, state.optimizer)
            return _Search(
                variable=state.variable - self.learning_rate.astype(x.dtype) * jnp.asarray(update),
                optimizer=optimizer,
                nearest=nearer(state.nearest, perturbations, x, point, value),
                is_found=state.is_found | (value > 0),
                zero_gradients=state.zero_gradients + count_zero(gradient),
            )

        def search(outer: _Outer, _: None) -> tuple[_Outer, None]:
            state = _Search(start, adam.init(start), outer.nearest, jnp.asarray(False), outer.zero_gradients)
            state = lax.fori_loop(0, self.num_steps, lambda _, state: step(state, outer.penalty), state)
            low = jnp.where(state.is_found, outer.low, outer.penalty)
            high = jnp.where(state.is_found, outer.penalty, outer.high)
            penalty = jnp.where(jnp.isinf(high), jnp.minimum(10 * outer.penalty, _LARGEST_PENALTY), (low + high) / 2)
            last = _point(perturbations.box, state.variable)
            return _Outer(penalty, low, high, state.nearest, last, state.zero_gradients), None

        zero, infinity = jnp.zeros((), x.dtype), jnp.asarray(jnp.inf, x.dtype)
        outer = _Outer(self.first_penalty.astype(x.dtype), zero, infinity, no_point(x), x, jnp.zeros((), jnp.int32))
        outer, _ = lax.scan(search, outer, length=self.num_searches)
        return end_at_nearest(
            objective,
            x,
            perturbations,
            nearest=outer.nearest,
            last=outer.last,
            zero_gradients=outer.zero_gradients,
        )


def _point(box: Box | None, variable: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    if box is None:
        return variable
    lower, upper = box.lower.astype(variable.dtype), box.upper.astype(variable.dtype)
    return box.clip(lower + (upper - lower) * (1 + jnp.tanh(variable)) / 2)


def _variable(box: Box | None, point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """What `_point` sends to the point, almost: faces are approached only."""
    if box is None:
        return point
    lower, upper = box.lower.astype(point.dtype), box.upper.astype(point.dtype)
    return jnp.arctanh(_SHRINK * jnp.clip(2 * (point - lower) / (upper - lower) - 1, -1, 1))
