r"""How far a linear function can rise on a perturbation set: support functions, from above.

The set of an attack is $B(x) = \{x' : \|x' - x\| ≤ \epsilon, x' \text{ valid}\}$. What is bounded here is a little
larger: everything that `perturbations.contains` lets pass, so that no point an audit accepts can leave the bounds.

For a ball that meets the box, the value is that of a feasible point of the dual, hence an upper bound however inexactly
the point was found: for l2 and any $\mu$, $\sup c·\delta ≤ \epsilon \|c - \mu\|_2 + \sum_i \max(\mu_i \delta^-_i, \mu_i
\delta^+_i)$; for l1 and any $\lambda ≥ 0$, $\sup c·\delta ≤ \lambda\epsilon + \sum_i \max((|c_i| - \lambda)\,r_i, 0)$
with the room $r_i$ of a coordinate in the direction of $c_i$.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet, L1Ball, L2Ball, LinfBall, SphereSlice
from ntk_robust.certify._rounding import slack_factor

_BISECTIONS = 20
# Below this fraction of |c|/ε for the multiplier, the ball does not bind.
_SMALLEST = 2.0**-40


class Reach(NamedTuple):
    """Where perturbations may go: each coordinate between `down` and `up`, and norm at most `radius`."""

    norm: Literal["linf", "l2", "l1"]
    boxed: bool
    x: Float[Array, "*dims"]
    down: Float[Array, "*dims"]
    up: Float[Array, "*dims"]
    radius: Float[Array, ""]

    @property
    def lower(self) -> Float[Array, "*dims"]:
        """Smallest coordinates, rounded outward."""
        low = self.x + self.down
        return low - jnp.finfo(low.dtype).eps * jnp.abs(low)

    @property
    def upper(self) -> Float[Array, "*dims"]:
        """Largest coordinates, rounded outward."""
        high = self.x + self.up
        return high + jnp.finfo(high.dtype).eps * jnp.abs(high)


def reach(perturbations: AbstractPerturbationSet, x: Float[Array, "*dims"]) -> Reach:
    """The perturbations of x that `perturbations.contains` accepts, from outside.

    Raises:
        TypeError: For a set of another kind than l∞, l2, l1 or sphere slice.
    """
    match perturbations:
        case LinfBall():
            norm: Literal["linf", "l2", "l1"] = "linf"
        case L2Ball() | SphereSlice():
            norm = "l2"
        case L1Ball():
            norm = "l1"
        case _:
            raise TypeError(
                f"no support function for a {type(perturbations).__name__}; give a LinfBall, L2Ball, L1Ball or "
                "SphereSlice"
            )
    tolerance = 2.0 * perturbations.rounding(x)
    radius = perturbations.epsilon.astype(x.dtype) + tolerance
    up = jnp.broadcast_to(radius, x.shape)
    down = -up
    if isinstance(perturbations, SphereSlice):
        fixed = jnp.broadcast_to(tolerance, x.shape).at[..., :-1].set(radius)
        return Reach(norm, True, x, -fixed, fixed, radius)
    if perturbations.box is not None:
        room_down, room_up = perturbations.box.room(x)
        down, up = jnp.maximum(down, room_down - tolerance), jnp.minimum(up, room_up + tolerance)
    return Reach(norm, perturbations.box is not None, x, down, up, radius)


def support(around: Reach, direction: Float[Array, "*dims"]) -> Float[Array, ""]:
    r"""Upper bound of $\sup c·\delta$ over the perturbations; its gradient in c is the maximizing δ."""
    c, down, up, radius = direction.ravel(), around.down.ravel(), around.up.ravel(), around.radius
    caps = jnp.where(c > 0.0, up, -down)
    sizes = jnp.abs(c)
    in_box = jnp.sum(sizes * caps)
    if around.norm == "linf":
        value = in_box
    else:
        fixed_sizes, fixed_caps = jax.lax.stop_gradient((sizes, caps))
        bound, moved = (_l2 if around.norm == "l2" else _l1)(fixed_sizes, fixed_caps, radius, around.boxed)
        linear = jnp.sum(sizes * moved)
        # the bound's value with the slope of the point that it belongs to
        value = jax.lax.stop_gradient(bound - linear) + linear
    return value * (1.0 + slack_factor(c.shape[0], c.dtype))


def _l2(sizes: Array, caps: Array, radius: Array, boxed: bool) -> tuple[Array, Array]:
    """Bound and maximizer for the l2 ball, in sizes; δ = min(|c|/s, cap) with one unknown s."""
    largest = jnp.max(sizes)
    scale = jnp.where(largest > 0.0, largest, 1.0)
    sizes = sizes / scale
    norm = jnp.linalg.norm(sizes)
    free = radius * sizes / jnp.where(norm > 0.0, norm, 1.0)
    if not boxed:
        return radius * norm * scale, free
    top = norm / jnp.where(radius > 0.0, radius, 1.0)

    def moved(s: Array) -> Array:
        return jnp.minimum(sizes / jnp.where(s > 0.0, s, 1.0), caps)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = jnp.sqrt(low * high)
        too_far = jnp.linalg.norm(moved(middle)) > radius
        return jnp.where(too_far, middle, low), jnp.where(too_far, high, middle)

    _, s = jax.lax.fori_loop(0, _BISECTIONS, halve, (top * _SMALLEST, top))
    delta = moved(s)
    dual = radius * s * jnp.linalg.norm(delta) + jnp.sum((sizes - s * delta) * caps)
    in_box = jnp.sum(sizes * caps)
    corner = in_box <= dual
    return jnp.minimum(jnp.minimum(dual, in_box), radius * norm) * scale, jnp.where(corner, caps, delta)


def _l1(sizes: Array, caps: Array, radius: Array, boxed: bool) -> tuple[Array, Array]:
    """Bound and maximizer for the l1 ball, in sizes: coordinates fill up in the order of |c|."""
    if not boxed:
        best = jnp.argmax(sizes)
        return radius * sizes[best], jnp.zeros_like(sizes).at[best].set(radius)
    order = jnp.argsort(-sizes)
    spent = jnp.cumsum(caps[order])
    delta = jnp.clip(radius - (spent - caps[order]), 0.0, caps[order])
    # the multiplier is the |c| of the coordinate at which the budget ends
    last = jnp.searchsorted(spent, radius)
    multiplier = jnp.where(last < sizes.shape[0], sizes[order][jnp.minimum(last, sizes.shape[0] - 1)], 0.0)
    bound = multiplier * radius + jnp.sum(jnp.maximum(sizes - multiplier, 0.0) * caps)
    return bound, jnp.zeros_like(sizes).at[order].set(delta)
