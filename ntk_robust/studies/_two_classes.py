"""Two classes of images as points of one norm, and the scalar network that the studies of landscapes look at."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ntk_robust.data import Dataset, binary_task, subset
from ntk_robust.models import AbstractActivation, FullyConnected, Tanh


def two_classes(dataset: Dataset, num_train: int, *, key: Key[Array, ""]) -> Dataset:
    """Images of 3 against 8, labeled +1 and -1, each scaled to norm √d: input scale 1."""
    data = subset(binary_task(dataset, (3, 8)), num_train, 2, key=key)
    norms = jnp.linalg.norm(data.x_train, axis=1, keepdims=True)
    scaled: Float[Array, "n d"] = data.x_train * (data.input_dim**0.5 / norms)
    return eqx.tree_at(lambda whole: whole.x_train, data, scaled)


def network(input_dim: int, width: int, activation: AbstractActivation | None = None) -> FullyConnected:
    r"""$f(x) = m^{-1/2} \sum_j a_j \sigma(w_j \cdot x / \sqrt d)$ with normal weights; the first layer trains."""
    return FullyConnected(
        input_dim, width, 1, "scalar", activation=activation or Tanh(), w_std=1.0, trainable=(True, False)
    )
