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
from ntk_robust.kernels._pairs import cross_pairs, pair, pairs_around, rejection, rows
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
    assert of_value <= (3e-7 if dtype is np.float32 else 1e-14)
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
    assert of_value <= (3e-7 if dtype is np.float32 else 1e-14)
    assert of_distance <= (1e-2 if dtype is np.float32 else 1e-6)


CLOSE = np.array([1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1.0, math.pi - 1e-3, math.pi - 1e-6, math.pi - 1e-8])


def relative_errors(found, exact):
    return np.linalg.norm(np.asarray(found) - exact, axis=1) / np.linalg.norm(exact, axis=1)


@pytest.mark.parametrize(
    ("activation", "depth", "b_std", "ratio"),
    [
        (Relu(), 2, 0.3, 1.0),
        *(
            pytest.param(activation, depth, b_std, ratio, marks=slow)
            for activation, depth, b_std, ratio in [
                (Relu(), 2, 0.0, 3.0),
                (LeakyRelu(0.3), 20, 0.3, 3.0),
                (Abs(), 3, 0.0, 1.0),
                (Erf(), 2, 0.3, 1.0),
            ]
        ),
    ],
    ids=repr,
)
def test_derivatives_are_as_accurate_as_the_kernel_at_every_angle(activation, depth, b_std, ratio):
    kernel, terms = network(activation, depth, b_std, dim=5)
    dual = oracles.erf if activation == Erf() else oracles.piecewise_linear(PIECEWISE[activation])
    for dtype in (np.float64, np.float32):
        x, z = oracles.pairs_at_angles(CLOSE, 5, np.random.default_rng(1), dtype, ratio)
        apart = np.any(x != z, axis=1)  # rounding to float32 makes some points equal
        exact = np.stack([oracles.gradient(a, b, dual, **terms) for a, b in zip(x, z, strict=True)])
        found = _gradients(kernel, jnp.asarray(x), jnp.asarray(z))
        assert found.dtype == dtype
        errors = relative_errors(found, exact)[apart]
        assert np.all(errors <= 40 * np.finfo(dtype).eps), errors / np.finfo(dtype).eps


def test_what_a_point_leaves_orthogonal_to_another_has_all_digits():
    def plain(x, z):  # the fault, planted: the products are rounded
        return z - x * (jnp.vdot(x, z) / jnp.vdot(x, x))

    for dtype in (np.float32, np.float64):
        epsilon = np.finfo(dtype).eps
        x, z = oracles.pairs_at_angles(np.geomspace(epsilon, 1.0, 9), 50, np.random.default_rng(3), dtype)
        exact = []
        for a, b in zip(x, z, strict=True):
            point, other = ([mpmath.mpf(float(c)) for c in v] for v in (a, b))
            factor = mpmath.fdot(point, other) / mpmath.fdot(point, point)
            exact.append([float(q - factor * p) for p, q in zip(point, other, strict=True)])
        found, rounded = jax.jit(lambda x, z: (jax.vmap(rejection)(x, z), jax.vmap(plain)(x, z)))(x, z)
        assert np.max(relative_errors(found, np.array(exact))) <= 20 * epsilon
        assert np.max(relative_errors(rounded, np.array(exact))) >= 0.01
        multiple = x * dtype(-4.0)
        left = jnp.linalg.norm(jax.vmap(rejection)(jnp.asarray(x), jnp.asarray(multiple)), axis=1)
        assert np.all(np.asarray(left) <= 100 * epsilon**2 * np.linalg.norm(multiple, axis=1))


@pytest.mark.parametrize("b_std", [0.0, pytest.param(0.3, marks=slow)])
def test_derivatives_of_matrices_are_accurate_beside_a_twin(b_std):
    kernel, terms = network(Relu(), 2, b_std, dim=5)
    x, z = oracles.pairs_at_angles(CLOSE, 5, np.random.default_rng(1), np.float64, 1.0)
    dual = oracles.piecewise_linear(0.0)
    exact = np.stack([oracles.gradient(a, b, dual, **terms) for a, b in zip(x, z, strict=True)])

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
    assert np.all(found <= 40 * 2.2e-16), found
    assert np.max(naive[CLOSE < 1e-5]) > 1e-10  # 1e5 times the bound
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
        exact = oracles.gradient(x, z, dual, **terms)
        for found in (of_pair(jnp.asarray(x), jnp.asarray(z)), of_matrix(jnp.asarray(x), jnp.asarray(z))):
            np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-13)


