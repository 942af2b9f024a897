"""The remainder's extremal points and the random-feature network, against the library's own network and searches."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.models import DeepReluNet, DeepReluParams, PairedTwoLayerNet, Relu, Softplus, Tanh
from ntk_robust.theory.checks import gao2019_depth as depth
from ntk_robust.theory.checks import gao2019_random_features as features
from ntk_robust.theory.checks.gao2019_linearization_remainder import Bending, largest_found
from ntk_robust.theory.checks.gao2019_universality import degree_shares


def test_no_search_beats_the_bound_and_the_construction_comes_closer_than_a_search():
    rng, width, radius = np.random.default_rng(0), 64, 1.5
    z, signs = rng.normal(size=width), rng.choice(np.array([-1.0, 1.0]), width)
    found, error = largest_found(Bending(Softplus(), 0.25, 0.0, math.inf), z, signs, radius)
    bound = 0.25 * radius**2 / (2 * math.sqrt(width))

    def softplus(values: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, values)

    shifts = rng.normal(size=(2000, width))
    for _ in range(30):
        shifts *= radius / np.linalg.norm(shifts, axis=1, keepdims=True)
        slopes = 1 / (1 + np.exp(-z - shifts)) - 1 / (1 + np.exp(-z))
        shifts = shifts + 20 * radius * signs * slopes
    shifts *= radius / np.linalg.norm(shifts, axis=1, keepdims=True)
    searched = (softplus(z + shifts) - softplus(z) - shifts / (1 + np.exp(-z))) @ signs / math.sqrt(width)
    assert error < 1e-12
    assert 0.9 * np.max(searched) <= found <= bound
    assert np.max(searched) <= bound


def test_the_shift_of_a_construction_has_the_remainder_of_the_librarys_network(key):
    net = PairedTwoLayerNet(input_dim=3, width=16, activation=Tanh())
    params = net.init(key=key)
    x = jnp.array([0.6, 0.0, 0.8])
    z, signs = np.asarray(params.plus @ x), np.asarray(params.signs)
    inflection = math.atanh(1 / math.sqrt(3))
    layer = np.concatenate([z, z]), np.concatenate([signs, -signs])
    found, _ = largest_found(Bending(Tanh(), Tanh().smoothness, -inflection, inflection), *layer, 0.5)

    @jax.jit
    def remainder(shift: jax.Array) -> jax.Array:
        plus, minus = shift[:8, None] * x[None], shift[8:, None] * x[None]
        moved = eqx.tree_at(lambda p: (p.plus, p.minus), params, (params.plus + plus, params.minus + minus))
        output, slope = jax.jvp(lambda p: net.apply(p, x), (params,), (jax.tree.map(jnp.subtract, moved, params),))
        return net.apply(moved, x) - output - slope

    # One neuron carrying the whole budget is among the candidates.
    single = max(float(remainder(0.5 * sign * jnp.eye(16)[i])) for i in range(16) for sign in (-1.0, 1.0))
    assert single > 0
    assert found >= 0.5 * single
    assert found <= Tanh().smoothness * 0.25 / (2 * 4)


@pytest.mark.parametrize("name", ["softplus", "tanh"])
def test_the_kernel_agrees_with_a_monte_carlo_mean(name):
    bending = features._BENDINGS[name]
    x, z = features._circle(np.array([0.1, 2.0])), features._circle(np.array([0.4, 5.0]))
    found = features.kernel(bending, x, z, 0.125)
    weights = np.random.default_rng(0).normal(size=(200_000, 3))
    slope = lambda v: np.asarray(bending.activation.derivative(jnp.asarray(v)))  # noqa: E731
    samples = (slope(weights @ x.T)[:, :, None] * slope(weights @ z.T)[:, None, :]) * (x @ z.T)
    error = samples.std(axis=0) / math.sqrt(len(samples))
    assert np.all(np.abs(found - samples.mean(axis=0)) < 5 * error)


@pytest.mark.slow
def test_the_bounds_of_the_third_derivatives_are_attained_on_a_grid():
    points = jnp.linspace(-6, 6, 4001)
    for bending in features._BENDINGS.values():
        third = jax.vmap(jax.grad(jax.grad(bending.activation.derivative)))(points)
        assert bending.third * 0.999 <= float(jnp.max(jnp.abs(third))) <= bending.third * (1 + 1e-9)


@pytest.mark.slow
def test_the_errors_of_networks_agree_with_numpy(key):
    bending = features._BENDINGS["tanh"]
    centers, coefficients = features._centers()
    grid = features._circle(features._GRID_ANGLES)
    values = features.kernel(bending, grid, centers, 0.25) @ coefficients
    target = features.Target(jnp.asarray(centers), jnp.asarray(coefficients), jnp.asarray(values))
    nets = features.networks(PairedTwoLayerNet(3, 8, Tanh()), jr.split(key, 2), target, features._VARIANTS["sampled"])
    found = features.approximant_errors(nets, target)
    for index in range(2):
        weights, signs = np.asarray(nets.start.plus[index]), np.asarray(nets.params.signs[index])
        slopes = 1 / np.cosh(weights @ centers.T) ** 2
        c = (slopes * coefficients) @ centers
        moves = signs[:, None] / math.sqrt(8) * c
        hidden = np.tanh(grid @ (weights + moves).T) - np.tanh(grid @ (weights - moves).T)
        outputs = hidden @ signs / math.sqrt(8)
        average = 2 / 8 * np.sum((grid @ c.T) / np.cosh(grid @ weights.T) ** 2, axis=1)
        np.testing.assert_allclose(found.total[index], np.max(np.abs(outputs - values)), rtol=1e-9)
        np.testing.assert_allclose(found.linearization[index], np.max(np.abs(outputs - average)), rtol=1e-9)
        np.testing.assert_allclose(found.norm_squared[index], 2 * np.sum(moves**2), rtol=1e-12)
        np.testing.assert_allclose(found.largest[index], np.max(np.linalg.norm(c, axis=1)), rtol=1e-12)


def test_the_remainders_of_the_depth_check_are_those_of_the_librarys_network():
    rng = np.random.default_rng(0)
    network = depth.make_network(3, 16, rng)
    net = DeepReluNet(16, 16, 3, first_activation=False)  # the features that enter are its input
    params = DeepReluParams(jnp.eye(16), tuple(map(jnp.asarray, network.hidden)), jnp.asarray(network.readout))
    output, gradient = jax.value_and_grad(net.apply)(params, jnp.asarray(network.entering))
    inputs, before, value = depth.forward(network, network.hidden)
    np.testing.assert_allclose(value, output, rtol=1e-12)
    for layer, slope, entering in zip(
        gradient.hidden, depth.backward(network, network.hidden, before), inputs, strict=True
    ):
        np.testing.assert_allclose(np.outer(slope, entering), layer, atol=1e-13)
    reached = depth.largest_remainder(network, 4.0, slice(None), 20)
    assert depth.largest_remainder(network, 4.0, slice(0, 1), 20) > 0.0
    assert depth.largest_remainder(network, 1.0, slice(None), 20) < reached


def test_shares_of_degrees_from_hermite_coefficients_enclose_those_of_the_closed_form():
    nodes, weights = np.polynomial.legendre.leggauss(100)
    angles = np.pi / 2 * (nodes + 1)
    kernel = np.cos(angles) * (np.pi - angles) / np.pi  # of a ReLU, over its value at 1
    for degree, lower, upper in zip(range(8), *degree_shares(Relu(), 8, 400), strict=True):
        legendre = np.polynomial.legendre.Legendre.basis(degree)(np.cos(angles))
        share = (2 * degree + 1) / 2 * float(np.sum(np.pi / 2 * weights * np.sin(angles) * kernel * legendre))
        assert lower - 1e-12 <= share <= upper
        assert (lower > 1e-3) == (degree in (0, 1, 2, 4, 6))
