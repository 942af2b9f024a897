"""Measurements of the weights that run inside the training program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from ntk_robust.kernels import effective_rank, eigenspace_overlap, kernel_angle, kernel_drift, top_mass
from ntk_robust.losses import Margin
from ntk_robust.training._displacement import LayerNorms, displacement_over, layer_norms
from ntk_robust.training._layers import layers, trainable_mask
from ntk_robust.training._linearized import Linearized
from ntk_robust.training._points import AttackedPoints
from ntk_robust.training._weight_sets import AbstractWeightSet


class DisplacementProbe(eqx.Module):
    r"""Movement of the weights, as `parameter_displacement` measures it.

    Returns "frobenius", "spectral", "two_infinity", "relative", "relative_spectral" and "relative_two_infinity" per
    layer, "total" and "total_relative", and with `width` also "theory_radius" per layer.

    Attributes:
        params_0: Where movement is counted from.
        trainable: Mask of the layers that count (plain bools), None for all.
        width: $m$ of the theory radius $\sqrt m \|W^{(h)} - W_0^{(h)}\|_F$; None leaves it out.
        initial: Norms of $W_0$, computed once: those of a wide layer cost more than a step.
    """

    params_0: PyTree
    trainable: PyTree[bool] | None
    width: int | None = eqx.field(static=True)
    initial: LayerNorms

    def __init__(self, params_0: PyTree, trainable: PyTree[bool] | None = None, width: int | None = None) -> None:
        self.params_0, self.trainable, self.width = params_0, trainable, width
        self.initial = _norms(layers(eqx.filter(self.params_0, trainable_mask(self.params_0, self.trainable))))

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Displacement of `params`."""
        moved = displacement_over(params, self.params_0, self.initial, trainable=self.trainable)
        return {
            "frobenius": moved.frobenius,
            "spectral": moved.spectral,
            "two_infinity": moved.two_infinity,
            "relative": moved.relative,
            "relative_spectral": moved.relative_spectral,
            "relative_two_infinity": moved.relative_two_infinity,
            "total": moved.total,
            "total_relative": moved.total_relative,
        } | ({} if self.width is None else {"theory_radius": moved.theory_radius(self.width)})


class NaturalProbe(eqx.Module):
    """Mean loss and accuracy on unperturbed examples: "natural_loss", "natural_accuracy" (ties count as errors).

    Attributes:
        apply_fn: (weights, one example) -> output.
        loss: (output, target) -> scalar.
        xs: Examples.
        ys: Their targets: ±1 for a scalar output; for several, integer labels or vectors whose largest entry is the
            class (one-hot codes).
    """

    apply_fn: Callable[..., Any]
    loss: Callable[..., Any]
    xs: Float[Array, "n *dims"]
    ys: Num[Array, "n ..."]

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Loss and accuracy of `params`."""
        loss, accuracy = _loss_and_accuracy(self.apply_fn, self.loss, params, self.xs, self.ys)
        return {"natural_loss": loss, "natural_accuracy": accuracy}


class AdversarialProbe(eqx.Module):
    """Mean loss and accuracy under an attack: "surrogate_loss", "adversarial_accuracy" (ties count as errors).

    Attributes:
        points: Examples and the attack on them, usually stronger than that of training.
    """

    points: AttackedPoints

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Loss and accuracy of `params` where the attack ends."""
        loss, accuracy = _loss_and_accuracy(
            self.points.apply_fn, self.points.loss, params, self.points(params), self.points.ys
        )
        return {"surrogate_loss": loss, "adversarial_accuracy": accuracy}


class LinearizationProbe(eqx.Module):
    r"""How far the network left its tangent at $W_0$.

    Over points and outputs, "linearization_error" is the root mean square of $f(W, x) - f_{lin}(W, x)$ with $f_{lin}(W,
    x) = f(W_0, x) + \langle \nabla_W f(W_0, x), W - W_0 \rangle$, "largest_linearization_error" its largest absolute
    value, "relative_linearization_error" that root mean square over the one of $f(W, x) - f(W_0, x)$ (nan at $W_0$).

    Attributes:
        apply_fn: (weights, one example) -> output.
        params_0: $W_0$.
        points: Examples, or `AttackedPoints` for those that an attack on the current weights finds.
    """

    apply_fn: Callable[..., Any]
    params_0: PyTree
    points: Float[Array, "n *dims"] | AttackedPoints

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Errors at `params`."""
        xs = self.points(params) if isinstance(self.points, AttackedPoints) else self.points

        def outputs(apply_fn: Callable[..., Any], weights: PyTree) -> Array:
            return jax.vmap(apply_fn, (None, 0))(weights, xs)

        now = outputs(self.apply_fn, params)
        missed = now - outputs(Linearized(self.apply_fn, self.params_0), params)
        change = now - outputs(self.apply_fn, self.params_0)
        error = jnp.sqrt(jnp.mean(missed**2))
        return {
            "linearization_error": error,
            "largest_linearization_error": jnp.max(jnp.abs(missed)),
            "relative_linearization_error": error / jnp.sqrt(jnp.mean(change**2)),
        }


class BoundaryProbe(eqx.Module):
    """Distance of the weights to the boundary of their constraint, "boundary_distance"; see `AbstractWeightSet`.

    Attributes:
        constraint: The set, as given to `fit`.
        anchor: Its center, the weights given to `fit`.
        trainable: Mask of the weights that train, as given to `fit`; None for all.
    """

    constraint: AbstractWeightSet
    anchor: PyTree
    trainable: PyTree[bool] | None = None

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Distance of `params`."""
        mask = trainable_mask(params, self.trainable)
        moving, center = eqx.filter(params, mask), eqx.filter(self.anchor, mask)
        return {"boundary_distance": self.constraint.boundary_distance(moving, center)}


