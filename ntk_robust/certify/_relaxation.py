r"""Two lines around an activation: $s_- z + o_- ≤ \sigma(z) ≤ s_+ z + o_+$ for z in [l, u].

Slopes are a choice; offsets are computed for whatever slope was chosen, so that no choice can make a line wrong:

*Lemma.* Let $g(z) = \sigma(z) - s z$ with $\sigma'' ≤ K$ on $[l, u]$, and let $z_0 < … < z_N$ with $z_0 = l$, $z_N = u$
and spacing at most h. Then $\min_{[l,u]} g ≥ \min_i g(z_i) - \max(K, 0) h^2 / 8$. *Proof.* On a cell the chord of g
minus $g$ is at most $\max(K, 0) (z - z_i)(z_{i+1} - z) / 2 ≤ \max(K, 0) h^2 / 8$, and the chord is at least the smaller
of its ends. ∎ The maximum likewise with $-\sigma''$. For piecewise linear $\sigma$ the extrema are at $l$, $u$ and the
kink.

The default slopes are those of the lines that are tightest at the midpoint: the supporting lines there of the convex
and the concave envelope of $\sigma$ on $[l, u]$. For ReLU these are CROWN's: the chord above; below, slope 1 if $u >
-l$, else 0. For a convex smooth $\sigma$: the chord, and the tangent at the midpoint.

References:
    Zhang et al., Efficient neural network robustness certification with general activation functions, NeurIPS 2018.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.certify._rounding import magnitude
from ntk_robust.certify._shapes import (
    Interval,
    curvature_range,
    evaluation_error,
    kink_slopes,
    slope_range,
    value_range,
)
from ntk_robust.models import AbstractActivation

_CELLS = 32
_ENVELOPE_CELLS = 16


class Lines(NamedTuple):
    """A line below and a line above, one pair for each neuron."""

    lower_slope: Float[Array, "..."]
    lower_offset: Float[Array, "..."]
    upper_slope: Float[Array, "..."]
    upper_offset: Float[Array, "..."]


class Slopes(NamedTuple):
    """Slopes of the lines below and above."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def lines(activation: AbstractActivation, lower: Array, upper: Array, slopes: Slopes) -> Lines:
    """Lines of these slopes around what evaluations of the activation on [lower, upper] return.

    Slopes may have leading axes that the bounds lack, for example one for each output.
    """
    below, _ = extrema(activation, lower, upper, slopes.lower)
    _, above = extrema(activation, lower, upper, slopes.upper)
    error = evaluation_error(activation, lower, upper, value_range(activation, lower, upper, rounded=False))
    error = jnp.broadcast_to(error, below.shape)
    return Lines(slopes.lower, below - error, slopes.upper, above + error)


def extrema(activation: AbstractActivation, lower: Array, upper: Array, slope: Array) -> Interval:
    r"""Enclosure of $\sigma(z) - s z$ on [lower, upper]."""
    eps = float(np.finfo(lower.dtype).eps)
    if kink_slopes(activation) is not None:
        nodes = jnp.stack([lower, upper, jnp.clip(jnp.zeros_like(lower), lower, upper)])
        bend_down = bend_up = jnp.zeros_like(lower)
    else:
        nodes = _grid(lower, upper, _CELLS)
        curvature = curvature_range(activation, lower, upper)
        # rounded nodes may be that much further apart
        room = (1.001 * (upper - lower) / _CELLS + 4.0 * eps * magnitude(lower, upper)) ** 2 / 8.0
        bend_up = jnp.maximum(curvature.upper, 0.0) * room
        bend_down = jnp.maximum(-curvature.lower, 0.0) * room
    values = activation(nodes)
    nodes, values = (
        part.reshape(part.shape[:1] + (1,) * (slope.ndim - lower.ndim) + lower.shape) for part in (nodes, values)
    )
    tilted = slope[None] * nodes
    gaps = values - tilted
    rounding = 3.0 * eps * jnp.max(jnp.abs(values) + jnp.abs(tilted), axis=0)
    error = evaluation_error(activation, lower, upper, value_range(activation, lower, upper, rounded=False))
    shape = slope.shape
    return Interval(
        jnp.min(gaps, axis=0) - rounding - jnp.broadcast_to(error + bend_up, shape),
        jnp.max(gaps, axis=0) + rounding + jnp.broadcast_to(error + bend_down, shape),
    )


