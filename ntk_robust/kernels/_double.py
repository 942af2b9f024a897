"""A few numbers of a single-precision program, computed in double precision."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.kernels._pairs import norm


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def in_double(
    function: Callable[..., Array], constants: Any, numbers: tuple[Float[Array, "..."], ...]
) -> Float[Array, "..."]:
    """`function(constants, numbers)`, elementwise, in float64, rounded to the dtype of the numbers.

    Float64 lives inside of this function only, also where JAX's default is single precision, and nobody's configuration
    changes: derivatives of every order are themselves computed in here, and only products with tangents outside.

    Args:
        function: Elementwise. Without matrix products: JAX batches those in the precision outside.
        constants: A tree of arrays with derivative 0.
        numbers: Arrays of one dtype and shape, with respect to which there are derivatives.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(_widened, (constants, numbers))
        return function(*wide).astype(numbers[0].dtype)


@in_double.defjvp
def _in_double_jvp(function: Callable[..., Array], primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    constants, numbers = primals

    def derivatives(constants: Any, numbers: tuple[Array, ...]) -> Array:
        """With respect to each number, along a new first axis."""
        count, shape = len(numbers), numbers[0].shape
        units = tuple(jnp.zeros((count, *shape), number.dtype).at[i].set(1.0) for i, number in enumerate(numbers))
        along = lambda *unit: jax.jvp(lambda *n: function(constants, n), numbers, unit)[1]  # noqa: E731
        return jax.vmap(along)(*units)

    slopes = in_double(derivatives, constants, numbers)
    changes = [s * jnp.broadcast_to(t, s.shape) for s, t in zip(slopes, tangents[1], strict=True)]
    return in_double(function, constants, numbers), sum(changes[1:], changes[0])


def lost_by_rounding(x: Float[Array, "*batch d"], length: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """What the Euclidean norms of `x` are above `length`, without derivative."""
    x, length = jax.lax.stop_gradient((x, length))
    with jax.enable_x64(True):
        return (norm(_widened(x)) - _widened(length)).astype(length.dtype)


def _widened(array: Array) -> Array:
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
