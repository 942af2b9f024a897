r"""Gaussian moments of activations: from the law of a pair of preactivations to that of the pair of features.

For preactivations $(g, g')$ with variances $q, q'$ and covariance $c = u \sqrt{q q'}$ a dual gives $E[\sigma(g)
\sigma(g')]$ and
$E[\sigma'(g) \sigma'(g')]$.
"""

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._arc_cosine import arc_cosine_parts, slopes
from ntk_robust.kernels._differences import Apart, change_of, expectations_apart
from ntk_robust.kernels._pairs import Pair
from ntk_robust.kernels._polynomials import sqrt_of_distance
from ntk_robust.models import (
    Abs,
    AbstractActivation,
    Cos,
    Erf,
    Gelu,
    Identity,
    LeakyRelu,
    Monomial,
    QuadraticRelu,
    Relu,
    Sin,
)


class Moments(NamedTuple):
    r"""What an activation does to a pair.

    Attributes:
        features: The pair of features, with norms $\sqrt{E[\sigma(g)^2]}$ and cosine from $E[\sigma(g)\sigma(g')]$.
        slope: $E[\sigma'(g)\sigma'(g')]$.
    """

    features: Pair
    slope: Float[Array, "..."]


class AbstractDual(eqx.Module):
    """The Gaussian moments of one activation."""

    @abc.abstractmethod
    def moments(self, pairs: Pair) -> Moments:
        """Moments for preactivations whose standard deviations are the norms of `pairs`."""


class PiecewiseLinearDual(AbstractDual):
    r"""ReLU, leaky ReLU, absolute value and identity, without trigonometry or cancellation.

    Attributes:
        moment: $E[\sigma(g)^2]$ for a standard normal $g$.
        kink: $\eta$ of `slopes`.
    """

    moment: float = eqx.field(static=True)
    kink: float = eqx.field(static=True)

    def moments(self, pairs: Pair) -> Moments:
        r"""With $A, G$ of the arc-cosine kernels: $1 - u' = c - \eta t^3 G$ for $u ≥ 0$ and so on."""
        features, deficit = self.features_and_slope_deficit(pairs)
        return Moments(features, self.moment * (1.0 - deficit))

    def features_and_slope_deficit(self, pairs: Pair) -> tuple[Pair, Float[Array, "..."]]:
        r"""The pair of features, and $1 - \dot\kappa$ with the normalized moment of the slopes, relatively accurate."""
        near, eta, acute = pairs.complement, self.kink, pairs.acute
        angle, cube = arc_cosine_parts(near)
        deficit = eta * jnp.where(acute, angle, 1.0 - angle)
        chord = jnp.where(acute, near - eta * cube, (2.0 - eta) - (1.0 - eta) * near - eta * cube)
        opposite = jnp.where(acute, 2.0 - chord, eta + (1.0 - eta) * near + eta * cube)
        std = math.sqrt(self.moment)
        chord = jnp.maximum(chord, 0.0)
        features = pairs._replace(complement=jnp.minimum(chord, opposite), acute=chord <= opposite)
        return features.scaled(std), deficit


class AbstractSmoothDual(AbstractDual):
    """The moments of an activation whose distances of features are smooth in the distance of the points."""

    @abc.abstractmethod
    def apart(self, before: Apart) -> tuple[Apart, Apart]:
        """Moments of the features and of the slopes, for preactivations of these variances and this distance."""


class AbstractClosedFormDual(AbstractSmoothDual):
    """Moments in closed form."""

    @abc.abstractmethod
    def expectations(self, qx: Array, qz: Array, c: Array, determinant: Array) -> tuple[Array, Array]:
        r"""$E[\sigma\sigma]$ and $E[\sigma'\sigma']$ for variances, covariance and $q q' - c^2$."""

    def moments(self, pairs: Pair) -> Moments:
        """The expectations of the pair, with features normalized by those of each point with itself."""
        qx, qz = pairs.norm_x**2, pairs.norm_z**2
        c = pairs.cosine * (pairs.norm_x * pairs.norm_z)
        mean, slope = self.expectations(qx, qz, c, qx * qz * (pairs.complement * (2.0 - pairs.complement)))
        second = [self.expectations(q, q, q, jnp.zeros_like(q))[0] for q in (qx, qz)]
        return Moments(_features(mean, *second), slope)

    def apart(self, before: Apart) -> tuple[Apart, Apart]:
        """From second derivatives of the expectations."""
        features, slopes = expectations_apart(self.expectations, before)
        return features, slopes


