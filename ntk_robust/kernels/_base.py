"""What every kernel offers: a pair function, a Gram matrix, a diagonal, and sums, products and multiples."""

import abc
from typing import Any, Union

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._checks import check_points
from ntk_robust.kernels._differences import Apart
from ntk_robust.kernels._room import check_matrix_room

Scalar = Union[float, Float[Array, ""]]  # noqa: UP007 - a forward reference in a union needs the typing form


class AbstractKernel(eqx.Module):
    r"""A symmetric positive semi-definite function $k(x, z)$ of two points.

    Calling it on one pair says what the kernel is; `gram` computes all pairs fast. Kernels are pytrees whose leaves are
    numbers, and work under `jax.jit`, `jax.vmap` and `jax.grad` with respect to points and numbers. `k1 + k2`, `k1 *
    k2`, `2.0 * k`, `k / 2.0` and `sum([k1, k2])` are kernels too. Everything follows the dtype of the points.
    """

    __array_ufunc__ = None  # NumPy leaves `array * kernel` to the kernel, and does not go through the array's entries

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """$k(x, z)$ of one pair."""

    def gram(self, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None) -> Float[Array, "n1 n2"]:
        """$k$ of all pairs of a row of `x1` and a row of `x2`; without `x2` of `x1` with itself, exactly symmetric."""
        check_points(x1, x2)
        check_matrix_room(x1, x2)
        if x2 is not None:
            return jax.vmap(lambda x: jax.vmap(lambda z: self(x, z))(x2))(x1)
        upper = jnp.triu(self.gram(x1, x1))
        return upper + jnp.triu(upper, 1).T

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """$k(x, x)$ of each row."""
        return jax.vmap(lambda row: self(row, row))(x)

    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$k(x, x) + k(z, z) - 2 k(x, z)$ of one pair; see `rkhs_distance_squared`."""
        return self(x, x) + self(z, z) - 2.0 * self(x, z)

    def __add__(self, other: "AbstractKernel") -> "AbstractKernel":
        if not isinstance(other, AbstractKernel):
            return NotImplemented
        return SumKernel(self, other)

    def __radd__(self, other: Any) -> "AbstractKernel":
        if isinstance(other, int) and other == 0:  # where `sum` starts
            return self
        return NotImplemented

    def __mul__(self, other: Any) -> "AbstractKernel":
        if isinstance(other, AbstractKernel):
            return ProductKernel(self, other)
        return ScaledKernel(self, other)

    def __rmul__(self, other: Any) -> "AbstractKernel":
        return ScaledKernel(self, other)

    def __truediv__(self, other: Any) -> "AbstractKernel":
        divisor = _factor(other)
        if isinstance(divisor, float) and divisor == 0.0:
            raise ValueError("a kernel over 0 is no kernel; give a positive number")
        return ScaledKernel(self, 1.0 / divisor)


def _factor(value: Any) -> Any:
    """A factor as a Python number, which follows the dtype of the points and can be hashed; traced ones stay."""
    if isinstance(value, jax.core.Tracer):
        if value.shape == ():
            return value
        raise ValueError(f"a kernel times an array of shape {value.shape} is no kernel; give one number")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged lists
        array = np.asarray(None)
    if array.shape != () or array.dtype.kind not in "iufV":  # V: bfloat16 and its like
        what = f"an array of shape {array.shape}" if array.shape else repr(value)
        raise ValueError(f"a kernel times {what} is no kernel; give one number of at least 0")
    if not 0.0 <= float(array) < np.inf:
        raise ValueError(f"a kernel times {float(array)} is not positive semi-definite; give a number of at least 0")
    return float(array)


def _gram(kernel: Any, x1: Array, x2: Array | None, out: Array | None) -> Array:
    """The matrix, over an old one where there is one: kernels that cannot need not know the word."""
    return kernel.gram(x1, x2) if out is None else kernel.gram(x1, x2, out=out)


class SumKernel(AbstractKernel):
    r"""$k_1 + k_2$.

    Attributes:
        first: $k_1$.
        second: $k_2$.
    """

    first: AbstractKernel
    second: AbstractKernel

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """$k_1(x, z) + k_2(x, z)$."""
        return self.first(x, z) + self.second(x, z)

    def gram(
        self,
        x1: Float[Array, "n1 d"],
        x2: Float[Array, "n2 d"] | None = None,
        *,
        out: Float[Array, "rows columns"] | None = None,
    ) -> Float[Array, "n1 n2"]:
        """The sum of the Gram matrices; `out` as in the `gram` of the first kernel, if it has that."""
        return _gram(self.first, x1, x2, out) + self.second.gram(x1, x2)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The sum of the diagonals."""
        return self.first.diagonal(x) + self.second.diagonal(x)

    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum of the squared distances."""
        return self.first.distance_squared(x, z) + self.second.distance_squared(x, z)


class ProductKernel(AbstractKernel):
    r"""$k_1 k_2$, elementwise.

    Attributes:
        first: $k_1$.
        second: $k_2$.
    """

    first: AbstractKernel
    second: AbstractKernel

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """$k_1(x, z) k_2(x, z)$."""
        return self.first(x, z) * self.second(x, z)

    def gram(
        self,
        x1: Float[Array, "n1 d"],
        x2: Float[Array, "n2 d"] | None = None,
        *,
        out: Float[Array, "rows columns"] | None = None,
    ) -> Float[Array, "n1 n2"]:
        """The elementwise product of the Gram matrices; `out` as in the `gram` of the first kernel, if it has that."""
        return _gram(self.first, x1, x2, out) * self.second.gram(x1, x2)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The product of the diagonals."""
        return self.first.diagonal(x) * self.second.diagonal(x)

    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """From the squared distances of both; only what is of first order in the distance is a difference."""

        def apart(kernel: AbstractKernel) -> Apart:
            xx, zz = kernel(x, x), kernel(z, z)
            return Apart(xx, zz, xx - zz, kernel.distance_squared(x, z))

        return apart(self.first).times(apart(self.second)).distance