class KernelDriftProbe(eqx.Module):
    r"""How a kernel matrix on fixed points changed in length and in direction.

    "kernel_drift" $= \|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$, "kernel_growth" $= \|\Theta_t\|_F /
    \|\Theta_0\|_F$, "kernel_angle" and "centered_kernel_angle" (radians, without and with row and column means taken
    out), and "effective_rank" of $\Theta_t$.

    Attributes:
        kernel_fn: weights -> kernel matrix on the caller's points, for example
            `lambda params: empirical_ntk(model.apply, params, xs)`. On points that move with the weights the motion
            would count as a change of the kernel: see `AttackedKernelDriftProbe`.
        gram_0: The reference $\Theta_0$, usually `kernel_fn(params_0)`.
    """

    kernel_fn: Callable[[PyTree], Float[Array, "n n"]]
    gram_0: Float[Array, "n n"]

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Change at `params`."""
        return _kernel_change(self.kernel_fn(params), self.gram_0)


class AttackedKernelDriftProbe(eqx.Module):
    r"""`KernelDriftProbe` where an attack on the current weights ends: $\Theta_t$ and $\Theta_0$ at the same points.

    At $x_t' = A(W_t, x)$ both $\Theta_t(x_t', x_t')$ and $\Theta_0(x_t', x_t')$ are computed, so that a kernel that
    does not depend on the weights has no drift although the points move. Costs the attack and two kernel matrices.

    Attributes:
        kernel_fn: (weights, points) -> kernel matrix, for example
            `lambda params, xs: empirical_ntk(model.apply, params, xs)`.
        params_0: $W_0$.
        points: Examples and the attack on them.
    """

    kernel_fn: Callable[[PyTree, Array], Float[Array, "n n"]]
    params_0: PyTree
    points: AttackedPoints

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Change at `params`."""
        xs = self.points(params)
        return _kernel_change(self.kernel_fn(params, xs), self.kernel_fn(self.params_0, xs))


class KernelSpectrumProbe(eqx.Module):
    r"""The leading eigenvalues of a kernel matrix and how far their space turned.

    "leading_eigenvalues" (descending), "top_mass" (their share in the trace), and "eigenspace_overlap", the share of
    their space that lies in that of the reference: 1 if it did not turn, 0 if it is orthogonal. Costs one
    eigen-decomposition.

    Attributes:
        kernel_fn: weights -> kernel matrix on the caller's points. On points that move with the weights see
            `AttackedKernelSpectrumProbe`.
        gram_0: The reference, usually `kernel_fn(params_0)`.
        num_leading: How many eigenvalues lead.
    """

    kernel_fn: Callable[[PyTree], Float[Array, "n n"]]
    gram_0: Float[Array, "n n"]
    num_leading: int = eqx.field(default=10, static=True)

    def __check_init__(self) -> None:
        _check_leading(self.num_leading, len(self.gram_0))

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Spectrum at `params`."""
        return _spectrum(self.kernel_fn(params), self.gram_0, self.num_leading)


class AttackedKernelSpectrumProbe(eqx.Module):
    r"""`KernelSpectrumProbe` where an attack on the current weights ends, both kernels at the same points.

    Costs the attack, two kernel matrices and two eigen-decompositions; see `AttackedKernelDriftProbe`.

    Attributes:
        kernel_fn: (weights, points) -> kernel matrix.
        params_0: $W_0$.
        points: Examples and the attack on them.
        num_leading: How many eigenvalues lead.
    """

    kernel_fn: Callable[[PyTree, Array], Float[Array, "n n"]]
    params_0: PyTree
    points: AttackedPoints
    num_leading: int = eqx.field(default=10, static=True)

    def __check_init__(self) -> None:
        _check_leading(self.num_leading, len(self.points.xs))

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Spectrum at `params`."""
        xs = self.points(params)
        return _spectrum(self.kernel_fn(params, xs), self.kernel_fn(self.params_0, xs), self.num_leading)


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


_norms = jax.jit(layer_norms)


def _kernel_change(gram: Float[Array, "n n"], gram_0: Float[Array, "n n"]) -> dict[str, Array]:
    return {
        "kernel_drift": kernel_drift(gram, gram_0),
        "kernel_growth": jnp.linalg.norm(gram) / jnp.linalg.norm(gram_0),
        "kernel_angle": kernel_angle(gram, gram_0),
        "centered_kernel_angle": kernel_angle(gram, gram_0, centered=True),
        "effective_rank": effective_rank(gram),
    }


def _check_leading(num_leading: int, num_points: int) -> None:
    if not 1 <= num_leading <= num_points:
        raise ValueError(f"num_leading is {num_leading} for {num_points} points; give a number from 1 to that")


def _spectrum(gram: Float[Array, "n n"], gram_0: Float[Array, "n n"], num_leading: int) -> dict[str, Array]:
    return {
        "leading_eigenvalues": jnp.linalg.eigvalsh(gram)[::-1][:num_leading],
        "top_mass": top_mass(gram, num_leading),
        "eigenspace_overlap": jnp.mean(eigenspace_overlap(gram, gram_0, num_leading) ** 2),
    }


def _loss_and_accuracy(
    apply_fn: Callable[..., Any], loss: Callable[..., Any], params: PyTree, xs: Array, ys: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    outputs = jax.vmap(apply_fn, (None, 0))(params, xs)
    # Targets that are vectors, as one-hot codes for the squared loss, name the class of their largest entry.
    labels = jnp.argmax(ys, axis=-1) if outputs.ndim == ys.ndim == 2 else ys
    right = jnp.mean(jax.vmap(Margin())(outputs, labels) < 0, dtype=outputs.dtype)
    return jnp.mean(jax.vmap(loss)(outputs, ys)), right
