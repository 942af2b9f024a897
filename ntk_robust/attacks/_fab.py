"""Fast adaptive boundary attack: the smallest perturbation that crosses the decision boundary."""

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

_OVERSHOOT = 1.05  # η
_MAX_PULL = 0.1  # α_max: weight of the step from x against the step from the iterate
_RETREAT = 0.9  # β: how much of the perturbation is kept after crossing the boundary


class _State(NamedTuple):
    point: Float[Array, "*dims"]
    nearest: Nearest
    zero_gradients: Int[Array, ""]


class FAB(AbstractAttack):
    r"""Fast adaptive boundary attack of Croce and Hein: walks along the boundary {objective = 0} towards x.

    The objective must be a margin that is positive exactly for adversarial points: `Margin` (untargeted, or of a scalar
    output) or $z_t - z_y$ (FAB-T). Each step moves to the boundary of the linearized objective, pulled towards the
    point of that boundary which is nearest to x, and retreats by a tenth after a crossing. The nearest adversarial
    point is returned if it lies in the set, so a set with a large ε measures the distance to the boundary:
    `perturbations.norm(result.x_adv - x)` is an upper bound of the minimum radius.

    If none is in the set, the nearest one found (or the last iterate) is projected onto it, unless x has a larger
    value.

    Attributes:
        num_steps: Number of gradients taken; as many values again, and a few in the final search between x and the
            point found.

    Raises:
        ValueError: If `num_steps` is not a whole number ≥ 1, or for the sphere slice, which has no hyperplanes.

    References:
        Croce and Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020,
        algorithm 1 with η = 1.05, α_max = 0.1, β = 0.9.
    """

    num_steps: int = eqx.field(default=100, static=True)

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
        """Nearest adversarial point if it is in the set; see `AbstractAttack`."""
        del key
        check_has_hyperplanes("FAB", perturbations)

        def step(state: _State, _: None) -> tuple[_State, None]:
            point = state.point
            value, gradient = jax.value_and_grad(objective)(point)
            gap_at_x = -(value + jnp.vdot(gradient, x - point))
            from_point = nearest_on_hyperplane(perturbations, point, gradient, -value) - point
            from_x = nearest_on_hyperplane(perturbations, x, gradient, gap_at_x) - x
            lengths = perturbations.norm(from_point), perturbations.norm(from_x)
            total = lengths[0] + lengths[1]
            pull = jnp.minimum(lengths[0] / jnp.where(total > 0, total, 1), _MAX_PULL)
            moved = (1 - pull) * (point + _OVERSHOOT * from_point) + pull * (x + _OVERSHOOT * from_x)
            moved = valid(perturbations, moved)
            moved_value = objective(moved)
            return _State(
                point=jnp.where(moved_value > 0, x + _RETREAT * (moved - x), moved),
                nearest=nearer(state.nearest, perturbations, x, moved, moved_value),
                zero_gradients=state.zero_gradients + count_zero(gradient),
            ), None

        state = _State(x, no_point(x), jnp.zeros((), jnp.int32))
        state, _ = lax.scan(step, state, length=self.num_steps)
        return end_at_nearest(
            objective,
            x,
            perturbations,
            nearest=state.nearest,
            last=state.point,
            zero_gradients=state.zero_gradients,
        )
