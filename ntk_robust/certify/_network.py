"""Networks as chains of layers, the form in which bounds go through them.

Bounds follow a description, not a jaxpr: a GELU in a jaxpr is a product of its argument and an error function, of which
nothing tight is known, while the description still has its name, and with it the lines that enclose it.
"""

import abc
import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.models import (
    AbstractActivation,
    AbstractModel,
    Convolutional,
    DeepReluNet,
    Dense,
    FullyConnected,
    PairedTwoLayerNet,
    Relu,
)

_HIGHEST = jax.lax.Precision.HIGHEST


class AbstractLinear(eqx.Module):
    r"""A layer $h ↦ M h + b$."""

    @abc.abstractmethod
    def linear(self, h: Float[Array, "*dims"]) -> Float[Array, "*out"]:
        """$M h$."""

    @abc.abstractmethod
    def absolute(self, h: Float[Array, "*dims"]) -> Float[Array, "*out"]:
        """$|M| h$ with the absolute values of the weights."""

    @abc.abstractmethod
    def offset(self) -> Float[Array, "..."] | None:
        """$b$, or something that broadcasts to it; None without one."""

    @abc.abstractmethod
    def num_terms(self) -> int:
        """Products in the longest sum of $M h$ or of $M^T a$; 0 where nothing is rounded."""

    def transpose(self, a: Float[Array, "rows *out"], shape: tuple[int, ...]) -> Float[Array, "rows *dims"]:
        """Each row times $M$: the functionals of h that those of the output are."""
        transposed = jax.linear_transpose(self.linear, jax.ShapeDtypeStruct(shape, a.dtype))
        return jax.vmap(lambda row: transposed(row)[0])(a)

    def __call__(self, h: Float[Array, "*dims"]) -> Float[Array, "*out"]:
        z, offset = self.linear(h), self.offset()
        return z if offset is None else z + jnp.broadcast_to(offset, z.shape)


class Affine(AbstractLinear):
    """Dense layer, one row of `weight` per output.

    Attributes:
        weight: $W$.
        bias: $b$, or None.
    """

    weight: Float[Array, "fan_out fan_in"]
    bias: Float[Array, " fan_out"] | None = None

    def linear(self, h: Float[Array, " fan_in"]) -> Float[Array, " fan_out"]:
        """$W h$."""
        return jnp.matmul(self.weight, h, precision=_HIGHEST)

    def absolute(self, h: Float[Array, " fan_in"]) -> Float[Array, " fan_out"]:
        """$|W| h$."""
        return jnp.matmul(jnp.abs(self.weight), h, precision=_HIGHEST)

    def transpose(
        self,
        a: Float[Array, "rows fan_out"],
        shape: tuple[int, ...],  # noqa: ARG002
    ) -> Float[Array, "rows fan_in"]:
        """$a W$."""
        return jnp.matmul(a, self.weight, precision=_HIGHEST)

    def offset(self) -> Float[Array, "..."] | None:
        """$b$."""
        return self.bias

    def num_terms(self) -> int:
        """The larger of fan-in and fan-out."""
        return max(self.weight.shape)


class Convolution(AbstractLinear):
    """Two-dimensional cross-correlation of an image (height, width, channels).

    Attributes:
        kernel: Weights (height, width, channels in, channels out).
        bias: One number per output channel, or None.
        strides: Rows and columns per step.
        padding: "SAME", "VALID", or pairs of (before, after) for rows and columns.
    """

    kernel: Float[Array, "kh kw cin cout"]
    bias: Float[Array, " cout"] | None = None
    strides: tuple[int, int] = eqx.field(default=(1, 1), static=True)
    padding: str | tuple[tuple[int, int], tuple[int, int]] = eqx.field(default="SAME", static=True)

    def _convolve(self, h: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            h[None],
            kernel,
            self.strides,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_HIGHEST,
        )[0]

    def linear(self, h: Float[Array, "rows cols cin"]) -> Float[Array, "out_rows out_cols cout"]:
        """The cross-correlation without bias."""
        return self._convolve(h, self.kernel)

    def absolute(self, h: Float[Array, "rows cols cin"]) -> Float[Array, "out_rows out_cols cout"]:
        """The cross-correlation with absolute weights."""
        return self._convolve(h, jnp.abs(self.kernel))

    def offset(self) -> Float[Array, "..."] | None:
        """The bias per channel."""
        return self.bias

    def num_terms(self) -> int:
        """Window times the larger number of channels."""
        kh, kw, cin, cout = self.kernel.shape
        return kh * kw * max(cin, cout)


