"""Kernel predictors: values and gradients in closed form against the pair function, and what vmap makes of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.kernels import KernelPredictor, _predictor, analytic_nngp, analytic_ntk
from ntk_robust.models import Convolutional, Erf, FullyConnected

NUM_TRAIN, DIM = 9, 5
RELU = FullyConnected(DIM, 8, 2, "scalar")
BIASED = FullyConnected(DIM, 8, 1, "scalar", b_std=0.5)
KERNELS = {
    "zonal": analytic_ntk(RELU),
    "biased": analytic_ntk(BIASED),
    "erf": analytic_ntk(FullyConnected(DIM, 8, 1, "scalar", Erf())),
    "algebra": 0.5 * analytic_ntk(RELU) + analytic_nngp(BIASED) * analytic_nngp(RELU),
    "convolutional": analytic_ntk(Convolutional((1, 5, 1), 4, 1, "scalar")),
}


def make(name, key, *outputs, dtype=jnp.float64):
    x_train = jr.normal(key, (NUM_TRAIN, DIM), dtype)
    return KernelPredictor(KERNELS[name], x_train, jr.normal(jr.fold_in(key, 1), (NUM_TRAIN, *outputs), dtype))


def by_pairs(predictor, x):
    """f by its definition, pair by pair: differentiated automatically through the pair function."""
    return jnp.tensordot(jax.vmap(predictor.kernel, (None, 0))(x, predictor.x_train), predictor.dual, 1)


@pytest.mark.parametrize(
    "name", ["zonal", *(pytest.param(n, marks=pytest.mark.slow) for n in ("biased", "algebra", "erf"))]
)
def test_values_and_gradients_are_those_of_the_definition(name, key):
    predictor = make(name, key, 3)
    xs = 2 * jr.normal(jr.fold_in(key, 2), (4, DIM))
    weights = jnp.asarray([1.0, -2.0, 0.5])

    @jax.jit
    def both(xs):
        def of(function):
            return jax.vmap(jax.value_and_grad(lambda x: function(x) @ weights))(xs)

        return of(predictor), of(lambda x: by_pairs(predictor, x))

    (values, gradients), (expected, expected_gradients) = both(xs)
    np.testing.assert_allclose(values, expected, rtol=1e-11)
    np.testing.assert_allclose(gradients, expected_gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_one_point_many_points_and_tiles_of_points_agree(key, monkeypatch):
    predictor = make("zonal", key)
    xs = jr.normal(jr.fold_in(key, 2), (7, DIM))
    assert predictor(xs[0]).shape == ()
    at_once = jax.jit(jax.vmap(jax.value_and_grad(predictor)))(xs)
    monkeypatch.setattr(_predictor, "_PAIRS_AT_ONCE", 3 * NUM_TRAIN)
    in_tiles = jax.jit(jax.vmap(jax.value_and_grad(predictor.__call__)))(xs)  # tiles of 3, 3 and 1
    one_by_one = [jax.jit(jax.value_and_grad(predictor.__call__))(xs[0])]
    for whole, tiled in zip(at_once, in_tiles, strict=True):
        np.testing.assert_allclose(tiled, whole, rtol=1e-12)
    for i, (value, gradient) in enumerate(one_by_one):
        np.testing.assert_allclose(value, at_once[0][i], rtol=1e-12)
        np.testing.assert_allclose(gradient, at_once[1][i], rtol=1e-12)


def shapes_of(jaxpr):
    """Shapes of everything that a program computes."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_of(inner)


def test_nothing_of_the_size_of_points_times_training_points_times_dimension_is_made(key):
    predictor = make("zonal", key, 2)
    xs = jnp.ones((4, DIM))
    cube = (4, NUM_TRAIN, DIM)

    def program(function):
        gradients = jax.vmap(jax.grad(lambda x: jnp.sum(function(x))))
        return set(shapes_of(jax.make_jaxpr(gradients)(xs).jaxpr))

    closed = program(predictor)
    assert (4, NUM_TRAIN) in closed
    assert cube not in closed
    assert cube in program(lambda x: by_pairs(predictor, x))  # what is avoided, and what this test would catch


@pytest.mark.slow
def test_at_a_training_point_the_gradient_is_finite_and_leaves_that_point_out(key):
    predictor = make("zonal", key)
    x = predictor.x_train[3]
    gradient_of = jax.jit(lambda predictor: jax.grad(predictor)(x))
    gradient = gradient_of(predictor)
    others = eqx.tree_at(lambda p: p.dual, predictor, predictor.dual.at[3].set(0.0))
    # Along x itself the kernel with the point is linear in the norm; across, its cusp contributes nothing.
    radial = predictor.dual[3] * predictor.kernel(x, x) / jnp.vdot(x, x)
    np.testing.assert_allclose(gradient, gradient_of(others) + radial * x, rtol=1e-9)


@pytest.mark.slow
def test_a_kernel_that_is_more_than_norms_and_cosine_is_differentiated_automatically(key):
    predictor = make("convolutional", key)
    xs = jr.normal(jr.fold_in(key, 2), (3, DIM))
    found = jax.vmap(jax.grad(predictor))(xs)
    expected = jax.vmap(jax.grad(lambda x: predictor.kernel.gram(x[None], predictor.x_train)[0] @ predictor.dual))(xs)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_derivatives_that_are_not_offered_and_parts_that_do_not_fit_give_one_clear_error(key):
    predictor = make("zonal", key)
    x = jnp.ones(DIM)
    with pytest.raises(ValueError, match="with respect to the point only"):
        eqx.filter_grad(lambda predictor: predictor(x))(predictor)
    with pytest.raises(ValueError, match="float64 and dual float32"):
        KernelPredictor(predictor.kernel, predictor.x_train, predictor.dual.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"the point has shape \(3,\)"):
        predictor(jnp.ones(3))
