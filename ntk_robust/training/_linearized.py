"""Lazy training: networks replaced by their tangent at given weights."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree


class Linearized(eqx.Module):
    r"""The tangent of a network, $(W, x) \mapsto f(W_0, x) + \langle \nabla_W f(W_0, x), W - W_0 \rangle$.

    Put in the place of `apply_fn`, it trains on the tangent features, whose kernel never moves. Attacks then see the
    linearized network, which is still nonlinear in $x$. One evaluation costs about two of the network.

    Attributes:
        apply_fn: (weights, one example) -> output.
        params_0: The weights W_0 at which the tangent is taken.
    """

    apply_fn: Callable[..., Any]
    params_0: PyTree

    def __call__(self, params: PyTree, x: Float[Array, "*dims"]) -> Float[Array, "..."]:
        """The tangent at `params`."""
        moving, still = eqx.partition(self.params_0, eqx.is_inexact_array)
        delta = jax.tree.map(lambda now, before: now - before, eqx.filter(params, eqx.is_inexact_array), moving)
        value, change = jax.jvp(lambda p: self.apply_fn(eqx.combine(p, still), x), (moving,), (delta,))
        return value + change


class Centered(eqx.Module):
    r"""A network without its initial output, scaled: $(W, x) \mapsto α (f(W, x) - f(W_0, x))$.

    Large $α$ makes training lazy, small $α$ rich (with the loss or the learning rate scaled by $1/α^2$, so that time
    runs alike). `Linearized(Centered(f, W_0), W_0)` is the centered lazy dynamics that the second phase of Loo et al.
    trains from weights $W_0$ where a first phase ended.

    Attributes:
        apply_fn: (weights, one example) -> output.
        params_0: The weights W_0 whose output is taken off.
        scale: α, output units per output unit of the network.

    References:
        Chizat, Oyallon, Bach, On lazy training in differentiable programming, NeurIPS 2019, section 1.2.
        Loo et al., Evolution of neural tangent kernels under benign and adversarial training, NeurIPS 2022, section 4.
    """

    apply_fn: Callable[..., Any]
    params_0: PyTree
    scale: float | Float[Array, ""] = 1.0

    def __call__(self, params: PyTree, x: Float[Array, "*dims"]) -> Float[Array, "..."]:
        """The scaled difference at `params`."""
        return self.scale * (self.apply_fn(params, x) - self.apply_fn(self.params_0, x))
