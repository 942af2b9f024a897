"""Kernels of infinitely wide fully connected networks, layer by layer."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.kernels._dot_product import AbstractDotProductKernel
from ntk_robust.kernels._duals import AbstractDual, PiecewiseLinearDual
from ntk_robust.kernels._pairs import Pair, norm_gap, pair


class DenseKernel(AbstractDotProductKernel):
    r"""NTK, NNGP kernel, or any trained subset of layers, of a fully connected network with biases or any activation.

    With inputs $\Sigma_0 = s \langle x, z \rangle$, preactivations of covariance $s_w^2 \Sigma_{l-1} + s_b^2$ and
    their duals
    $\Sigma_l = E[\sigma\sigma]$, $\dot\Sigma_l = E[\sigma'\sigma']$:

    $\Theta_1 = c_1 \Sigma_0 + e_1$, $\Theta_{l+1} = c_{l+1} \Sigma_l + e_{l+1} + s_w^2 \dot\Sigma_l \Theta_l$ for $l
    = 1..L$.

    $c$ and $e$ say how much the weights and biases of each layer train; with the readout's alone it is the NNGP kernel.

    Attributes:
        dual: The moments of the activation.
        input_scale: $s$, $1/d$ for most networks.
        w_std: $s_w$.
        b_std: $s_b$; 0 for no biases.
        weight_terms: $c_1 … c_{L+1}$.
        bias_terms: $e_1 … e_{L+1}$.
    """

    dual: AbstractDual
    input_scale: float = eqx.field(static=True)
    w_std: float = eqx.field(static=True)
    b_std: float = eqx.field(static=True)
    weight_terms: tuple[float, ...] = eqx.field(static=True)
    bias_terms: tuple[float, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if len(self.weight_terms) < 2 or len(self.weight_terms) != len(self.bias_terms):
            raise ValueError(
                f"{len(self.weight_terms)} weight_terms and {len(self.bias_terms)} bias_terms; give one of each per "
                "layer, for at least two layers"
            )
        if min(self.weight_terms + self.bias_terms) < 0.0:
            raise ValueError(f"terms {self.weight_terms}, {self.bias_terms} are negative; give numbers of at least 0")

    def of_pairs(self, pairs: Pair) -> Float[Array, "..."]:
        """The recursion; layers run in a loop of the compiled program, so that depth costs no compile time."""
        scale = math.sqrt(self.input_scale)
        inputs = pairs._replace(norm_x=scale * pairs.norm_x, norm_z=scale * pairs.norm_z)
        theta = self.weight_terms[0] * _product(inputs) + self.bias_terms[0]

        def layer(state: tuple[Pair, Array], terms: tuple[Array, Array]) -> tuple[tuple[Pair, Array], None]:
            features, theta = state
            moments = self.dual.moments(self._affine(features))
            theta = terms[0] * _product(moments.features) + terms[1] + self.w_std**2 * moments.slope * theta
            return (moments.features, theta), None

        shape, dtype = theta.shape, theta.dtype
        inputs = inputs._replace(
            complement=jnp.broadcast_to(inputs.complement, shape), acute=jnp.broadcast_to(inputs.acute, shape)
        )
        terms = (jnp.asarray(self.weight_terms[1:], dtype), jnp.asarray(self.bias_terms[1:], dtype))
        return jax.lax.scan(layer, (inputs, theta), terms)[0][1]

    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""The same recursion for $D = \Theta(x,x) + \Theta(z,z) - 2\Theta(x,z)$, where every term is non-negative.

        $D_{l+1} = c_{l+1} D^\Sigma_l + s_w^2 (\dot\Sigma_l D_l + (\Theta_l(x,x) + \Theta_l(z,z)) (\dot\Sigma_l(x,x) -
        \dot\Sigma_l(x,z)))$, for activations whose slopes have one second moment at every scale.
        """
        if not isinstance(self.dual, PiecewiseLinearDual):
            return super().distance_squared(x, z)
        moment, scale = self.dual.moment, math.sqrt(self.input_scale)
        features = pair(x, z)
        features = features._replace(norm_x=scale * features.norm_x, norm_z=scale * features.norm_z)
        gap = scale * norm_gap(x, z)
        distance = self.weight_terms[0] * _chord_squared(features, gap)
        selves = self.weight_terms[0] * (features.norm_x**2 + features.norm_z**2) + 2.0 * self.bias_terms[0]
        for weight, bias in zip(self.weight_terms[1:], self.bias_terms[1:], strict=True):
            before = self._affine(features)
            total = before.norm_x + before.norm_z
            grown = self.w_std**2 * gap * (features.norm_x + features.norm_z)
            gap = math.sqrt(moment) * grown / jnp.where(total > 0.0, total, 1.0)
            features, deficit = self.dual.features_and_slope_deficit(before)
            gain = self.w_std**2 * moment
            distance = weight * _chord_squared(features, gap) + gain * ((1.0 - deficit) * distance + deficit * selves)
            selves = weight * (features.norm_x**2 + features.norm_z**2) + 2.0 * bias + gain * selves
        return distance

    def _affine(self, features: Pair) -> Pair:
        r"""Preactivations of features: covariance $s_w^2 · + s_b^2$, with the complement of the cosine kept exact."""
        rx, rz = self.w_std * features.norm_x, self.w_std * features.norm_z
        if self.b_std == 0.0:
            return features._replace(norm_x=rx, norm_z=rz)
        b = self.b_std**2
        norm_x, norm_z = jnp.sqrt(rx * rx + b), jnp.sqrt(rz * rz + b)
        before, after = rx * rz, norm_x * norm_z
        # (after - before - b)(after + before + b) = b (rx - rz)², (after - before)(after + before) = b (rx² + rz² + b)
        chord = (before * features.chord + b * (rx - rz) ** 2 / (after + before + b)) / after
        widened = b * (rx * rx + rz * rz + b) / (after + before)
        opposite = jnp.where(features.acute, 2.0 - chord, (before * features.complement + widened + b) / after)
        return Pair(jnp.minimum(chord, opposite), chord <= opposite, norm_x, norm_z)


def _product(features: Pair) -> Float[Array, "..."]:
    return features.cosine * (features.norm_x * features.norm_z)


def _chord_squared(features: Pair, gap: Float[Array, ""]) -> Float[Array, ""]:
    """Squared distance of two points with this angle, these norms and this difference of norms."""
    return gap**2 + 2.0 * features.norm_x * features.norm_z * features.chord
