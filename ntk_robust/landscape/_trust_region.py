"""The maximum of a quadratic function over a ball, exactly."""

import equinox as eqx
import jax
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


def local_quadratic_maximum(
    gradient: Float[Array, " d"], hessian: Float[Array, "d d"], epsilon: ArrayLike
) -> QuadraticMaximum:
    r"""The one local maximum of $g \cdot δ + \frac12 δ^\top H δ$ over the ball that is not global, if there is one.

    It is on the sphere, with $μ$ between the two largest eigenvalues, $μ \ge 0$, and $\Vert(μ I - H)^{-1} g\Vert = ε$
    where that norm grows with $μ$.

    Args:
        gradient: $g$, not orthogonal to the eigenvector of the largest eigenvalue.
        hessian: $H$, symmetric.
        epsilon: Radius $ε > 0$.

    Returns:
        The point with its value and multiplier; all of them nan where there is none.

    References:
        docs/theory/deng2020.md, item A9; J. M. Martínez, SIAM J. Optim. 4 (1994).
    """
    epsilon = jnp.asarray(epsilon, gradient.dtype)
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    parts = vectors.T @ gradient
    bottom, top = jnp.maximum(eigenvalues[-2], 0.0), eigenvalues[-1]

    def excess(multiplier: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        gaps = multiplier - eigenvalues
        return jnp.sum((parts / gaps) ** 2) - epsilon**2, -2 * jnp.sum(parts**2 / gaps**3)

    def halve(ends: tuple[Array, Array], too_far: Array) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        return jnp.where(too_far, ends[0], middle), jnp.where(too_far, middle, ends[1])

    # The squared norm is convex between its two poles: first where it is smallest, then its last crossing of ε².
    def to_minimum(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        return halve(ends, excess(0.5 * (ends[0] + ends[1]))[1] > 0)

    def to_root(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        return halve(ends, excess(0.5 * (ends[0] + ends[1]))[0] > 0)

    _, smallest = lax.fori_loop(0, 100, to_minimum, (bottom, top))
    exists = (bottom < top) & (excess(smallest)[0] <= 0)
    multiplier, _ = lax.fori_loop(0, 100, to_root, (smallest, top))
    delta = parts / (multiplier - eigenvalues)
    value = parts @ delta + 0.5 * jnp.sum(eigenvalues * delta**2)
    found = QuadraticMaximum(vectors @ delta, value, multiplier)
    return jax.tree.map(lambda part: jnp.where(exists, part, jnp.nan), found)
