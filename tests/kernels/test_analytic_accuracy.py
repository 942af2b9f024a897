"""Kernels, their distances and their derivatives against 50 digits, where points almost coincide or oppose."""

import math
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ntk_robust.kernels import AbstractKernel, analytic_ntk, rkhs_distance_squared
from ntk_robust.kernels._pairs import cross_pairs, rows
from ntk_robust.models import (
    Abs,
    Cos,
    Erf,
    FullyConnected,
    Gelu,
    LeakyRelu,
    Monomial,
    QuadraticRelu,
    Relu,
    Sin,
    Tanh,
)

sys.path.insert(0, str(Path(__file__).parent))
import oracles

_both = eqx.filter_jit(
    lambda kernel, x, z: jax.vmap(lambda a, b: (kernel(a, b), rkhs_distance_squared(kernel, a, b)))(x, z)
)
_gradients = eqx.filter_jit(lambda kernel, x, z: jax.vmap(jax.grad(kernel))(x, z))

ANGLES = [1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 0.5, 1.5, 2.5, math.pi - 1e-4, math.pi - 1e-8]
PIECEWISE = {Relu(): 0.0, LeakyRelu(0.3): 0.3, Abs(): -1.0}
SMOOTH = {
    Erf(): oracles.erf,
    Gelu(): oracles.gelu,
    Sin(): oracles.sine,
    Cos(): oracles.cosine,
    Monomial(3): oracles.monomial(3),
    QuadraticRelu(): oracles.quadratic_relu,
}
slow = pytest.mark.slow


def network(activation, depth, b_std=0.2, w_std=1.2, dim=784):
    model = FullyConnected(dim, 1, depth, "scalar", activation=activation, b_std=b_std, w_std=w_std)
    terms = {"weight_terms": [w_std**2] * (depth + 1), "bias_terms": [b_std**2] * (depth + 1)}
    return analytic_ntk(model), terms | {"w_std": w_std, "b_std": b_std, "input_scale": 1 / dim}


def largest_errors(kernel, dual, terms, dtype, angles=ANGLES):
    """Of the kernel relative to √(k(x,x) k(z,z)), and of the squared distance relative to itself."""
    x, z = (20.0 * v.astype(np.float64) for v in oracles.pairs_at_angles(angles, 784, np.random.default_rng(0), dtype))
    x, z = x.astype(dtype), z.astype(dtype)
    values, distances = (np.asarray(v) for v in _both(kernel, jnp.asarray(x), jnp.asarray(z)))
    assert values.dtype == distances.dtype == dtype
    of_value, of_distance = [], []
    for a, b, angle, value, distance in zip(x, z, angles, values, distances, strict=True):
        xx, zz, xz = oracles.network_kernels(a, b, dual, **terms)
        of_value.append(float(abs(float(value) - xz) / mpmath.sqrt(xx * zz)))
        if angle > (0.9e-4 if dtype is np.float32 else 0.9e-7):
            of_distance.append(float(abs(float(distance) / (xx + zz - 2 * xz) - 1)))
    return max(of_value), max(of_distance)


