r"""Kernel predictors $f(x) = \sum_i \alpha_i k(x, x_i)$ with input gradients in closed form.

For a kernel of norms and cosine, $k(x, z) = K(u, \|x\|, \|z\|)$, and a combination of outputs with weights $w_i$ on the
training points,

$$\nabla f(x) = \frac{1}{\|x\|} \sum_i w_i \frac{\partial K}{\partial u} \left(\hat x_i - u_i \hat x\right) + \hat x
\sum_i w_i \frac{\partial K}{\partial \|x\|} :$$

one matrix product for the cosines, one pass for $K$ and its two derivatives, one matrix product with the training
points. Many test points must therefore be taken together. Attacks are written for one example and vectorized by
`jax.vmap`, so a predictor says itself what it means to be vectorized.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from ntk_robust.kernels._base import AbstractKernel, ProductKernel, ScaledKernel, SumKernel
from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._dot_product import AbstractDotProductKernel
from ntk_robust.kernels._pairs import Pair, cross_pairs, rows

_HIGHEST = jax.lax.Precision.HIGHEST
_PAIRS_AT_ONCE = 2**23  # 64 MiB in float64 for each of a handful of matrices

OfPairs = Callable[[Pair], Array]


class KernelPredictor(eqx.Module):
    r"""A function $f(x) = \sum_i \alpha_i k(x, x_i)$ of one point, fast to evaluate and to differentiate in x.

    Under `jax.vmap` the points are taken together, in tiles, and values and gradients with respect to x cost matrix
    products: nothing is differentiated but the kernel's scalar function of norms and cosine. That holds for sums,
    products and multiples of the kernels of fully connected networks; other kernels work by automatic differentiation
    of `kernel.gram`. Reverse mode only, and only with respect to x.

    For `attacks.evaluate` the network is `(KernelPredictor.__call__, predictor)`.

    Attributes:
        kernel: $k$.
        x_train: $x_i$.
        dual: $\alpha$, such as `kernel_regression(...).dual`: one column per output, or a vector for a scalar output.

    Raises:
        ValueError: If shapes or dtypes of training points and dual disagree.
    """

    kernel: AbstractKernel
    x_train: Float[Array, "n d"]
    dual: Float[Array, "n *k"]

    def __check_init__(self) -> None:
        x_train, dual = self.x_train, self.dual
        if x_train.ndim != 2 or dual.ndim not in (1, 2) or x_train.shape[0] != dual.shape[0]:
            raise ValueError(
                f"x_train has shape {x_train.shape} and dual {dual.shape}; give a row of dual for each training point"
            )
        if x_train.dtype != dual.dtype:
            raise ValueError(f"x_train is {x_train.dtype} and dual {dual.dtype}; cast one of them")

    @compiled
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "*k"]:
        """The outputs at one point, of the training points' dtype.

        Raises:
            ValueError: If the point has another dimension or dtype.
        """
        if x.shape != self.x_train.shape[1:] or x.dtype != self.x_train.dtype:
            raise ValueError(
                f"the point has shape {x.shape} in {x.dtype} and the training points {self.x_train.shape[1:]} in "
                f"{self.x_train.dtype}; make them agree"
            )
        kernel, static = eqx.partition(self.kernel, eqx.is_array)
        out = _outputs(static, _Parts(kernel, self.x_train, self.dual.reshape(len(self.dual), -1)), x)
        return out.reshape(self.dual.shape[1:])


def of_pairs(kernel: AbstractKernel) -> OfPairs | None:
    """The kernel as a function of norms and cosine, or None for one that is more than that."""
    if isinstance(kernel, AbstractDotProductKernel):
        return kernel.of_pairs
    if isinstance(kernel, ScaledKernel):
        inner = of_pairs(kernel.kernel)
        return None if inner is None else lambda pairs: kernel.scale * inner(pairs)
    if isinstance(kernel, SumKernel | ProductKernel):
        first, second = of_pairs(kernel.first), of_pairs(kernel.second)
        if first is None or second is None:
            return None
        if isinstance(kernel, SumKernel):
            return lambda pairs: first(pairs) + second(pairs)
        return lambda pairs: first(pairs) * second(pairs)
    return None


def _placed(kernel: Any, xs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Points at which all parts of a kernel that `of_pairs` knows have their derivatives."""
    if isinstance(kernel, ScaledKernel):
        return _placed(kernel.kernel, xs)
    if isinstance(kernel, SumKernel | ProductKernel):
        return _placed(kernel.second, _placed(kernel.first, xs))
    return kernel.placed(xs)


