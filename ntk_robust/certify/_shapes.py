r"""What bounds need to know of an activation: where it goes, how steep it gets, how much it bends.

For each $\sigma$ and interval $[l, u]$ three enclosures: of $\sigma$, of its slopes (at a kink, of all slopes between
the one-sided ones, so that every secant's slope is inside), and of $\sigma''$ where there is one. Ranges follow from
the ends of the interval and from the points where the function turns.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.certify._rounding import magnitude
from ntk_robust.models import (
    Abs,
    AbstractActivation,
    Cos,
    Erf,
    Gelu,
    Identity,
    LeakyRelu,
    Monomial,
    QuadraticRelu,
    Relu,
    Sin,
    Softplus,
    Tanh,
)

# Where GELU's derivative Φ(z) + zφ(z) vanishes; its second derivative φ(z)(2 - z²) turns at 0 and z² = 4.
_GELU_TURN = -0.7517915246935645
_TANH_TURN = math.atanh(1.0 / math.sqrt(3.0))  # where tanh'' turns

# Rounding of one evaluation of σ, in machine epsilons times |σ(z)| + min(1, |z|); tests measure less than half of it.
_EVALUATION_ULPS = 8.0


class Interval(NamedTuple):
    """Two ends of which neither is beyond the truth."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def kink_slopes(activation: AbstractActivation) -> tuple[float, float] | None:
    """Slopes below and above 0 of a piecewise linear activation, None of another."""
    match activation:
        case Relu():
            return 0.0, 1.0
        case LeakyRelu():
            return activation.slope, 1.0
        case Abs():
            return -1.0, 1.0
        case Identity():
            return 1.0, 1.0
    return None


def check_known(activation: AbstractActivation) -> None:
    """Refuses activations of which nothing is proven.

    Raises:
        TypeError: Naming those that are known.
    """
    known = (Erf, Gelu, Softplus, Tanh, Monomial, QuadraticRelu, Sin, Cos)
    if kink_slopes(activation) is None and not isinstance(activation, known):
        raise TypeError(
            f"nothing is proven of {type(activation).__name__}; the activations of ntk_robust.models can be bounded"
        )


def value_range(activation: AbstractActivation, lower: Array, upper: Array, *, rounded: bool = True) -> Interval:
    r"""Enclosure of $\sigma$ on [lower, upper], and with `rounded` of what its evaluation may return there."""
    check_known(activation)
    match activation:
        case Gelu():
            found = _range(activation, (_GELU_TURN,), lower, upper)
        case Abs():
            found = _range(activation, (0.0,), lower, upper)
        case Monomial() if activation.degree % 2 == 0:
            found = _range(activation, (0.0,), lower, upper)
        case Sin():
            found = _wave(activation, math.pi / 2, lower, upper)
        case Cos():
            found = _wave(activation, 0.0, lower, upper)
        case _:
            found = _range(activation, (), lower, upper)
    if not rounded:
        return found
    # twice: once for the values at the ends, once for the network's
    slack = 2.0 * evaluation_error(activation, lower, upper, found)
    return Interval(found.lower - slack, found.upper + slack)


def evaluation_error(activation: AbstractActivation, lower: Array, upper: Array, values: Interval) -> Array:
    r"""How far a computed $\sigma(z)$ may be from the true one for z in [lower, upper], given an enclosure of it."""
    if isinstance(activation, Relu | Abs | Identity):
        return jnp.zeros_like(lower)
    ulps = _EVALUATION_ULPS + (activation.degree if isinstance(activation, Monomial) else 0)
    eps = float(np.finfo(lower.dtype).eps)
    return ulps * eps * (magnitude(*values) + jnp.minimum(magnitude(lower, upper), 1.0))


def slope_range(activation: AbstractActivation, lower: Array, upper: Array) -> Interval:
    r"""Enclosure of $(\sigma(b) - \sigma(a)) / (b - a)$ for a < b in [lower, upper]."""
    check_known(activation)
    slopes = kink_slopes(activation)
    if slopes is not None:
        ends = jnp.where(upper <= 0.0, slopes[0], slopes[1]), jnp.where(lower >= 0.0, slopes[1], slopes[0])
        first, second = (end.astype(lower.dtype) for end in ends)
        return Interval(jnp.minimum(first, second), jnp.maximum(first, second))
    match activation:
        case Tanh() | Erf():
            found = _range(activation.derivative, (0.0,), lower, upper)
        case Gelu():
            found = _range(activation.derivative, (-math.sqrt(2.0), math.sqrt(2.0)), lower, upper)
        case Monomial() if activation.degree % 2 == 1:
            found = _range(activation.derivative, (0.0,), lower, upper)
        case Sin():
            found = _wave(activation.derivative, 0.0, lower, upper)
        case Cos():
            found = _wave(activation.derivative, -math.pi / 2, lower, upper)
        case _:
            found = _range(activation.derivative, (), lower, upper)
    slack = 2.0 * _EVALUATION_ULPS * float(np.finfo(lower.dtype).eps) * (1.0 + magnitude(*found))
    return Interval(found.lower - slack, found.upper + slack)


