"""First- and second-order certificate of a local maximum on a cube."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


class CubeMaximum(eqx.Module):
    r"""What two derivatives say of a point $δ$ of the cube $\Vertδ\Vert_\infty \le ε$ as a maximum of L over it.

    Attributes:
        free: Coordinates strictly inside $(-ε, ε)$; none at a vertex.
        multipliers: $\partial_i L\, \mathrm{sign}(δ_i)$ where a coordinate is at its bound, 0 where it is free.
        residual: $\Vert\nabla L\Vert$ over the free coordinates, relative to that over all; the verdict speaks of the
            exact stationary point that this says is near.
        curvature: Largest eigenvalue of the Hessian on the free coordinates; $-\infty$ at a vertex.
    """

    free: Bool[Array, " d"]
    multipliers: Float[Array, " d"]
    residual: Float[Array, ""]
    curvature: Float[Array, ""]

    @property
    def is_strict(self) -> Bool[Array, ""]:
        """Whether every bound is held by a positive multiplier and the free Hessian is negative definite."""
        return jnp.all(self.free | (self.multipliers > 0)) & (self.curvature < 0)


def local_maximum_of_cube(
    loss_fn: Callable[[Float[Array, " d"]], Float[Array, ""]], epsilon: ArrayLike, delta: Float[Array, " d"]
) -> CubeMaximum:
    r"""Derivatives of any differentiable scalar function at a vertex or on a face, by Hessian-vector products.

    With positive multipliers every direction into the cube that moves a bound coordinate descends to first order, and
    the others are decided by the Hessian of the free ones. At a vertex the gradient alone decides.

    Args:
        loss_fn: $δ \mapsto L(δ)$, twice differentiable near the point.
        epsilon: Radius $ε$ of the cube.
        delta: The point.

    References:
        docs/theory/deng2020.md, item A2.
    """
    epsilon = jnp.asarray(epsilon, delta.dtype)
    gradient, hessian_product = jax.linearize(jax.grad(loss_fn), delta)
    free = jnp.abs(delta) < epsilon
    identity = jnp.eye(len(delta), dtype=delta.dtype)
    hessian = jax.vmap(hessian_product)(identity)
    restricted = jnp.where(free[:, None] & free[None, :], 0.5 * (hessian + hessian.T), 0.0)
    # Bound coordinates get an eigenvalue below all others.
    below = -2 * (1 + jnp.linalg.norm(restricted))
    largest = jnp.linalg.eigvalsh(restricted + below * jnp.diag(jnp.where(free, 0.0, 1.0)))[-1]
    norm = jnp.linalg.norm(gradient)
    return CubeMaximum(
        free=free,
        multipliers=jnp.where(free, 0.0, gradient * jnp.sign(delta)),
        residual=jnp.linalg.norm(jnp.where(free, gradient, 0.0)) / jnp.where(norm > 0, norm, 1.0),
        curvature=jnp.where(jnp.any(free), largest, -jnp.inf),
    )
