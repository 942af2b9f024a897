"""Fits on surfaces: certified suprema against dense grids, and bounds of second derivatives against differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.expressiveness import TangentKernel, best_fit, rectangle, two_layer_bend, whole_sphere
from ntk_robust.expressiveness._expansion import make_expansion
from ntk_robust.kernels import analytic_ntk
from ntk_robust.models import PairedTwoLayerNet, Relu, Softplus

THIRD = 1 / (6 * math.sqrt(3))
NET = PairedTwoLayerNet(3, 64, Softplus())


def wave(x: jax.Array) -> jax.Array:
    return jnp.sin(2.0 * x[0]) * jnp.cos(x[1])


def square(kernel_bend: float):
    return rectangle((-1.0, -1.0), (1.0, 1.0), wave, target_bend=5.0, kernel_bend=kernel_bend)


@pytest.fixture(scope="module")
def tangent() -> TangentKernel:
    return TangentKernel(NET, NET.init(key=jax.random.key(0)))


def function(kernel, sets):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-1, 1, size=(6, 2)), np.ones((6, 1))], axis=1)
    gram = np.asarray(kernel.gram(jnp.asarray(points)))
    return make_expansion(kernel, points, rng.normal(size=6), gram)


def test_a_certified_supremum_is_above_a_dense_grid_and_within_the_gap(tangent, key):
    sets = square(tangent.bend(math.sqrt(3), third=THIRD))
    h = function(tangent, sets)
    worst = sets.worst(h, "error", 0.02, key)
    u, v = np.meshgrid(np.linspace(-1, 1, 101), np.linspace(-1, 1, 101))
    grid = np.stack([u.ravel(), v.ravel(), np.ones(101**2)], axis=1)
    dense = np.max(np.abs(h(grid) - np.sin(2 * grid[:, 0]) * np.cos(grid[:, 1])))
    assert dense <= worst.upper[0] <= np.max(worst.values) + 0.02 + 1e-9
    assert np.max(worst.values) <= dense + 0.02
    # the fault: bounds that are too small
    careless = rectangle((-1.0, -1.0), (1.0, 1.0), wave, target_bend=1e-3, kernel_bend=1e-3)
    assert careless.worst(h, "error", 0.02, key).upper[0] < dense


@pytest.mark.parametrize("finite", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_second_derivatives_of_features_are_within_their_bounds(finite, tangent):
    largest = math.sqrt(3)
    kernel = tangent if finite else analytic_ntk(NET)
    limit = tangent.bend(largest, third=THIRD) if finite else two_layer_bend(NET, largest, third=THIRD)
    rng, step, sizes = np.random.default_rng(1), 1e-3, []
    for _ in range(5):
        x, turn = np.append(rng.uniform(-1, 1, 2), 1.0), rng.uniform(0, 2 * np.pi)
        u = np.array([np.cos(turn), np.sin(turn), 0.0])
        gram = np.asarray(kernel.gram(jnp.asarray(np.stack([x - step * u, x, x + step * u]))))
        second = np.array([1.0, -2.0, 1.0])
        sizes.append(math.sqrt(max(second @ gram @ second, 0.0)) / step**2)
    assert 0.05 * limit <= max(sizes) <= limit


def test_features_move_no_faster_than_their_lipschitz_constant(tangent):
    rng = np.random.default_rng(2)
    xs = np.concatenate([rng.uniform(-1, 1, (40, 2)), np.ones((40, 1))], axis=1)
    gram = np.asarray(tangent.gram(jnp.asarray(xs)))
    moved = np.sqrt(np.maximum(np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram, 0.0))
    apart = np.linalg.norm(xs[:, None] - xs[None], axis=-1)
    limit = tangent.lipschitz(math.sqrt(3))
    assert 0.2 * limit <= np.max(moved / np.where(apart > 0, apart, 1.0)) <= limit


@pytest.mark.slow
def test_on_the_sphere_a_fit_is_certified_and_no_dense_grid_contradicts_it():
    def target(x: jax.Array) -> jax.Array:
        u = x[:3] / jnp.linalg.norm(x[:3])
        return u[0] * u[1] + 0.5 * u[2]

    kernel = analytic_ntk(PairedTwoLayerNet(4, 8, Softplus()))
    sets = whole_sphere(kernel, target, 2.5, 0.7)
    fit = best_fit(kernel, sets, 4.0, relative_gap=0.05)
    assert fit.converged
    points = np.random.default_rng(0).normal(size=(2000, 3))
    points = np.sqrt(1 - 0.49) * points / np.linalg.norm(points, axis=1, keepdims=True)
    points = np.concatenate([points, np.full((2000, 1), 0.7)], axis=1)
    outputs = np.asarray(kernel.gram(jnp.asarray(points), fit.points) @ fit.coefficients)
    dense = np.max(np.abs(outputs - np.asarray(jax.vmap(target)(jnp.asarray(points)))))
    assert 0.9 * fit.error_lower <= dense <= fit.error_upper <= 1.06 * fit.error_lower


def test_a_kernel_without_second_derivatives_is_refused_on_the_sphere():
    with pytest.raises(ValueError, match="no bounded second derivatives"):
        whole_sphere(analytic_ntk(PairedTwoLayerNet(4, 8, Relu())), wave, 2.5, 0.7)
    with pytest.raises(ValueError, match=r"kernel_bend inf"):
        square(math.inf)
