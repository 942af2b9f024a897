"""Kernels computed in other ways: 50 digits of arc-cosine recursions, and quadrature in the plane."""

import math

import mpmath
import numpy as np

mpmath.mp.dps = 50


def relu_layers(x, z, *, num_hidden_layers, w_std, b_std, input_scale, slope=0.0):
    """Σ_0..Σ_L and Σ̇_1..Σ̇_L of a (leaky) ReLU network at 50 digits, for (x,x), (z,z) and (x,z)."""
    mp = mpmath.mp
    vector = lambda v: [mp.mpf(float(c)) for c in v]  # noqa: E731
    x, z = vector(x), vector(z)
    dot = lambda a, b: sum((p * q for p, q in zip(a, b, strict=True)), mp.mpf(0))  # noqa: E731
    scale, w2, b2 = mp.mpf(input_scale), mp.mpf(w_std) ** 2, mp.mpf(b_std) ** 2
    a, b = (1 + mp.mpf(slope)) / 2, (1 - mp.mpf(slope)) / 2
    moments = [tuple(scale * dot(p, q) for p, q in ((x, x), (z, z), (x, z)))]
    slopes = []
    for _ in range(num_hidden_layers):
        qx, qz, c = (w2 * m + b2 for m in moments[-1])
        u = max(min(c / mp.sqrt(qx * qz), mp.mpf(1)), mp.mpf(-1))
        theta = mp.acos(u)
        kappa0 = 1 - theta / mp.pi
        kappa1 = (mp.sqrt(1 - u * u) + (mp.pi - theta) * u) / mp.pi
        cross = mp.sqrt(qx * qz) * (a * a * u + b * b * (2 * kappa1 - u))
        moments.append(((a * a + b * b) * qx, (a * a + b * b) * qz, cross))
        slopes.append((a * a + b * b, a * a + b * b, a * a + b * b * (2 * kappa0 - 1)))
    return moments, slopes


def relu_ntk(x, z, *, weight_terms, bias_terms, w_std, b_std, input_scale, slope=0.0):
    """The NTK of (x,x), (z,z) and (x,z) at 50 digits."""
    depth = len(weight_terms) - 1
    moments, slopes = relu_layers(
        x, z, num_hidden_layers=depth, w_std=w_std, b_std=b_std, input_scale=input_scale, slope=slope
    )
    w2 = mpmath.mpf(w_std) ** 2
    theta = [mpmath.mpf(weight_terms[0]) * m + mpmath.mpf(bias_terms[0]) for m in moments[0]]
    for layer in range(depth):
        theta = [
            mpmath.mpf(weight_terms[layer + 1]) * m + mpmath.mpf(bias_terms[layer + 1]) + w2 * s * t
            for m, s, t in zip(moments[layer + 1], slopes[layer], theta, strict=True)
        ]
    return theta


def quadrature_ntk(x, z, activation, derivative, *, weight_terms, bias_terms, w_std, b_std, input_scale):
    """NTK of one pair in float64 with every Gaussian moment by the trapezoidal rule in the plane (smooth
    activations)."""
    grid = np.arange(-120, 121) * 0.08
    weight = np.exp(-0.5 * (grid[:, None] ** 2 + grid[None, :] ** 2)) * 0.08**2 / (2 * math.pi)

    def moment(f, qx, qz, c):
        # g = √qx s, g' = (c/√qx) s + √(qz - c²/qx) t
        first = math.sqrt(qx) * grid[:, None] + 0.0 * grid[None, :]
        second = c / math.sqrt(qx) * grid[:, None] + math.sqrt(max(qz - c * c / qx, 0.0)) * grid[None, :]
        return float(np.sum(weight * f(first) * f(second)))

    sigma = [input_scale * float(np.dot(p, q)) for p, q in ((x, x), (z, z), (x, z))]
    theta = weight_terms[0] * sigma[2] + bias_terms[0]
    for c_l, e_l in zip(weight_terms[1:], bias_terms[1:], strict=True):
        qx, qz, c = (w_std**2 * s + b_std**2 for s in sigma)
        sigma = [moment(activation, *args) for args in ((qx, qx, qx), (qz, qz, qz), (qx, qz, c))]
        theta = c_l * sigma[2] + e_l + w_std**2 * moment(derivative, qx, qz, c) * theta
    return theta


def pairs_at_angles(angles, dim, rng, dtype, ratio=3.0):
    """Rounded points at given angles and norms within a factor of 10, as float64 of what the dtype holds."""
    first, second = [], []
    for angle in angles:
        basis = np.linalg.qr(rng.normal(size=(dim, 2)))[0]
        x, z = basis[:, 0], math.cos(angle) * basis[:, 0] + math.sin(angle) * basis[:, 1]
        first.append((x * ratio ** rng.uniform(-1, 1)).astype(dtype))
        second.append((z * ratio ** rng.uniform(-1, 1)).astype(dtype))
    return np.stack(first), np.stack(second)
