"""Kernels computed in other ways: recursions at 50 digits in the cosine, and quadrature in the plane."""

import functools
import math

import mpmath
import numpy as np

mpmath.mp.dps = 50

# Duals: E[σ(g)σ(g')] and E[σ'(g)σ'(g')] of preactivations with variances qx, qz and covariance c. All in the
# textbook form: cosines, inverse cosines, differences of nearly equal numbers.


def piecewise_linear(slope=0.0):
    """Of z for z > 0, else slope times z: slope 0 is ReLU, -1 the absolute value, 1 the identity."""
    a, b = (1 + mpmath.mpf(slope)) / 2, (1 - mpmath.mpf(slope)) / 2

    def dual(qx, qz, c):
        root = mpmath.sqrt(qx * qz)
        u = max(min(c / root, mpmath.mpf(1)), mpmath.mpf(-1))
        theta = mpmath.acos(u)
        kappa1 = (mpmath.sqrt(1 - u * u) + (mpmath.pi - theta) * u) / mpmath.pi
        return root * (a * a * u + b * b * (2 * kappa1 - u)), a * a + b * b * (1 - 2 * theta / mpmath.pi)

    return dual


def erf(qx, qz, c):
    """Williams 1997."""
    product = (1 + 2 * qx) * (1 + 2 * qz)
    return 2 / mpmath.pi * mpmath.asin(2 * c / mpmath.sqrt(product)), 4 / mpmath.pi / mpmath.sqrt(product - 4 * c * c)


def gelu(qx, qz, c):
    """By integration by parts: every factor g of an expectation becomes derivatives of the rest."""
    product = (1 + qx) * (1 + qz)
    both = mpmath.mpf(1) / 4 + mpmath.asin(c / mpmath.sqrt(product)) / (2 * mpmath.pi)
    density = 1 / (2 * mpmath.pi * mpmath.sqrt(product - c * c))
    first, second = c * density / (1 + qx), c * density / (1 + qz)  # E[g φ(g) Φ(g')] and its mirror image
    value = qx * (qz * density - c * first) + c * (both + second)
    return value, both + first + second + density * c / (product - c * c)


def sine(qx, qz, c):
    """Real and imaginary parts of a Gaussian's characteristic function."""
    decay = mpmath.exp(-(qx + qz) / 2)
    return decay * mpmath.sinh(c), decay * mpmath.cosh(c)


def cosine(qx, qz, c):
    """The sine's, exchanged."""
    return sine(qx, qz, c)[::-1]


def monomial(degree):
    """Of z^degree, by Stein's recursion over mixed moments."""

    def dual(qx, qz, c):
        @functools.cache
        def mixed(a, b):
            if a == 0:
                return mpmath.mpf(0) if b % 2 else mpmath.fac2(b - 1) * qz ** (b // 2)
            lower = (a - 1) * qx * mixed(a - 2, b) if a > 1 else 0
            return lower + (b * c * mixed(a - 1, b - 1) if b else 0)

        return mixed(degree, degree), degree**2 * mixed(degree - 1, degree - 1)

    return dual


def quadratic_relu(qx, qz, c):
    """Cho and Saul's arc-cosine kernels of order 2 and 1."""
    root = mpmath.sqrt(qx * qz)
    theta = mpmath.acos(max(min(c / root, mpmath.mpf(1)), mpmath.mpf(-1)))
    sin, cos = mpmath.sin(theta), mpmath.cos(theta)
    order2 = 3 * sin * cos + (mpmath.pi - theta) * (1 + 2 * cos * cos)
    return qx * qz * order2 / (2 * mpmath.pi), 2 * root * (sin + (mpmath.pi - theta) * cos) / mpmath.pi


def hermite(activation, derivative, num_terms=260):
    """Of a smooth activation of mpmath numbers, by its Hermite series with coefficients from the trapezoidal rule."""
    step = mpmath.mpf(1) / 10
    nodes = [k * step for k in range(-150, 151)]
    weights = [mpmath.exp(-g * g / 2) * step / mpmath.sqrt(2 * mpmath.pi) for g in nodes]

    @functools.cache
    def coefficients(std):
        rows = []
        for function in (activation, derivative):
            values = [function(std * g) for g in nodes]
            before, polynomial = [mpmath.mpf(0)] * len(nodes), list(weights)
            row = [mpmath.fdot(polynomial, values)]
            for k in range(num_terms - 1):
                up, down = 1 / mpmath.sqrt(k + 1), mpmath.sqrt(mpmath.mpf(k) / (k + 1))
                before, polynomial = (
                    polynomial,
                    [up * g * p - down * q for g, p, q in zip(nodes, polynomial, before, strict=True)],
                )
                row.append(mpmath.fdot(polynomial, values))
            rows.append(row)
        return rows

    def dual(qx, qz, c):
        stds = mpmath.sqrt(qx), mpmath.sqrt(qz)
        u = c / (stds[0] * stds[1])
        both = zip(coefficients(stds[0]), coefficients(stds[1]), strict=True)
        powers = [u**k for k in range(num_terms)]
        return tuple(mpmath.fdot(powers, [a * b for a, b in zip(x, z, strict=True)]) for x, z in both)

    return dual


def network_kernels(x, z, dual, *, weight_terms, bias_terms, w_std, b_std, input_scale):
    """NTK of (x,x), (z,z) and (x,z) of a fully connected network at 50 digits; points of any real numbers."""
    x, z = ([c if isinstance(c, mpmath.mpf) else mpmath.mpf(float(c)) for c in v] for v in (x, z))
    w2, b2 = mpmath.mpf(w_std) ** 2, mpmath.mpf(b_std) ** 2
    sigma = [mpmath.mpf(input_scale) * mpmath.fdot(p, q) for p, q in ((x, x), (z, z), (x, z))]
    theta = [mpmath.mpf(weight_terms[0]) * s + mpmath.mpf(bias_terms[0]) for s in sigma]
    for weight, bias in zip(weight_terms[1:], bias_terms[1:], strict=True):
        qx, qz, c = (w2 * s + b2 for s in sigma)
        moments = [dual(qx, qx, qx), dual(qz, qz, qz), dual(qx, qz, c)]
        sigma = [value for value, _ in moments]
        theta = [
            mpmath.mpf(weight) * value + mpmath.mpf(bias) + w2 * slope * t
            for (value, slope), t in zip(moments, theta, strict=True)
        ]
    return theta


def gradient(x, z, dual, **network):
    """Of the NTK with respect to x, by central differences at 50 digits along x and across it."""
    step = mpmath.mpf(10) ** -18
    point, other = ([mpmath.mpf(float(c)) for c in v] for v in (x, z))
    factor = mpmath.fdot(point, other) / mpmath.fdot(point, point)
    total = [mpmath.mpf(0)] * len(point)
    for direction in (point, [b - factor * a for a, b in zip(point, other, strict=True)]):
        length = mpmath.sqrt(mpmath.fdot(direction, direction))
        if length < mpmath.mpf(10) ** -40:
            continue  # parallel points: the mean of both sides of the cusp is 0
        unit = [c / length for c in direction]
        after, before = (
            network_kernels([c + s * u for c, u in zip(point, unit, strict=True)], other, dual, **network)[2]
            for s in (step, -step)
        )
        slope = (after - before) / (2 * step)
        total = [g + slope * u for g, u in zip(total, unit, strict=True)]
    return np.array([float(g) for g in total])


def relu_ntk(x, z, *, slope=0.0, **network):
    """The NTK of (x,x), (z,z) and (x,z) of a (leaky) ReLU network at 50 digits."""
    return network_kernels(x, z, piecewise_linear(slope), **network)


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
