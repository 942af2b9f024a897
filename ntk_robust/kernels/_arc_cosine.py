r"""Gaussian moments of piecewise linear activations, written in the complement of the cosine.

With $c = 1 - |u|$, $t = \sqrt c$ and the angle $\theta = 2 \arcsin(t/\sqrt 2)$ to the nearer pole,

$\theta / \pi = t A(c)$ and $(\sin\theta - \theta\cos\theta)/\pi = t^3 G(c)$,

where $A$ and $G$ are analytic on [0, 1]. The arc-cosine kernels $\kappa_0 = P(g > 0, g' > 0) · 2$ and $\kappa_1 = 2
E[g_+ g'_+]$ are then sums without cancellation: for $u ≥ 0$, $1 - \kappa_0 = tA$ and $1 - \kappa_1 = c - t^3 G$; for
$u <
0$, $\kappa_0 = tA$ and $\kappa_1 = t^3 G$. Nothing here is a trigonometric function at run time.

References:
    Cho and Saul, NeurIPS 2009, for the kernels; the complement form is ours.
"""

import math
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels._polynomials import Coefficients, fit_unit_interval, horner, rounded, sqrt_of_distance

PI = np.longdouble("3.14159265358979323846264338327950288")
_NUM_COEFFICIENTS = {"float32": 10, "float64": 22}


def angle_parts(complement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""$\theta/\pi$ and $(\sin\theta - \theta\cos\theta)/\pi$ in extended precision on the host, without
    cancellation.
    """
    theta = 2 * np.arcsin(np.sqrt(complement / 2))
    small = np.minimum(theta, np.longdouble(1))
    # Σ_k (-1)^(k+1) 2k θ^(2k+1) / (2k+1)!
    series, term = np.zeros_like(small), small.copy()
    for k in range(1, 16):
        term = -term * small * small / ((2 * k) * (2 * k + 1))
        series = series - 2 * k * term
    direct = np.sin(theta) - theta * np.cos(theta)
    return theta / PI, np.where(theta < 1, series, direct) / PI


@lru_cache
def _coefficients(dtype: str) -> tuple[Coefficients, Coefficients]:
    def a(c: np.ndarray) -> np.ndarray:
        return angle_parts(c)[0] / np.sqrt(c)

    def g(c: np.ndarray) -> np.ndarray:
        return angle_parts(c)[1] / (c * np.sqrt(c))

    n = _NUM_COEFFICIENTS[dtype]
    fitted_a, fitted_g = (rounded(fit_unit_interval(f, n), np.dtype(dtype)) for f in (a, g))
    return fitted_a, fitted_g


def arc_cosine_parts(complement: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    r"""$tA = \theta/\pi$ and $t^3 G = (\sin\theta - \theta\cos\theta)/\pi$ from $1 - |u|$, both relatively accurate.

    Raises:
        ValueError: For dtypes other than float32 and float64.
    """
    dtype = str(complement.dtype)
    if dtype not in _NUM_COEFFICIENTS:
        raise ValueError(f"kernels of ReLU networks take float32 or float64 points and got {dtype}; cast them")
    a, g = _coefficients(dtype)
    t = sqrt_of_distance(complement)
    always = jnp.ones((), bool)
    return t * horner(a, a, complement, always), t * complement * horner(g, g, complement, always)


def slopes(negative: float, positive: float) -> tuple[float, float]:
    r"""Second moment and kink of the activation with these slopes on either side of 0.

    For standard normal $g$ the second moment is $E[\sigma(g)^2] = a^2 + b^2$ where $\sigma(z) = a z + b |z|$; the kink
    $\eta = 2 b^2 / (a^2 + b^2)$ is 0 for a line, 1 for ReLU and 2 for the absolute value.
    """
    a, b = (positive + negative) / 2.0, (positive - negative) / 2.0
    moment = a * a + b * b
    if not (math.isfinite(moment) and moment > 0.0):
        raise ValueError(f"slopes {negative} and {positive} make a constant activation; give one that is not zero")
    return moment, 2.0 * b * b / moment
