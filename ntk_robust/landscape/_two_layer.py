"""Two-layer networks with scalar output, the object whose inner maximization the theory describes."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.certify import Affine, Nonlinearity, PairedNeurons, network_of
from ntk_robust.certify._shapes import second_derivative
from ntk_robust.models import AbstractActivation, AbstractModel


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
    network = network_of(model, params)
    match network.layers:
        case (PairedNeurons(plus, minus, activation), Affine(last, offset)):
            hidden, readout = Affine(jnp.concatenate([plus, minus])), jnp.concatenate([last[0], -last[0]])
        case (Affine() as hidden, Nonlinearity(activation), Affine(last, offset)) if network.scalar:
            readout = last[0]
        case _:
            raise ValueError(
                f"{model} is not a two-layer network with scalar output; give a FullyConnected with "
                'num_hidden_layers=1 and num_outputs="scalar", or a PairedTwoLayerNet'
            )
    biases = jnp.zeros_like(readout) if hidden.bias is None else hidden.bias
    return TwoLayer(
        hidden.weight, biases, readout, jnp.zeros((), readout.dtype) if offset is None else offset[0], activation
    )
