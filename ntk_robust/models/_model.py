"""What every network description offers."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree


class AbstractModel(eqx.Module):
    """A description of a network: sizes and scales, no weights. Hashable, and without array leaves.

    `init` draws weights, `apply` is a pure function of weights and one example (callers `jax.vmap`), and the analytic
    kernels of `ntk_robust.kernels` are built from the same description.
    """

    input_dim: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, *, key: Key[Array, ""], dtype: DTypeLike | None = None) -> PyTree[Float[Array, "..."]]:
        """Weights at initialization, in `dtype` (None: JAX's default float)."""

    @abc.abstractmethod
    def preactivations(self, params: PyTree[Float[Array, "..."]], x: Float[Array, " d"]) -> tuple[Array, ...]:
        """What enters each activation, from the first layer on, for one example; the output is not among them."""

    @abc.abstractmethod
    def apply(self, params: PyTree[Float[Array, "..."]], x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example: shape (num_outputs,), or () for a scalar network."""

    @abc.abstractmethod
    def trainable_mask(self, params: PyTree[Float[Array, "..."]]) -> PyTree[bool]:
        """A tree of bools like `params`: True where training moves the weights."""

    def check_input(self, x: Float[Array, " d"]) -> None:
        """Refuses an example of another shape than (input_dim,).

        Raises:
            ValueError: With both shapes and the remedy.
        """
        if x.shape != (self.input_dim,):
            raise ValueError(
                f"the network takes one example of shape ({self.input_dim},) and got {x.shape}; "
                "flatten images and use jax.vmap over a batch"
            )


def normal(key: Key[Array, ""], shape: tuple[int, ...], std: float, dtype: DTypeLike | None) -> Float[Array, "..."]:
    """Independent centered Gaussians of standard deviation `std`."""
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    return jr.normal(key, shape, dtype) * jnp.asarray(std, dtype)


def check_sizes(name: str, **sizes: int) -> None:
    """Refuses sizes below 1.

    Raises:
        ValueError: With the size and the remedy.
    """
    for size, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} has {size}={value}; give an integer of at least 1")


def check_scale(name: str, scale: str, value: float) -> None:
    """Refuses negative and non-finite standard deviations.

    Raises:
        ValueError: With the value and the remedy.
    """
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} has {scale}={value}; give a finite standard deviation of at least 0")


def mask_like(params: PyTree[Float[Array, "..."]], value: bool) -> PyTree[bool]:
    """A tree like `params` with `value` at every leaf."""
    return jax.tree.map(lambda _: value, params)
