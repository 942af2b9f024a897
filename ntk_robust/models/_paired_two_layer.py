"""The two-layer network of Gao et al. (2019) whose output at initialization is exactly zero."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ntk_robust.models._activations import AbstractActivation, Softplus
from ntk_robust.models._model import AbstractModel, check_sizes, mask_like, normal


class PairedParams(eqx.Module):
    r"""Weights of `PairedTwoLayerNet`.

    Attributes:
        plus: $w_r$, trained.
        minus: $\bar w_r$, trained, equal to `plus` at initialization.
        signs: $a_r = ±1$, frozen.
    """

    plus: Float[Array, "pairs d"]
    minus: Float[Array, "pairs d"]
    signs: Float[Array, " pairs"]


class PairedTwoLayerNet(AbstractModel):
    r"""Two-layer network of paired neurons with scalar output, zero at initialization for every input.

    $f(W, x) = \frac{1}{\sqrt m} \sum_{r ≤ m/2} a_r (\sigma(w_r^\top x) - \sigma(\bar w_r^\top x))$ with $w_r \sim N(0,
    I_d)$, $\bar w_r = w_r$ at initialization and frozen random signs $a_r$. For $\|x\| = 1$ its gradient in $W$ has
    norm at most $C_1$ (`activation.lipschitz`).

    Attributes:
        input_dim: Inputs $d$.
        width: $m$, an even number of neurons.
        activation: $\sigma$.

    References:
        Gao et al., NeurIPS 2019, equation 5.1; docs/theory/gao2019.md, section 1.
    """

    input_dim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    activation: AbstractActivation = Softplus()

    def __check_init__(self) -> None:
        check_sizes("PairedTwoLayerNet", input_dim=self.input_dim, width=self.width)
        if self.width % 2:
            raise ValueError(f"PairedTwoLayerNet has width={self.width}; neurons come in pairs, give an even number")

    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> PairedParams:
        """Weights at initialization."""
        weight_key, sign_key = jr.split(key)
        weights = normal(weight_key, (self.width // 2, self.input_dim), 1.0, dtype)
        return PairedParams(weights, weights, jr.rademacher(sign_key, (self.width // 2,), weights.dtype))

    def preactivations(self, params: PairedParams, x: Float[Array, " d"]) -> tuple[Array, ...]:
        r"""$(w_r^\top x)_r$ and $(\bar w_r^\top x)_r$, the first as the second plus $((w_r - \bar w_r)^\top x)_r$.

        Two matrix products may be summed in different orders, and then equal weights would not cancel to the bit; the
        product of a zero difference is zero in any order.
        """
        self.check_input(x)
        minus = params.minus @ x
        return minus + (params.plus - params.minus) @ x, minus

    def apply(self, params: PairedParams, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The scalar output for one example; pairs with equal pre-activations cancel to the bit.

        A compiler may round an activation differently at different places of a vector, so what is left of the
        difference of equal values is taken off, outside the gradient.
        """
        plus, minus = self.preactivations(params, x)
        differences = self.activation(plus) - self.activation(minus)
        rounding = jax.lax.stop_gradient(jnp.where(plus == minus, differences, 0.0))
        return params.signs @ (differences - rounding) * (1.0 / math.sqrt(self.width))

    def trainable_mask(self, params: PairedParams) -> PairedParams:
        """Like `params`, True but for the signs."""
        return eqx.tree_at(lambda p: p.signs, mask_like(params, True), False)
