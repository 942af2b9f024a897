"""DeepFool: to the boundary by repeated linearization."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective, count_zero
from ntk_robust.attacks._nearest import (
    Nearest,
    check_has_hyperplanes,
    end_at_nearest,
    nearer,
    nearest_on_hyperplane,
    no_point,
    valid,
)
from ntk_robust.attacks._sets import AbstractPerturbationSet

_OVERSHOOT = 0.02  # η


class _State(NamedTuple):
    point: Float[Array, "*dims"]
    nearest: Nearest
    zero_gradients: Int[Array, ""]
    step: Int[Array, ""]


class DeepFool(AbstractAttack):
    r"""DeepFool of Moosavi-Dezfooli et al.: Newton's method towards the boundary {objective = 0}, in the set's norm.

    Each step goes to the nearest valid point of the hyperplane on which the linearized objective is zero, and the whole
    perturbation is stretched by a fiftieth; the first adversarial point ends the search. What follows is that of `FAB`:
    a short bisection towards x, then the set. Cheap, a handful of gradients, and loose: nothing pulls the point back to
    x.

    The objective must be a margin that is positive exactly for adversarial points. With `Margin` each step aims at the
    likeliest wrong class, where the original compares the linearized distances of all classes.

    Attributes:
        num_steps: Most gradients taken; the search usually ends earlier.

    Raises:
        ValueError: If `num_steps` is not a whole number ≥ 1, or for the sphere slice, which has no hyperplanes.

    References:
        Moosavi-Dezfooli, Fawzi, Frossard, DeepFool: a simple and accurate method to fool deep neural networks, 2016,
        algorithm 1 with η = 0.02 and the norms of section 3.3.
    """

    num_steps: int = eqx.field(default=50, static=True)

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
        """The first adversarial point, moved towards x, if it is in the set; see `AbstractAttack`."""
        del key
        check_has_hyperplanes("DeepFool", perturbations)

        def step(state: _State) -> _State:
            value, gradient = jax.value_and_grad(objective)(state.point)
            point = nearest_on_hyperplane(perturbations, state.point, gradient, -value)
            # Steps add up in `point`; what is judged is stretched, so that it lies beyond the boundary.
            stretched = valid(perturbations, x + (1 + _OVERSHOOT) * (point - x))
            return _State(
                point=point,
                nearest=nearer(state.nearest, perturbations, x, stretched, objective(stretched)),
                zero_gradients=state.zero_gradients + count_zero(gradient),
                step=state.step + 1,
            )

        def unfinished(state: _State) -> Array:
            return ~state.nearest.is_found & (state.step < self.num_steps)

        zero = jnp.zeros((), jnp.int32)
        start = nearer(no_point(x), perturbations, x, x, objective(x))
        state = lax.while_loop(unfinished, step, _State(x, start, zero, zero))
        return end_at_nearest(
            objective,
            x,
            perturbations,
            nearest=state.nearest,
            last=state.point,
            zero_gradients=state.zero_gradients,
        )
