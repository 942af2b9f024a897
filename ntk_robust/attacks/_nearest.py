"""What minimum-norm attacks share: the nearest adversarial point so far, hyperplanes, and how such an attack ends."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ntk_robust.attacks._attack import AttackResult, Objective
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.attacks._sphere import SphereSlice

_NUM_BISECTIONS = 30
_NUM_FINAL_HALVINGS = 8


class Nearest(NamedTuple):
    """The nearest adversarial point seen: one where the objective, a margin, is positive.

    Attributes:
        point: The point; x where none was seen.
        norm: Its distance from x in the set's norm; infinite where none was seen.
        is_found: Whether one was seen.
    """

    point: Float[Array, "*dims"]
    norm: Float[Array, ""]
    is_found: Bool[Array, ""]


def no_point(x: Float[Array, "*dims"]) -> Nearest:
    """Before the search."""
    return Nearest(x, jnp.asarray(jnp.inf, x.dtype), jnp.asarray(False))


def nearer(
    nearest: Nearest,
    perturbations: AbstractPerturbationSet,
    x: Float[Array, "*dims"],
    point: Float[Array, "*dims"],
    value: Float[Array, ""],
) -> Nearest:
    """`nearest`, or `point` if it is adversarial and nearer."""
    norm = perturbations.norm(point - x)
    closer = (value > 0) & (norm < nearest.norm)
    return Nearest(
        jnp.where(closer, point, nearest.point), jnp.where(closer, norm, nearest.norm), nearest.is_found | (value > 0)
    )


def end_at_nearest(
    objective: Objective,
    x: Float[Array, "*dims"],
    perturbations: AbstractPerturbationSet,
    *,
    nearest: Nearest,
    last: Float[Array, "*dims"],
    zero_gradients: Int[Array, ""],
) -> AttackResult:
    """The nearest point after a short bisection towards x, projected onto the set; `last` where there is none.

    x itself is returned where that has the larger value.
    """

    def halve(_: Array, state: tuple[Array, Nearest]) -> tuple[Array, Nearest]:
        inner, nearest = state  # the end of the segment that is not known to be adversarial
        middle = (inner + nearest.point) / 2
        value = objective(middle)
        return jnp.where(value > 0, inner, middle), nearer(nearest, perturbations, x, middle, value)

    start_value = objective(x)
    nearest = nearer(nearest, perturbations, x, x, start_value)
    _, nearest = lax.fori_loop(0, _NUM_FINAL_HALVINGS, halve, (x, nearest))
    end = perturbations.project(x, jnp.where(nearest.is_found, nearest.point, last))
    end_value = objective(end)
    # Never nan; and rounding in `project` must not lose a point that was inside.
    start_value = jnp.where(jnp.isnan(start_value), -jnp.inf, start_value)
    improved = end_value > start_value
    value = jnp.where(improved, end_value, start_value)
    return AttackResult(
        x_adv=jnp.where(improved, end, x),
        value=value,
        values=jnp.stack([start_value, value]),
        zero_gradients=zero_gradients,
    )


def valid(perturbations: AbstractPerturbationSet, point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The point, moved into the box where there is one."""
    return point if perturbations.box is None else perturbations.box.clip(point)


def check_has_hyperplanes(name: str, perturbations: AbstractPerturbationSet) -> None:
    """Refuses the sphere slice.

    Raises:
        ValueError: Naming the attack.
    """
    if isinstance(perturbations, SphereSlice):
        raise ValueError(f"{name} projects on hyperplanes, which leave the sphere slice; use APGD or PGD there")


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