class AveragePool(AbstractLinear):
    """Mean over windows of an image (height, width, channels), without padding.

    Attributes:
        window: Rows and columns.
        strides: Rows and columns per step; None steps by the window.
    """

    window: tuple[int, int] = eqx.field(static=True)
    strides: tuple[int, int] | None = eqx.field(default=None, static=True)

    def linear(self, h: Float[Array, "rows cols c"]) -> Float[Array, "out_rows out_cols c"]:
        """The means."""
        kernel = jnp.full((*self.window, 1, h.shape[-1]), 1.0 / math.prod(self.window), h.dtype)
        return jax.lax.conv_general_dilated(
            h[None],
            kernel,
            self.strides or self.window,
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=h.shape[-1],
            precision=_HIGHEST,
        )[0]

    def absolute(self, h: Float[Array, "rows cols c"]) -> Float[Array, "out_rows out_cols c"]:
        """The means: the weights are positive."""
        return self.linear(h)

    def offset(self) -> None:
        """None."""

    def num_terms(self) -> int:
        """The window."""
        return math.prod(self.window)


class AbstractReshape(AbstractLinear):
    """A layer that computes nothing: the same numbers in another shape."""

    def absolute(self, h: Float[Array, "*dims"]) -> Float[Array, "*out"]:
        """The numbers in that shape."""
        return self.linear(h)

    def offset(self) -> None:
        """None."""

    def num_terms(self) -> int:
        """0."""
        return 0


class Flatten(AbstractReshape):
    """All coordinates as one vector, rows first."""

    def linear(self, h: Float[Array, "*dims"]) -> Float[Array, " n"]:
        """The vector."""
        return h.ravel()


class Image(AbstractReshape):
    """The coordinates of a vector as an image, the inverse of `Flatten`.

    Attributes:
        shape: Height, width and channels.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)

    def linear(self, h: Float[Array, " n"]) -> Float[Array, "rows cols c"]:
        """The image."""
        return h.reshape(self.shape)


class Nonlinearity(eqx.Module):
    """An activation after every coordinate.

    Attributes:
        activation: One of `ntk_robust.models`.
    """

    activation: AbstractActivation

    def __call__(self, h: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        return self.activation(h)


class Parallel(eqx.Module):
    """The sum of several chains that start from the same point, such as a residual block ((), (…)).

    Attributes:
        branches: Chains of layers; the empty one is the identity.
    """

    branches: tuple[tuple[eqx.Module, ...], ...]

    def __check_init__(self) -> None:
        if not self.branches:
            raise ValueError("Parallel has no branches; give at least one chain of layers, () for the identity")

    def __call__(self, h: Float[Array, "*dims"]) -> Float[Array, "*out"]:
        total = run_layers(self.branches[0], h)
        for branch in self.branches[1:]:
            total = total + run_layers(branch, h)
        return total


class PairedNeurons(eqx.Module):
    r"""$h ↦ \sigma(W h) - \sigma(\bar W h)$, the first half of a `PairedTwoLayerNet`.

    Attributes:
        plus: $W$.
        minus: $\bar W$.
        activation: $\sigma$.
    """

    plus: Float[Array, "pairs d"]
    minus: Float[Array, "pairs d"]
    activation: AbstractActivation

    def __call__(self, h: Float[Array, " d"]) -> Float[Array, " pairs"]:
        minus = jnp.matmul(self.minus, h, precision=_HIGHEST)
        moved = jnp.matmul(self.plus - self.minus, h, precision=_HIGHEST)
        return self.activation(minus + moved) - self.activation(minus)


Layer = AbstractLinear | Nonlinearity | Parallel | PairedNeurons


def run_layers(layers: Sequence[eqx.Module], h: Array) -> Array:
    """The chain's output."""
    for layer in layers:
        h = layer(h)  # pyright: ignore[reportCallIssue] - every layer is a function
    return h


