"""Curvature against slope at a random initialization, as measured and as the law has it."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntk_robust.certify._shapes import second_derivative
from ntk_robust.landscape._two_layer import TwoLayer
from ntk_robust.models import AbstractActivation

_REACH, _NODES = 12.0, 8001


class CurvatureStatistics(eqx.Module):
    r"""Slope and curvature of a network at one point.

    Attributes:
        slope: $\Vert g\Vert$.
        highest: Largest eigenvalue of $H$.
        lowest: Smallest eigenvalue of $H$.
        relative: $ρ_0 = ε\Vert H\Vert/\Vert g\Vert$, how far from linear the network is across the ball.
    """

    slope: Float[Array, ""]
    highest: Float[Array, ""]
    lowest: Float[Array, ""]
    relative: Float[Array, ""]


def curvature_statistics(net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike) -> CurvatureStatistics:
    r"""Slope and extreme curvatures at $x$, and their ratio for a ball of radius $ε$.

    Args:
        net: The network.
        x: The point.
        epsilon: Radius of the l2 ball.

    References:
        docs/theory/deng2020.md, item A8.
    """
    slope = jnp.linalg.norm(jax.grad(net)(x))
    eigenvalues = jnp.linalg.eigvalsh(net.hessian(x))
    largest = jnp.maximum(eigenvalues[-1], -eigenvalues[0])
    return CurvatureStatistics(slope, eigenvalues[-1], eigenvalues[0], jnp.asarray(epsilon, x.dtype) * largest / slope)


@dataclasses.dataclass(frozen=True)
class CurvatureLaw:
    r"""Gaussian moments of $\sigma'$ and $\sigma''$ at input scale $s$, $Z \sim N(0, 1)$, and what follows from them.

    Attributes:
        slope: $E\,\sigma'(sZ)^2$.
        weighted_slope: $E\,\sigma'(sZ)^2 Z^2$.
        curvature: $E\,\sigma''(sZ)^2$.
        weighted_curvature: $E\,\sigma''(sZ)^2 Z^2$.
        scale: $s$.
    """

    slope: float
    weighted_slope: float
    curvature: float
    weighted_curvature: float
    scale: float

    @property
    def edge(self) -> float:
        r"""Limit of $\Vert H\Vert/(s_w^2 \sqrt{d\, E\,\sigma''(sZ)^2})$: 2, more if the direction of $x$ sticks out."""
        spike = self.weighted_curvature / self.curvature
        return spike / math.sqrt(spike - 1) if spike > 2 else 2.0

    def gradient_norm_squared(self, input_dim: int, weight_std: float) -> float:
        r"""$E\Vert g\Vert^2$, exact at every width and dimension, for $a_j = ±1/\sqrt m$."""
        return weight_std**2 * ((input_dim - 1) * self.slope + self.weighted_slope)

    def relative(self, ratio: float) -> float:
        r"""Limit of $ρ_0 = ε\Vert H\Vert/\Vert g\Vert$ with $ε = τ\Vert x\Vert$ and the perturbation ratio $τ$."""
        return self.edge * ratio * self.scale * math.sqrt(self.curvature / self.slope)


def curvature_law(activation: AbstractActivation, scale: float) -> CurvatureLaw:
    r"""The law of slope and curvature for Gaussian weights, whose pre-activations have standard deviation $s$.

    Moments are sums of the trapezoidal rule on $[-12, 12]$, exact to rounding for the smooth activations at $s \le 10$.

    Args:
        activation: $\sigma$, twice differentiable.
        scale: $s$.

    References:
        docs/theory/deng2020.md, item A8.
    """
    z = np.linspace(-_REACH, _REACH, _NODES)
    weights = np.exp(-0.5 * z**2)
    weights /= weights.sum()
    points = jnp.asarray(scale * z)
    slopes, bends = (
        np.asarray(part) ** 2 for part in (activation.derivative(points), second_derivative(activation, points))
    )
    return CurvatureLaw(
        slope=float(weights @ slopes),
        weighted_slope=float(weights @ (slopes * z**2)),
        curvature=float(weights @ bends),
        weighted_curvature=float(weights @ (bends * z**2)),
        scale=scale,
    )
