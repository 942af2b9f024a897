"""Kernels of infinitely wide fully connected networks, layer by layer."""

import dataclasses
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._differences import Apart
from ntk_robust.kernels._dot_product import AbstractDotProductKernel
from ntk_robust.kernels._double import in_double, lost_by_rounding
from ntk_robust.kernels._duals import AbstractDual, AbstractSmoothDual, HermiteDual, PiecewiseLinearDual
from ntk_robust.kernels._pairs import Pair, coincident_pairs, off_zero, pair, rows


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
        input_dim: Width of the points that `gram` takes; None for any.
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

    def placed(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Off the zero vector where biases or a smooth activation make the kernel differentiable there."""
        return off_zero(x) if self.b_std > 0.0 or isinstance(self.dual, AbstractSmoothDual) else x

    @compiled
    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$k(x, z)$, accurate to rounding relative to $\sqrt{k(x,x) k(z,z)}$ at every angle.

        Rounding piles up with depth: for float32 points the recursion, a few numbers for a pair, runs in float64.
        """
        x, z = self.placed(x), self.placed(z)
        pairs = pair(x, z)
        if x.dtype != jnp.float32:
            return self.of_pairs(pairs)
        lost = lost_by_rounding(x, pairs.norm_x), lost_by_rounding(z, pairs.norm_z)
        return self._of_pairs_in_double(pairs, *lost)

    @compiled
    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """$k(x, x)$ of each row, without a cosine; but for Hermite series as accurate as that of a pair."""
        x = self.placed(x)
        points = rows(x)
        pairs = coincident_pairs(points)
        if x.dtype != jnp.float32 or isinstance(self.dual, HermiteDual):
            return self.of_pairs(pairs)
        lost = lost_by_rounding(x, points.lengths)
        return self._of_pairs_in_double(pairs, lost, lost)

    def _of_pairs_in_double(self, pairs: Pair, lost_x: Array, lost_z: Array) -> Array:
        def value(constants: tuple[Array, ...], numbers: tuple[Array, ...]) -> Array:
            (acute, lost_x, lost_z), (complement, norm_x, norm_z) = constants, numbers
            return self.of_pairs(Pair(complement, acute, norm_x + lost_x, norm_z + lost_z))

        numbers = (pairs.complement, pairs.norm_x, pairs.norm_z)
        return in_double(value, (pairs.acute, lost_x, lost_z), numbers)

    def of_pairs(self, pairs: Pair) -> Float[Array, "..."]:
        """The recursion; layers run in a loop of the compiled program, so that depth costs no compile time."""
        return self._recursion(pairs, (self,))[0]

    def of_pairs_with(self, other: "DenseKernel", pairs: Pair) -> tuple[Array, ...]:
        """This kernel and another one of the same network, which differs in what trains, from one recursion.

        Raises:
            ValueError: If `other` is of another network.
        """
        if dataclasses.replace(other, weight_terms=self.weight_terms, bias_terms=self.bias_terms) != self:
            raise ValueError(f"{other} is a kernel of another network than {self}; evaluate them apart")
        return self._recursion(pairs, (self, other))

    def _recursion(self, pairs: Pair, kernels: "tuple[DenseKernel, ...]") -> tuple[Array, ...]:
        inputs = pairs.scaled(math.sqrt(self.input_scale))
        squares = inputs.norm_x**2, inputs.norm_z**2
        first = _product(inputs)
        gap, inputs = (
            inputs.gap,
            inputs._replace(
                gap=None,
                complement=jnp.broadcast_to(inputs.complement, first.shape),
                acute=jnp.broadcast_to(inputs.acute, first.shape),
            ),
        )
        # Piecewise linear activations are homogeneous: in units of the gain (s_w² E[σ²])^l of l layers norms only add
        # up their biases, and rounding does not pile up with depth.
        depth, variance = len(self.weight_terms) - 1, self.b_std**2
        dual, w_std, unit = self.dual, self.w_std, 1.0
        homogeneous = isinstance(dual, PiecewiseLinearDual)
        if homogeneous:
            unit, dual, w_std = self.w_std**2 * dual.moment, PiecewiseLinearDual(1.0, dual.kink), 1.0
            variance /= self.w_std**2
        gains = [unit**layer for layer in range(depth + 1)]
        variances = [variance / gain for gain in gains[:-1]]

        def layer(state: tuple[Pair, tuple], terms: tuple[Array, ...]) -> tuple[tuple[Pair, tuple], None]:
            (features, thetas), (weights, biases, variance, total) = state, terms
            # in units of the gain the difference of the squares is the same in every layer
            before = features.scaled(w_std)._replace(gap=gap if homogeneous else None)
            variances_of = squares if homogeneous else (before.norm_x**2, before.norm_z**2)
            norms = [jnp.sqrt(q + (total if homogeneous else variance)) for q in variances_of]
            moments = dual.moments(before if self.b_std == 0.0 else _with_bias(before, variance, *norms))
            value, gain = _product(moments.features), w_std**2 * moments.slope
            thetas = tuple(
                weight * value + bias + gain * theta
                for weight, bias, theta in zip(weights, biases, thetas, strict=True)
            )
            return (moments.features._replace(gap=None), thetas), None

        terms = (
            [[kernel.weight_terms[l + 1] for kernel in kernels] for l in range(depth)],
            [[kernel.bias_terms[l + 1] / gains[l + 1] for kernel in kernels] for l in range(depth)],
            variances,
            list(itertools.accumulate(variances)),
        )
        thetas = tuple(kernel.weight_terms[0] * first + kernel.bias_terms[0] for kernel in kernels)
        terms = tuple(jnp.asarray(term, first.dtype) for term in terms)
        return tuple(gains[-1] * theta for theta in jax.lax.scan(layer, (inputs, thetas), terms)[0][1])

    @compiled
    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""The same recursion for $D = \Theta(x,x) + \Theta(z,z) - 2\Theta(x,z)$, where every term is non-negative.

        $D_{l+1} = c_{l+1} D^\Sigma_l + s_w^2 (\dot\Sigma_l D_l + (\Theta_l(x,x) + \Theta_l(z,z)) (\dot\Sigma_l(x,x) -
        \dot\Sigma_l(x,z)))$, for activations whose slopes have one second moment at every scale.
        """
        dual = self.dual
        if isinstance(dual, HermiteDual):  # whose series needs an angle
            is_zero = jnp.all(x == 0.0) | jnp.all(z == 0.0)
            placed = jnp.where(is_zero, jnp.ones_like(x), x), jnp.where(is_zero, jnp.ones_like(z), z)
            return jax.lax.cond(
                is_zero,
                lambda: super(DenseKernel, self).distance_squared(x, z),
                lambda: self._smooth_distance_squared(dual, *placed),
            )
        if isinstance(dual, AbstractSmoothDual):
            return self._smooth_distance_squared(dual, self.placed(x), self.placed(z))
        if not isinstance(dual, PiecewiseLinearDual):
            return super().distance_squared(x, z)
        gain = self.w_std**2 * dual.moment
        features = pair(self.placed(x), self.placed(z)).scaled(math.sqrt(self.input_scale))
        distance = self.weight_terms[0] * _chord_squared(features)
        selves = self.weight_terms[0] * (features.norm_x**2 + features.norm_z**2) + 2.0 * self.bias_terms[0]
        for weight, bias in zip(self.weight_terms[1:], self.bias_terms[1:], strict=True):
            before, b = features.scaled(self.w_std), self.b_std**2
            if b:
                before = _with_bias(before, b, jnp.sqrt(before.norm_x**2 + b), jnp.sqrt(before.norm_z**2 + b))
            features, deficit = dual.features_and_slope_deficit(before)
            distance = weight * _chord_squared(features) + gain * ((1.0 - deficit) * distance + deficit * selves)
            selves = weight * (features.norm_x**2 + features.norm_z**2) + 2.0 * bias + gain * selves
        return distance

    def _smooth_distance_squared(
        self, dual: AbstractSmoothDual, x: Float[Array, " d"], z: Float[Array, " d"]
    ) -> Float[Array, ""]:
        squares = [jnp.vdot(v, v, precision=jax.lax.Precision.HIGHEST) for v in (x, z, x - z)]
        gap = jnp.vdot(x - z, x + z, precision=jax.lax.Precision.HIGHEST)
        features = Apart(squares[0], squares[1], gap, squares[2]).affine(self.input_scale)
        theta = features.affine(self.weight_terms[0], self.bias_terms[0])

        def layer(state: tuple[Apart, Apart], terms: tuple[Array, Array]) -> tuple[tuple[Apart, Apart], None]:
            features, slopes = dual.apart(state[0].affine(self.w_std**2, self.b_std**2))
            theta = features.affine(*terms).plus(slopes.times(state[1]).affine(self.w_std**2))
            return (features, theta), None

        terms = (jnp.asarray(self.weight_terms[1:], gap.dtype), jnp.asarray(self.bias_terms[1:], gap.dtype))
        return jax.lax.scan(layer, (features, theta), terms)[0][1].distance


def _with_bias(
    features: Pair, variance: float | Array, norm_x: Float[Array, "..."], norm_z: Float[Array, "..."]
) -> Pair:
    """Points of one more coordinate, the standard deviation of the bias, given their norms; chords stay exact."""
    rx, rz = features.norm_x, features.norm_z
    before, after = rx * rz, norm_x * norm_z
    # (after - before - b)(after + before + b) = b (rx - rz)², (after - before)(after + before) = b (rx² + rz² + b)
    chord = (before * features.chord + variance * features.norm_gap**2 / (after + before + variance)) / after
    widened = variance * (rx * rx + rz * rz + variance) / (after + before)
    opposite = jnp.where(features.acute, 2.0 - chord, (before * features.complement + widened + variance) / after)
    return Pair(jnp.minimum(chord, opposite), chord <= opposite, norm_x, norm_z, features.gap)


def _product(features: Pair) -> Float[Array, "..."]:
    return features.cosine * (features.norm_x * features.norm_z)


def _chord_squared(features: Pair) -> Float[Array, "..."]:
    """Squared distance of two points with this angle, these norms and this difference of their squares."""
    return features.norm_gap**2 + 2.0 * features.norm_x * features.norm_z * features.chord
