"""Polynomials fitted once in extended precision and evaluated inside kernels."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Coefficients = tuple[float, ...]


def fit_unit_interval(function: Callable[[np.ndarray], np.ndarray], num_coefficients: int) -> np.ndarray:
    """Monomial coefficients in `2 s - 1`, constant first, of the Chebyshev interpolant of `function` on [0, 1].

    Extended precision throughout (`numpy.longdouble`, which is float64 on some platforms): the change of basis loses a
    few digits that float64 kernels would miss.
    """
    n = num_coefficients
    pi = np.longdouble("3.14159265358979323846264338327950288")
    angles = (np.arange(n, dtype=np.longdouble) + np.longdouble(0.5)) * pi / n
    values = function((np.cos(angles) + 1) / 2)
    chebyshev = np.cos(np.arange(n, dtype=np.longdouble)[:, None] * angles[None, :]) @ values * 2 / n
    chebyshev[0] /= 2
    # T_{k+1} = 2 z T_k - T_{k-1}, row by row in monomials
    previous, current = np.zeros(n, np.longdouble), np.zeros(n, np.longdouble)
    previous[0] = 1
    monomials = chebyshev[0] * previous
    if n > 1:
        current[1] = 1
        monomials = monomials + chebyshev[1] * current
    for k in range(2, n):
        following = 2 * np.concatenate([np.zeros(1, np.longdouble), current[:-1]]) - previous
        previous, current = current, following
        monomials = monomials + chebyshev[k] * current
    return monomials


def rounded(coefficients: np.ndarray, dtype: np.dtype) -> Coefficients:
    """Coefficients rounded to `dtype`, as Python floats: constants of the compiled program."""
    return tuple(float(c) for c in coefficients.astype(dtype))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def horner(
    where: Coefficients, otherwise: Coefficients, s: Float[Array, "*shape"], condition: Array
) -> Float[Array, "*shape"]:
    """The polynomial `where` in `2 s - 1` at points with `condition`, the polynomial `otherwise` elsewhere.

    Both must have as many coefficients: they are blended inside one loop. The derivative rule stores `s` only, so that
    reverse mode does not keep every step of the loop.
    """
    return _horner(where, otherwise, s, condition)[0]


@horner.defjvp
def _horner_jvp(where: Coefficients, otherwise: Coefficients, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    s, condition = primals
    value, derivative = _horner(where, otherwise, s, condition)
    return value, derivative * tangents[0]


def _horner(
    where: Coefficients, otherwise: Coefficients, s: Float[Array, "*shape"], condition: Array
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    z = 2.0 * s - 1.0

    def constant(k: int) -> Array:
        first, second = jnp.asarray(where[k], s.dtype), jnp.asarray(otherwise[k], s.dtype)
        return jnp.full_like(s, where[k]) if where[k] == otherwise[k] else jnp.where(condition, first, second)

    value, derivative = constant(len(where) - 1), jnp.zeros_like(s)
    for k in reversed(range(len(where) - 1)):
        derivative = derivative * z + value
        value = value * z + constant(k)
    return value, 2.0 * derivative


@jax.custom_jvp
def sqrt_of_distance(v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""$\sqrt v$ with derivative 0 at $v = 0$.

    Kernels have a cusp where points coincide: $\sqrt v$ grows like the distance. There 0 is the mean of the
    directional derivatives, and automatic differentiation would return nan.
    """
    return jnp.sqrt(v)


@sqrt_of_distance.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = sqrt_of_distance(primals[0])  # not jnp.sqrt: second derivatives come here too
    positive = root > 0.0
    return root, jnp.where(positive, 0.5 / jnp.where(positive, root, 1.0), 0.0) * tangents[0]
