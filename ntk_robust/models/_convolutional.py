"""Convolutional networks in NTK and standard parameterization."""

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


class Convolutional(AbstractModel):
    r"""Convolutions with an activation after each, then all pixels or their mean, then a linear readout.

    Every layer is $z = \frac{s_w}{\sqrt n} W * x + s_b b$ with independent standard normal $W$ and $b$ and fan-in $n$,
    the inputs of one filter; in standard parameterization $z = W * x + b$ with $W \sim N(0, s_w^2/n)$, $b \sim N(0,
    s_b^2)$. Images are padded with zeros to keep their size. All layers train. Examples are flat, like those of every
    model here: rows of pixels of channels.

    Attributes:
        image_shape: Height, width and channels of an example.
        num_channels: Channels of each hidden layer.
        num_hidden_layers: Convolutions, at least 1.
        num_outputs: Outputs $k$, or "scalar" for an output of shape ().
        filter_shape: Height and width of the filters.
        pooling: "none" reads all pixels of the last layer, "average" their mean.
        activation: $\sigma$ after every convolution.
        parameterization: "ntk" or "standard".
        w_std: $s_w$.
        b_std: $s_b$; 0 means that there are no biases at all.
    """

    image_shape: tuple[int, int, int] = eqx.field(static=True)
    num_channels: int = eqx.field(static=True)
    num_hidden_layers: int = eqx.field(static=True)
    num_outputs: int | Literal["scalar"] = eqx.field(static=True)
    filter_shape: tuple[int, int] = eqx.field(default=(3, 3), static=True)
    pooling: Literal["none", "average"] = eqx.field(default="none", static=True)
    activation: AbstractActivation = Relu()
    parameterization: Literal["ntk", "standard"] = eqx.field(default="ntk", static=True)
    w_std: float = eqx.field(default=math.sqrt(2.0), static=True)
    b_std: float = eqx.field(default=0.0, static=True)

    def __check_init__(self) -> None:
        sizes = dict(zip(("height", "width", "channels"), self.image_shape, strict=True))
        sizes |= dict(zip(("filter_height", "filter_width"), self.filter_shape, strict=True))
        check_sizes("Convolutional", num_channels=self.num_channels, num_hidden_layers=self.num_hidden_layers, **sizes)
        if self.num_outputs != "scalar":
            check_sizes("Convolutional", num_outputs=self.num_outputs)
        check_scale("Convolutional", "w_std", self.w_std)
        check_scale("Convolutional", "b_std", self.b_std)
        if self.pooling not in ("none", "average"):
            raise ValueError(f"pooling is {self.pooling!r}; give 'none' or 'average'")
        if self.parameterization not in ("ntk", "standard"):
            raise ValueError(f"parameterization is {self.parameterization!r}; give 'ntk' or 'standard'")

    @property
    def input_dim(self) -> int:
        """Numbers of one example."""
        return math.prod(self.image_shape)

    @property
    def fan_ins(self) -> tuple[int, ...]:
        """Inputs of each layer's filters, the readout last."""
        area, pixels = math.prod(self.filter_shape), math.prod(self.image_shape[:2])
        channels = (self.image_shape[2],) + (self.num_channels,) * (self.num_hidden_layers - 1)
        readout = self.num_channels * (pixels if self.pooling == "none" else 1)
        return (*(area * c for c in channels), readout)

    @property
    def fan_outs(self) -> tuple[int, ...]:
        """Channels of each layer, the readout's outputs last (1 for a scalar network)."""
        outputs = 1 if self.num_outputs == "scalar" else self.num_outputs
        return (self.num_channels,) * self.num_hidden_layers + (outputs,)

    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> tuple[Dense, ...]:
        """One `Dense` per layer; a filter is a row, flat like the examples."""
        layers = []
        keys, standard = jr.split(key, len(self.fan_ins)), self.parameterization == "standard"
        for layer_key, fan_in, fan_out in zip(keys, self.fan_ins, self.fan_outs, strict=True):
            weight_key, bias_key = jr.split(layer_key)
            weight = normal(weight_key, (fan_out, fan_in), self.w_std / math.sqrt(fan_in) if standard else 1.0, dtype)
            bias = normal(bias_key, (fan_out,), self.b_std if standard else 1.0, dtype) if self.b_std else None
            layers.append(Dense(weight, bias))
        return tuple(layers)

    def preactivations(self, params: tuple[Dense, ...], x: Float[Array, " d"]) -> tuple[Array, ...]:
        """What enters each activation: num_hidden_layers images of `num_channels` channels."""
        self.check_input(x)
        entering: list[Array] = []
        image = x.reshape(self.image_shape)
        for dense, fan_in in zip(params[:-1], self.fan_ins[:-1], strict=True):
            filters = dense.weight.reshape(self.num_channels, *self.filter_shape, -1)
            form = ("NHWC", "OHWI", "NHWC")
            z = jax.lax.conv_general_dilated(image[None], filters, (1, 1), "SAME", dimension_numbers=form)[0]
            entering.append(self._scaled(z, dense, fan_in))
            image = self.activation(entering[-1])
        return tuple(entering)

    def apply(self, params: tuple[Dense, ...], x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example."""
        image = self.activation(self.preactivations(params, x)[-1])
        features = image.reshape(-1) if self.pooling == "none" else jnp.mean(image, axis=(0, 1))
        output = self._scaled(params[-1].weight @ features, params[-1], self.fan_ins[-1])
        return output[0] if self.num_outputs == "scalar" else output

    def trainable_mask(self, params: tuple[Dense, ...]) -> tuple[Dense, ...]:
        """True everywhere."""
        return mask_like(params, True)

    def _scaled(self, z: Float[Array, "*pixels c"], dense: Dense, fan_in: int) -> Float[Array, "*pixels c"]:
        standard = self.parameterization == "standard"
        z = z if standard else z * (self.w_std / math.sqrt(fan_in))
        if dense.bias is None:
            return z
        bias = dense.bias if standard else dense.bias * self.b_std
        return z + bias.reshape(*(1 for _ in z.shape[:-1]), -1)
