"""Attention networks in NTK parameterization."""

# An equinox AbstractVar may be filled by a property, which pyright cannot say.
# pyright: reportIncompatibleVariableOverride=false

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ntk_robust.models._activations import AbstractActivation, Relu
from ntk_robust.models._fully_connected import Dense
from ntk_robust.models._model import AbstractModel, check_scale, check_sizes, mask_like, normal


class AttentionLayer(eqx.Module):
    """Weights of one layer of `Attention`.

    Attributes:
        key: Keys, and queries: one matrix for each head.
        value: Values of each head.
        output: What reads all heads; its rows are the channels of the layer.
    """

    key: Float[Array, "heads n k"]
    value: Float[Array, "heads n v"]
    output: Dense


class AttentionParams(eqx.Module):
    """Weights of `Attention`.

    Attributes:
        layers: One `AttentionLayer` for each layer.
        readout: The linear readout.
    """

    layers: tuple[AttentionLayer, ...]
    readout: Dense


class Attention(AbstractModel):
    r"""Layers of self-attention with an activation after each, then all tokens or their mean, then a linear readout.

    Each head of a layer sees tokens $x_1 … x_T$ of $n$ channels through one random matrix $B$ for keys and queries and
    one, $V$, for values, and mixes the values by the scores between tokens:

    $S_{st} = \frac{s_{qk}}{n k} \langle B^\top x_s, B^\top x_t \rangle$, $z_s = \sum_t \zeta(S_s)_t \, V^\top x_t$,

    with `mechanism` $\zeta$. The layer is $\frac{s_w}{\sqrt{n v h}} W z + s_b b$ over all $h$ heads side by side. All
    entries are independent standard normals, and all train. Scores are divided by the number $k$ of a key's channels
    and not by its root, and keys and queries are one: of the forms of attention this one has a closed limit in width,
    in which the scores do not move. Examples are flat: rows of tokens of channels.

    Attributes:
        sequence_shape: Tokens and channels of an example.
        num_channels: Channels of each hidden layer, and of each head's keys and values.
        num_heads: Heads of each layer.
        num_hidden_layers: Layers of attention, at least 1.
        num_outputs: Outputs, or "scalar" for an output of shape ().
        mechanism: What scores become: "softmax" over the tokens looked at, "identity", "relu" or "abs".
        pooling: "average" reads the mean over tokens, "none" all of them.
        activation: $\sigma$ after every layer.
        score_std: $s_{qk}$, the product of the standard deviations of keys and queries.
        w_std: $s_w$, the product of those of values and outputs; also that of the readout.
        b_std: $s_b$; 0 means that there are no biases at all.

    References:
        Hron et al., ICML 2020.
    """

    sequence_shape: tuple[int, int] = eqx.field(static=True)
    num_channels: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    num_hidden_layers: int = eqx.field(static=True)
    num_outputs: int | Literal["scalar"] = eqx.field(static=True)
    mechanism: Literal["softmax", "identity", "relu", "abs"] = eqx.field(default="softmax", static=True)
    pooling: Literal["none", "average"] = eqx.field(default="average", static=True)
    activation: AbstractActivation = Relu()
    score_std: float = eqx.field(default=1.0, static=True)
    w_std: float = eqx.field(default=math.sqrt(2.0), static=True)
    b_std: float = eqx.field(default=0.0, static=True)

    def __check_init__(self) -> None:
        sizes = {"num_channels": self.num_channels, "num_heads": self.num_heads}
        sizes |= dict(zip(("tokens", "channels"), self.sequence_shape, strict=True))
        check_sizes("Attention", num_hidden_layers=self.num_hidden_layers, **sizes)
        if self.num_outputs != "scalar":
            check_sizes("Attention", num_outputs=self.num_outputs)
        for scale in ("score_std", "w_std", "b_std"):
            check_scale("Attention", scale, getattr(self, scale))
        if self.mechanism not in _MECHANISMS:
            raise ValueError(f"mechanism is {self.mechanism!r}; give one of {', '.join(map(repr, _MECHANISMS))}")
        if self.pooling not in ("none", "average"):
            raise ValueError(f"pooling is {self.pooling!r}; give 'none' or 'average'")

    @property
    def input_dim(self) -> int:
        """Numbers of one example."""
        return math.prod(self.sequence_shape)

    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> AttentionParams:
        """Weights at initialization."""
        *layer_keys, readout_key = jr.split(key, self.num_hidden_layers + 1)
        heads, channels, fan_in = self.num_heads, self.num_channels, self.sequence_shape[1]
        layers = []
        for layer_key in layer_keys:
            keys_key, values_key, output_key = jr.split(layer_key, 3)
            keys, values = (normal(k, (heads, fan_in, channels), 1.0, dtype) for k in (keys_key, values_key))
            layers.append(AttentionLayer(keys, values, self._dense(output_key, channels, heads * channels, dtype)))
            fan_in = channels
        tokens = self.sequence_shape[0] if self.pooling == "none" else 1
        outputs = 1 if self.num_outputs == "scalar" else self.num_outputs
        return AttentionParams(tuple(layers), self._dense(readout_key, outputs, tokens * channels, dtype))

    def preactivations(self, params: AttentionParams, x: Float[Array, " d"]) -> tuple[Array, ...]:
        """What enters each activation: num_hidden_layers sequences of `num_channels` channels."""
        self.check_input(x)
        entering: list[Array] = []
        tokens = x.reshape(self.sequence_shape)
        for layer in params.layers:
            entering.append(self._attend(layer, tokens))
            tokens = self.activation(entering[-1])
        return tuple(entering)

    def apply(self, params: AttentionParams, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example."""
        tokens = self.activation(self.preactivations(params, x)[-1])
        features = tokens.reshape(1, -1) if self.pooling == "none" else jnp.mean(tokens, axis=0, keepdims=True)
        output = self._affine(params.readout, features, features.shape[1])[0]
        return output[0] if self.num_outputs == "scalar" else output

    def trainable_mask(self, params: AttentionParams) -> AttentionParams:
        """True everywhere."""
        return mask_like(params, True)

    def _attend(self, layer: AttentionLayer, tokens: Float[Array, "t n"]) -> Float[Array, "t c"]:
        fan_in = tokens.shape[1]
        keys = jnp.einsum("tn,hnk->htk", tokens, layer.key)
        scores = jnp.einsum("hsk,htk->hst", keys, keys) * (self.score_std / (fan_in * layer.key.shape[-1]))
        values = jnp.einsum("tn,hnv->htv", tokens, layer.value)
        mixed = jnp.einsum("hst,htv->shv", _MECHANISMS[self.mechanism](scores), values)
        flat = mixed.reshape(tokens.shape[0], -1)
        return self._affine(layer.output, flat, fan_in * flat.shape[1])

    def _affine(self, dense: Dense, tokens: Float[Array, "t n"], fan_in: int) -> Float[Array, "t c"]:
        z = tokens @ dense.weight.T * (self.w_std / math.sqrt(fan_in))
        return z if dense.bias is None else z + (dense.bias * self.b_std)[None, :]

    def _dense(self, key: Key[Array, ""], rows: int, columns: int, dtype: DTypeLike | None) -> Dense:
        weight_key, bias_key = jr.split(key)
        bias = normal(bias_key, (rows,), 1.0, dtype) if self.b_std else None
        return Dense(normal(weight_key, (rows, columns), 1.0, dtype), bias)


_MECHANISMS = {"softmax": jax.nn.softmax, "identity": lambda s: s, "relu": jax.nn.relu, "abs": jnp.abs}
