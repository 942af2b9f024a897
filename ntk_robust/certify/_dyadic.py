r"""Interval bounds without slack, and a proof that they needed none.

A float is a whole multiple of its quantum, the largest power of two that divides it. A sum of products of multiples of
$q$ and $q'$ is a multiple of $q q'$, and if the absolute values of all terms sum to at most $2^p q q'$, p the digits of
the dtype, then every partial sum in every order is representable and nothing is rounded. Weights and inputs that are
small multiples of one power of two ("dyadic") have this property, and the bounds are then those of exact arithmetic.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_robust.certify._interval import check_input
from ntk_robust.certify._network import (
    AbstractLinear,
    AbstractReshape,
    Add,
    Affine,
    AveragePool,
    Convolution,
    Network,
    Nonlinearity,
    graph_of,
)
from ntk_robust.certify._rounding import magnitude
from ntk_robust.certify._shapes import Interval, kink_slopes, value_range
from ntk_robust.certify._structured import PerBlock, PerCoordinate
from ntk_robust.models import LeakyRelu


class DyadicBounds(eqx.Module):
    """Interval bounds in exact arithmetic.

    Attributes:
        lower: Lower end of each output.
        upper: Upper end.
        exact: Whether no operation rounded; if not, the ends may be wrong by rounding on either side.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]
    exact: Bool[Array, ""]


class _Found(NamedTuple):
    """An interval, and whether it is that of exact arithmetic."""

    interval: Interval
    exact: Array


def dyadic_interval_bounds(
    network: Network, lower: Float[Array, "*dims"], upper: Float[Array, "*dims"]
) -> DyadicBounds:
    r"""Interval bound propagation from a box, without slack, and whether it was exact.

    Exact means: equal to the interval bounds of real arithmetic, each end to the last bit. That holds when every
    activation is piecewise linear and every sum passes the test above; for multiples of $2^{-p}$ of moderate size it
    does. Then a width of 0 is a proof that the function is that number on the whole box.

    Args:
        network: The network.
        lower: Smallest inputs of the box.
        upper: Largest inputs.

    Returns:
        Bounds of one box; callers `jax.vmap`.

    Raises:
        ValueError: If shapes or dtypes do not fit, or an activation is not piecewise linear.

    Examples:
        >>> import jax.numpy as jnp
        >>> from ntk_robust.certify import Affine, Network, Nonlinearity
        >>> from ntk_robust.models import Relu
        >>> bump = Network((Affine(jnp.asarray([[4.0], [-4.0]]), jnp.asarray([-3.0, 1.0])), Nonlinearity(Relu())), (1,))
        >>> found = dyadic_interval_bounds(bump, jnp.asarray([0.5]), jnp.asarray([0.75]))
        >>> bool(found.exact), float(found.upper[0])
        (True, 0.0)
    """
    for point in (lower, upper):
        check_input(network, point)
    graph = graph_of(network)
    digits = 2.0 ** (np.finfo(network.dtype).nmant + 1)
    found = [_Found(Interval(lower, upper), jnp.asarray(True))]
    for node in graph.nodes[1:]:
        parents = [found[parent] for parent in node.parents]
        before = parents[0]
        match node.layer:
            case AbstractReshape():
                after = before._replace(interval=Interval(*(node.layer(end) for end in before.interval)))
            case AbstractLinear():
                after = _linear(node.layer, before, digits)
            case Nonlinearity() if kink_slopes(node.layer.activation) is not None:
                interval = value_range(node.layer.activation, *before.interval, rounded=False)
                exact = before.exact
                if isinstance(node.layer.activation, LeakyRelu):
                    slope = _quantum(jnp.asarray(node.layer.activation.slope, network.dtype))
                    unit = _quantum(jnp.stack(before.interval)) * jnp.minimum(slope, 1.0)
                    exact = exact & jnp.all(magnitude(*before.interval) <= digits * unit)
                after = _Found(interval, exact)
            case Add():
                intervals = [parent.interval for parent in parents]
                unit = _quantum(jnp.stack([end for at in intervals for end in at]))
                sizes = sum((magnitude(*at) for at in intervals[1:]), magnitude(*intervals[0]))
                exact = jnp.all(jnp.stack([parent.exact for parent in parents])) & jnp.all(sizes <= 0.5 * digits * unit)
                ends = (sum((at[end] for at in intervals[1:]), intervals[0][end]) for end in (0, 1))
                after = _Found(Interval(*ends), exact)
            case _:
                raise ValueError(
                    "intervals without slack need piecewise linear activations on layers of their own; use "
                    "IntervalBounds for smooth activations and paired neurons"
                )
        found.append(after)
    last = found[-1]
    lower, upper = last.interval
    return DyadicBounds(lower[0], upper[0], last.exact) if network.scalar else DyadicBounds(lower, upper, last.exact)


def _linear(layer: AbstractLinear, before: _Found, digits: float) -> _Found:
    middle = 0.5 * before.interval.lower + 0.5 * before.interval.upper
    radius = before.interval.upper - middle
    center, spread = layer(middle), layer.absolute(radius)
    sizes, offset = layer.absolute(jnp.abs(middle) + radius), layer.offset()
    # middle and radius are multiples of half the ends' quantum
    unit = 0.5 * _quantum(jnp.stack(before.interval)) * _weight_quantum(layer, center.dtype)
    if offset is not None:
        unit = jnp.minimum(unit, _quantum(offset))
        sizes = sizes + jnp.abs(jnp.broadcast_to(offset, sizes.shape))
    # the sizes may themselves be rounded, by less than half
    fits = jnp.all(sizes <= 0.5 * digits * unit)
    return _Found(Interval(center - spread, center + spread), before.exact & fits)


def _weight_quantum(layer: AbstractLinear, dtype: jnp.dtype) -> Array:
    match layer:
        case Affine():
            return _quantum(layer.weight)
        case Convolution():
            return _quantum(layer.kernel)
        case PerCoordinate():
            return _quantum(layer.scale)
        case PerBlock():
            return _quantum(layer.weight)
        case AveragePool():
            return _quantum(jnp.asarray(1.0 / math.prod(layer.window), dtype))
    raise TypeError(f"nothing is known of the weights of a {type(layer).__name__}")


def _quantum(values: Array) -> Array:
    """The largest power of two that divides every entry; infinite if all are 0."""
    bits, width = (jnp.int32, 23) if values.dtype == jnp.float32 else (jnp.int64, 52)
    raw = jax.lax.bitcast_convert_type(values, bits)
    fraction = raw & ((1 << width) - 1)
    exponent = (raw >> width) & (2 ** (values.dtype.itemsize * 8 - 1 - width) - 1)
    whole = jnp.where(exponent > 0, fraction | (1 << width), fraction)
    lowest = (whole & -whole).astype(values.dtype)
    bias = 2 ** (values.dtype.itemsize * 8 - 2 - width) - 1
    power = jnp.maximum(exponent, 1) - bias - width
    unit = jnp.ldexp(lowest, power.astype(jnp.int32))
    return jnp.min(jnp.where(values == 0.0, jnp.inf, unit), initial=jnp.inf)
