"""Kernels of convolutional networks against finite networks and neural-tangents' own values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import NeuralTangentsKernel, analytic_nngp, analytic_ntk, load_neural_tangents
from ntk_robust.models import Convolutional, Erf, Tanh

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4 * 5 * 2)))
OPTIMIZED = {"xla_backend_optimization_level": 1}  # what conftest leaves out makes convolutions forty times slower


def kernels_of(model, x, key, num_draws):
    """NTK by the Jacobian and products of outputs, averaged over outputs, for several initializations."""

    def draw(key):
        params = model.init(key=key)
        outputs = jax.vmap(lambda x: model.apply(params, x))(x)
        rows = jax.vmap(lambda x: jax.jacobian(model.apply)(params, x))(x)
        flat = jnp.concatenate([leaf.reshape(*outputs.shape, -1) for leaf in jax.tree.leaves(rows)], axis=-1)
        k = outputs.shape[1]
        return jnp.einsum("iop,jop->ij", flat, flat) / k, outputs @ outputs.T / k

    draws = jax.jit(lambda keys: jax.lax.map(draw, keys), compiler_options=OPTIMIZED)
    return draws(jax.random.split(key, num_draws))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "b_std", "parameterization"),
    [("none", 0.3, "ntk"), ("average", 0.0, "ntk"), ("average", 0.3, "standard")],
)
def test_kernels_of_finite_networks_approach_the_analytic_ones_in_width(pooling, b_std, parameterization, key):
    errors = {}
    for channels in (8, 32):
        model = Convolutional(
            (4, 5, 2), channels, 2, 4, (3, 3), pooling, b_std=b_std, parameterization=parameterization
        )
        ntk, nngp = kernels_of(model, IMAGES, key, 60)
        for name, samples, kernel in (("ntk", ntk, analytic_ntk(model)), ("nngp", nngp, analytic_nngp(model))):
            exact = np.asarray(kernel.gram(IMAGES))
            noise = np.asarray(samples).std(axis=0, ddof=1) / np.sqrt(60)
            distance = np.abs(np.asarray(samples).mean(axis=0) - exact)
            # beside sampling noise a finite width leaves a bias of order depth over width
            assert np.all(distance <= 5 * noise + 3 / channels * exact.max())
            errors[name, channels] = np.sqrt(np.mean((np.asarray(samples) - exact) ** 2)) / exact.max()
    assert errors["ntk", 32] < 0.7 * errors["ntk", 8]
    # planted: the kernel of the other way of reading the last layer is far away
    other = dataclasses.replace(model, pooling="average" if pooling == "none" else "none")
    wrong = np.asarray(analytic_ntk(other).gram(IMAGES))
    assert np.any(np.abs(np.asarray(ntk).mean(axis=0) - wrong) > 0.2 * wrong.max())


@pytest.mark.slow
def test_values_are_those_of_neural_tangents_in_every_form_of_the_interface():
    stax = load_neural_tangents().stax
    model = Convolutional((4, 5, 2), 1, 1, "scalar", (3, 2), activation=Erf(), w_std=1.1, b_std=0.4)
    layers = [stax.Conv(7, (3, 2), padding="SAME", W_std=1.1, b_std=0.4), stax.Erf(), stax.Flatten()]
    expected = stax.serial(*layers, stax.Dense(1, W_std=1.1, b_std=0.4))[2](IMAGES.reshape(3, 4, 5, 2), None, "ntk")
    kernel = analytic_ntk(model)
    assert isinstance(kernel, NeuralTangentsKernel)
    matrix = jax.jit(kernel.gram)(IMAGES)
    np.testing.assert_allclose(matrix, expected, rtol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(jax.jit(kernel.gram)(IMAGES[:2], IMAGES), expected[:2], rtol=1e-12)
    np.testing.assert_allclose(jax.jit(kernel.diagonal)(IMAGES), jnp.diagonal(expected), rtol=1e-7)
    np.testing.assert_allclose(jax.jit(kernel)(IMAGES[0], IMAGES[2]), expected[0, 2], rtol=1e-12)


def test_activations_without_a_closed_form_are_refused_with_those_that_have_one():
    with pytest.raises(TypeError, match=r"Tanh.*take one of Relu"):
        analytic_ntk(Convolutional((4, 5, 2), 1, 1, 2, activation=Tanh()))
    with pytest.raises(ValueError, match="height=0"):
        Convolutional((0, 5, 2), 1, 1, 2)
