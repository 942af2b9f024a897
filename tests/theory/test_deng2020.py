"""The parts of the checks on Deng et al. against what is not computed the same way."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.models import Tanh
from ntk_robust.theory.checks import deng2020_input_scale as scales
from ntk_robust.theory.checks._two_layer_landscapes import (
    SQUARE,
    Case,
    distinct,
    generator,
    make_problem,
    starts_in_ball,
)
from ntk_robust.theory.checks.deng2020_local_certificate import stationary_points
from ntk_robust.theory.checks.deng2020_local_rate import slowest_direction


def test_a_problem_has_the_scales_that_its_case_names():
    problem = make_problem(Case(Tanh(), 6, 5000, 0.7, 0.2), generator(jr.key(0)))
    assert float(jnp.std(problem.net.preactivations(problem.x))) == pytest.approx(0.7, rel=0.05)
    assert float(problem.epsilon) == pytest.approx(0.2 * 0.7 * 6**0.5)
    points = np.asarray(starts_in_ball(problem, 4000, np.random.default_rng(0)))
    norms = np.linalg.norm(points, axis=1) / float(problem.epsilon)
    assert norms.max() <= 1
    # Uniform: the sixth power of the norm is uniform on [0, 1].
    assert np.mean(norms**6) == pytest.approx(0.5, abs=0.03)


def test_distinct_points_are_those_that_differ_by_more_than_the_tolerance():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [1e-5, 0.0], [1.0, 1e-5], [0.0, 1.0]])
    assert len(distinct(points, 1e-3)) == 3
    assert len(distinct(points, 1e-6)) == 5
    assert distinct(points[:0], 1.0).shape == (0, 2)


def test_stationary_points_of_squares_have_radial_gradients_and_include_the_extremes_of_the_sphere():
    problem = make_problem(Case(SQUARE, 4, 20, 1.0, 1.0), generator(jr.key(1)))
    x, weights, readout = (np.asarray(part) for part in (problem.x, problem.net.weights, problem.net.readout))
    points, epsilon = stationary_points(problem), float(problem.epsilon)
    gradients = 2 * (readout * ((x + points) @ weights.T)) @ weights
    radial = np.sum(gradients * points, axis=1, keepdims=True) * points / epsilon**2
    np.testing.assert_allclose(gradients, radial, atol=1e-9 * np.abs(gradients).max())
    sphere = np.random.default_rng(0).normal(size=(20000, 4))
    sphere *= epsilon / np.linalg.norm(sphere, axis=1, keepdims=True)

    def outputs(deltas):
        return ((x + deltas) @ weights.T) ** 2 @ readout

    assert outputs(sphere).max() <= outputs(points).max() <= outputs(sphere).max() + 0.02 * np.ptp(outputs(sphere))
    assert outputs(sphere).min() >= outputs(points).min() >= outputs(sphere).min() - 0.02 * np.ptp(outputs(sphere))


def test_the_slowest_direction_is_the_tangent_with_the_largest_factor():
    problem = make_problem(Case(Tanh(), 5, 30, 1.0, 0.3), generator(jr.key(2)))
    maximum = np.array([0.3, -0.2, 0.1, 0.5, 0.4])
    direction = slowest_direction(problem, maximum, 10.0)
    assert abs(direction @ maximum) < 1e-10
    residual = float(problem.residual(jnp.asarray(maximum)))
    hessian = residual * np.asarray(problem.net.hessian(problem.x + jnp.asarray(maximum)))
    tangents = np.random.default_rng(0).normal(size=(2000, 5))
    tangents -= np.outer(tangents @ maximum, maximum) / (maximum @ maximum)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    factors = np.abs(1 + 10.0 * np.einsum("ni,ij,nj->n", tangents, hessian, tangents))
    assert factors.max() <= abs(1 + 10.0 * direction @ hessian @ direction) + 1e-12


@pytest.mark.parametrize("name", ["softplus", "tanh"])
def test_training_of_the_input_scale_is_gradient_descent_on_attacked_points(name):
    setting = scales.Setting(seeds=1, num_train=3, dim=4, width=5, steps=1, attack_steps=1)
    rates = np.full((len(scales._SCALES), 1), 0.3)
    found = scales.train(name, setting, rates, np.random.default_rng(0))[:, 0, :, 0]
    rng = np.random.default_rng(0)
    weights, signs = rng.normal(size=(5, 4)) / 2, rng.choice((-1.0, 1.0), 5) / 5**0.5
    xs = rng.normal(size=(3, 4))
    xs *= 2 / np.linalg.norm(xs, axis=1, keepdims=True)
    labels = rng.choice((-1.0, 1.0), 3)
    activation = {"softplus": jax.nn.softplus, "tanh": jnp.tanh}[name]

    def output(w, x):
        return activation(w @ x) @ signs

    def loss(w, points):
        return 0.5 * jnp.mean((jax.vmap(output, (None, 0))(w, points) - labels) ** 2)

    def attacked(w, points, epsilon):
        gradients = jax.vmap(jax.grad(lambda x, y: 0.5 * (output(w, x) - y) ** 2))(points, labels)
        return points + epsilon * gradients / jnp.linalg.norm(gradients, axis=1, keepdims=True)

    for i, scale in ((1, 0.3), (3, 3.0)):
        points = jnp.asarray(scale * xs)
        before = attacked(weights, points, 0.1 * scale * 2)
        assert found[0, i] == pytest.approx(float(loss(weights, before)), rel=1e-10)
        stepped = weights - 0.3 * jax.grad(loss)(jnp.asarray(weights), before)
        after = attacked(stepped, points, 0.1 * scale * 2)
        assert found[1, i] == pytest.approx(float(loss(stepped, after)), rel=1e-10)
