"""Harmonics that kernels lack, and explicit networks for functions of a kernel."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.expressiveness import harmonic_support, linearization_bound, random_feature_network, representer
from ntk_robust.kernels import analytic_ntk
from ntk_robust.models import PairedTwoLayerNet, Relu, Softplus, Tanh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "parity"), [(Relu(), "even and 1"), pytest.param(Tanh(), "odd", marks=pytest.mark.slow)]
)
def test_no_bias_free_kernel_has_all_degrees_on_the_sphere_and_each_has_them_on_the_slice(activation, parity):
    kernel = analytic_ntk(PairedTwoLayerNet(3, 8, activation))
    assert harmonic_support(kernel, 3, num_degrees=8).parity() == parity
    on_slice = harmonic_support(kernel, 3, num_degrees=8, constant=1 / math.sqrt(2))
    assert on_slice.parity() == "all"
    assert on_slice.margin > 0
    assert on_slice.dim == 2


def test_the_constant_must_leave_a_sphere():
    with pytest.raises(ValueError, match=r"constant is 1\.0"):
        harmonic_support(analytic_ntk(PairedTwoLayerNet(3, 8, Relu())), 3, num_degrees=4, constant=1.0)


def circle(angles: np.ndarray) -> jax.Array:
    return jnp.stack([jnp.cos(angles), jnp.sin(angles), jnp.ones_like(angles)], axis=1) / math.sqrt(2)


@pytest.mark.slow
def test_the_distance_from_initialization_is_the_norm_in_the_kernels_space(key):
    net = PairedTwoLayerNet(3, 4000, Softplus())
    centers, coefficients = circle(np.array([0.3, 2.0])), jnp.array([1.5, -1.0])
    norm = float(jnp.sqrt(coefficients @ analytic_ntk(net).gram(centers) @ coefficients))
    for draw in ("sampled", "orthogonal", "leverage"):
        found = random_feature_network(net, centers, coefficients, key=key, draw=draw)
        assert abs(float(found.displacement()) / norm - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw", ["orthogonal", *(pytest.param(draw, marks=pytest.mark.slow) for draw in ("sampled", "leverage"))]
)
def test_an_explicit_network_is_within_its_bound_of_the_average_that_it_linearizes(draw, key):
    net = PairedTwoLayerNet(3, 300, Softplus())
    centers, coefficients = circle(np.array([0.3, 2.0])), jnp.array([1.5, -1.0])
    found = random_feature_network(net, centers, coefficients, key=key, draw=draw)
    xs = circle(np.linspace(0, 6, 20))
    c = representer(net.activation, centers, coefficients, found.start.plus)
    averaged = found.importance[:, None] * (c @ xs.T) * net.activation.derivative(found.start.plus @ xs.T)
    error = np.max(np.abs(jax.vmap(found)(xs) - 2 / 300 * jnp.sum(averaged, axis=0)))
    third = 1 / (6 * math.sqrt(3))
    largest = float(jnp.max(found.importance))
    assert error <= linearization_bound(net, coefficients * largest, third=third)
    np.testing.assert_allclose(
        found.displacement() ** 2, 2 / 300 * jnp.sum(found.importance**2 * jnp.sum(c**2, axis=1)), rtol=1e-12
    )
    if draw == "orthogonal":
        block = np.asarray(found.start.plus[:3])
        np.testing.assert_allclose(block @ block.T, np.diag(np.sum(block**2, axis=1)), atol=1e-12)


@pytest.mark.slow
def test_moving_one_neuron_of_a_pair_costs_twice_the_norm_and_the_even_orders(key):
    net = PairedTwoLayerNet(3, 64, Softplus())
    centers, coefficients = circle(np.array([0.3])), jnp.array([2.0])
    both = random_feature_network(net, centers, coefficients, key=key)
    one = random_feature_network(net, centers, coefficients, key=key, paired=False)
    np.testing.assert_allclose(one.displacement() ** 2, 2 * both.displacement() ** 2)
    assert np.array_equal(one.params.minus, one.start.minus)
