"""Inputs that the theory is stated on: the sphere, its slice with a constant coordinate, a circle on it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

_SLICE_CONSTANT = 1 / math.sqrt(2)


def to_sphere_slice(x: Float[Array, "n d"], constant: float = _SLICE_CONSTANT) -> Float[Array, "n d_plus_1"]:
    r"""Inputs on the unit sphere with one coordinate more, which is constant.

    Row $x$ becomes $(\sqrt{1 - c^2}\, x / ‖x‖, c)$. With $c ≠ 0$ the kernels of networks without biases are universal
    on the slice; on the whole sphere they are not.

    Args:
        x: Rows of any length but zero.
        constant: $c$, in (-1, 1).

    Raises:
        ValueError: If a row is zero or not finite, or the constant is out of range.

    References:
        Gao et al. (2019), sections 4 and 5.
    """
    _require_constant(constant)
    norms = jnp.linalg.norm(x, axis=1, keepdims=True)
    bad = ~(jnp.isfinite(norms) & (norms > 0))
    if bad.any():
        row = int(jnp.argmax(bad[:, 0]))
        raise ValueError(
            f"row {row} of x has norm {float(norms[row, 0])}; only a finite non-zero row has a direction: leave it out"
        )
    last = jnp.full((len(x), 1), constant, x.dtype)
    return jnp.concatenate([math.sqrt(1 - constant**2) * (x / norms), last], axis=1)


def circle_points(
    num_points: int, constant: float = _SLICE_CONSTANT, *, dtype: Any = None
) -> tuple[Float[Array, "n 3"], Float[Array, " n"]]:
    r"""Equally spaced points on a circle of the unit sphere of $R^3$, and labels that alternate between +1 and -1.

    Point $i$ is $(\sqrt{1 - c^2} \cos φ_i, \sqrt{1 - c^2} \sin φ_i, c)$ with $φ_i = 2π i / n$; neighbours are
    $2 \sqrt{1 - c^2} \sin(π / n)$ apart, so attacks of less than half of that radius never make labels conflict.

    Args:
        num_points: $n$, even, at least 2.
        constant: $c$, in (-1, 1).
        dtype: Of both; JAX's default float where None.

    Raises:
        ValueError: If $n$ is odd or less than 2, or the constant is out of range.
    """
    if num_points < 2 or num_points % 2:
        raise ValueError(f"num_points is {num_points}; labels alternate around the circle only for an even number >= 2")
    _require_constant(constant)
    angles = 2 * jnp.pi * jnp.arange(num_points, dtype=_float_dtype(dtype)) / num_points
    radius = math.sqrt(1 - constant**2)
    points = jnp.stack([radius * jnp.cos(angles), radius * jnp.sin(angles), jnp.full_like(angles, constant)], axis=1)
    labels = jnp.where(jnp.arange(num_points) % 2 == 0, 1, -1).astype(points.dtype)
    return points, labels


def sphere_points(num_points: int, input_dim: int, *, key: PRNGKeyArray, dtype: Any = None) -> Float[Array, "n d"]:
    """Independent points, uniform on the unit sphere.

    Args:
        num_points: How many, at least 1.
        input_dim: Dimension of the space around the sphere, at least 1.
        key: Decides which.
        dtype: JAX's default float where None.

    Raises:
        ValueError: If a number is not positive.
    """
    gaussian = gaussian_points(num_points, input_dim, key=key, dtype=dtype)
    return gaussian / jnp.linalg.norm(gaussian, axis=1, keepdims=True)


def gaussian_points(num_points: int, input_dim: int, *, key: PRNGKeyArray, dtype: Any = None) -> Float[Array, "n d"]:
    """Independent standard normal points: norms concentrate at the square root of `input_dim`.

    Args:
        num_points: How many, at least 1.
        input_dim: Dimension, at least 1.
        key: Decides which.
        dtype: JAX's default float where None.

    Raises:
        ValueError: If a number is not positive.
    """
    if num_points < 1 or input_dim < 1:
        raise ValueError(f"num_points is {num_points} and input_dim {input_dim}; both must be at least 1")
    return jax.random.normal(key, (num_points, input_dim), _float_dtype(dtype))


def _require_constant(constant: float) -> None:
    if not -1 < constant < 1:
        raise ValueError(f"constant is {constant}; a coordinate of a point on the unit sphere lies in (-1, 1)")


def _float_dtype(dtype: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