class Network(eqx.Module):
    """A network that bounds can go through: a chain of layers, weights included.

    Attributes:
        layers: `Affine`, `Convolution`, `AveragePool`, `Flatten`, `Image`, `Nonlinearity`, `PairedNeurons`, and
            `Parallel` chains of these, in order.
        input_shape: Shape of one example.
        scalar: Whether the output is the one coordinate that the last layer gives, shape ().

    Raises:
        ValueError: If there is no layer, or if the layers do not fit together or to the input.
    """

    layers: tuple[eqx.Module, ...]
    input_shape: tuple[int, ...] = eqx.field(static=True)
    scalar: bool = eqx.field(default=False, static=True)

    def __check_init__(self) -> None:
        if not self.layers:
            raise ValueError("the network has no layers; give at least an Affine")
        if not jax.tree.leaves(eqx.filter(self.layers, eqx.is_array)):
            raise ValueError("the network has no weights; give at least an Affine with its matrix")
        try:
            outputs = _shape_after(self.layers, self.input_shape, self.dtype)
        except TypeError as error:
            raise ValueError(
                f"the layers do not fit inputs of shape {self.input_shape}: {error}; check the weights' shapes"
            ) from error
        if self.scalar and outputs != (1,):
            raise ValueError(f"a scalar network ends in one number and this one in {outputs}; give scalar=False")

    @property
    def dtype(self) -> jnp.dtype:
        """That of the weights, and of every bound."""
        return jax.tree.leaves(eqx.filter(self.layers, eqx.is_array))[0].dtype

    @property
    def num_outputs(self) -> int:
        """Outputs, 1 for a scalar network."""
        return math.prod(_shape_after(self.layers, self.input_shape, self.dtype))

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*out"]:
        """The output for one example."""
        output = run_layers(self.layers, x)
        return output[0] if self.scalar else output


def network_of(model: AbstractModel, params: PyTree[Float[Array, "..."]]) -> Network:
    r"""The chain of layers that a model with these weights computes, with the scales of its parameterization inside.

    Args:
        model: A `FullyConnected`, `DeepReluNet` or `PairedTwoLayerNet`, or any model whose weights are a `Network`.
        params: Its weights, as `model.init` or training gives them; a `Network` is returned as it is.

    Returns:
        The network. Its outputs are those of `model.apply` up to rounding, which the slack of every bound covers.

    Raises:
        TypeError: For another model; build a `Network` from layers.

    Examples:
        >>> import jax
        >>> from ntk_robust.models import FullyConnected
        >>> model = FullyConnected(input_dim=4, width=8, num_hidden_layers=2, num_outputs=3)
        >>> network_of(model, model.init(key=jax.random.key(0))).num_outputs
        3
    """
    if isinstance(params, Network):
        return params
    match model:
        case FullyConnected():
            layers: list[eqx.Module] = []
            for dense in params:
                layers += [Affine(*_scaled(model, dense)), Nonlinearity(model.activation)]
            return Network(tuple(layers[:-1]), (model.input_dim,), scalar=model.num_outputs == "scalar")
        case Convolutional():
            layers = [Image(model.image_shape)]
            for dense in params[:-1]:
                weight, bias = _scaled(model, dense)
                filters = weight.reshape(len(weight), *model.filter_shape, -1)
                layers += [Convolution(jnp.moveaxis(filters, 0, -1), bias), Nonlinearity(model.activation)]
            if model.pooling == "average":
                layers.append(AveragePool(model.image_shape[:2]))
            readout = Affine(*_scaled(model, params[-1]))
            return Network((*layers, Flatten(), readout), (model.input_dim,), scalar=model.num_outputs == "scalar")
        case DeepReluNet():
            layers = [Affine(params.embedding)]
            if model.first_activation:
                layers.append(Nonlinearity(Relu()))
            for weight in params.hidden:
                layers += [Affine(weight), Nonlinearity(Relu())]
            return Network((*layers, Affine(params.readout[None, :])), (model.input_dim,), scalar=True)
        case PairedTwoLayerNet():
            scale = jnp.asarray(1.0 / math.sqrt(model.width), params.plus.dtype)
            pairs = PairedNeurons(params.plus, params.minus, model.activation)
            return Network((pairs, Affine(params.signs[None, :] * scale)), (model.input_dim,), scalar=True)
    raise TypeError(
        f"no chain of layers is known for a {type(model).__name__}; build a certify.Network from Affine, Convolution, "
        "Nonlinearity and the like"
    )