def tightest_slopes(activation: AbstractActivation, lower: Array, upper: Array) -> Slopes:
    """Slopes of the envelopes' supporting lines at the midpoint."""
    allowed = slope_range(activation, lower, upper)
    kinked = kink_slopes(activation)
    width = upper - lower
    if kinked is not None:
        below, above = kinked
        values = activation(jnp.stack([lower, upper]))
        chord = jnp.where(width > 0.0, (values[1] - values[0]) / jnp.where(width > 0.0, width, 1.0), allowed.lower)
        support = jnp.where(lower + upper > 0.0, above, below).astype(lower.dtype)
        chord, support = (jnp.clip(slope, *allowed) for slope in (chord, support))
        return Slopes(support, chord) if below <= above else Slopes(chord, support)
    half = _ENVELOPE_CELLS // 2
    values = activation(_grid(lower, upper, _ENVELOPE_CELLS))
    left, right = values[:half], values[half + 1 :]  # nodes at distances half..1 and 1..half from the midpoint
    i, j = np.meshgrid(np.arange(half, 0, -1), np.arange(1, half + 1), indexing="ij")
    per_neuron = (1,) * lower.ndim
    i, j = (jnp.asarray(part, lower.dtype).reshape(half, half, *per_neuron) for part in (i, j))
    at_middle = ((left[:, None] * j + right[None, :] * i) / (i + j)).reshape(half * half, *lower.shape)
    rise = ((right[None, :] - left[:, None]) / (i + j)).reshape(half * half, *lower.shape)

    def pick(which: Array) -> Array:
        chosen = jnp.take_along_axis(rise, which[None], axis=0)[0]
        slope = jnp.where(width > 0.0, chosen * _ENVELOPE_CELLS / jnp.where(width > 0.0, width, 1.0), allowed.lower)
        return jnp.clip(slope, *allowed)

    return Slopes(pick(jnp.argmin(at_middle, axis=0)), pick(jnp.argmax(at_middle, axis=0)))


def product_lines(factor: Interval, lower: Array, upper: Array) -> Lines:
    r"""Lines in t around $s t$ for all s in `factor` and t in [lower, upper].

    The largest product, $\max(s_- t, s_+ t)$, is convex in t, so that its chord is above it; the smallest is concave
    and above its chord.
    """
    eps = float(np.finfo(lower.dtype).eps)
    width = upper - lower
    nodes = jnp.stack([lower, upper])
    products = jnp.stack([factor.lower[None] * nodes, factor.upper[None] * nodes])
    found = []
    for values, sign in ((jnp.min(products, axis=0), -1.0), (jnp.max(products, axis=0), 1.0)):
        chord = (values[1] - values[0]) / jnp.where(width > 0.0, width, 1.0)
        slope = jnp.clip(jnp.where(width > 0.0, chord, factor.lower), *factor)
        gaps = values - slope[None] * nodes
        rounding = 4.0 * eps * jnp.max(jnp.abs(values) + jnp.abs(slope[None] * nodes), axis=0)
        offset = jnp.max(sign * gaps, axis=0) + rounding
        found += [slope, sign * offset]
    return Lines(*found)


def worst_gap(around: Lines, lower: Array, upper: Array) -> Array:
    """Largest distance between the lines on [lower, upper]: it is affine, so at an end."""
    slope, offset = around.upper_slope - around.lower_slope, around.upper_offset - around.lower_offset
    return jnp.maximum(slope * lower, slope * upper) + offset


def difference_range(activation: AbstractActivation, moved: Interval, plus: Interval, minus: Interval) -> Interval:
    r"""Enclosure of a computed $\sigma(p) - \sigma(q)$ with $p - q = t$: both ranges' and the mean value's."""
    first, second = value_range(activation, *plus), value_range(activation, *minus)
    factor = slope_range(activation, jnp.minimum(plus.lower, minus.lower), jnp.maximum(plus.upper, minus.upper))
    corners = jnp.stack([s * t for s in factor for t in moved])
    error = difference_error(activation, plus, minus)
    eps = float(np.finfo(moved.lower.dtype).eps)
    lowest, highest = first.lower - second.upper, first.upper - second.lower
    by_mean = Interval(jnp.min(corners, axis=0), jnp.max(corners, axis=0))
    room = error + 2.0 * eps * magnitude(*by_mean)
    rounding = eps * magnitude(lowest, highest)
    return Interval(
        jnp.maximum(lowest - rounding, by_mean.lower - room), jnp.minimum(highest + rounding, by_mean.upper + room)
    )


def difference_error(activation: AbstractActivation, plus: Interval, minus: Interval) -> Array:
    r"""Rounding of a computed $\sigma(p) - \sigma(q)$ beside the exact difference."""
    first, second = (value_range(activation, *side, rounded=False) for side in (plus, minus))
    eps = float(np.finfo(plus.lower.dtype).eps)
    return (
        evaluation_error(activation, *plus, first)
        + evaluation_error(activation, *minus, second)
        + eps * (magnitude(*first) + magnitude(*second))
    )


def _grid(lower: Array, upper: Array, cells: int) -> Array:
    """Nodes from exactly `lower` to exactly `upper`."""
    shares = jnp.arange(cells + 1, dtype=lower.dtype).reshape(-1, *(1,) * lower.ndim) / cells
    return lower[None] * (1.0 - shares) + upper[None] * shares
