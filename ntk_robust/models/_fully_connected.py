"""Fully connected networks in NTK and standard parameterization."""

import math
from typing import Literal

import equinox as eqx
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ntk_robust.models._activations import AbstractActivation, Relu
from ntk_robust.models._model import AbstractModel, check_scale, check_sizes, mask_like, normal


class Dense(eqx.Module):
    """Weights of one layer: row r of `weight` is neuron r.

    Attributes:
        weight: One row per neuron.
        bias: One number per neuron, or None in a layer without biases.
    """

    weight: Float[Array, "fan_out fan_in"]
    bias: Float[Array, " fan_out"] | None


class FullyConnected(AbstractModel):
    r"""Fully connected network: `num_hidden_layers` layers of `width` neurons and a linear readout.

    In NTK parameterization a layer is $z = \frac{s_w}{\sqrt{n}} W x + s_b b$ with independent standard normal $W$ and
    $b$ and fan-in $n$; in standard parameterization it is $z = W x + b$ with $W \sim N(0, s_w^2/n)$, $b \sim N(0,
    s_b^2)$. Both compute the same distribution of functions at initialization and train differently.

    Attributes:
        input_dim: Inputs $d$.
        width: Neurons per hidden layer.
        num_hidden_layers: Hidden layers, at least 1.
        num_outputs: Outputs $k$, or "scalar" for an output of shape ().
        activation: $\sigma$ after every hidden layer.
        parameterization: "ntk" or "standard".
        w_std: $s_w$; the default keeps the norm of a ReLU network's layers.
        b_std: $s_b$; 0 means that there are no biases at all.
        trainable: "all", "hidden" (first and last layer frozen), or a bool for each of the num_hidden_layers + 1
            layers.
    """

    input_dim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    num_hidden_layers: int = eqx.field(static=True)
    num_outputs: int | Literal["scalar"] = eqx.field(static=True)
    activation: AbstractActivation = Relu()
    parameterization: Literal["ntk", "standard"] = eqx.field(default="ntk", static=True)
    w_std: float = eqx.field(default=math.sqrt(2.0), static=True)
    b_std: float = eqx.field(default=0.0, static=True)
    trainable: Literal["all", "hidden"] | tuple[bool, ...] = eqx.field(default="all", static=True)

    def __check_init__(self) -> None:
        check_sizes(
            "FullyConnected", input_dim=self.input_dim, width=self.width, num_hidden_layers=self.num_hidden_layers
        )
        if self.num_outputs != "scalar":
            check_sizes("FullyConnected", num_outputs=self.num_outputs)
        check_scale("FullyConnected", "w_std", self.w_std)
        check_scale("FullyConnected", "b_std", self.b_std)
        if self.parameterization not in ("ntk", "standard"):
            raise ValueError(f"parameterization is {self.parameterization!r}; give 'ntk' or 'standard'")
        if isinstance(self.trainable, str):
            if self.trainable not in ("all", "hidden"):
                raise ValueError(f"trainable is {self.trainable!r}; give 'all', 'hidden' or a bool per layer")
        elif len(self.trainable) != self.num_hidden_layers + 1:
            raise ValueError(
                f"trainable has {len(self.trainable)} bools for {self.num_hidden_layers + 1} layers; give one per layer"
            )

    @property
    def fan_ins(self) -> tuple[int, ...]:
        """Inputs of each layer, the readout last."""
        return (self.input_dim,) + (self.width,) * self.num_hidden_layers

    @property
    def fan_outs(self) -> tuple[int, ...]:
        """Outputs of each layer, the readout last (1 for a scalar network)."""
        return (self.width,) * self.num_hidden_layers + (1 if self.num_outputs == "scalar" else self.num_outputs,)

    @property
    def layer_trainable(self) -> tuple[bool, ...]:
        """Whether each layer trains, the readout last."""
        if self.trainable == "all":
            return (True,) * (self.num_hidden_layers + 1)
        if self.trainable == "hidden":
            return (False, *(True,) * (self.num_hidden_layers - 1), False)
        return tuple(self.trainable)

    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> tuple[Dense, ...]:
        """One `Dense` per layer."""
        layers = []
        for layer_key, fan_in, fan_out in zip(
            jr.split(key, len(self.fan_ins)), self.fan_ins, self.fan_outs, strict=True
        ):
            weight_key, bias_key = jr.split(layer_key)
            standard = self.parameterization == "standard"
            weight = normal(weight_key, (fan_out, fan_in), self.w_std / math.sqrt(fan_in) if standard else 1.0, dtype)
            bias = normal(bias_key, (fan_out,), self.b_std if standard else 1.0, dtype) if self.b_std else None
            layers.append(Dense(weight, bias))
        return tuple(layers)

    def layer(self, dense: Dense, x: Float[Array, " fan_in"]) -> Float[Array, " fan_out"]:
        """One affine layer, with the scales of the parameterization."""
        z = dense.weight @ x
        if self.parameterization == "ntk":
            z = z * (self.w_std / math.sqrt(x.shape[0]))
        if dense.bias is None:
            return z
        return z + (dense.bias * self.b_std if self.parameterization == "ntk" else dense.bias)

    def preactivations(self, params: tuple[Dense, ...], x: Float[Array, " d"]) -> tuple[Array, ...]:
        """What enters each activation: num_hidden_layers vectors of `width` numbers."""
        self.check_input(x)
        entering: list[Array] = []
        for dense in params[:-1]:
            entering.append(self.layer(dense, self.activation(entering[-1]) if entering else x))
        return tuple(entering)

    def apply(self, params: tuple[Dense, ...], x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example."""
        output = self.layer(params[-1], self.activation(self.preactivations(params, x)[-1]))
        return output[0] if self.num_outputs == "scalar" else output

    def trainable_mask(self, params: tuple[Dense, ...]) -> tuple[Dense, ...]:
        """Like `params`, True in the layers that train."""
        return tuple(mask_like(dense, trains) for dense, trains in zip(params, self.layer_trainable, strict=True))
