"""A network of given layers as a model: its architecture, apart from its numbers."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from ntk_robust.certify import AbstractLinear, Affine, Network, Nonlinearity, Parallel, PerBlock, PerCoordinate
from ntk_robust.models import AbstractModel


class Architecture(AbstractModel):
    """What a network is apart from its numbers; its weights are `ntk_robust.certify.Network` objects.

    So a construction is a pair of a model and weights like any other: `apply` for attacks and training, `network_of`
    (which gives the weights back) for bounds, and `init` for the same architecture at a random start.

    Attributes:
        input_dim: Inputs.
        structure: Tree structure of the network.
        shapes: Shapes of its arrays, in the order of the tree's leaves.
    """

    input_dim: int = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> Network:
        """Random weights, normal of variance 2 / (inputs of a neuron), and biases 0.

        Raises:
            TypeError: If the network has other layers than `Affine`, `PerCoordinate` and `PerBlock`.
        """
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        skeleton = jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(shape, dtype) for shape in self.shapes])
        layers, rest = jax.tree.flatten(skeleton, is_leaf=lambda node: isinstance(node, AbstractLinear))
        drawn = [_draw(layer, k, dtype) for layer, k in zip(layers, jr.split(key, len(layers)), strict=True)]
        return jax.tree.unflatten(rest, drawn)

    def preactivations(self, params: PyTree[Float[Array, "..."]], x: Float[Array, " d"]) -> tuple[Array, ...]:
        """What enters each activation, branches in order."""
        self.check_input(x)
        entering: list[Array] = []
        _run(params.layers, x, entering)
        return tuple(entering)

    def apply(self, params: PyTree[Float[Array, "..."]], x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example."""
        self.check_input(x)
        return params(x)

    def trainable_mask(self, params: PyTree[Float[Array, "..."]]) -> PyTree[bool]:
        """Like `params`, True everywhere."""
        return jax.tree.map(lambda _: True, params)


def architecture_of(network: Network) -> Architecture:
    """The model of which these are weights.

    Raises:
        ValueError: If the inputs are not vectors.
    """
    if len(network.input_shape) != 1:
        raise ValueError(f"the network takes inputs of shape {network.input_shape}; models of vectors have one axis")
    leaves, structure = jax.tree.flatten(network)
    return Architecture(network.input_shape[0], structure, tuple(leaf.shape for leaf in leaves))


def num_parameters(network: Network) -> int:
    """Weights and biases that are not zero."""
    return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf in jax.tree.leaves(network))


def num_hidden_layers(network: Network) -> int:
    """Activations on the longest way from input to output."""
    return _depth(network.layers)


def rounded(network: Network, *, bits: int) -> Network:
    r"""The network with every weight rounded to a multiple of $2^{-b}$, so that its interval bounds can be exact.

    Args:
        network: Any network.
        bits: $b$; with L layers and inputs of p bits, sums of $(L b + p)$ bits have to fit into the dtype.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.round(np.ldexp(np.asarray(leaf), bits)) * 2.0**-bits), network)


def _depth(layers: Sequence[eqx.Module]) -> int:
    total = 0
    for layer in layers:
        if isinstance(layer, Nonlinearity):
            total += 1
        elif isinstance(layer, Parallel):
            total += max(_depth(branch) for branch in layer.branches)
    return total


def _run(layers: Sequence[eqx.Module], h: Array, entering: list[Array]) -> Array:
    for layer in layers:
        if isinstance(layer, Parallel):
            outputs = [_run(branch, h, entering) for branch in layer.branches]
            h = sum(outputs[1:], outputs[0])
            continue
        if isinstance(layer, Nonlinearity):
            entering.append(h)
        h = layer(h)  # pyright: ignore[reportCallIssue] - every layer is a function
    return h


def _draw(layer: Any, key: Key[Array, ""], dtype: DTypeLike) -> eqx.Module:
    def weights(shape: tuple[int, ...], fan_in: int) -> Array:
        return jr.normal(key, shape, dtype) * jnp.asarray(math.sqrt(2.0 / fan_in), dtype)

    match layer:
        case Affine():
            bias = None if layer.bias is None else jnp.zeros(layer.bias.shape, dtype)
            return Affine(weights(layer.weight.shape, layer.weight.shape[1]), bias)
        case PerCoordinate():
            return PerCoordinate(weights(layer.scale.shape, 1), jnp.zeros(layer.shift.shape, dtype))
        case PerBlock():
            fan_in = layer.weight.shape[1] * layer.weight.shape[2]
            return PerBlock(weights(layer.weight.shape, fan_in), jnp.zeros(layer.bias.shape, dtype))
    raise TypeError(f"no initialization is known for a {type(layer).__name__}; draw the weights yourself")