def _scaled(model: FullyConnected | Convolutional, dense: Dense) -> tuple[Array, Array | None]:
    """Weight and bias of a layer with the factors of NTK parameterization multiplied in."""
    if model.parameterization == "standard":
        return dense.weight, dense.bias
    weight = dense.weight * jnp.asarray(model.w_std / math.sqrt(dense.weight.shape[1]), dense.weight.dtype)
    return weight, None if dense.bias is None else dense.bias * jnp.asarray(model.b_std, dense.bias.dtype)


class Node(NamedTuple):
    """One quantity of the computation and what it is computed from; node 0 is the input and has no layer."""

    layer: "Layer | Add | PairedDifference | None"
    parents: tuple[int, ...]
    shape: tuple[int, ...]


class Add(NamedTuple):
    """The sum of the parents."""


class PairedDifference(NamedTuple):
    r"""$\sigma(p) - \sigma(q)$ of the parents $(t, p, q)$ with $t = p - q$."""

    activation: AbstractActivation


class Graph(NamedTuple):
    """A network with its branches laid out: parents come before children, the last node is the output."""

    nodes: tuple[Node, ...]
    dtype: jnp.dtype


def graph_of(network: Network) -> Graph:
    """The network's nodes in the order of computation."""
    nodes = [Node(None, (), network.input_shape)]

    def append(layer: "Layer | Add | PairedDifference", *parents: int) -> int:
        shape = nodes[parents[0]].shape
        if isinstance(layer, AbstractLinear):
            shape = _shape_after((layer,), shape, network.dtype)
        nodes.append(Node(layer, parents, shape))
        return len(nodes) - 1

    def chain(layers: Sequence[eqx.Module], at: int) -> int:
        for layer in layers:
            match layer:
                case Parallel():
                    ends = [chain(branch, at) for branch in layer.branches]
                    at = append(Add(), *ends) if len(ends) > 1 else ends[0]
                case PairedNeurons():
                    minus = append(Affine(layer.minus), at)
                    moved = append(Affine(layer.plus - layer.minus), at)
                    plus = append(Add(), minus, moved)
                    at = append(PairedDifference(layer.activation), moved, plus, minus)
                case AbstractLinear() | Nonlinearity():
                    at = append(layer, at)
                case _:
                    raise TypeError(f"a {type(layer).__name__} is no layer; see certify.Network for those there are")
        return at

    chain(network.layers, 0)
    return Graph(tuple(nodes), network.dtype)


def _shape_after(layers: Sequence[eqx.Module], shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[int, ...]:
    return jax.eval_shape(lambda h: run_layers(layers, h), jax.ShapeDtypeStruct(shape, dtype)).shape
