"""How far weights moved."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.training._layers import layer_names, layers, row_norms, rows, trainable_mask


class Displacement(eqx.Module):
    r"""Distance of weights $W$ from a reference $W_0$, usually the initialization, in weight units.

    Attributes:
        layers: Names of the layers (arrays of weights), their paths in the tree.
        frobenius: $\|W^{(h)} - W_0^{(h)}\|_F$ per layer.
        spectral: $\|W^{(h)} - W_0^{(h)}\|_2$ per layer, of the matrix with one row per neuron.
        two_infinity: $\max_j \|w_j - w_{0,j}\|_2$ per layer: the neuron that moved most.
        relative: `frobenius` over $\|W_0^{(h)}\|_F$; `inf` for a layer that left zero, `nan` for one that stayed there.
        relative_spectral: `spectral` over $\|W_0^{(h)}\|_2$, in the same way.
        relative_two_infinity: `two_infinity` over $\max_j \|w_{0,j}\|_2$, in the same way.
        total: $\|W - W_0\|_F$ over all layers.
        total_relative: `total` over $\|W_0\|_F$.
    """

    layers: tuple[str, ...] = eqx.field(static=True)
    frobenius: Float[Array, " layers"]
    spectral: Float[Array, " layers"]
    two_infinity: Float[Array, " layers"]
    relative: Float[Array, " layers"]
    relative_spectral: Float[Array, " layers"]
    relative_two_infinity: Float[Array, " layers"]
    total: Float[Array, ""]
    total_relative: Float[Array, ""]

    def theory_radius(self, width: int) -> Float[Array, " layers"]:
        r"""$R = \sqrt m \|W^{(h)} - W_0^{(h)}\|_F$ per layer: the smallest set $B(R)$ of Gao et al. for width $m$ that
        holds the weights has the largest of them.
        """
        return math.sqrt(width) * self.frobenius


def parameter_displacement(params: PyTree, params_0: PyTree, *, trainable: PyTree[bool] | None = None) -> Displacement:
    r"""Displacement of `params` from `params_0`, per layer and in total.

    Args:
        params: Weights $W$.
        params_0: Weights $W_0$ of the same structure and shapes.
        trainable: Mask of the layers that count; None counts all. Frozen layers would make relative numbers small.

    Raises:
        ValueError: If the two trees differ in structure or shapes, or the mask does not fit.
    """
    before = layers(eqx.filter(params_0, trainable_mask(params, trainable)))
    return displacement_over(params, params_0, layer_norms(before), trainable=trainable)


class LayerNorms(NamedTuple):
    """Three norms of every layer."""

    frobenius: Float[Array, " layers"]
    spectral: Float[Array, " layers"]
    two_infinity: Float[Array, " layers"]


def layer_norms(arrays: list[Float[Array, "..."]]) -> LayerNorms:
    """The norms of each array of weights, as a matrix with one row per neuron."""
    return LayerNorms(
        frobenius=jnp.stack([jnp.linalg.norm(layer.ravel()) for layer in arrays]),
        spectral=jnp.stack([_spectral_norm(rows(layer)) for layer in arrays]),
        two_infinity=jnp.stack([jnp.max(row_norms(layer)) for layer in arrays]),
    )


def displacement_over(
    params: PyTree, params_0: PyTree, initial: LayerNorms, *, trainable: PyTree[bool] | None
) -> Displacement:
    """`parameter_displacement` with the norms of `params_0` given, which a run needs only once."""
    mask = trainable_mask(params, trainable)
    params, params_0 = eqx.filter(params, mask), eqx.filter(params_0, mask)
    names, now, before = layer_names(params), layers(params), layers(params_0)
    if names != layer_names(params_0) or any(a.shape != b.shape for a, b in zip(now, before, strict=True)):
        shapes, shapes_0 = (
            [(n, a.shape) for n, a in zip(layer_names(p), layers(p), strict=True)] for p in (params, params_0)
        )
        raise ValueError(f"weights {shapes} cannot be compared with {shapes_0}; give two trees of one network")
    moved = layer_norms([a - b for a, b in zip(now, before, strict=True)])
    total = jnp.linalg.norm(moved.frobenius)
    return Displacement(
        layers=names,
        frobenius=moved.frobenius,
        spectral=moved.spectral,
        two_infinity=moved.two_infinity,
        relative=moved.frobenius / initial.frobenius,
        relative_spectral=moved.spectral / initial.spectral,
        relative_two_infinity=moved.two_infinity / initial.two_infinity,
        total=total,
        total_relative=total / jnp.linalg.norm(initial.frobenius),
    )


def _spectral_norm(matrix: Float[Array, "neurons fan_in"]) -> Float[Array, ""]:
    """The largest singular value, from the Gram matrix of the shorter side: exact to rounding, cheaper than an SVD."""
    if min(matrix.shape) == 1:
        return jnp.linalg.norm(matrix.ravel())
    side = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Scaled, so that squares of small displacements neither underflow nor, at zero, leave a negative eigenvalue.
    scale = jnp.max(jnp.abs(side))
    scaled = side / jnp.where(scale > 0.0, scale, 1.0)
    gram = jnp.matmul(scaled, scaled.T, precision=jax.lax.Precision.HIGHEST)
    return scale * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0.0))
