"""What minimum-norm attacks share: the nearest adversarial point so far, hyperplanes, and how such an attack ends."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ntk_robust.attacks._attack import AttackResult, Objective
from ntk_robust.attacks._l1 import L1Ball
from ntk_robust.attacks._saturation import time_to_reach
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.attacks._sphere import SphereSlice

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

    If the box ends before, the point of the box that comes nearest to the hyperplane. For l∞ and l2, every coordinate
    goes in proportion to the direction of steepest ascent until it is at a face; for l1, one coordinate after the other
    goes to its face, the steepest first. Without a box it is a multiple of the point that gains most.
    """
    towards = jnp.where(gap < 0, -normal, normal)
    gap = jnp.abs(gap)
    if perturbations.box is None:
        one = perturbations.with_epsilon(jnp.ones((), base.dtype)).argmax_linear(base, towards) - base
        gain = jnp.vdot(towards, one)
        return base + jnp.where(gain > 0, gap / jnp.where(gain > 0, gain, 1), 0) * one

    down, up = perturbations.box.room(base)
    slopes = jnp.abs(towards)
    room = jnp.where(towards > 0, up, jnp.where(towards < 0, -down, 0))
    if isinstance(perturbations, L1Ball):
        order = jnp.argsort(-slopes.ravel())
        gains = (slopes * room).ravel()[order]
        missing = jnp.clip(gap - (jnp.cumsum(gains) - gains), 0, gains)
        wanted = jnp.zeros_like(gains).at[order].set(missing).reshape(base.shape)
        sizes = jnp.minimum(wanted / jnp.where(slopes > 0, slopes, 1), room)
    else:
        speeds = jnp.abs(perturbations.ascent(towards))
        length = time_to_reach(gap, slopes * speeds, slopes * room)
        sizes = jnp.minimum(length * jnp.where(speeds > 0, speeds, 1), room)
    moved = perturbations.box.clip(base + sizes * jnp.sign(towards))
    return jnp.where(jnp.isfinite(gap), moved, base)
