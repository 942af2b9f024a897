r"""Kernels of bias-free networks with piecewise linear activations: one function of one variable.

$k(x, z) = s \|x\| \|z\| \kappa(u)$, where $\kappa$ is the recursion over layers, normalized to $\kappa(1) = 1$. In $t
= \sqrt{1 -
|u|}$ it is analytic on [0, 1] on either side of $u = 0$, so that one polynomial a side replaces the whole recursion:
the
cost does not grow with depth, and the cosine is rounded once instead of once a layer.
"""

import dataclasses
from functools import lru_cache

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._arc_cosine import angle_parts
from ntk_robust.kernels._base import Scalar
from ntk_robust.kernels._compiled import compiled
from ntk_robust.kernels._dot_product import AbstractDotProductKernel
from ntk_robust.kernels._pairs import Pair, pair
from ntk_robust.kernels._polynomials import Coefficients, fit_unit_interval, horner, rounded, sqrt_of_distance

_TOLERANCE = {"float32": 2e-8, "float64": 5e-16}
_MAX_COEFFICIENTS = 72


@dataclasses.dataclass(frozen=True)
class ZonalFit:
    r"""The polynomials of one kernel in one dtype.

    $\kappa = 1 - t D_+(t)$ for $u ≥ 0$ and $\kappa = \kappa(-1) + t D_-(t)$ for $u < 0$.

    Attributes:
        acute: Coefficients of $D_+$ in $2t - 1$, constant first.
        obtuse: Coefficients of $D_-$ in $2t - 1$.
        at_opposite: $\kappa(-1)$.
        error: Largest error of $\kappa$ found when the polynomials were evaluated in this dtype on 6000 angles,
            clustered at 0 and π, against the recursion in extended precision: an estimate of the worst case.
    """

    acute: Coefficients
    obtuse: Coefficients
    at_opposite: float
    error: float


