r"""The empirical NTK of fully connected networks from features and backward signals, without a Jacobian.

A weight matrix enters as $z_l = s W h_{l-1}$, so that its part of the NTK is $s^2 \langle h_{l-1}(x), h_{l-1}(z)
\rangle
\sum_o \langle \delta_l^o(x), \delta_l^o(z) \rangle$ with $\delta_l^o = \partial f_o / \partial z_l$: an elementwise
product of two
Gram matrices. Memory is that of the activations, the signals and the result.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.models import (
    AbstractActivation,
    AbstractModel,
    DeepReluNet,
    FullyConnected,
    Identity,
    PairedTwoLayerNet,
    Relu,
)

_HIGHEST = jax.lax.Precision.HIGHEST
# A symmetric matrix is computed in this many panels of rows from the diagonal on: (1 + 1/panels)/2 of the work.
_PANELS = 4
_MIN_PANEL = 64


class Batch(NamedTuple):
    """Examples and the weights at which they are looked at."""

    params: PyTree
    x: Float[Array, "n *d"]


class _Layer(NamedTuple):
    """One affine map with its scales, which of its parts count, and the activation after it (the readout has none)."""

    weight: Float[Array, "fan_out fan_in"]
    scale: float
    bias: Float[Array, " fan_out"] | None
    bias_scale: float
    weight_counts: bool
    bias_counts: bool
    activation: AbstractActivation | None


class _Side(NamedTuple):
    """One side of the kernel, rows by example.

    `signals[l]` is δ of layer l with its outputs; the readout's is the identity and that of the last hidden layer is
    `slopes` times the readout's rows, so that a trace over outputs needs neither.
    """

    features: list[Float[Array, "n fan_in"]]
    signals: list[Float[Array, "n k fan_out"] | None]
    slopes: Float[Array, "n width"]
    readout: Float[Array, "k width"]


def has_layerwise(model: AbstractModel) -> bool:
    """Whether this model can be taken layer by layer."""
    return isinstance(model, FullyConnected | DeepReluNet | PairedTwoLayerNet)


def layerwise_ntk(
    model: AbstractModel, first: Batch, second: Batch | None, trainable: PyTree[bool], outputs: str
) -> Float[Array, "n1 n2 *outputs"]:
    """`empirical_ntk` of a model that `has_layerwise`; without `second` of `first` with itself."""
    if isinstance(model, PairedTwoLayerNet):
        kernel = _paired_ntk(model, first, second or first, trainable)
        return kernel[:, :, None, None] if outputs == "full" else kernel
    layers = _layers(model, first.params, trainable)
    side = _side(layers, first.x, outputs)
    if second is None:
        kernel = _symmetric(layers, side, outputs)
    else:
        kernel = _product(layers, side, _side(_layers(model, second.params, trainable), second.x, outputs), outputs)
    return kernel / side.readout.shape[0] if outputs == "mean" else kernel


def layerwise_diagonal(
    model: AbstractModel, params: PyTree, x: Float[Array, "n d"], trainable: PyTree[bool], outputs: str
) -> Float[Array, " n"]:
    """`empirical_ntk_diagonal` of a model that `has_layerwise`."""
    if isinstance(model, PairedTwoLayerNet):

        def of_one(row: Array) -> Array:
            batch = Batch(params, row[None])
            return _paired_ntk(model, batch, batch, trainable)[0, 0]

        return jax.vmap(of_one)(x)
    layers = _layers(model, params, trainable)
    side = _side(layers, x, "full")
    total = jnp.zeros(x.shape[0], x.dtype)
    for layer, features, signals in zip(layers, side.features, side.signals, strict=True):
        factor = layer.weight_counts * layer.scale**2 * jnp.sum(features * features, axis=1)
        factor = factor + layer.bias_counts * layer.bias_scale**2
        total = total + factor * (side.readout.shape[0] if signals is None else jnp.sum(signals * signals, axis=(1, 2)))
    return total / side.readout.shape[0] if outputs == "mean" else total


def _layers(model: AbstractModel, params: PyTree, trainable: PyTree[bool]) -> list[_Layer]:
    if isinstance(model, FullyConnected):
        standard = model.parameterization == "standard"
        return [
            _Layer(
                weight=dense.weight,
                scale=1.0 if standard else model.w_std / math.sqrt(dense.weight.shape[1]),
                bias=dense.bias,
                bias_scale=1.0 if standard else model.b_std,
                weight_counts=counts.weight,
                bias_counts=dense.bias is not None and counts.bias,
                activation=model.activation if index < model.num_hidden_layers else None,
            )
            for index, (dense, counts) in enumerate(zip(params, trainable, strict=True))
        ]
    assert isinstance(model, DeepReluNet)
    activations = [Relu() if model.first_activation else Identity(), *(Relu(),) * model.num_hidden_layers, None]
    weights = [params.embedding, *params.hidden, params.readout[None, :]]
    counts = [trainable.embedding, *trainable.hidden, trainable.readout]
    return [
        _Layer(weight, 1.0, None, 0.0, count, False, activation)
        for weight, count, activation in zip(weights, counts, activations, strict=True)
    ]


def _side(layers: list[_Layer], x: Float[Array, "n d"], outputs: str) -> _Side:
    """One forward pass, and one backward pass per output down to the lowest layer that counts."""
    features, slopes = [x], []
    for layer in layers[:-1]:
        z = jnp.matmul(features[-1], layer.weight.T, precision=_HIGHEST) * layer.scale
        if layer.bias is not None:
            z = z + (layer.bias * layer.bias_scale)[None, :]
        assert layer.activation is not None
        features.append(layer.activation(z))
        slopes.append(layer.activation.derivative(z))
    readout = layers[-1].weight * layers[-1].scale
    lowest = next(i for i, layer in enumerate(layers) if layer.weight_counts or layer.bias_counts)
    last = len(layers) - 2
    signals: list[Array | None] = [None] * len(layers)
    if lowest < last or (lowest == last and outputs == "full"):
        signal = readout[None, :, :] * slopes[last][:, None, :]
        signals[last] = signal if outputs == "full" else None
        for index in range(last - 1, lowest - 1, -1):
            above = layers[index + 1]
            signal = jnp.matmul(signal, above.weight, precision=_HIGHEST) * above.scale * slopes[index][:, None, :]
            signals[index] = signal
    return _Side(features, signals, slopes[last], readout)


def _symmetric(layers: list[_Layer], side: _Side, outputs: str) -> Array:
    """The kernel of one side with itself from panels that start at the diagonal, mirrored."""
    n = side.slopes.shape[0]
    panel = max(_MIN_PANEL, -(-n // _PANELS))
    panels = []
    for start in range(0, n, panel):
        rows = jax.tree.map(lambda part, start=start: part[start : start + panel], side._replace(readout=None))
        columns = jax.tree.map(lambda part, start=start: part[start:], side._replace(readout=None))
        block = _product(layers, rows._replace(readout=side.readout), columns._replace(readout=side.readout), outputs)
        panels.append(jnp.pad(block, [(0, 0), (start, 0)] + [(0, 0)] * (block.ndim - 2)))
    upper = jnp.concatenate(panels)
    below = jnp.arange(n)[:, None] > jnp.arange(n)[None, :]
    if outputs == "full":
        return jnp.where(below[:, :, None, None], upper.transpose(1, 0, 3, 2), upper)
    return jnp.where(below, upper.T, upper)


def _product(layers: list[_Layer], first: _Side, second: _Side, outputs: str) -> Array:
    """Σ over layers of (gram of features) * (gram of signals)."""
    num_outputs, dtype = first.readout.shape[0], first.slopes.dtype
    shape = (first.slopes.shape[0], second.slopes.shape[0])
    total = jnp.zeros((*shape, num_outputs, num_outputs) if outputs == "full" else shape, dtype)
    last = len(layers) - 2
    for index, layer in enumerate(layers):
        if not (layer.weight_counts or layer.bias_counts):
            continue
        factor = jnp.full(shape, layer.bias_counts * layer.bias_scale**2, dtype)
        if layer.weight_counts:
            factor = factor + _gram(first.features[index], second.features[index]) * layer.scale**2
        one, other = first.signals[index], second.signals[index]
        if outputs == "full":
            if one is None or other is None:
                over_outputs = jnp.eye(num_outputs, dtype=dtype)[None, None]
            else:
                over_outputs = jnp.einsum("iap,jbp->ijab", one, other, precision=_HIGHEST)
            total = total + over_outputs * factor[:, :, None, None]
        elif index > last:
            total = total + num_outputs * factor
        elif one is None or other is None:
            # the last hidden layer: Σ_o (w_o m) · (w'_o m') = (m c) · m' with c = Σ_o w_o w'_o
            columns = jnp.sum(first.readout * second.readout, axis=0)
            total = total + factor * _gram(first.slopes * columns[None, :], second.slopes)
        else:
            total = total + factor * _gram(one.reshape(shape[0], -1), other.reshape(shape[1], -1))
    return total


def _paired_ntk(
    model: PairedTwoLayerNet, first: Batch, second: Batch, trainable: PyTree[bool]
) -> Float[Array, "n1 n2"]:
    """<x, z> times the mean of σ'σ' over neurons, and for trained signs the outputs of the neurons."""

    def side(params: PyTree, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        plus, minus = (jnp.matmul(x, w.T, precision=_HIGHEST) for w in (params.plus, params.minus))
        kept = [
            model.activation.derivative(z) * params.signs[None, :]
            for z, counts in ((plus, trainable.plus), (minus, trainable.minus))
            if counts
        ]
        slopes = jnp.concatenate(kept, axis=1) if kept else jnp.zeros((x.shape[0], 1), x.dtype)
        return slopes, model.activation(plus) - model.activation(minus)

    (slopes1, values1), (slopes2, values2) = side(*first), side(*second)
    kernel = _gram(first.x, second.x) * _gram(slopes1, slopes2)
    if trainable.signs:
        kernel = kernel + _gram(values1, values2)
    return kernel / model.width


def _gram(a: Float[Array, "n1 p"], b: Float[Array, "n2 p"]) -> Float[Array, "n1 n2"]:
    return jnp.matmul(a, b.T, precision=_HIGHEST)
