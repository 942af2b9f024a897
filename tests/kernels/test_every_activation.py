"""Every named activation: analytic kernels against neural-tangents, 50 digits and quadrature, however layers train."""

import inspect
import math
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.kernels import analytic_nngp, analytic_ntk, load_neural_tangents

sys.path.insert(0, str(Path(__file__).parent))
import oracles

# The layer of neural-tangents and the moments at 50 digits, if there are any; quadrature has to do for the others.
ACTIVATIONS = {
    models.Identity(): (lambda stax: stax.Identity(), oracles.piecewise_linear(1.0)),
    models.Relu(): (lambda stax: stax.Relu(), oracles.piecewise_linear(0.0)),
    models.LeakyRelu(0.3): (lambda stax: stax.LeakyRelu(0.3), oracles.piecewise_linear(0.3)),
    models.Abs(): (lambda stax: stax.Abs(), oracles.piecewise_linear(-1.0)),
    models.Erf(): (lambda stax: stax.Erf(), oracles.erf),
    models.Gelu(): (lambda stax: stax.Gelu(), oracles.gelu),
    models.Softplus(): (None, None),
    models.Tanh(): (None, None),
    models.Monomial(3): (lambda stax: stax.Monomial(3), oracles.monomial(3)),
    models.QuadraticRelu(): (lambda stax: stax.RectifiedMonomial(2), oracles.quadratic_relu),
    models.Sin(): (lambda stax: stax.Sin(), oracles.sine),
    models.Cos(): (lambda stax: stax.Cos(), oracles.cosine),
}


def each(activations, *fast):
    """Parameters of a test, all but some of them slow."""
    return pytest.mark.parametrize(
        "activation", [a if a in fast else pytest.param(a, marks=pytest.mark.slow) for a in activations], ids=repr
    )


W_STD = 1.1
POINTS = np.random.default_rng(0).normal(size=(2, 2, 3))  # two pairs

_pairs = eqx.filter_jit(lambda kernels, x, z: [jax.vmap(kernel)(x, z) for kernel in kernels])


def network(activation, parameterization, b_std, trainable="all", depth=2):
    scales = {"w_std": W_STD, "b_std": b_std}
    return models.FullyConnected(3, 7, depth, 2, activation, parameterization, trainable=trainable, **scales)


def test_no_activation_is_left_out():
    named = {
        kind
        for kind in vars(models).values()
        if inspect.isclass(kind) and issubclass(kind, models.AbstractActivation) and not inspect.isabstract(kind)
    }
    assert named == {type(activation) for activation in ACTIVATIONS}


@pytest.mark.slow
@each([a for a, (layer, _) in ACTIVATIONS.items() if layer], models.Gelu())
def test_kernels_are_those_of_neural_tangents_in_both_parameterizations_with_and_without_biases(activation):
    layer, stax = ACTIVATIONS[activation][0], load_neural_tangents().stax
    depth = 1 if isinstance(activation, models.QuadraticRelu) else 2  # its kernel of two layers is nan
    ours, theirs = [], []
    for parameterization, b_std in (("ntk", 0.0), ("ntk", 0.3), ("standard", 0.0), ("standard", 0.3)):
        model = network(activation, parameterization, b_std, depth=depth)
        ours += [analytic_ntk(model), analytic_nngp(model)]
        dense = lambda width, p=parameterization, b=b_std: stax.Dense(width, W_STD, b or None, parameterization=p)  # noqa: E731
        kernel_fn = stax.serial(*[dense(7), layer(stax)] * depth, dense(2))[2]
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            both = kernel_fn(*(jnp.asarray(p) for p in POINTS), ("ntk", "nngp"))
        theirs += [jnp.diagonal(both.ntk), jnp.diagonal(both.nngp)]
    for found, expected in zip(_pairs(ours, *POINTS), theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
@each(ACTIVATIONS, models.Abs(), models.Tanh())
def test_trained_subsets_are_those_of_the_recursion_with_moments_of_its_own(activation):
    dual = ACTIVATIONS[activation][1]
    ours, expected = [], []
    for parameterization, b_std, trainable in (
        ("ntk", 0.3, "hidden"),
        ("standard", 0.0, "hidden"),
        ("standard", 0.3, (True, False, True)),
    ):
        model = network(activation, parameterization, b_std, trainable)
        ours.append(analytic_ntk(model))
        trains = np.array(model.layer_trainable, float)
        standard = parameterization == "standard"
        terms = {
            "weight_terms": list(trains * (np.array([3.0, 7.0, 7.0]) if standard else W_STD**2)),
            "bias_terms": list(trains * ((1.0 if standard else b_std**2) if b_std else 0.0)),
            "w_std": W_STD,
            "b_std": b_std,
            "input_scale": 1 / 3,
        }
        for x, z in zip(*POINTS, strict=True):
            if dual is None:
                numpy_of = lambda f: lambda v: np.asarray(f(jnp.asarray(v)))  # noqa: E731
                functions = numpy_of(activation), numpy_of(activation.derivative)
                expected.append(oracles.quadrature_ntk(x, z, *functions, **terms))
            else:
                expected.append(float(oracles.network_kernels(x, z, dual, **terms)[2]))
    np.testing.assert_allclose(np.ravel(_pairs(ours, *POINTS)), expected, rtol=1e-10)
    assert math.isfinite(sum(expected))
