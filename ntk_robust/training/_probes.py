"""Measurements of the weights that run inside the training program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from ntk_robust.kernels import kernel_drift
from ntk_robust.losses import Margin
from ntk_robust.training._displacement import parameter_displacement


class DisplacementProbe(eqx.Module):
    """Movement of the weights, as `parameter_displacement` measures it.

    Returns "frobenius", "two_infinity" and "relative" per layer, "total" and "total_relative".

    Attributes:
        params_0: Where movement is counted from.
        trainable: Mask of the layers that count (plain bools), None for all.
    """

    params_0: PyTree
    trainable: PyTree[bool] | None = None

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Displacement of `params`."""
        moved = parameter_displacement(params, self.params_0, trainable=self.trainable)
        return {
            "frobenius": moved.frobenius,
            "two_infinity": moved.two_infinity,
            "relative": moved.relative,
            "total": moved.total,
            "total_relative": moved.total_relative,
        }


class NaturalProbe(eqx.Module):
    """Mean loss and accuracy on unperturbed examples: "natural_loss", "natural_accuracy" (ties count as errors).

    Attributes:
        apply_fn: (weights, one example) -> output.
        loss: (output, target) -> scalar.
        xs: Examples.
        ys: Their targets, ±1 for a scalar output and integer labels for logits.
    """

    apply_fn: Callable[..., Any]
    loss: Callable[..., Any]
    xs: Float[Array, "n *dims"]
    ys: Num[Array, "n ..."]

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Loss and accuracy of `params`."""
        outputs = jax.vmap(self.apply_fn, (None, 0))(params, self.xs)
        return {
            "natural_loss": jnp.mean(jax.vmap(self.loss)(outputs, self.ys)),
            "natural_accuracy": jnp.mean(jax.vmap(Margin())(outputs, self.ys) < 0, dtype=outputs.dtype),
        }


class KernelDriftProbe(eqx.Module):
    r"""Change of a kernel matrix, "kernel_drift" $= \|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$.

    Attributes:
        kernel_fn: weights -> kernel matrix on the caller's points, for example
            `lambda params: empirical_ntk(model.apply, params, xs)`.
        gram_0: The reference $\Theta_0$, usually `kernel_fn(params_0)`.
    """

    kernel_fn: Callable[[PyTree], Float[Array, "n n"]]
    gram_0: Float[Array, "n n"]

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Drift at `params`."""
        return {"kernel_drift": kernel_drift(self.kernel_fn(params), self.gram_0)}


class FlippedPatternsProbe(eqx.Module):
    """Fraction of (example, neuron) pairs whose pre-activation changed sign, "flipped_patterns" per layer.

    Attributes:
        preactivations_fn: (weights, one example) -> tuple of vectors, such as `model.preactivations`.
        params_0: The weights of the reference patterns.
        xs: Examples on which patterns are compared.
    """

    preactivations_fn: Callable[..., tuple[Array, ...]]
    params_0: PyTree
    xs: Float[Array, "n *dims"]

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Fractions at `params`."""

        def patterns(weights: PyTree) -> tuple[Array, ...]:
            return tuple(z > 0 for z in jax.vmap(self.preactivations_fn, (None, 0))(weights, self.xs))

        pairs = zip(patterns(params), patterns(self.params_0), strict=True)
        return {"flipped_patterns": jnp.stack([jnp.mean(now != before, dtype=self.xs.dtype) for now, before in pairs])}