class ErfDual(AbstractClosedFormDual):
    """Closed form for erf (Williams, 1997)."""

    def expectations(self, qx: Array, qz: Array, c: Array, determinant: Array) -> tuple[Array, Array]:
        r"""$\frac{2}{\pi} \arcsin\frac{2c}{\sqrt{(1 + 2q)(1 + 2q')}}$ and $\frac{4}{\pi} ((1+2q)(1+2q') -
        4c^2)^{-1/2}$.
        """
        root = jnp.sqrt(1.0 + 2.0 * (qx + qz) + 4.0 * determinant)
        return (2.0 / math.pi) * jnp.arctan2(2.0 * c, root), (4.0 / math.pi) / root


class GeluDual(AbstractClosedFormDual):
    """Closed form for GELU by Gaussian integration by parts."""

    def expectations(self, qx: Array, qz: Array, c: Array, determinant: Array) -> tuple[Array, Array]:
        r"""With $F = E[\Phi(g)\Phi(g')]$, $P = E[\varphi(g)\varphi(g')]$: sums of $cF$ and multiples of $P$."""
        widened = 1.0 + qx + qz + determinant
        root = jnp.sqrt(widened)
        both = 0.25 + jnp.arctan2(c, root) / (2.0 * math.pi)
        density = 1.0 / (2.0 * math.pi * root)
        inverse = 1.0 / (1.0 + qx) + 1.0 / (1.0 + qz)
        return c * both + density * (determinant + c * c * inverse), both + c * density * (inverse + 1.0 / widened)


class SineDual(AbstractClosedFormDual):
    r"""Closed form for sine and cosine.

    Attributes:
        cosine: Whether $\sigma$ is the cosine.
    """

    cosine: bool = eqx.field(static=True)

    def expectations(self, qx: Array, qz: Array, c: Array, determinant: Array) -> tuple[Array, Array]:
        r"""$e^{-(q + q')/2} \sinh c$ and $\cosh c$, in exponentials that neither overflow nor cancel."""
        del determinant
        sign = jnp.where(c >= 0.0, 1.0, -1.0).astype(c.dtype)
        size = sign * c
        half = 0.5 * jnp.exp(size - 0.5 * (qx + qz))
        odd, even = sign * half * -jnp.expm1(-2.0 * size), half * (1.0 + jnp.exp(-2.0 * size))
        return (even, odd) if self.cosine else (odd, even)


class MonomialDual(AbstractClosedFormDual):
    r"""Closed form for $z^p$.

    Attributes:
        degree: $p$.
    """

    degree: int = eqx.field(static=True)

    def expectations(self, qx: Array, qz: Array, c: Array, determinant: Array) -> tuple[Array, Array]:
        r"""$\sum_j \binom{p}{j}^2 j! ((p-j-1)!!)^2 c^j (q q')^{(p-j)/2}$ over $j$ of the parity of $p$."""
        del determinant
        p = self.degree
        return _monomial_moment(p, qx * qz, c), p * p * _monomial_moment(p - 1, qx * qz, c)


class QuadraticReluDual(AbstractClosedFormDual):
    r"""Closed form for $\max(z, 0)^2$: the arc-cosine kernel of order 2."""

    def expectations(self, qx: Array, qz: Array, c: Array, determinant: Array) -> tuple[Array, Array]:
        r"""$\frac{q q'}{2 \pi} (3 \sin\theta\cos\theta + (\pi - \theta)(1 + 2\cos^2\theta))$ and $2 \sqrt{q q'}
        \kappa_1$.
        """
        product = qx * qz
        safe = jnp.where(product > 0.0, product, 1.0)
        root = jnp.sqrt(safe)
        u = c / root
        across = determinant / root / root  # the square of the divisor, which its derivative takes, must not underflow
        acute = u >= 0.0
        near = jnp.where(acute, u, -u)
        complement = jnp.minimum(across / (1.0 + near), 1.0)
        angle, cube = arc_cosine_parts(complement)
        obtuse = angle * across - 3.0 * near * cube
        mean = 0.5 * product * jnp.where(acute, 1.0 + 2.0 * near * near - obtuse, obtuse)
        return mean, 2.0 * root * jnp.where(acute, near + cube, cube)