@pytest.mark.parametrize(
    ("activation", "depth", "b_std"),
    [
        pytest.param(Relu(), 20, 0.2, marks=slow),
        (LeakyRelu(0.3), 5, 0.0),
        *(
            pytest.param(activation, depth, b_std, marks=slow)
            for activation in PIECEWISE
            for depth in (1, 20)
            for b_std in (0.0, 1.0)
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_piecewise_linear_networks_meet_the_bars_at_every_angle_and_depth(activation, depth, b_std, dtype):
    kernel, terms = network(activation, depth, b_std, math.sqrt(2.0))
    of_value, of_distance = largest_errors(kernel, oracles.piecewise_linear(PIECEWISE[activation]), terms, dtype)
    assert of_value <= (3e-7 if dtype is np.float32 else 1e-14)
    assert of_distance <= (1e-2 if dtype is np.float32 else 1e-6)


@pytest.mark.parametrize("activation", [Erf(), *(pytest.param(a, marks=slow) for a in list(SMOOTH)[1:])], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_smooth_networks_keep_their_accuracy_as_points_meet(activation, dtype):
    kernel, terms = network(activation, 2)
    of_value, of_distance = largest_errors(kernel, SMOOTH[activation], terms, dtype)
    assert of_value <= (5e-6 if dtype is np.float32 else 1e-14)  # steep activations magnify the rounding of the norms
    assert of_distance <= (1e-3 if dtype is np.float32 else 1e-11)


def test_the_difference_of_three_values_would_lose_the_distance():
    kernel, terms = network(Erf(), 2)
    x, z = oracles.pairs_at_angles([1e-7], 784, np.random.default_rng(0), np.float64, ratio=1.0)
    xx, zz, xz = oracles.network_kernels(x[0], z[0], oracles.erf, **terms)
    naive = AbstractKernel.distance_squared(kernel, jnp.asarray(x[0]), jnp.asarray(z[0]))
    assert abs(float(float(naive) / (xx + zz - 2 * xz) - 1)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_by_hermite_series_keep_their_accuracy_as_points_meet(dtype):
    kernel, terms = network(Tanh(), 1, w_std=0.3)
    dual = oracles.hermite(mpmath.tanh, lambda v: mpmath.sech(v) ** 2, 120)
    of_value, of_distance = largest_errors(kernel, dual, terms, dtype, [1e-7, 1e-4, 0.5, 2.5])
    assert of_value <= (2e-6 if dtype is np.float32 else 1e-14)
    assert of_distance <= (1e-2 if dtype is np.float32 else 1e-6)


def exact_gradient(x, z, dual, terms):
    """With respect to x, by central differences at 50 digits."""
    step = mpmath.mpf(10) ** -18
    point = [mpmath.mpf(float(c)) for c in x]

    def value(i, sign):
        moved = [c + sign * step * (i == j) for j, c in enumerate(point)]
        return oracles.network_kernels(moved, z, dual, **terms)[2]

    return np.array([float((value(i, 1) - value(i, -1)) / (2 * step)) for i in range(len(x))])


CLOSE = np.array([1e-7, 1e-6, 1e-4, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-6])


def relative_errors(found, exact):
    return np.linalg.norm(np.asarray(found) - exact, axis=1) / np.linalg.norm(exact, axis=1)


@pytest.mark.parametrize(
    ("activation", "b_std"),
    [(Relu(), 0.0), pytest.param(Relu(), 0.3, marks=slow), pytest.param(Erf(), 0.3, marks=slow)],
    ids=repr,
)
def test_derivatives_are_as_accurate_as_the_direction_between_the_points(activation, b_std):
    # rounding the points' lengths turns the direction from one to the other by about epsilon over angle
    kernel, terms = network(activation, 2, b_std, dim=5)
    dual = oracles.erf if activation == Erf() else oracles.piecewise_linear(0.0)
    for dtype in (np.float64, np.float32):
        x, z = oracles.pairs_at_angles(CLOSE, 5, np.random.default_rng(1), dtype)
        exact = np.stack([exact_gradient(a, b, dual, terms) for a, b in zip(x, z, strict=True)])
        found = _gradients(kernel, jnp.asarray(x), jnp.asarray(z))
        assert found.dtype == dtype
        error, epsilon = relative_errors(found, exact), np.finfo(dtype).eps
        assert np.all(error <= 30 * epsilon + 0.5 * epsilon / np.sin(CLOSE)), error


def test_derivatives_of_matrices_are_accurate_beside_a_twin():
    kernel, terms = network(Relu(), 2, 0.0, dim=5)
    x, z = oracles.pairs_at_angles(CLOSE, 5, np.random.default_rng(1), np.float64)
    dual = oracles.piecewise_linear(0.0)
    exact = np.stack([exact_gradient(a, b, dual, terms) for a, b in zip(x, z, strict=True)])

    def trace(x, gram):
        return jnp.trace(gram(x, jnp.asarray(z)))

    # the fault that differences guard against, planted: tangents from the matrix product alone
    def product_only(x, z):
        points, others = rows(x), rows(z)
        pairs = cross_pairs(jax.lax.stop_gradient(points), jax.lax.stop_gradient(others))
        u = points.directions @ others.directions.T
        moved = jnp.where(pairs.acute, -1.0, 1.0) * (u - jax.lax.stop_gradient(u))
        return kernel.of_pairs(pairs._replace(complement=pairs.complement + moved, norm_x=points.lengths[:, None]))

    found, naive = (
        relative_errors(jax.jit(lambda x, gram=gram: jax.grad(trace)(x, gram))(jnp.asarray(x)), exact)
        for gram in (kernel.gram, product_only)
    )
    assert np.all(found <= 30 * 2.2e-16 + 0.5 * 2.2e-16 / np.sin(CLOSE)), found
    assert np.exp(np.mean(np.log(naive / found)[CLOSE < 1e-3])) > 2.0
    forward = jax.jvp(jax.jit(lambda x: trace(x, kernel.gram)), (jnp.asarray(x),), (jnp.asarray(z),))[1]
    np.testing.assert_allclose(forward, np.sum(exact * z), rtol=1e-12)


@pytest.mark.parametrize("b_std", [0.0, pytest.param(0.3, marks=slow)])
def test_derivatives_at_coincident_and_opposite_points_are_the_mean_of_the_directional_ones(b_std):
    kernel, terms = network(Relu(), 2, b_std, dim=5)
    x = np.random.default_rng(2).normal(size=5)
    dual = oracles.piecewise_linear(0.0)
    of_pair = jax.jit(jax.grad(kernel))
    of_matrix = jax.jit(jax.grad(lambda x, z: kernel.gram(x[None], z[None])[0, 0]))
    for z in (x, -x, 2.0 * x, -0.5 * x):
        # central differences are the mean of both sides of the cusp
        exact = exact_gradient(x, z, dual, terms)
        for found in (of_pair(jnp.asarray(x), jnp.asarray(z)), of_matrix(jnp.asarray(x), jnp.asarray(z))):
            np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-13)
