"""Convolutions are reordered for the CPU wherever they stand, and stay the same convolutions."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from ntk_robust._core import with_fast_convolutions
from ntk_robust._core._narrow_convolution import narrow_convolution


def network(weights, x):
    """Two layers in an order that XLA does not like; with groups where the filters of the second have them."""
    first, second = weights
    hidden = jax.nn.relu(lax.conv(x[None], first, (2, 1), "SAME"))
    groups = hidden.shape[1] // second.shape[1]
    out = lax.conv_general_dilated(hidden, second, (1, 1), "VALID", rhs_dilation=(1, 2), feature_group_count=groups)
    return jnp.sum(jnp.sin(out))


def descend(weights, xs, steps):
    """Gradients in weights and inputs, in a loop."""

    def step(_, carry):
        weights, xs = carry
        by_weights, by_inputs = jax.grad(
            lambda weights, xs: jnp.mean(jax.vmap(network, (None, 0))(weights, xs)), argnums=(0, 1)
        )(weights, xs)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, by_weights), xs + by_inputs

    return lax.fori_loop(0, steps, step, (weights, xs))


@pytest.fixture(scope="module", params=[1, 2])
def start(request):
    keys = jr.split(jr.key(0), 3)
    weights = jr.normal(keys[0], (4, 3, 3, 2)), jr.normal(keys[1], (6, 4 // request.param, 2, 2))
    return weights, jr.normal(keys[2], (2, 3, 6, 5))


def orders(function, *args):
    """The orders of dimensions of the convolutions in the compiled program."""
    return set(re.findall(r"dim_labels=(\S+?),", jax.jit(function).lower(*args).compile().as_text()))


def test_reordered_convolutions_in_a_loop_give_the_same_numbers(start):
    # One step, as the next ones amplify other roundings of the first.
    expected, found = jax.jit(descend)(*start, 1), jax.jit(with_fast_convolutions(descend))(*start, 1)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_every_convolution_in_a_loop_gets_the_order_that_is_fast(start):
    found, left_alone = orders(with_fast_convolutions(descend), *start, 3), orders(descend, *start, 3)
    assert "b01f_01io->b01f" in found
    assert all(order.startswith(("2b01f", "b0")) for order in found)  # groups become a dimension
    assert any(order.startswith("bf") for order in left_alone)


def test_a_function_without_convolutions_is_left_as_it_is(key):
    def double(tree):
        return {"twice": lax.fori_loop(0, 2, lambda _, x: x + tree["x"], jnp.zeros(3))}

    x = jr.normal(key, (3,))
    np.testing.assert_array_equal(with_fast_convolutions(double)({"x": x})["twice"], x + x)
    assert "conv" not in str(jax.make_jaxpr(with_fast_convolutions(double))({"x": x}))


@pytest.mark.parametrize(
    ("image", "filters", "padding"),
    [
        ((2, 5, 9, 3), (3, 3, 3, 2), [(1, 1), (1, 1)]),
        ((1, 6, 4, 1), (1, 1, 1, 5), [(0, 0), (0, 0)]),
        ((3, 7, 8, 2), (2, 5, 2, 1), [(0, 1), (2, 4)]),
        ((1, 6, 7, 7), (4, 2, 7, 3), [(3, 0), (-1, -2)]),
    ],
)
def test_a_narrow_convolution_is_xlas(image, filters, padding, key):
    images, filters = jr.normal(key, image), jr.normal(jr.fold_in(key, 1), filters)
    expected = lax.conv_general_dilated(images, filters, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(narrow_convolution(images, filters, padding), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "filters", "strides", "padding"),
    [
        ((2, 8, 8, 3), (3, 3, 3, 4), (2, 2), [(0, 1), (0, 1)]),
        ((1, 9, 7, 2), (3, 5, 2, 3), (2, 3), [(1, 1), (2, 2)]),
        ((2, 7, 10, 1), (1, 2, 1, 2), (3, 1), [(0, 0), (1, 0)]),
        ((1, 11, 9, 4), (4, 3, 4, 1), (4, 2), [(-2, 3), (1, -3)]),
    ],
)
def test_steps_and_dilations_are_those_of_xla(image, filters, strides, padding, key):
    images, filters = jr.normal(key, image), jr.normal(jr.fold_in(key, 1), filters)
    order = ("NHWC", "HWIO", "NHWC")

    def strided(images):
        return lax.conv_general_dilated(images, filters, strides, padding, dimension_numbers=order)

    def dilated(images):
        found = lax.conv_general_dilated(images, filters, (1, 1), padding, strides, dimension_numbers=order)
        return found, jax.vjp(strided, images)[1](strided(images))[0]

    for function in (strided, dilated):
        rewritten = with_fast_convolutions(function)
        for a, b in zip(jax.tree.leaves(rewritten(images)), jax.tree.leaves(function(images)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        program = str(jax.make_jaxpr(rewritten)(images))
        assert set(re.findall(r"(?:window_strides|lhs_dilation)=(\S+ \S+)", program)) <= {"(1, 1)"}


def narrow_network(weights, xs):
    return jnp.sum(jnp.sin(lax.conv(jax.nn.relu(lax.conv(xs, weights[0], (1, 1), "SAME")), weights[1], (1, 1), "SAME")))


def test_narrow_convolutions_and_their_gradients_in_the_inputs_become_matrix_products(key):
    weights = jr.normal(key, (5, 3, 3, 3)), jr.normal(jr.fold_in(key, 1), (4, 5, 5, 2))
    xs = jr.normal(jr.fold_in(key, 2), (2, 3, 6, 9))
    gradient = jax.grad(narrow_network, argnums=1)
    assert "conv_general_dilated" in str(jax.make_jaxpr(gradient)(weights, xs))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(with_fast_convolutions(gradient))(weights, xs))
    found, expected = with_fast_convolutions(gradient)(weights, xs), gradient(weights, xs)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
