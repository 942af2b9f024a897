"""Projected gradient ascent."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective, check_positive, count_zero
from ntk_robust.attacks._sets import AbstractPerturbationSet, as_numbers


class _State(NamedTuple):
    point: Float[Array, "*dims"]
    best_point: Float[Array, "*dims"]
    best_value: Float[Array, ""]
    velocity: Float[Array, "*dims"] | None
    zero_gradients: Int[Array, ""]


class PGD(AbstractAttack):
    r"""Projected gradient ascent with normalized steps; the best of all iterates is returned.

    $$x_{t+1} = P_{B(x)}\big(x_t + α ε\, s(\nabla \text{objective}(x_t))\big)$$

    with the Euclidean projection P and the set's step s of length one (`ascent`): the sign for l∞, the Euclidean unit
    vector else. Where the gradient is exactly zero the iterate stays, and `AttackResult.zero_gradients` counts it.

    Attributes:
        num_steps: Number of gradients taken, T ≥ 1; the objective is evaluated T + 1 times.
        relative_step: α, the step length as a fraction of ε.
        random_start: Start at a random point of the set instead of x. The clean x is then not among the candidates.
        momentum: μ ≥ 0; 0 is plain PGD.

    Raises:
        ValueError: If `num_steps` is not a whole number ≥ 1, `relative_step` is not positive or `momentum` is negative.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
        Dong et al., Boosting adversarial attacks with momentum, 2018 (algorithm 1).
    """

    num_steps: int = eqx.field(default=40, static=True)
    relative_step: Float[Array, ""] = eqx.field(default=0.1, converter=as_numbers)
    random_start: bool = eqx.field(default=True, static=True)
    momentum: float = eqx.field(default=0.0, static=True)

    def __check_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_positive("relative_step", self.relative_step)
        if not 0 <= self.momentum < math.inf:
            raise ValueError(f"momentum={self.momentum}; give a finite number of at least 0")

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """Best iterate; see `AbstractAttack`."""
        length = self.relative_step.astype(x.dtype) * perturbations.epsilon.astype(x.dtype)

        def step(state: _State, _: None) -> tuple[_State, Float[Array, ""]]:
            value, gradient = jax.value_and_grad(objective)(state.point)
            state = keep_best(state, value)
            direction = gradient
            if state.velocity is not None:
                size = jnp.sum(jnp.abs(gradient))
                direction = self.momentum * state.velocity + gradient / jnp.where(size > 0, size, 1)
                state = state._replace(velocity=direction)
            point = perturbations.project(x, state.point + length * perturbations.ascent(direction))
            state = state._replace(point=point, zero_gradients=state.zero_gradients + count_zero(gradient))
            return state, state.best_value

        def keep_best(state: _State, value: Float[Array, ""]) -> _State:
            improved = value > state.best_value  # never true for nan
            return state._replace(
                best_point=jnp.where(improved, state.point, state.best_point),
                best_value=jnp.where(improved, value, state.best_value),
            )

        start = perturbations.sample(x, key=key) if self.random_start else x
        state = _State(
            point=start,
            best_point=start,
            best_value=jnp.asarray(-jnp.inf, jax.eval_shape(objective, x).dtype),
            velocity=jnp.zeros_like(x) if self.momentum > 0 else None,
            zero_gradients=jnp.zeros((), jnp.int32),
        )
        state, values = lax.scan(step, state, length=self.num_steps)
        state = keep_best(state, objective(state.point))
        return AttackResult(
            x_adv=state.best_point,
            value=state.best_value,
            values=jnp.append(values, state.best_value),
            zero_gradients=state.zero_gradients,
        )