def _outputs(static: Any, parts: "_Parts", x: Array) -> Array:
    """Outputs at one point: with a derivative of their own, and a rule for many points."""

    @jax.custom_vjp
    def outputs(parts: _Parts, x: Array) -> Array:
        return _many_at_once(lambda parts, xs: _values(static, parts, xs))(parts, x)

    def forward(parts: Any, x: Any) -> tuple[Array, tuple]:
        if any(leaf.perturbed for leaf in jax.tree.leaves(parts, is_leaf=_is_primal)):
            raise ValueError(
                "a KernelPredictor can be differentiated with respect to the point only; for the kernel, the training "
                "points or the dual differentiate kernel.gram(x, x_train) @ dual"
            )
        values = jax.tree.map(lambda leaf: leaf.value, (parts, x), is_leaf=_is_primal)
        return outputs(*values), values

    def backward(arguments: tuple, weights: Array) -> tuple:
        parts, x = arguments
        if isinstance(weights, jax.custom_derivatives.SymbolicZero):
            weights = jnp.zeros(weights.shape, weights.dtype)
        pull = _many_at_once(lambda parts, points: _gradients(static, parts, *points))
        return None, pull(parts, (x, weights))

    outputs.defvjp(forward, backward, symbolic_zeros=True)
    return outputs(parts, x)


class _Parts(NamedTuple):
    """What a predictor's program is given: the arrays of its kernel, training points, and a matrix of duals."""

    kernel: Any
    x_train: Float[Array, "n d"]
    dual: Float[Array, "n k"]


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _many_at_once(run: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    """`run`, which takes a predictor's parts and many points, as a function of one that `jax.vmap` gives many."""

    @custom_vmap
    def one(parts: _Parts, point: Any) -> Array:
        return run(parts, jax.tree.map(lambda leaf: leaf[None], point))[0]

    @one.def_vmap
    def _(axis_size: int, in_batched: list, parts: _Parts, points: Any) -> tuple[Array, bool]:
        def spread(leaf: Array, is_batched: bool) -> Array:
            return leaf if is_batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

        points = jax.tree.map(spread, points, in_batched[1])
        if any(jax.tree.leaves(in_batched[0])):  # many predictors
            many = jax.tree.map(spread, parts, in_batched[0])
            return jax.lax.map(lambda arguments: one(*arguments), (many, points)), True
        tile = max(1, _PAIRS_AT_ONCE // parts.x_train.shape[0])
        if axis_size > tile:
            return jax.lax.map(lambda point: one(parts, point), points, batch_size=tile), True
        return run(parts, points), True

    return one


def _values(static: Any, parts: _Parts, xs: Float[Array, "b d"]) -> Float[Array, "b k"]:
    kernel = eqx.combine(parts.kernel, static)
    entries = of_pairs(kernel)
    gram = kernel.gram(xs, parts.x_train) if entries is None else entries(cross_pairs(rows(xs), rows(parts.x_train)))
    return jnp.matmul(gram, parts.dual, precision=_HIGHEST)


def _gradients(
    static: Any, parts: _Parts, xs: Float[Array, "b d"], weights: Float[Array, "b k"]
) -> Float[Array, "b d"]:
    """Gradients of `weights` · f, one row of weights per point."""
    kernel = eqx.combine(parts.kernel, static)
    entries = of_pairs(kernel)
    if entries is None:
        return jax.vjp(lambda xs: _values(static, parts, xs), xs)[1](weights)[0]
    here, there = rows(_placed(kernel, xs)), rows(parts.x_train)
    pairs = cross_pairs(here, there)

    def entries_at(complement: Array, norm_x: Array) -> Array:
        moved = pairs._replace(complement=complement, norm_x=norm_x)
        gap = pairs.gap  # of the squared norms, which moves with the norm
        return entries(moved if gap is None else moved._replace(gap=gap + (norm_x**2 - pairs.norm_x**2)))

    # Scalar functions of scalars, entry by entry: this is all that is left to automatic differentiation.
    _, slope = jax.linearize(entries_at, pairs.complement, pairs.norm_x)
    by_complement = slope(jnp.ones_like(pairs.complement), jnp.zeros_like(pairs.norm_x))
    by_norm = slope(jnp.zeros_like(pairs.complement), jnp.ones_like(pairs.norm_x))
    on_points = jnp.matmul(weights, parts.dual.T, precision=_HIGHEST)
    slopes = on_points * jnp.where(pairs.acute, -by_complement, by_complement)
    lengths = jnp.where(here.lengths > 0.0, here.lengths, 1.0)[:, None]
    across = jnp.matmul(slopes, there.directions, precision=_HIGHEST) / lengths
    radial = jnp.sum(on_points * by_norm, axis=1) - jnp.sum(slopes * pairs.cosine, axis=1) / lengths[:, 0]
    return across + radial[:, None] * here.directions