class ScaledKernel(AbstractKernel):
    r"""$c k$ with $c ≥ 0$.

    Attributes:
        kernel: $k$.
        scale: $c$, a number; traced where it is differentiated.

    Raises:
        ValueError: If the factor is not one number, negative, or not finite.
    """

    kernel: AbstractKernel
    scale: Scalar = eqx.field(converter=_factor)

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """$c k(x, z)$."""
        return self.scale * self.kernel(x, z)

    def gram(
        self,
        x1: Float[Array, "n1 d"],
        x2: Float[Array, "n2 d"] | None = None,
        *,
        out: Float[Array, "rows columns"] | None = None,
    ) -> Float[Array, "n1 n2"]:
        """The Gram matrix times $c$; `out` as in the `gram` of $k$, if it has that."""
        return self.scale * _gram(self.kernel, x1, x2, out)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The diagonal times $c$."""
        return self.scale * self.kernel.diagonal(x)

    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """The squared distance times $c$."""
        return self.scale * self.kernel.distance_squared(x, z)


def rkhs_distance_squared(kernel: AbstractKernel, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
    r"""Squared distance of two points in the kernel's space, $\|k_x - k_z\|^2 = k(x,x) + k(z,z) - 2 k(x,z)$.

    For the kernels of `analytic_ntk` and `analytic_nngp` of fully connected networks (any activation, biases or not,
    any norms) and for sums, products and multiples of those it is computed from what sets the points apart, never as a
    difference of kernel values, so that it keeps its relative accuracy as the points meet. Elsewhere it is the
    difference of three kernel values, which is exact to rounding relative to $k(x,x)$ only.

    Args:
        kernel: A kernel.
        x: A point.
        z: Another.

    Returns:
        The squared distance, in the unit of the kernel.
    """
    return kernel.distance_squared(x, z)
