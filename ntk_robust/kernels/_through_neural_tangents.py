"""Kernels of infinitely wide convolutional and attention networks, through neural-tangents."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._checks import check_points
from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._neural_tangents import load_neural_tangents
from ntk_robust.kernels._room import check_matrix_room
from ntk_robust.models import (
    Abs,
    Attention,
    Convolutional,
    Cos,
    Erf,
    Gelu,
    Identity,
    LeakyRelu,
    Monomial,
    Relu,
    Sin,
)


class NeuralTangentsKernel(AbstractKernel):
    """NTK or NNGP kernel of a convolutional or attention network in the limit of width, computed by neural-tangents.

    Its accuracy is that of neural-tangents: in float32 pairs that almost coincide are off by up to 2e-3, so compute
    those in float64. Memory of a matrix grows with the number of pixels or tokens, and without pooling also its time;
    with attention, or with "average" pooling, both grow with its square.

    Attributes:
        model: The network.
        which: "ntk" or "nngp".
    """

    model: Convolutional | Attention = eqx.field(static=True)
    which: Literal["ntk", "nngp"] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if type(self.model.activation) not in _LAYERS:
            raise TypeError(
                f"neural-tangents has no closed form for {self.model.activation!r}, so there is no kernel of this "
                f"network with it; take one of {', '.join(kind.__name__ for kind in _LAYERS)}"
            )

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of two flat examples."""
        return self.gram(x[None], z[None])[0, 0]

    def gram(self, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None) -> Float[Array, "n1 n2"]:
        """The kernel of all pairs of rows, each a flat example; without `x2` exactly symmetric.

        Raises:
            ValueError: If there are no rows, they are not of the size of the network's input, or what neural-tangents
                keeps of all pairs at once (a number for each pixel or token, for each pair of those with attention or
                pooling) is larger than the memory that is there.
        """
        check_points(x1, x2, width=self.model.input_dim)
        check_matrix_room(x1, x2, self._numbers_of_pair)
        return self._matrix(x1, x2)

    @compiled
    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The kernel of each row with itself."""
        return jax.lax.map(lambda row: self(row, row), x)

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of one example as the network takes it, channels last."""
        return self.model.image_shape if isinstance(self.model, Convolutional) else self.model.sequence_shape

    @property
    def _numbers_of_pair(self) -> int:
        positions = math.prod(self._shape[:-1])
        return positions**2 if isinstance(self.model, Attention) or self.model.pooling == "average" else positions

    @compiled
    def _matrix(self, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None) -> Float[Array, "n1 n2"]:
        examples = [None if x is None else x.reshape(-1, *self._shape) for x in (x1, x2)]
        with warnings.catch_warnings():
            # it repeats what the description of `Attention` says: queries are keys
            warnings.filterwarnings("ignore", "Linear scaling attention used")
            matrix = _kernel_fn(self.model)(*examples, self.which).astype(x1.dtype)
        return matrix if x2 is not None else jnp.triu(matrix) + jnp.triu(matrix, 1).T


_LAYERS: dict[type, Callable[[Any, Any], Any]] = {
    Relu: lambda stax, _: stax.Relu(),
    LeakyRelu: lambda stax, activation: stax.LeakyRelu(activation.slope),
    Abs: lambda stax, _: stax.Abs(),
    Identity: lambda stax, _: stax.Identity(),
    Erf: lambda stax, _: stax.Erf(),
    Gelu: lambda stax, _: stax.Gelu(),
    Sin: lambda stax, _: stax.Sin(),
    Cos: lambda stax, _: stax.Cos(),
    Monomial: lambda stax, activation: stax.Monomial(activation.degree),
}


@lru_cache(maxsize=64)
def _kernel_fn(model: Convolutional | Attention) -> Callable[..., Any]:
    stax = load_neural_tangents().stax
    affine = {"W_std": model.w_std, "b_std": model.b_std or None}
    if isinstance(model, Convolutional):
        affine["parameterization"] = model.parameterization
        hidden = stax.Conv(model.num_channels, model.filter_shape, padding="SAME", **affine)
    else:
        hidden = stax.GlobalSelfAttention(
            *(1, 1, 1, 1),  # the sizes of the limit do not matter
            W_key_std=model.score_std,
            W_out_std=model.w_std,
            b_std=model.b_std or None,
            attention_mechanism=model.mechanism.upper(),
        )
    activation = _LAYERS[type(model.activation)](stax, model.activation)
    pool = stax.GlobalAvgPool() if model.pooling == "average" else stax.Flatten()
    return stax.serial(*[hidden, activation] * model.num_hidden_layers, pool, stax.Dense(1, **affine))[2]
