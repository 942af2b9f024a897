r"""Functions $h = \sum_j \alpha_j k(·, x_j)$ on the host's side of a fit, evaluated by programs of few shapes."""

from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.certify import RkhsFunction
from ntk_robust.expressiveness._tangent import TangentKernel
from ntk_robust.kernels import AbstractKernel
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._duals import AbstractSmoothDual

_SIZES = (64, *(256 * 2**power for power in range(10)))  # few shapes: a program for each is compiled
_BLOCK = 512
_WIDE = 64
# Kernel values carry errors that are measured and not proven; generous, and the same as in certify.
_KERNEL_ERROR = 1e4 * float(np.finfo(np.float64).eps)


class Expanded(eqx.Module):
    r"""Results that hold a function of the kernel's space.

    Attributes:
        kernel: k.
        points: $x_j$ of $h = \sum_j \alpha_j k(·, x_j)$.
        coefficients: $\alpha_j$.
    """

    kernel: AbstractKernel
    points: Float[Array, "s d"]
    coefficients: Float[Array, " s"]

    @property
    def function(self) -> RkhsFunction:
        """The function, as `certify` takes it."""
        return RkhsFunction(self.kernel, self.points, self.coefficients[:, None])


class Expansion(NamedTuple):
    r"""A function of the kernel's space.

    Attributes:
        kernel: k.
        points: $x_j$, padded to one of few sizes.
        coefficients: $\alpha_j$, 0 in the padding.
        norm: $\|h\|$, from above by what the rounding of the kernel can hide.
        error: Bound for the rounding of a value of h.
    """

    kernel: AbstractKernel
    points: Float[Array, "s d"]
    coefficients: Float[Array, " s"]
    norm: float
    error: float

    def __call__(self, xs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The values of h at many points."""
        blocks = [np.asarray(_values(self.kernel, block, self.points, self.coefficients)) for block in _blocks(xs)]
        return np.concatenate(blocks)[: len(xs)]


def make_expansion(
    kernel: AbstractKernel,
    points: Float[np.ndarray, "n d"],
    coefficients: Float[np.ndarray, " n"],
    gram: Float[np.ndarray, "n n"],
) -> Expansion:
    """The function, with its norm from the Gram matrix of its points."""
    used = coefficients != 0.0
    if not np.any(used):
        used[:1] = True
    squared, hidden = norm_squared(gram, coefficients)
    padded = pad_rows(points[used])
    alpha = np.zeros(len(padded))
    alpha[: np.count_nonzero(used)] = coefficients[used]
    largest = float(np.sqrt(np.max(np.diag(gram))))
    error = _KERNEL_ERROR * largest * float(np.sum(np.abs(coefficients) * np.sqrt(np.diag(gram))))
    return Expansion(kernel, padded, jnp.asarray(alpha), float(np.sqrt(squared + hidden)), error)


def norm_squared(gram: Float[np.ndarray, "n n"], coefficients: Float[np.ndarray, " n"]) -> tuple[float, float]:
    r"""$\alpha^\top K \alpha$, at least 0, and what rounding of kernel values and sums can hide in it."""
    sizes = float(np.sum(np.abs(coefficients) * np.sqrt(np.diag(gram))))
    return max(float(coefficients @ gram @ coefficients), 0.0), _KERNEL_ERROR * sizes**2


def pad_rows(rows: Float[np.ndarray, "n d"]) -> Float[Array, "s d"]:
    """The rows and copies of the last one, up to one of few sizes, so that programs are compiled for few shapes."""
    size = next(size for size in _SIZES if size >= len(rows))
    return jnp.asarray(np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)]))


def cross_gram(
    kernel: AbstractKernel, x1: Float[np.ndarray, "n1 d"], x2: Float[np.ndarray, "n2 d"]
) -> Float[np.ndarray, "n1 n2"]:
    """The kernel of all pairs, accurate also where two points almost coincide."""
    padded = pad_rows(x2)
    blocks = [np.asarray(_matrix(kernel, block, padded)) for block in _blocks(x1)]
    return np.concatenate(blocks)[: len(x1), : len(x2)]


def _blocks(rows: Float[np.ndarray, "n d"]) -> Iterator[Float[Array, "s d"]]:
    """Blocks of 64 rows, or of 512 where there are more than that, the last one padded: two shapes to compile for."""
    size = _SIZES[0] if len(rows) <= _BLOCK else _BLOCK
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield jnp.asarray(np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)]))


def matrix_of_pairs(
    kernel: AbstractKernel, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]
) -> Float[Array, "n1 n2"]:
    """Pair by pair where a matrix would take cosines from a product, which rounds more at small angles."""
    if isinstance(kernel, TangentKernel) or (
        isinstance(kernel, DenseKernel) and isinstance(kernel.dual, AbstractSmoothDual)
    ):  # smooth in the cosine, so that its rounding does no harm
        return kernel.gram(x1, x2)
    if x1.shape[1] > _WIDE:  # row by row, so that differences of all pairs need not be in memory at once
        return jax.lax.map(lambda x: jax.vmap(kernel, (None, 0))(x, x2), x1)
    return jax.vmap(lambda x: jax.vmap(kernel, (None, 0))(x, x2))(x1)


_matrix = eqx.filter_jit(matrix_of_pairs)


@eqx.filter_jit
def _values(
    kernel: AbstractKernel, xs: Float[Array, "n d"], points: Float[Array, "s d"], coefficients: Float[Array, " s"]
) -> Float[Array, " n"]:
    if isinstance(kernel, TangentKernel):
        return kernel.combination(xs, points, coefficients)
    return matrix_of_pairs(kernel, xs, points) @ coefficients