class HermiteDual(AbstractSmoothDual):
    r"""Moments of any smooth activation by its Hermite series: $E[\sigma(g)\sigma(g')] = \sum_{k<K} a_k(\sqrt q)
    a_k(\sqrt{q'}) u^k$.

    The coefficients $a_k(r) = E[\sigma(r g) h_k(g)]$ come from the trapezoidal rule, which converges exponentially for
    analytic functions. Cutting the series changes either moment by at most $\sqrt{T(\sqrt q) T(\sqrt{q'})}$ with the
    tails $T$ of `truncation`; the cut kernel is itself positive semi-definite. Activations with kinks converge slowly:
    look at the tails.

    Attributes:
        activation: $\sigma$ and its derivative.
        num_terms: $K$. With 128, float64 rounding is reached by tanh for standard deviations up to about 1.4 and by
            softplus up to about 3.
    """

    activation: AbstractActivation
    num_terms: int = eqx.field(default=128, static=True)

    def __check_init__(self) -> None:
        if self.num_terms < 1:
            raise ValueError(f"num_terms is {self.num_terms}; give at least 1 term of the Hermite series")

    def moments(self, pairs: Pair) -> Moments:
        """Both series, summed by Horner's rule over all pairs at once."""
        values_x, slopes_x = self.coefficients(pairs.norm_x)
        values_z, slopes_z = self.coefficients(pairs.norm_z)
        u = pairs.cosine
        start = jnp.zeros(jnp.broadcast_shapes(u.shape, pairs.norm_x.shape, pairs.norm_z.shape), u.dtype)

        def step(sums: tuple[Array, Array], terms: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
            a, a_slope, b, b_slope = terms
            return (sums[0] * u + a * b, sums[1] * u + a_slope * b_slope), None

        terms = (values_x, slopes_x, values_z, slopes_z)
        (mean, slope), _ = jax.lax.scan(step, (start, start), terms, reverse=True)
        second = (jnp.sum(values_x**2, axis=0), jnp.sum(values_z**2, axis=0))
        return Moments(_features(mean, *second), slope)

    def apart(self, before: Apart) -> tuple[Apart, Apart]:
        r"""From differences of coefficients and $1 - u^k$, each without cancellation."""
        std_x, std_z = jnp.sqrt(before.xx), jnp.sqrt(before.zz)
        total, product = std_x + std_z, std_x * std_z
        gap = before.gap / jnp.where(total > 0.0, total, 1.0)
        chord = 0.5 * jnp.maximum(before.distance - gap * gap, 0.0) / jnp.where(product > 0.0, product, 1.0)
        degrees = jnp.arange(self.num_terms, dtype=chord.dtype).reshape(-1, *(1 for _ in chord.shape))
        near = chord < 0.5
        u = 1.0 - jnp.where(near, 1.0, chord)
        powers = jnp.where((u < 0.0) & (degrees % 2.0 == 1.0), -1.0, 1.0) * jnp.abs(u) ** degrees
        deficits = jnp.where(near, -jnp.expm1(degrees * jnp.log1p(-jnp.where(near, chord, 0.0))), 1.0 - powers)
        nodes, table = _trapezoid(self.num_terms)
        nodes, table = (jnp.asarray(part, chord.dtype) for part in (nodes, table))
        of_x, of_z = self.coefficients(std_x), self.coefficients(std_z)

        def moment(function: Callable[[Array], Array], a: Array, b: Array) -> Apart:
            change = change_of(function, jnp.multiply.outer(nodes, std_z), jnp.multiply.outer(nodes, gap))
            change = jnp.tensordot(table, change, axes=1, precision=jax.lax.Precision.HIGHEST)
            distance = jnp.sum(change * change + 2.0 * a * b * deficits, axis=0)
            return Apart(jnp.sum(a * a, axis=0), jnp.sum(b * b, axis=0), jnp.sum(change * (a + b), axis=0), distance)

        return moment(self.activation, of_x[0], of_z[0]), moment(self.activation.derivative, of_x[1], of_z[1])

    def coefficients(self, std: Float[Array, "*shape"]) -> tuple[Float[Array, "k *shape"], Float[Array, "k *shape"]]:
        r"""Hermite coefficients of $\sigma(r ·)$ and $\sigma'(r ·)$, one row per degree.

        The former are $a_k(r) = r a'_{k-1}(r) / \sqrt k$ with those of the slope, by integration by parts.
        """
        nodes, table = _trapezoid(self.num_terms)
        z = jnp.multiply.outer(jnp.asarray(nodes, std.dtype), std)
        table = jnp.asarray(table, std.dtype)

        def project(table: Array, values: Array) -> Array:
            if values.ndim == 1:  # of one point: no matrix product, which `in_double` could not take
                return jnp.sum(table * values[None, :], axis=1)
            return jnp.tensordot(table, values, axes=1, precision=jax.lax.Precision.HIGHEST)

        # E[σ(rg) h_k(g)] = r E[σ'(rg) h_{k-1}(g)] / √k: accurate relative to r, which the quadrature of σ is not
        slopes = project(table, self.activation.derivative(z))
        degrees = jnp.arange(1, self.num_terms, dtype=std.dtype).reshape(-1, *(1 for _ in std.shape))
        rest = slopes[:-1] * std[None] / jnp.sqrt(degrees)
        return jnp.concatenate([project(table[:1], self.activation(z)), rest]), slopes

    def truncation(self, std: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        r"""Tails $E[\sigma(r g)^2] - \sum_{k<K} a_k(r)^2$ of the value and of the slope; rounding can make them
        negative.
        """
        nodes, table = _trapezoid(self.num_terms)
        z = jnp.multiply.outer(jnp.asarray(nodes, std.dtype), std)
        weights = jnp.asarray(table[0], std.dtype)
        values, derivatives = self.coefficients(std)
        return (
            jnp.tensordot(weights, self.activation(z) ** 2, axes=1) - jnp.sum(values**2, axis=0),
            jnp.tensordot(weights, self.activation.derivative(z) ** 2, axes=1) - jnp.sum(derivatives**2, axis=0),
        )


def dual_of(activation: AbstractActivation) -> AbstractDual:
    """The moments of an activation: closed forms where there are some, else `HermiteDual`."""
    match activation:
        case Relu():
            return PiecewiseLinearDual(*slopes(0.0, 1.0))
        case LeakyRelu():
            return PiecewiseLinearDual(*slopes(activation.slope, 1.0))
        case Abs():
            return PiecewiseLinearDual(*slopes(-1.0, 1.0))
        case Identity():
            return PiecewiseLinearDual(*slopes(1.0, 1.0))
        case Erf():
            return ErfDual()
        case Gelu():
            return GeluDual()
        case Sin() | Cos():
            return SineDual(cosine=isinstance(activation, Cos))
        case Monomial():
            return MonomialDual(activation.degree)
        case QuadraticRelu():
            return QuadraticReluDual()
    return HermiteDual(activation)


def _features(mean: Array, second_x: Array, second_z: Array) -> Pair:
    """The pair with this product moment and these second moments."""
    norm_x, norm_z = sqrt_of_distance(second_x), sqrt_of_distance(second_z)
    product = norm_x * norm_z
    u = mean / jnp.where(product > 0.0, product, 1.0)
    near = 1.0 - jnp.abs(u)
    # where rounding makes it negative it becomes 0, and keeps its derivative
    complement = near + jax.lax.stop_gradient(jnp.maximum(near, 0.0) - near)
    return Pair(complement, u >= 0.0, norm_x, norm_z)


def _monomial_moment(p: int, q_product: Array, c: Array) -> Array:
    total = jnp.zeros_like(c)
    for j in range(p % 2, p + 1, 2):
        k = p - j
        pairings = math.factorial(k) // (2 ** (k // 2) * math.factorial(k // 2))
        factor = float(math.comb(p, j) ** 2 * math.factorial(j) * pairings**2)
        total = total + factor * jax.lax.integer_pow(c, j) * jax.lax.integer_pow(q_product, k // 2)
    return total


def _trapezoid(num_terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, and for each degree the weights of E[f(g) h_k(g)] with normalized Hermite polynomials h_k."""
    # h_k oscillates with frequency √k; 0.1 resolves both it and functions analytic in a strip of half-width 0.5
    nodes = np.arange(-140, 141) * 0.1
    table = np.zeros((num_terms, nodes.size))
    table[0] = np.exp(-0.5 * nodes**2) * (0.1 / math.sqrt(2.0 * math.pi))
    if num_terms > 1:
        table[1] = nodes * table[0]
    for k in range(1, num_terms - 1):
        table[k + 1] = (nodes * table[k] - math.sqrt(k) * table[k - 1]) / math.sqrt(k + 1)
    return nodes, table
