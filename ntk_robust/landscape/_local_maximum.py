"""First- and second-order certificate of a local maximum on the sphere."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


class LocalMaximum(eqx.Module):
    r"""What two derivatives say of a point $δ$ of the sphere $\Vertδ\Vert = ε$ as a maximum of L over the ball.

    Attributes:
        multiplier: $λ = \nabla L \cdot δ / ε^2$.
        residual: $\Vert\nabla L - λδ\Vert / \Vert\nabla L\Vert$; the verdict speaks of the exact stationary point
            that this says is near.
        eigenvalues: Of $P \nabla^2 L P$ on the tangent space, descending.
        direction: Unit tangent vector of the largest one, along which the point is weakest.
    """

    multiplier: Float[Array, ""]
    residual: Float[Array, ""]
    eigenvalues: Float[Array, " tangents"]
    direction: Float[Array, " d"]

    @property
    def margin(self) -> Float[Array, "*batch"]:
        r"""$κ = 1 - h_{\max}/λ$: positive at a strict local maximum, negative at a point that is none."""
        return 1 - self.eigenvalues[..., 0] / self.multiplier

    @property
    def is_strict(self) -> Bool[Array, "*batch"]:
        """Whether the second-order condition holds strictly: λ > 0 and κ > 0."""
        return (self.multiplier > 0) & (self.eigenvalues[..., 0] < self.multiplier)

    def rate(self, step_size: ArrayLike) -> Float[Array, ""]:
        r"""Factor per step by which projected gradient ascent comes nearer: $\max_i|1 + η h_i|/(1 + ηλ)$."""
        return jnp.max(jnp.abs(1 + step_size * self.eigenvalues)) / (1 + step_size * self.multiplier)


def local_maximum(
    loss_fn: Callable[[Float[Array, " d"]], Float[Array, ""]], epsilon: ArrayLike, delta: Float[Array, " d"]
) -> LocalMaximum:
    r"""Derivatives of any differentiable scalar function at a point of the sphere, by Hessian-vector products.

    On the sphere the second derivative along a unit tangent $v$ is $ε^2 (v^\top \nabla^2 L\, v - λ)$. A stationary
    point with $λ > 0$ where all of these are negative is a strict local maximum over the ball. It costs d
    Hessian-vector products and an eigendecomposition.

    Args:
        loss_fn: $δ \mapsto L(δ)$, twice differentiable near the point.
        epsilon: Radius $ε$ of the l2 ball.
        delta: The point; its norm is taken for $ε$ as it is.

    References:
        docs/theory/deng2020.md, items A2 and A7.
    """
    gradient, hessian_product = jax.linearize(jax.grad(loss_fn), delta)
    hessian = jax.vmap(hessian_product)(jnp.eye(len(delta), dtype=delta.dtype))
    normal = delta / jnp.linalg.norm(delta)
    multiplier = gradient @ delta / jnp.asarray(epsilon, delta.dtype) ** 2
    projector = jnp.eye(len(delta), dtype=delta.dtype) - jnp.outer(normal, normal)
    # The normal gets an eigenvalue below all others, so that it is the last one and can be left out.
    tangent = projector @ hessian @ projector
    below = -2 * (1 + jnp.linalg.norm(tangent))
    tangent = 0.5 * (tangent + tangent.T) + below * jnp.outer(normal, normal)
    eigenvalues, vectors = jnp.linalg.eigh(tangent)
    residual = jnp.linalg.norm(projector @ gradient) / jnp.linalg.norm(gradient)
    return LocalMaximum(multiplier, residual, eigenvalues[:0:-1], vectors[:, -1])
