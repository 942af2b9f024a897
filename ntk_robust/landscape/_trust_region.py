"""The maximum of a quadratic function over a ball, exactly."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float


class QuadraticMaximum(eqx.Module):
    r"""The global maximum of $g \cdot δ + \frac12 δ^\top H δ$ over $\Vertδ\Vert_2 \le ε$.

    Attributes:
        delta: Where it is attained; in the hard case one of two points.
        value: The maximum.
        multiplier: $μ \ge 0$ with $(μ I - H)δ = g$ and $μ I - H \succeq 0$; 0 in the interior.
    """

    delta: Float[Array, " d"]
    value: Float[Array, ""]
    multiplier: Float[Array, ""]


def quadratic_maximum(
    gradient: Float[Array, " d"], hessian: Float[Array, "d d"], epsilon: ArrayLike
) -> QuadraticMaximum:
    r"""The trust-region problem at any scale, by one eigendecomposition and bisection of the secular equation.

    $μ$ is the largest root of $\Vert(μ I - H)^{-1} g\Vert = ε$ above the largest eigenvalue, or that eigenvalue itself
    in the hard case, where $g$ is orthogonal to its space and a multiple of an eigenvector is added.

    Args:
        gradient: $g$.
        hessian: $H$, symmetric.
        epsilon: Radius $ε > 0$.

    References:
        docs/theory/deng2020.md, item A9.
    """
    epsilon = jnp.asarray(epsilon, gradient.dtype)
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    parts = vectors.T @ gradient
    top = eigenvalues[-1]
    unit = jnp.finfo(gradient.dtype).eps
    scale = jnp.maximum(jnp.max(jnp.abs(eigenvalues)), jnp.linalg.norm(gradient) / epsilon)
    scale = jnp.maximum(scale, jnp.finfo(gradient.dtype).tiny / unit**2)
    floor = jnp.maximum(top, 0.0)

    def solve(excess: Float[Array, ""]) -> Float[Array, " d"]:
        gaps = (floor - eigenvalues) + excess
        return jnp.where(parts == 0, 0.0, parts / jnp.where(gaps > 0, gaps, unit * scale))

    # The norm falls with the excess of μ over the floor; at the upper end it is at most ε. Halving the logarithm of the
    # excess keeps the digits of a root that lies close to the pole.
    low, high = jnp.log(unit * unit * scale), jnp.log(2 * jnp.linalg.norm(gradient) / epsilon)
    hard = (top >= 0) & (jnp.linalg.norm(solve(jnp.exp(low))) <= epsilon)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        too_long = jnp.linalg.norm(solve(jnp.exp(middle))) > epsilon
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    low, high = lax.fori_loop(0, 200, halve, (low, high))
    excess = jnp.exp(high)
    inside = solve(jnp.zeros_like(excess))
    interior = (top < 0) & (jnp.linalg.norm(inside) <= epsilon)
    delta = jnp.where(interior, inside, solve(excess))
    # Even at the smallest excess the point is inside the ball: an eigenvector of the largest eigenvalue fills the rest.
    missing = jnp.sqrt(jnp.maximum(epsilon**2 - delta @ delta, 0.0))
    along = jnp.where(delta[-1] < 0, -1.0, 1.0)
    delta = jnp.where(hard, delta.at[-1].add(along * missing), delta)
    value = parts @ delta + 0.5 * jnp.sum(eigenvalues * delta**2)
    return QuadraticMaximum(vectors @ delta, value, jnp.where(interior, 0.0, floor + excess))
