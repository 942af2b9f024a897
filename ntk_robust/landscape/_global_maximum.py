"""A-posteriori certificates of a global maximum over a ball."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from ntk_robust.landscape._curvature_bound import curvature_bound
from ntk_robust.landscape._two_layer import TwoLayer


class GlobalMaximum(eqx.Module):
    r"""How far a point of the sphere can be from the maximum of $φ = χ f$ over the whole ball.

    Attributes:
        multiplier: $μ = \nablaφ \cdot δ/ε^2$.
        curvature: $M_+$, at least the largest eigenvalue of $\nabla^2φ$ anywhere in the ball.
        residual: $\Vert\nablaφ - μδ\Vert$.
        certified: Whether $μ > \max(M_+, 0)$ beyond rounding; the other numbers mean something only then.
        distance: The maximum is at most this far from the point; infinite without a certificate.
        gap: The maximum is at most this much above the value at the point; infinite without a certificate.
    """

    multiplier: Float[Array, ""]
    curvature: Float[Array, ""]
    residual: Float[Array, ""]
    certified: Bool[Array, ""]
    distance: Float[Array, ""]
    gap: Float[Array, ""]


def global_maximum(
    net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike, delta: Float[Array, " d"], *, sign: ArrayLike = 1.0
) -> GlobalMaximum:
    r"""Whether $δ$ is, up to a stated distance and gap, the unique maximum of $χ f(x + δ)$ over $\Vertδ\Vert_2 \le ε$.

    If $\nabla^2φ \preceq M_+ I$ on the ball and $μ > M_+$, then $φ(δ') \le φ(δ) + \Vert q\Vert \Vert h\Vert -
    \frac12 (μ - M_+) \Vert h\Vert^2$ for $h = δ' - δ$, with $q$ the residual. It says nothing where it
    does not certify. Rounding is on the safe side: $μ$ is lowered, $M_+$ and the residual are raised by bounds of their
    errors.

    Args:
        net: The network.
        x: Center.
        epsilon: Radius.
        delta: A point of the sphere; it is scaled to it first.
        sign: $χ = ±1$: whether a large or a small output is sought.

    References:
        docs/theory/deng2020.md, item A5.
    """
    epsilon = jnp.asarray(epsilon, x.dtype)
    delta = delta * (epsilon / jnp.linalg.norm(delta))
    gradient = jax.grad(lambda d: sign * net(x + d))(delta)
    multiplier = gradient @ delta / epsilon**2
    residual = jnp.linalg.norm(gradient - multiplier * delta)
    bound = curvature_bound(net, x, epsilon, sign=sign)
    curvature = jnp.linalg.eigvalsh(bound)[-1]

    unit = jnp.finfo(x.dtype).eps
    width, dim = net.weights.shape
    rows = jnp.linalg.norm(net.weights, axis=1)
    sizes = jnp.sum(jnp.abs(net.readout) * rows)  # of the terms of the gradient, for slopes of size 1
    slopes = jnp.maximum(1.0, jnp.max(jnp.abs(net.activation.derivative(net.preactivations(x + delta)))))
    gradient_error = 8 * (width + dim + 8) * unit * sizes * slopes
    curvature_error = 8 * (width + dim + 8) * unit * jnp.sum(jnp.abs(net.readout) * rows**2) * _largest_slope(net)
    multiplier_low = multiplier - gradient_error / epsilon - 8 * dim * unit * jnp.linalg.norm(gradient) / epsilon
    curvature_high = curvature + curvature_error + 8 * dim * unit * jnp.linalg.norm(bound)
    residual_high = residual + 2 * gradient_error + 8 * dim * unit * jnp.linalg.norm(gradient)
    room = multiplier_low - curvature_high
    certified = (room > 0) & (multiplier_low > 0)
    return GlobalMaximum(
        multiplier=multiplier,
        curvature=curvature_high,
        residual=residual_high,
        certified=certified,
        distance=jnp.where(certified, 2 * residual_high / room, jnp.inf),
        gap=jnp.where(certified, residual_high**2 / (2 * room), jnp.inf),
    )


def vertex_is_maximum(
    net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike, delta: Float[Array, " d"], *, sign: ArrayLike = 1.0
) -> Bool[Array, ""]:
    r"""Whether the vertex $δ$ is certified as the unique maximum of $χ f(x + δ)$ over $\Vertδ\Vert_\infty \le ε$.

    It is where $δ = ε\,\mathrm{sign}(\nablaφ(δ))$ and $\mathrm{diag}(|\nablaφ(δ)|)/ε - H_{\mathrm{up}}$ is positive
    definite; the point of `attacks.FGSM` qualifies if the gradient has the same signs there as at the center.

    Args:
        net: The network.
        x: Center.
        epsilon: Radius.
        delta: The vertex.
        sign: $χ = ±1$.

    References:
        docs/theory/deng2020.md, item A5.
    """
    epsilon = jnp.asarray(epsilon, x.dtype)
    gradient = jax.grad(lambda d: sign * net(x + d))(delta)
    bound = curvature_bound(net, x, epsilon, sign=sign, norm="linf")
    smallest = jnp.linalg.eigvalsh(jnp.diag(jnp.abs(gradient)) / epsilon - bound)[0]
    rounding = 64 * (sum(net.weights.shape)) * jnp.finfo(x.dtype).eps
    scale = jnp.linalg.norm(bound) + jnp.max(jnp.abs(gradient)) / epsilon
    at_vertex = jnp.all(delta == epsilon * jnp.sign(gradient))
    return at_vertex & (smallest > rounding * scale)


def _largest_slope(net: TwoLayer) -> float:
    """A bound of |σ''| for the rounding terms; 1 where there is none."""
    smoothness = net.activation.smoothness
    return smoothness if smoothness < float("inf") else 1.0
