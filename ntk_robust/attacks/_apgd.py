"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective, count_zero
from ntk_robust.attacks._sets import AbstractPerturbationSet

_MOMENTUM = 0.75  # α: weight of the new step against the previous one
_SUCCESS_RATE = 0.75  # ρ: fraction of the steps between checkpoints that must increase the objective


def checkpoints(num_steps: int) -> list[int]:
    """The steps w_j = ⌈p_j N⌉ after which the step size is reconsidered.

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), as published.
    """
    fractions = [0.0, 0.22]
    while fractions[-1] <= 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    # The fractions are decimals: 0.22 · 100 must not become 23 by rounding.
    steps = {math.ceil(round(fraction * num_steps, 9)) for fraction in fractions[1:-1]}
    return sorted(step for step in steps if step < num_steps)


class _Iterate(NamedTuple):
    point: Float[Array, "*dims"]
    gradient: Float[Array, "*dims"]
    value: Float[Array, ""]


class _State(NamedTuple):
    now: _Iterate
    previous_point: Float[Array, "*dims"]
    best: _Iterate
    relative_step: Float[Array, ""]
    num_increases: Int[Array, ""]
    was_halved: Bool[Array, ""]  # at the last checkpoint
    best_at_checkpoint: Float[Array, ""]
    zero_gradients: Int[Array, ""]


class APGD(AbstractAttack):
    r"""Auto-PGD of Croce and Hein for any objective: no step size to choose.

    With P the Euclidean projection, s the set's step of length one and η starting at 2ε,

    $$z = P(x_k + η\, s(\nabla_k)), \quad x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})).$$

    At the published checkpoints η is halved and the search goes on from the best point if fewer than three quarters of
    the steps since the last checkpoint increased the objective, or if neither η nor the best value changed since then.

    With `CrossEntropy`, `DLR` or `TargetedDLR` as objective this is APGD-CE, APGD-DLR or APGD-T; with `Logistic` or
    `Margin` it attacks a scalar output, with any loss a regression network or a kernel predictor.

    Attributes:
        num_steps: N ≥ 1; N + 1 gradients are taken.
        random_start: Start at a random point of the set instead of x.

    Raises:
        ValueError: If `num_steps` is not a whole number ≥ 1.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks, 2020, algorithm 1 and section 3.
    """

    num_steps: int = eqx.field(default=100, static=True)
    random_start: bool = eqx.field(default=True, static=True)

    def __check_init__(self) -> None:
        check_count("num_steps", self.num_steps)

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """Best iterate; see `AbstractAttack`."""
        epsilon = perturbations.epsilon.astype(x.dtype)

        def look(point: Float[Array, "*dims"]) -> _Iterate:
            value, gradient = jax.value_and_grad(objective)(point)
            return _Iterate(point, gradient, jnp.where(jnp.isnan(value), -jnp.inf, value))

        def step(state: _State, window: tuple[Array, Array]) -> tuple[_State, Float[Array, ""]]:
            is_first, steps_since_checkpoint = window  # the latter is 0 away from checkpoints
            now = state.now
            length = state.relative_step * epsilon
            target = perturbations.project(x, now.point + length * perturbations.ascent(now.gradient))
            drift = now.point - state.previous_point
            mixed = now.point + _MOMENTUM * (target - now.point) + (1 - _MOMENTUM) * drift
            new = look(jnp.where(is_first, target, perturbations.project(x, mixed)))
            improved = new.value > state.best.value
            best = jax.tree.map(lambda a, b: jnp.where(improved, a, b), new, state.best)
            num_increases = state.num_increases + (new.value > now.value).astype(jnp.int32)

            too_few = num_increases.astype(x.dtype) < _SUCCESS_RATE * steps_since_checkpoint.astype(x.dtype)
            stuck = ~state.was_halved & (best.value == state.best_at_checkpoint)
            at_checkpoint = steps_since_checkpoint > 0
            halve = at_checkpoint & (too_few | stuck)
            state = _State(
                now=jax.tree.map(lambda a, b: jnp.where(halve, a, b), best, new),
                previous_point=now.point,
                best=best,
                relative_step=jnp.where(halve, state.relative_step / 2, state.relative_step),
                num_increases=jnp.where(at_checkpoint, 0, num_increases),
                was_halved=jnp.where(at_checkpoint, halve, state.was_halved),
                best_at_checkpoint=jnp.where(at_checkpoint, best.value, state.best_at_checkpoint),
                zero_gradients=state.zero_gradients + count_zero(new.gradient),
            )
            return state, best.value

        start = look(perturbations.sample(x, key=key) if self.random_start else x)
        state = _State(
            now=start,
            previous_point=start.point,
            best=start,
            relative_step=jnp.asarray(2, x.dtype),
            num_increases=jnp.zeros((), jnp.int32),
            was_halved=jnp.asarray(True),  # as the authors do: the second condition holds from the second checkpoint on
            best_at_checkpoint=start.value,
            zero_gradients=count_zero(start.gradient),
        )
        windows = np.zeros(self.num_steps, np.int32)
        last = 0
        for checkpoint in checkpoints(self.num_steps):
            windows[checkpoint - 1], last = checkpoint - last, checkpoint
        state, values = lax.scan(step, state, (jnp.arange(self.num_steps) == 0, jnp.asarray(windows)))
        return AttackResult(
            x_adv=state.best.point,
            value=state.best.value,
            values=jnp.concatenate([start.value[None], values]),
            zero_gradients=state.zero_gradients,
        )
