"""Upper bounds of the Hessian of a two-layer network over a ball, by intervals."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ntk_robust.certify._shapes import curvature_range
from ntk_robust.landscape._two_layer import TwoLayer


def curvature_bound(
    net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike, *, sign: ArrayLike = 1.0, norm: str = "l2"
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

    Raises:
        ValueError: For another norm, or an activation with a kink, which has no second derivative.

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
    low, high = curvature_range(net.activation, center - reach - slack, center + reach + slack)
    signed = sign * net.readout
    largest = jnp.maximum(signed * low, signed * high)
    return net.weights.T @ (largest[:, None] * net.weights)