def second_derivative(activation: AbstractActivation, z: Array) -> Array:
    r"""$\sigma''(z)$, elementwise; at a kink of $\sigma'$ what automatic differentiation takes."""
    return jax.jvp(activation.derivative, (z,), (jnp.ones_like(z),))[1]


def curvature_range(activation: AbstractActivation, lower: Array, upper: Array) -> Interval:
    r"""Enclosure of $\sigma''$ on [lower, upper], a weak derivative where $\sigma'$ has a kink.

    Ends are 0 exactly where that is the sign's limit, so that they say whether $\sigma$ is convex or concave there.

    Raises:
        ValueError: For an activation with a kink, which has no second derivative.
    """
    check_known(activation)
    if kink_slopes(activation) is not None and not isinstance(activation, Identity):
        raise ValueError(
            f"{type(activation).__name__} has a kink and no second derivative; use a smooth activation such as Softplus"
        )
    root, never = math.sqrt(2.0), jnp.zeros(lower.shape, bool)
    turns, up, down = (
        (),
        never,
        never,
    )  # where the third derivative vanishes; where σ bends up, and down, on the whole interval
    match activation:
        case Identity():
            up = down = ~never
        case Softplus():
            turns, up = (0.0,), ~never
        case QuadraticRelu():
            up, down = ~never, upper <= 0.0
        case Tanh():
            turns, up, down = (-_TANH_TURN, _TANH_TURN), upper <= 0.0, lower >= 0.0
        case Erf():
            turns, up, down = (-math.sqrt(0.5), math.sqrt(0.5)), upper <= 0.0, lower >= 0.0
        case Gelu():
            outside = (lower > root) | (upper < -root)
            turns, up, down = (-2.0, 0.0, 2.0), (lower > -root) & (upper < root), outside
        case Monomial():
            even = activation.degree % 2 == 0
            turns, up, down = (0.0,), (lower >= 0.0) | even, (upper <= 0.0) & (not even)
    if isinstance(activation, QuadraticRelu):
        found = Interval(jnp.where(lower > 0.0, 2.0, jnp.zeros_like(lower)), jnp.full_like(upper, 2.0))
    elif isinstance(activation, Sin | Cos):
        peak = -0.5 * math.pi if isinstance(activation, Sin) else math.pi
        found = _wave(lambda z: second_derivative(activation, z), peak, lower, upper)
    else:
        found = _range(lambda z: second_derivative(activation, z), turns, lower, upper)
    ulps = _EVALUATION_ULPS + (activation.degree if isinstance(activation, Monomial) else 0)
    slack = 2.0 * ulps * float(np.finfo(lower.dtype).eps) * (1.0 + magnitude(*found))
    low, high = found.lower - slack, found.upper + slack
    return Interval(
        jnp.where(up, jnp.maximum(low, 0.0), low),
        jnp.where(down, jnp.minimum(high, 0.0), high),
    )


def _range(function: Callable[[Array], Array], turns: tuple[float, ...], lower: Array, upper: Array) -> Interval:
    """Range of a function that is monotone between its turning points."""
    inside = [jnp.clip(jnp.asarray(turn, lower.dtype), lower, upper) for turn in turns]
    values = function(jnp.stack([lower, upper, *inside]))
    return Interval(jnp.min(values, axis=0), jnp.max(values, axis=0))


def _wave(function: Callable[[Array], Array], peak: float, lower: Array, upper: Array) -> Interval:
    """Range of a sinusoid with a maximum at `peak`; a peak that rounding may have put outside counts as inside."""
    ends = jnp.stack([function(lower), function(upper)])
    slack = 16.0 * float(np.finfo(lower.dtype).eps) * (magnitude(lower, upper) + 8.0)

    def contains(point: float) -> Array:
        first = jnp.ceil((lower - slack - point) / (2.0 * math.pi))
        return 2.0 * math.pi * first + point <= upper + slack

    return Interval(
        jnp.where(contains(peak + math.pi), -1.0, jnp.min(ends, axis=0)).astype(lower.dtype),
        jnp.where(contains(peak), 1.0, jnp.max(ends, axis=0)).astype(lower.dtype),
    )
