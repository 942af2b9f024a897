"""Two-layer networks with scalar output, the object whose inner maximization the theory describes."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.models import AbstractActivation, AbstractModel, FullyConnected, PairedTwoLayerNet


class TwoLayer(eqx.Module):
    r"""$f(u) = b_0 + \sum_j a_j \sigma(w_j \cdot u + b_j)$, with every scale of a parameterization already inside.

    Attributes:
        weights: Rows $w_j$.
        biases: $b_j$.
        readout: $a_j$.
        offset: $b_0$.
        activation: $\sigma$, twice differentiable wherever second derivatives are asked for.
    """

    weights: Float[Array, "m d"]
    biases: Float[Array, " m"]
    readout: Float[Array, " m"]
    offset: Float[Array, ""]
    activation: AbstractActivation

    def __call__(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """The output at one point."""
        return self.offset + self.readout @ self.activation(self.preactivations(u))

    def preactivations(self, u: Float[Array, " d"]) -> Float[Array, " m"]:
        r"""$w_j \cdot u + b_j$."""
        return self.weights @ u + self.biases

    def hessian(self, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        r"""$W^\top \mathrm{diag}(a \odot \sigma''(z)) W$."""
        curvatures = self.readout * second_derivative(self.activation, self.preactivations(u))
        return self.weights.T @ (curvatures[:, None] * self.weights)


def two_layer_of(model: AbstractModel, params: PyTree) -> TwoLayer:
    """The network as one object.

    Args:
        model: A `FullyConnected` with one hidden layer and scalar output, or a `PairedTwoLayerNet`.
        params: Its weights.

    Raises:
        ValueError: For any other model.
    """
    match model:
        case PairedTwoLayerNet():
            weights = jnp.concatenate([params.plus, params.minus])
            readout = jnp.concatenate([params.signs, -params.signs]) / math.sqrt(model.width)
            zeros = jnp.zeros(len(readout), weights.dtype)
            return TwoLayer(weights, zeros, readout, jnp.zeros((), weights.dtype), model.activation)
        case FullyConnected(num_hidden_layers=1, num_outputs="scalar"):
            origin = jnp.zeros(model.input_dim, params[0].weight.dtype)
            # Both layers are affine: their values at 0 and their Jacobians are all there is to them.
            biases = model.layer(params[0], origin)
            weights = jax.jacobian(lambda u: model.layer(params[0], u))(origin)
            hidden = jnp.zeros(model.width, weights.dtype)
            offset = model.layer(params[1], hidden)[0]
            readout = jax.grad(lambda h: model.layer(params[1], h)[0])(hidden)
            return TwoLayer(weights, biases, readout, offset, model.activation)
        case _:
            raise ValueError(
                f"{model} is not a two-layer network with scalar output; give a FullyConnected with "
                'num_hidden_layers=1 and num_outputs="scalar", or a PairedTwoLayerNet'
            )


def second_derivative(activation: AbstractActivation, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""$\sigma''(z)$, elementwise."""
    return jax.jvp(activation.derivative, (z,), (jnp.ones_like(z),))[1]
