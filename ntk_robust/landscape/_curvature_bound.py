"""Upper bounds of the Hessian of a two-layer network over a ball, by intervals."""

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ntk_robust.landscape._two_layer import TwoLayer, second_derivative
from ntk_robust.models import AbstractActivation, Cos, Erf, Gelu, Identity, Monomial, Sin, Softplus, Tanh

# Where σ'' can be extreme besides the ends of an interval: the zeros of σ'''.
_TURNS = {
    Identity: (),
    Tanh: (-math.atanh(1 / math.sqrt(3)), math.atanh(1 / math.sqrt(3))),
    Softplus: (0.0,),
    Erf: (-math.sqrt(0.5), math.sqrt(0.5)),
    Gelu: (-2.0, 0.0, 2.0),
}


def second_derivative_range(
    activation: AbstractActivation, lower: Float[Array, "*shape"], upper: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    r"""Smallest and largest $\sigma''(z)$ for lower ≤ z ≤ upper, elementwise, up to rounding.

    Between the zeros of $\sigma'''$ the second derivative is monotone, so that its extremes are at the ends of the
    interval or at those zeros inside it.

    Raises:
        ValueError: For an activation whose $\sigma''$ is not known here.
    """
    kind = type(activation)
    if isinstance(activation, Sin | Cos):
        smoothness = jnp.full_like(lower, activation.smoothness)
        return -smoothness, smoothness
    if kind in _TURNS:
        turns = _TURNS[kind]
    elif isinstance(activation, Monomial):
        turns = (0.0,)
    else:
        known = ", ".join(sorted(cls.__name__ for cls in (*_TURNS, Monomial, Sin, Cos)))
        raise ValueError(f"the second derivative of {activation} is not bounded here; use one of {known}")
    inside = [jnp.clip(turn, lower, upper) for turn in turns]
    values = jnp.stack([second_derivative(activation, z) for z in (lower, upper, *inside)])
    return jnp.min(values, axis=0), jnp.max(values, axis=0)


def curvature_bound(
    net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike, *, sign: float = 1.0, norm: str = "l2"
) -> Float[Array, "d d"]:
    r"""A matrix $H_{\mathrm{up}}$ with $\nabla^2 (χ f) \preceq H_{\mathrm{up}}$ everywhere in the ball, up to rounding.

    $H_{\mathrm{up}} = W^\top \mathrm{diag}(D) W$ with $D_j$ the largest $χ a_j \sigma''$ on the interval of values that
    the pre-activation can take.

    Args:
        net: The network.
        x: Center.
        epsilon: Radius.
        sign: $χ = ±1$, the side of the maximization.
        norm: "l2" or "linf".

    References:
        docs/theory/deng2020.md, item A5.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm is {norm!r}; give 'l2' or 'linf'")
    center = net.preactivations(x)
    sizes = jnp.linalg.norm(net.weights, axis=1) if norm == "l2" else jnp.sum(jnp.abs(net.weights), axis=1)
    reach = jnp.asarray(epsilon, x.dtype) * sizes
    # The ends are widened by their rounding.
    slack = (
        4 * (x.shape[0] + 2) * jnp.finfo(x.dtype).eps * (jnp.abs(net.weights) @ jnp.abs(x) + jnp.abs(center) + reach)
    )
    low, high = second_derivative_range(net.activation, center - reach - slack, center + reach + slack)
    signed = sign * net.readout
    largest = jnp.maximum(signed * low, signed * high)
    return net.weights.T @ (largest[:, None] * net.weights)
