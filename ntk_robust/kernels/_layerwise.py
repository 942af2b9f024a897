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
# Examples go through the network in up to this many parts, and a symmetric matrix leaves out the blocks below the
# diagonal: (1 + 1/parts)/2 of the work. Parts of fewer rows lose as much in the speed of their products, and parts that
# are cut from one array cost a copy for every block that they are in.
_MAX_PARTS = 4
_ROWS_OF_A_PART = 256


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
    sides = [_side(layers, x, outputs) for x in _parts(first.x)]
    readout = sides[0].readout
    if second is None:
        squares = jnp.sum(readout * readout, axis=0)
        # a root whose derivative at 0 is that of the square, 0
        root = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        sides = [_weighted(side, root) for side in sides]
        kernel = _symmetric(layers, sides, outputs)
    else:
        others = [_side(_layers(model, second.params, trainable), x, outputs) for x in _parts(second.x)]
        sides = [_weighted(side, jnp.sum(readout * others[0].readout, axis=0)) for side in sides]
        rows = [jnp.concatenate([_product(layers, a, b, outputs) for b in others], axis=1) for a in sides]
        kernel = jnp.concatenate(rows)
    return kernel / readout.shape[0] if outputs == "mean" else kernel


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


def _parts(x: Float[Array, "n d"]) -> list[Float[Array, "_ d"]]:
    """The rows in parts of about the same size."""
    num_parts = min(_MAX_PARTS, max(1, x.shape[0] // _ROWS_OF_A_PART))
    size = -(-x.shape[0] // num_parts)
    return [x[start : start + size] for start in range(0, x.shape[0], size)]


def _weighted(side: _Side, columns: Float[Array, " width"]) -> _Side:
    """With the sum over outputs in the slopes of the last hidden layer.

    Σ_o (w_o m) · (w'_o m') = (c m) · m' with c = Σ_o w_o w'_o: one product instead of one per output. Where w' is w,
    both sides take √c, and the same array serves as rows and as columns.
    """
    return side._replace(slopes=side.slopes * columns[None, :])


def _symmetric(layers: list[_Layer], sides: list[_Side], outputs: str) -> Array:
    """The kernel of all parts with themselves: blocks on and above the diagonal, and their mirror images."""
    blocks: dict[tuple[int, int], Array] = {}
    for i, rows in enumerate(sides):
        for j in range(i, len(sides)):
            block = _product(layers, rows, sides[j], outputs)
            if i == j:  # symmetric up to rounding
                below = jnp.tri(block.shape[0], k=-1, dtype=bool).reshape(*block.shape[:2], *(1,) * (block.ndim - 2))
                block = jnp.where(below, _mirrored(block), block)
            blocks[i, j] = block
    parts = range(len(sides))
    rows_of_blocks = [[blocks[i, j] if i <= j else _mirrored(blocks[j, i]) for j in parts] for i in parts]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows_of_blocks])


def _mirrored(block: Float[Array, "n1 n2 *k"]) -> Float[Array, "n2 n1 *k"]:
    """K(z, x) where the block is K(x, z)."""
    return block.T if block.ndim == 2 else block.transpose(1, 0, 3, 2)


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
            total = total + factor * _gram(first.slopes, second.slopes)  # see _weighted
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