class ZonalKernel(AbstractDotProductKernel):
    r"""$s \|x\| \|z\| \kappa(u)$ of a network without biases with piecewise linear activation, at any depth for one
    price.

    With $u_0 = u$, $u_j = \kappa_1(u_{j-1})$ and $\dot\kappa$ the normalized moment of $\sigma'$,

    $\kappa(u) ∝ \sum_{l=1}^{L+1} c_l \, u_{l-1} \prod_{j=l}^{L} \dot\kappa(u_{j-1})$,

    one term for each trained layer; the readout's term alone is the NNGP kernel.

    Attributes:
        scale: $s$; $k(x, x) = s \|x\|^2$.
        layer_weights: $c_1 … c_{L+1}$, in any unit: only their proportions matter.
        kink: $\eta$ of the activation: 1 for ReLU, 2 for the absolute value, between for leaky ones, 0 for a line.
        input_dim: Width of the points that `gram` takes; None for any.
    """

    scale: Scalar
    layer_weights: tuple[float, ...] = eqx.field(static=True)
    kink: float = eqx.field(default=1.0, static=True)

    def __check_init__(self) -> None:
        if len(self.layer_weights) < 1 or min(self.layer_weights) < 0.0 or not 0.0 < sum(self.layer_weights) < np.inf:
            raise ValueError(
                f"layer_weights are {self.layer_weights}; give one non-negative number per layer, not all zero"
            )
        if not 0.0 <= self.kink <= 2.0:
            raise ValueError(f"kink is {self.kink}; give a number from 0 (linear) to 2 (absolute value)")

    def fit(self, dtype: np.dtype | type | str) -> ZonalFit:
        """The polynomials used for points of `dtype`, with their error.

        Raises:
            ValueError: For dtypes other than float32 and float64.
        """
        name = np.dtype(dtype).name
        if name not in _TOLERANCE:
            raise ValueError(f"kernels of ReLU networks take float32 or float64 points and got {name}; cast them")
        total = sum(self.layer_weights)
        return _fit(tuple(c / total for c in self.layer_weights), self.kink, name)

    def of_pairs(self, pairs: Pair) -> Float[Array, "..."]:
        r"""$s \|x\| \|z\| \kappa(u)$."""
        fit = self.fit(pairs.complement.dtype)
        change = self._change(pairs)
        kappa = jnp.where(pairs.acute, 1.0 - change, fit.at_opposite + change)
        return self.scale * (pairs.norm_x * pairs.norm_z) * kappa

    @compiled
    def distance_squared(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$s (\|x\| - \|z\|)^2 + 2 s \|x\| \|z\| (1 - \kappa(u))$."""
        pairs = pair(x, z)
        change = self._change(pairs)
        at_opposite = self.fit(x.dtype).at_opposite
        deficit = jnp.where(pairs.acute, change, 1.0 - at_opposite - change)
        return self.scale * (pairs.norm_gap**2 + 2.0 * pairs.norm_x * pairs.norm_z * deficit)

    def _change(self, pairs: Pair) -> Float[Array, "..."]:
        """By how much κ differs from its value at the nearer pole, t D(t)."""
        fit = self.fit(pairs.complement.dtype)
        t = sqrt_of_distance(pairs.complement)
        return t * horner(fit.acute, fit.obtuse, t, pairs.acute)


def reference(complement: np.ndarray, acute: bool, layer_weights: tuple[float, ...], kink: float) -> np.ndarray:
    r"""$1 - \kappa$ on the acute side, $\kappa$ on the obtuse one, by the recursion in extended precision.

    The sum over layers follows $\Theta ← c u + \dot\kappa \Theta$, and its deficit $E = \Theta(1) - \Theta$ follows
    $E ← c (1 -
    u) + \dot\kappa E + (1 - \dot\kappa) \Theta(1)$, where no two nearly equal numbers are subtracted.
    """
    eta = np.longdouble(kink)
    chord = complement.astype(np.longdouble)  # 1 - u, and 1 + u beside it: each exact where it is small
    opposite = 2 - chord
    if not acute:
        chord, opposite = opposite, chord
    theta, deficit, at_one = (np.zeros(complement.shape, np.longdouble) for _ in range(3))
    for layer, weight in enumerate(layer_weights):
        if layer > 0:
            sharp = chord <= opposite
            angle, moment = angle_parts(np.minimum(chord, opposite))
            slope_deficit = np.where(sharp, eta * angle, eta - eta * angle)
            deficit = (1 - slope_deficit) * deficit + slope_deficit * at_one
            theta = (1 - slope_deficit) * theta
            chord, opposite = (
                np.where(sharp, chord - eta * moment, 2 - eta - (1 - eta) * opposite - eta * moment),
                np.where(sharp, 2 - chord + eta * moment, eta + (1 - eta) * opposite + eta * moment),
            )
        c = np.longdouble(weight)
        theta = theta + c * np.where(chord <= opposite, 1 - chord, opposite - 1)
        deficit = deficit + c * chord
        at_one = at_one + c
    return deficit if acute else theta


@lru_cache(maxsize=256)
def _fit(layer_weights: tuple[float, ...], kink: float, dtype: str) -> ZonalFit:
    def change(t: np.ndarray, acute: bool) -> np.ndarray:
        value = reference(t * t, acute, layer_weights, kink)
        return value if acute else value - opposite

    opposite = reference(np.zeros(1), False, layer_weights, kink)[0]
    spread = (1 - np.cos(np.linspace(0, np.pi, 3001)[1:])) / 2
    points = np.concatenate([np.geomspace(1e-9, 1e-3, 200), spread]).astype(dtype)
    wide = points.astype(np.longdouble)
    exact = {acute: change(wide, acute) for acute in (True, False)}
    best, least = {}, np.inf  # of very deep networks none may reach the tolerance
    for n in range(8, _MAX_COEFFICIENTS + 1, 2):
        fitted = {acute: fit_unit_interval(lambda t, acute=acute: change(t, acute) / t, n) for acute in (True, False)}
        errors = [np.max(np.abs(wide * _evaluate(fitted[acute], wide) - exact[acute])) for acute in (True, False)]
        if max(errors) < least:
            least, best = max(errors), fitted
        if least < _TOLERANCE[dtype]:
            break
    kept = {acute: rounded(best[acute], np.dtype(dtype)) for acute in (True, False)}
    at_opposite = float(np.dtype(dtype).type(opposite))
    in_dtype = {acute: points * _evaluate(np.asarray(kept[acute], dtype), points) for acute in (True, False)}
    one = points.dtype.type(1)
    errors = [
        np.max(np.abs((one - in_dtype[True]).astype(np.longdouble) - (1 - exact[True]))),
        np.max(np.abs((one * at_opposite + in_dtype[False]).astype(np.longdouble) - (exact[False] + opposite))),
    ]
    return ZonalFit(kept[True], kept[False], at_opposite, float(max(errors)))


def _evaluate(coefficients: np.ndarray, t: np.ndarray) -> np.ndarray:
    z = 2 * t - 1
    value = np.full_like(t, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * z + c
    return value
