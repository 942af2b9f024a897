"""Constants of a ball against its points, both maxima against ascent, the law of curvature against random networks."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from ntk_robust.landscape import (
    TwoLayer,
    ascent_limit,
    ball_bounds,
    curvature_law,
    curvature_statistics,
    local_maximum_of_cube,
    local_quadratic_maximum,
    projected_gradient_ascent,
    quadratic_maximum,
    two_maxima,
)
from ntk_robust.models import Erf, Monomial, Softplus, Tanh

D, M = 5, 30


def gaussian(activation, scale, dim=D, width=M, seed=0):
    rng = np.random.default_rng(seed)
    weights, readout = rng.normal(size=(width, dim)) / dim**0.5, rng.choice([-1.0, 1.0], width) / width**0.5
    point = rng.normal(size=dim)
    point *= scale * dim**0.5 / np.linalg.norm(point)
    zeros = jnp.zeros(width)
    return TwoLayer(jnp.asarray(weights), zeros, jnp.asarray(readout), jnp.zeros(()), activation), jnp.asarray(point)


@pytest.mark.slow
def test_no_point_of_a_ball_breaks_its_bounds_and_both_maxima_are_where_ascent_ends():
    net, x = gaussian(Tanh(), 0.4)
    epsilon, rng = 0.3, np.random.default_rng(1)
    bounds, found = eqx.filter_jit(lambda: (ball_bounds(net, x, epsilon), two_maxima(net, x, epsilon)))()
    points = rng.normal(size=(2000, D))
    points *= epsilon * rng.uniform(size=(2000, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    z = np.asarray(net.weights) @ (np.asarray(x) + points).T
    a, w = np.asarray(net.readout), np.asarray(net.weights)
    slopes = np.linalg.norm(w.T @ (a[:, None] * (1 - np.tanh(z) ** 2)), axis=0)
    bends = -2 * np.tanh(z) * (1 - np.tanh(z) ** 2)
    eigenvalues = np.linalg.eigvalsh(np.einsum("jn,jk,jl->nkl", a[:, None] * bends, w, w))
    assert slopes.max() <= float(bounds.slope_upper)
    assert slopes.min() >= float(bounds.slope_lower) > 0
    assert eigenvalues.max() <= float(bounds.bends_up)
    assert -eigenvalues.min() <= float(bounds.bends_down)
    target = float(net(x)) + 0.05
    residuals = a @ np.tanh(z) - target
    assert np.abs(residuals).max() <= float(bounds.residual_upper(target))
    assert float(bounds.contraction) < 1
    assert bool(bounds.has_at_most_two_maxima)
    assert bool(found.certified)
    assert float(found.largest_loss(target)) >= 0.5 * (residuals**2).max()

    def loss(delta):
        return 0.5 * (net(x + delta) - target) ** 2

    step = 1 / bounds.lipschitz(target)
    ascend = jax.jit(lambda start: ascent_limit(loss, epsilon, start, step_size=step, num_steps=4000))
    for start, residual in zip(points[:4], residuals[:4], strict=True):
        np.testing.assert_allclose(ascend(jnp.asarray(start)), found.basin(residual), atol=1e-9)
    trajectory = projected_gradient_ascent(loss, epsilon, jnp.asarray(points[0]), step_size=step, num_steps=3)
    short = ascent_limit(loss, epsilon, jnp.asarray(points[0]), step_size=step, num_steps=3)
    np.testing.assert_array_equal(short, trajectory.deltas[-1])
    # In a ball that is far too large nothing is certain.
    wide = eqx.filter_jit(lambda: ball_bounds(net, x, 30.0))()
    assert not bool(wide.has_at_most_two_maxima)
    assert float(wide.slope_lower) == 0.0
    assert float(wide.contraction) == np.inf


@pytest.mark.slow
def test_a_point_of_the_cube_is_a_maximum_where_no_neighbor_is_better():
    matrix = jnp.asarray([[2.0, 0.3, 0.0], [0.3, -1.0, 0.2], [0.0, 0.2, -0.5]])
    slope = jnp.asarray([0.1, 0.2, 1.5])

    def loss(delta):
        return slope @ delta + 0.5 * delta @ matrix @ delta

    verdict = jax.jit(lambda delta: local_maximum_of_cube(loss, 1.0, delta))
    # Every face: signs of the bound coordinates, 0 for a free one, which takes its stationary value.
    strict = 0
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=3):
        bound = np.array(signs)
        free = bound == 0
        point = bound.copy()
        if free.any():
            sub = np.asarray(matrix)[np.ix_(free, free)]
            point[free] = np.linalg.solve(sub, -(np.asarray(slope) + np.asarray(matrix) @ bound)[free])
        if np.abs(point).max() > 1:
            continue
        found = verdict(jnp.asarray(point))
        assert float(found.residual) < 1e-12
        moves = np.random.default_rng(0).normal(size=(500, 3)) * 1e-4
        moved = np.clip(point + moves, -1, 1)
        values = np.asarray(jax.vmap(loss)(jnp.asarray(moved)))
        assert bool(found.is_strict) == bool(values.max() <= float(loss(jnp.asarray(point))))
        assert (float(found.curvature) == -np.inf) == (not free.any())
        strict += bool(found.is_strict)
    assert strict == 2


@pytest.mark.slow
def test_moments_of_the_law_are_integrals_and_its_limits_are_those_of_random_matrices():
    def density(z):
        return np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5

    law = curvature_law(Softplus(), 2.0)
    slope = integrate.quad(lambda z: density(z) / (1 + np.exp(-2 * z)) ** 2, -12, 12)[0]
    bend = integrate.quad(lambda z: density(z) * z**2 / (2 + 2 * np.cosh(2 * z)) ** 2, -12, 12)[0]
    assert law.slope == pytest.approx(slope, rel=1e-9)
    assert law.weighted_curvature == pytest.approx(bend, rel=1e-9)
    assert curvature_law(Tanh(), 1e-3).edge == pytest.approx(3 / 2**0.5, rel=1e-5)
    assert curvature_law(Erf(), 1e-3).relative(0.1) == pytest.approx(
        0.01 * curvature_law(Erf(), 1e-2).relative(0.1), rel=1e-3
    )
    assert curvature_law(Softplus(), 0.05).edge == 2.0
    # Half the distance of the extreme eigenvalues: their common shift dies out slowly with the dimension.
    statistics = eqx.filter_jit(curvature_statistics)
    halves = []
    for seed in range(4):
        net, x = gaussian(Tanh(), 0.05, dim=100, width=20000, seed=seed)
        epsilon = 0.1 * float(jnp.linalg.norm(x))
        found = statistics(net, x, epsilon)
        halves.append(epsilon * float((found.highest - found.lowest) / 2 / found.slope))
        assert halves[-1] <= float(found.relative) <= 1.3 * halves[-1]
    assert np.mean(halves) == pytest.approx(curvature_law(Tanh(), 0.05).relative(0.1), rel=0.06)


@pytest.mark.slow
def test_the_maximum_that_is_not_global_is_the_one_that_many_ascents_find():
    hessian, gradient = jnp.diag(jnp.asarray([4.0, 1.0, -2.0])), jnp.asarray([0.1, 0.3, 0.2])
    found, best = eqx.filter_jit(
        lambda: (local_quadratic_maximum(gradient, hessian, 1.0), quadratic_maximum(gradient, hessian, 1.0))
    )()

    def value(delta):
        return gradient @ delta + 0.5 * delta @ hessian @ delta

    starts = np.random.default_rng(0).normal(size=(40, 3))
    starts = jnp.asarray(starts / np.linalg.norm(starts, axis=1, keepdims=True))
    ends = jax.jit(jax.vmap(lambda start: ascent_limit(value, 1.0, start, step_size=0.3, num_steps=500)))(starts)
    candidates = np.stack([np.asarray(best.delta), np.asarray(found.delta)])
    distances = np.linalg.norm(np.asarray(ends)[:, None] - candidates[None], axis=2)
    assert distances.min(axis=1).max() < 1e-8
    assert set(distances.argmin(axis=1)) == {0, 1}
    assert float(found.value) == pytest.approx(float(value(found.delta)), rel=1e-12)
    assert 1.0 <= float(found.multiplier) < 4.0
    steep = eqx.filter_jit(lambda: local_quadratic_maximum(10 * gradient, hessian, 1.0))()
    assert np.isnan(float(steep.value))


@pytest.mark.slow
def test_bounds_of_a_square_are_those_of_its_hessian():
    net, x = gaussian(Monomial(2), 1.0)  # pyright: ignore[reportCallIssue]
    bounds = ball_bounds(net, x, 0.2)
    eigenvalues = np.linalg.eigvalsh(np.asarray(net.hessian(x)))
    assert float(bounds.bends_up) == pytest.approx(eigenvalues[-1], rel=1e-9)
    assert float(bounds.bends_down) == pytest.approx(-eigenvalues[0], rel=1e-9)
    assert float(bounds.steps_to_sphere(float(net(x)) - 1.0)) > 0