def test_smooth_kernels_of_float32_points_are_accurate_where_float64_is_switched_off():
    kernel, _ = network(Gelu(), 10, dim=20)
    x, z = (4.0 * v for v in oracles.pairs_at_angles(ANGLES, 20, np.random.default_rng(4), np.float32))
    wide = jnp.asarray(x, jnp.float64), jnp.asarray(z, jnp.float64)
    exact = jax.jit(jax.vmap(lambda a, b: kernel.of_pairs(pair(a, b))))(*wide)
    unit = np.sqrt(np.prod([kernel.diagonal(v) for v in wide], axis=0))
    with jax.enable_x64(False):
        found = jax.vmap(jax.jit(kernel))(x, z)  # batched outside of what was traced
        # the fault, planted: the recursion in float32
        rounded = jax.jit(jax.vmap(lambda a, b: kernel.of_pairs(pair(a, b))))(x, z)
    assert found.dtype == rounded.dtype == np.float32
    errors, errors_of_rounded = (np.max(np.abs(np.asarray(v, np.float64) - exact) / unit) for v in (found, rounded))
    assert errors <= 3e-7 < errors_of_rounded


@pytest.mark.slow
@pytest.mark.parametrize("activation", [Sin(), Tanh()], ids=repr)
def test_derivatives_and_diagonals_in_single_precision_are_those_in_double(activation):
    kernel, _ = network(activation, 2, dim=3)
    x, z = np.random.default_rng(5).normal(size=(2, 4, 3)).astype(np.float32)

    def everything(x, z):
        gradients = jax.vmap(jax.grad(jax.jit(kernel)))(x, z)
        if activation == Tanh():
            return (gradients,)
        curvature = jax.jvp(jax.grad(lambda v: kernel(v, z[0])), (x[0],), (x[1],))[1]
        return gradients, curvature, jax.grad(lambda v: jnp.sum(kernel.diagonal(v)))(x)

    expected = jax.jit(everything)(*(jnp.asarray(v, jnp.float64) for v in (x, z)))
    with jax.enable_x64(False):
        found = jax.jit(everything)(x, z)
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, exact, atol=2e-6 * float(np.max(np.abs(exact))))


@pytest.fixture(scope="module")
def clusters():
    """Points around one and around its opposite, twins among them, five times the same, and others."""
    rng = np.random.default_rng(5)
    centre = rng.normal(size=(1, 12))
    around = centre + 1e-3 * rng.normal(size=(20, 12))
    opposite = -2.0 * centre + 2e-2 * rng.normal(size=(10, 12))
    twins = around[:6] + 1e-6 * rng.normal(size=(6, 12))
    points = np.concatenate([around, opposite, twins, np.repeat(around[:1], 5, axis=0), rng.normal(size=(20, 12))])
    return np.asarray(points[rng.permutation(len(points))], np.float32)


@pytest.mark.parametrize("b_std", [0.0, 0.3])
@pytest.mark.parametrize("how", ["blocks", "whole", "rectangle", "differentiable"])
def test_matrices_of_clusters_are_as_accurate_as_pairs(how, b_std, clusters):
    kernel = analytic_ntk(FullyConnected(12, 1, 3, "scalar", b_std=b_std))
    wide = jnp.asarray(clusters, jnp.float64)
    exact = np.asarray(jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))(wide, wide))
    exact = exact / np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    x = jnp.asarray(clusters)
    match how:
        case "blocks":
            found = kernel.gram(x, out=jnp.full((len(x), len(x)), jnp.nan, jnp.float32))
        case "whole":
            found = kernel.gram(x)
        case "rectangle":
            found = kernel.gram(x[:40], x)
        case _:
            found = kernel.of_pairs(cross_pairs(rows(x), rows(x), same=True))
    scale = np.sqrt(np.asarray(kernel.diagonal(wide)))
    found = np.asarray(found, np.float64) / (scale[: len(found), None] * scale)
    close = 1.0 - np.abs(exact) < 3e-2
    assert close.sum() > 900
    error = np.abs(found - exact[: len(found)])
    assert error[close[: len(found)]].max() < 4e-7
    assert error.max() < 3e-6


def test_what_is_known_of_pairs_around_a_point_is_relatively_accurate(clusters):
    wide = jnp.asarray(clusters, jnp.float64)
    exact = jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(wide, wide)
    middle = int(jnp.argmax(jnp.sum(exact.complement < 1e-3, axis=1)))
    found = jax.jit(pairs_around)(clusters[middle], clusters, clusters)
    known = np.asarray(found.is_known) & ~np.eye(len(clusters), dtype=bool)
    assert known.sum() > 700
    same = (clusters[:, None] == clusters).all(axis=2)
    complement = np.asarray(found.complement, np.float64)
    np.testing.assert_array_equal(complement[known & same], 0.0)
    apart = known & ~same
    np.testing.assert_allclose(complement[apart], np.asarray(exact.complement)[apart], rtol=2e-5)
    lengths = np.linalg.norm(clusters, axis=1).max()
    np.testing.assert_allclose(np.asarray(found.gap)[apart], np.asarray(exact.gap)[apart], atol=1e-6 * lengths**2)
