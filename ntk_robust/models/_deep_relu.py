"""The deep ReLU network of Gao et al. (2019), with frozen first and last layer."""

import math

import equinox as eqx
import jax
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ntk_robust.models._model import AbstractModel, check_sizes, mask_like, normal


class DeepReluParams(eqx.Module):
    """Weights of `DeepReluNet`.

    Attributes:
        embedding: $A$, frozen.
        hidden: $W^{(1)}, …, W^{(H)}$, trained.
        readout: $a$, frozen.
    """

    embedding: Float[Array, "m d"]
    hidden: tuple[Float[Array, "m m"], ...]
    readout: Float[Array, " m"]


class DeepReluNet(AbstractModel):
    r"""Deep ReLU network with scalar output whose first and last layer never train.

    $x^{(0)} = \sigma(A x)$ (or $A x$), $x^{(h)} = \sigma(W^{(h)} x^{(h-1)})$ for $h = 1..H$, $f = a^\top x^{(H)}$, with
    independent entries of $A$ and $W^{(h)}$ from $N(0, 2/m)$ and of $a$ from $N(0, 1)$. For $\|x\| = 1$ then
    $\|x^{(h)}\| = \Theta(1)$, $f = O(1)$, and $\|\nabla_{W^{(h)}} f\|_F = \Theta(\sqrt m)$ per layer.

    Attributes:
        input_dim: Inputs $d$.
        width: $m$.
        num_hidden_layers: $H$, the trained layers.
        first_activation: Whether $\sigma$ follows $A$; without it $\|x^{(0)}\|$ is larger by a factor of about √2.

    References:
        Gao et al., NeurIPS 2019, section 3.2; docs/theory/gao2019.md, section 1.
    """

    input_dim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    num_hidden_layers: int = eqx.field(static=True)
    first_activation: bool = eqx.field(default=True, static=True)

    def __check_init__(self) -> None:
        check_sizes("DeepReluNet", input_dim=self.input_dim, width=self.width, num_hidden_layers=self.num_hidden_layers)

    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> DeepReluParams:
        """Weights at initialization."""
        embedding_key, hidden_key, readout_key = jr.split(key, 3)
        m, std = self.width, math.sqrt(2.0 / self.width)
        return DeepReluParams(
            embedding=normal(embedding_key, (m, self.input_dim), std, dtype),
            hidden=tuple(normal(k, (m, m), std, dtype) for k in jr.split(hidden_key, self.num_hidden_layers)),
            readout=normal(readout_key, (m,), 1.0, dtype),
        )

    def preactivations(self, params: DeepReluParams, x: Float[Array, " d"]) -> tuple[Array, ...]:
        """What enters each ReLU: H vectors of m numbers, after $A x$ where `first_activation` is set."""
        self.check_input(x)
        embedded = params.embedding @ x
        entering = [embedded] if self.first_activation else []
        features = jax.nn.relu(embedded) if self.first_activation else embedded
        for weight in params.hidden:
            entering.append(weight @ features)
            features = jax.nn.relu(entering[-1])
        return tuple(entering)

    def apply(self, params: DeepReluParams, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The scalar output for one example."""
        return params.readout @ jax.nn.relu(self.preactivations(params, x)[-1])

    def trainable_mask(self, params: DeepReluParams) -> DeepReluParams:
        """Like `params`, True in the hidden layers."""
        return eqx.tree_at(lambda p: p.hidden, mask_like(params, False), mask_like(params.hidden, True))
