r"""Power series of zonal kernels in the cosine, by series arithmetic without subtractions.

A kernel of two points of one sphere is positive semi-definite in every dimension exactly if the coefficients of its
power series in the cosine are non-negative (Schoenberg, 1942). The recursions of networks keep that sign, so that sums
and products of positive coefficients give all of them to relative accuracy.
"""

import math

import numpy as np
from jaxtyping import Float

from ntk_robust.kernels._base import AbstractKernel, ProductKernel, ScaledKernel, SumKernel
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._duals import PiecewiseLinearDual
from ntk_robust.kernels._zonal import ZonalKernel

Series = np.ndarray


def power_coefficients(
    kernel: AbstractKernel, num_terms: int, *, radius: float = 1.0
) -> Float[np.ndarray, " num_terms"]:
    r"""$a_j$ of $k(x, z) = \sum_j a_j u^j$ for points of norm `radius` with cosine $u$.

    Args:
        kernel: A kernel of `analytic_ntk` or `analytic_nngp` for a piecewise linear activation, with biases or without,
            or sums, products and multiples of those.
        num_terms: Coefficients, from $a_0$ on.
        radius: Norm of the points.

    Returns:
        The coefficients, to about `num_terms` roundings relative to each; 0 where they vanish.

    Raises:
        TypeError: For other kernels.
        ValueError: If `num_terms` or `radius` is not positive.

    References:
        Schoenberg, Duke Math. J. 1942; Cho and Saul, NeurIPS 2009.
    """
    if num_terms < 1 or not radius > 0.0:
        raise ValueError(f"num_terms is {num_terms} and radius {radius}; give positive numbers")
    return _series(kernel, num_terms, radius)


def has_power_coefficients(kernel: object) -> bool:
    """Whether `power_coefficients` takes this kernel."""
    match kernel:
        case SumKernel() | ProductKernel():
            return has_power_coefficients(kernel.first) and has_power_coefficients(kernel.second)
        case ScaledKernel():
            return has_power_coefficients(kernel.kernel)
        case DenseKernel():
            return isinstance(kernel.dual, PiecewiseLinearDual)
    return isinstance(kernel, ZonalKernel)


def _series(kernel: AbstractKernel, n: int, radius: float) -> Series:
    match kernel:
        case SumKernel():
            return _series(kernel.first, n, radius) + _series(kernel.second, n, radius)
        case ProductKernel():
            return _product(_series(kernel.first, n, radius), _series(kernel.second, n, radius))
        case ScaledKernel():
            return float(kernel.scale) * _series(kernel.kernel, n, radius)
        case ZonalKernel():
            return float(kernel.scale) * radius**2 * _zonal(kernel, n)
        case DenseKernel() if isinstance(kernel.dual, PiecewiseLinearDual):
            return _dense(kernel, kernel.dual, n, radius)
    raise TypeError(
        f"no power series for a {type(kernel).__name__}; give a kernel of a piecewise linear network, or use "
        "mercer_spectrum, which takes any zonal kernel"
    )


def _zonal(kernel: ZonalKernel, n: int) -> Series:
    cosine, theta = _identity(n), np.zeros(n)
    for layer, weight in enumerate(kernel.layer_weights):
        if layer > 0:
            cosine, slope = _features_and_slope(cosine, kernel.kink)
            theta = _product(slope, theta)
        theta = theta + weight * cosine
    return theta / sum(kernel.layer_weights)


def _dense(kernel: DenseKernel, dual: PiecewiseLinearDual, n: int, radius: float) -> Series:
    variance = kernel.input_scale * radius**2
    sigma = variance * _identity(n)
    theta = kernel.weight_terms[0] * sigma
    theta[0] += kernel.bias_terms[0]
    for weight, bias in zip(kernel.weight_terms[1:], kernel.bias_terms[1:], strict=True):
        before = kernel.w_std**2 * variance + kernel.b_std**2
        cosine = kernel.w_std**2 * sigma
        cosine[0] += kernel.b_std**2
        features, slope = _features_and_slope(cosine / before, dual.kink)
        variance = dual.moment * before
        sigma = variance * features
        theta = weight * sigma + kernel.w_std**2 * dual.moment * _product(slope, theta)
        theta[0] += bias
    return theta


def _features_and_slope(rho: Series, kink: float) -> tuple[Series, Series]:
    r"""Normalized moments of $\sigma$ and $\sigma'$ for preactivations with cosine $\rho(u)$.

    $(1 - \eta/2) \rho + \eta e(\rho)$ and $1 - \eta/2 + \eta a(\rho)$ with $\pi a = \arcsin\rho$, $\pi e = \sqrt{1 -
    \rho^2} + \rho \arcsin\rho$, from $\pi a' = \rho' (1 - \rho^2)^{-1/2}$ and $e' = \rho' a$.
    """
    square = _product(rho, rho)
    rest = (1.0 - rho[0]) * (1.0 + rho[0])
    inverse_root = np.zeros_like(rho)
    inverse_root[0] = 1.0 / math.sqrt(rest)
    for j in range(1, len(rho)):  # from g' s = -s' g / 2 with s = 1 - ρ²: every term is positive
        i = np.arange(1, j + 1)
        inverse_root[j] = np.dot((j - 0.5 * i) * square[1 : j + 1], inverse_root[j - 1 :: -1][:j]) / (j * rest)
    angle = _integral(_product(_derivative(rho), inverse_root)) / math.pi
    angle[0] = math.asin(rho[0]) / math.pi
    even = _integral(_product(_derivative(rho), angle))
    even[0] = (math.sqrt(rest) + rho[0] * math.asin(rho[0])) / math.pi
    slope = kink * angle
    slope[0] += 1.0 - 0.5 * kink
    return (1.0 - 0.5 * kink) * rho + kink * even, slope


def _identity(n: int) -> Series:
    series = np.zeros(n)
    series[1:2] = 1.0
    return series


def _product(a: Series, b: Series) -> Series:
    return np.convolve(a, b)[: len(a)]


def _derivative(a: Series) -> Series:
    return np.append(a[1:] * np.arange(1, len(a)), 0.0)


def _integral(a: Series) -> Series:
    return np.concatenate([[0.0], a[:-1] / np.arange(1, len(a))])
