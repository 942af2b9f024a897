"""Fast adaptive boundary attack: the smallest perturbation that crosses the decision boundary."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective, check_count, count_zero
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.attacks._sphere import SphereSlice

_OVERSHOOT = 1.05  # η
_MAX_PULL = 0.1  # α_max: weight of the step from x against the step from the iterate
_RETREAT = 0.9  # β: how much of the perturbation is kept after crossing the boundary
_NUM_BISECTIONS = 30
_NUM_FINAL_HALVINGS = 8


def nearest_on_hyperplane(
    perturbations: AbstractPerturbationSet,
    base: Float[Array, "*dims"],
    normal: Float[Array, "*dims"],
    gap: Float[Array, ""],
) -> Float[Array, "*dims"]:
    """Valid point z with <normal, z - base> = gap that is nearest to `base` in the set's norm.

    The smallest ball around `base` whose support function reaches the gap, found by bisection over its radius (in
    closed form without a box). If the box ends before, the point of the box that comes nearest to the hyperplane.
    """
    towards = jnp.where(gap < 0, -normal, normal)
    gap = jnp.abs(gap)

    def reach(radius: Float[Array, ""]) -> tuple[Float[Array, "*dims"], Float[Array, ""]]:
        point = perturbations.with_epsilon(radius).argmax_linear(base, towards)
        return point, jnp.vdot(towards, point - base)

    one = jnp.ones((), base.dtype)
    if perturbations.box is None:
        _, gain = reach(one)
        return reach(jnp.where(gain > 0, gap / jnp.where(gain > 0, gain, 1), 0))[0]

    down, up = perturbations.box.room(base)
    farthest = jnp.where(towards > 0, up, jnp.where(towards < 0, down, 0))

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        short = reach(middle)[1] < gap
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = lax.fori_loop(0, _NUM_BISECTIONS, halve, (0 * one, perturbations.norm(farthest)))
    (near, near_gain), (far, far_gain) = reach(low), reach(high)
    rise = far_gain - near_gain
    weight = jnp.clip((gap - near_gain) / jnp.where(rise > 0, rise, 1), 0, 1)
    return jnp.where(jnp.isfinite(gap), near + weight * (far - near), base)


class _State(NamedTuple):
    point: Float[Array, "*dims"]
    closest: Float[Array, "*dims"]
    smallest_norm: Float[Array, ""]
    is_found: Bool[Array, ""]
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
        if isinstance(perturbations, SphereSlice):
            raise ValueError("FAB projects on hyperplanes, which leave the sphere slice; use APGD or PGD there")

        def valid(point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
            return point if perturbations.box is None else perturbations.box.clip(point)

        def keep_closest(state: _State, point: Float[Array, "*dims"], value: Float[Array, ""]) -> _State:
            norm = perturbations.norm(point - x)
            closer = (value > 0) & (norm < state.smallest_norm)
            return state._replace(
                closest=jnp.where(closer, point, state.closest),
                smallest_norm=jnp.where(closer, norm, state.smallest_norm),
                is_found=state.is_found | (value > 0),
            )

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
            moved = valid(moved)
            moved_value = objective(moved)
            state = keep_closest(state, moved, moved_value)
            retreated = x + _RETREAT * (moved - x)
            return state._replace(
                point=jnp.where(moved_value > 0, retreated, moved),
                zero_gradients=state.zero_gradients + count_zero(gradient),
            ), None

        def halve(_: Array, state: _State) -> _State:
            # `point` is the end of the segment that is not known to be adversarial.
            middle = (state.point + state.closest) / 2
            value = objective(middle)
            return keep_closest(state, middle, value)._replace(point=jnp.where(value > 0, state.point, middle))

        start_value = objective(x)
        infinity = jnp.asarray(jnp.inf, x.dtype)
        state = _State(x, x, infinity, jnp.asarray(False), jnp.zeros((), jnp.int32))
        state = keep_closest(state, x, start_value)
        state, _ = lax.scan(step, state, length=self.num_steps)
        last = state.point
        state = lax.fori_loop(0, _NUM_FINAL_HALVINGS, halve, state._replace(point=x))
        end = perturbations.project(x, jnp.where(state.is_found, state.closest, last))
        end_value = objective(end)
        # The first point of all may be x; and rounding in `project` must not lose a point that was inside.
        improved = end_value > start_value
        value = jnp.where(improved, end_value, start_value)
        return AttackResult(
            x_adv=jnp.where(improved, end, x),
            value=value,
            values=jnp.stack([start_value, value]),
            zero_gradients=state.zero_gradients,
        )
