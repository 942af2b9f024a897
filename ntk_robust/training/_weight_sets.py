"""Sets around the initialization to which weights are projected after each step."""

import abc
import math
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ntk_robust.training._layers import layers, row_norms

_Params = TypeVar("_Params", bound=PyTree)


class AbstractWeightSet(eqx.Module):
    """A closed convex set of weights around an anchor, in `fit` the initialization.

    Only the trained weights are seen by it. A layer is one array of the tree; a layer's bias is an array of its own.
    """

    @abc.abstractmethod
    def project(self, params: _Params, anchor: _Params) -> _Params:
        """The Euclidean projection; points of the set come back bit for bit."""

    @abc.abstractmethod
    def boundary_distance(self, params: PyTree, anchor: PyTree) -> Float[Array, ""]:
        """Distance to the boundary in weight units, for a point of the set; negative outside.

        For a product of balls it is the smallest radius minus distance, so that outside it is minus the largest excess
        of one ball.
        """


class LayerwiseFrobeniusBall(AbstractWeightSet):
    r"""$\{W : \|W^{(h)} - W_0^{(h)}\|_F \le r \text{ for every layer } h\}$.

    With $r = R/\sqrt m$ this is the set $B(R)$ of Gao et al. (2019) for a network of width $m$.

    Attributes:
        radius: $r$ itself, in weight units.
    """

    radius: float | Float[Array, ""]

    def __check_init__(self) -> None:
        _check_radius(self, self.radius)

    def project(self, params: _Params, anchor: _Params) -> _Params:
        """Every layer moved radially to its ball."""

        def project_layer(layer: Array, center: Array) -> Array:
            delta = layer - center
            distance = jnp.linalg.norm(delta.ravel())
            return jnp.where(distance > self.radius, center + delta * (self.radius / distance), layer)

        return jax.tree.map(project_layer, params, anchor)

    def boundary_distance(self, params: PyTree, anchor: PyTree) -> Float[Array, ""]:
        """Radius minus the largest distance of a layer."""
        deltas = layers(optax.tree.sub(params, anchor))
        return self.radius - jnp.max(jnp.stack([jnp.linalg.norm(delta.ravel()) for delta in deltas]))


class FrobeniusBall(AbstractWeightSet):
    r"""$\{W : \|W - W_0\|_F \le r\}$, over all trained weights together.

    Attributes:
        radius: $r$, in weight units.
    """

    radius: float | Float[Array, ""]

    def __check_init__(self) -> None:
        _check_radius(self, self.radius)

    def project(self, params: _Params, anchor: _Params) -> _Params:
        """The whole displacement scaled to the radius."""
        delta = optax.tree.sub(params, anchor)
        distance = optax.tree.norm(delta)
        return jax.tree.map(
            lambda layer, center, d: jnp.where(distance > self.radius, center + d * (self.radius / distance), layer),
            params,
            anchor,
            delta,
        )

    def boundary_distance(self, params: PyTree, anchor: PyTree) -> Float[Array, ""]:
        """Radius minus distance."""
        return self.radius - optax.tree.norm(optax.tree.sub(params, anchor))


class NeuronBall(AbstractWeightSet):
    r"""The $(2,\infty)$ ball $\{W : \|w_j - w_{0,j}\|_2 \le r \text{ for every neuron } j \text{ of every layer}\}$.

    A neuron is one entry along the first axis of an array of weights; in a vector it is one number.

    Attributes:
        radius: $r$, in weight units.
    """

    radius: float | Float[Array, ""]

    def __check_init__(self) -> None:
        _check_radius(self, self.radius)

    def project(self, params: _Params, anchor: _Params) -> _Params:
        """Every neuron moved radially to its ball."""

        def project_layer(layer: Array, center: Array) -> Array:
            delta = layer - center
            distance = row_norms(delta).reshape(delta.shape[:1] + (1,) * (delta.ndim - 1))
            # Where the ball does not bind, the quotient is replaced so that no 0/0 is formed.
            scale = self.radius / jnp.where(distance > self.radius, distance, 1)
            return jnp.where(distance > self.radius, center + delta * scale, layer)

        return jax.tree.map(project_layer, params, anchor)

    def boundary_distance(self, params: PyTree, anchor: PyTree) -> Float[Array, ""]:
        """Radius minus the largest distance of a neuron."""
        deltas = layers(optax.tree.sub(params, anchor))
        return self.radius - jnp.max(jnp.stack([jnp.max(row_norms(delta)) for delta in deltas]))


def _check_radius(weights: AbstractWeightSet, radius: Any) -> None:
    if isinstance(radius, int | float | np.integer | np.floating) and not 0 < radius < math.inf:
        raise ValueError(f"{type(weights).__name__} has radius {radius}; give a positive finite number in weight units")
