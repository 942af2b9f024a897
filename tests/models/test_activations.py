"""Activations against finite differences and dense grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust import models

SMOOTH = [
    models.Identity(),
    models.Erf(),
    models.Gelu(),
    models.Softplus(),
    models.Tanh(),
    models.Monomial(1),
    models.Monomial(2),
    models.Sin(),
    models.Cos(),
]
KINKED = [models.Relu(), models.LeakyRelu(0.2), models.LeakyRelu(-1.5), models.Abs(), models.QuadraticRelu()]
UNBOUNDED = [models.Monomial(3), models.Monomial(5)]
GRID = jnp.linspace(-15.0, 15.0, 120_001)


@pytest.mark.parametrize("activation", SMOOTH + KINKED + UNBOUNDED, ids=repr)
def test_the_derivative_is_what_automatic_differentiation_finds(activation):
    grad = jax.vmap(jax.grad(activation))
    off_the_kink = GRID[jnp.abs(GRID) > 1e-3]
    np.testing.assert_allclose(activation.derivative(off_the_kink), grad(off_the_kink), rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(activation.derivative(jnp.zeros(1)), grad(jnp.zeros(1)))


@pytest.mark.parametrize("activation", SMOOTH + KINKED, ids=repr)
def test_the_constants_are_the_suprema_on_a_dense_grid(activation):
    slopes = np.asarray(activation.derivative(GRID))
    curvatures = np.abs(np.diff(slopes)) / np.diff(np.asarray(GRID))
    if np.isfinite(activation.lipschitz):
        np.testing.assert_allclose(np.abs(slopes).max(), activation.lipschitz, rtol=1e-5)
    else:
        assert np.abs(slopes).max() > 5
    if np.isfinite(activation.smoothness):
        np.testing.assert_allclose(curvatures.max(), activation.smoothness, rtol=1e-5, atol=1e-9)
    else:
        assert curvatures.max() > 1000  # a jump of the slope over one grid step


@pytest.mark.parametrize("activation", SMOOTH + KINKED + UNBOUNDED, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_values_keep_the_dtype_and_stay_finite_far_out(activation, dtype):
    z = jnp.asarray([-1e4, -30.0, 0.0, 30.0, 1e4], dtype)
    assert activation(z).dtype == activation.derivative(z).dtype == dtype
    assert bool(jnp.all(jnp.isfinite(activation(z)) & jnp.isfinite(activation.derivative(z))))


def test_the_lower_tail_of_gelu_keeps_its_digits():
    # mpmath, 30 digits: -10 Φ(-10)
    np.testing.assert_allclose(models.Gelu()(jnp.asarray(-10.0)), -7.61985302416052606597e-23, rtol=1e-11)


def test_a_monomial_of_degree_zero_is_refused():
    with pytest.raises(ValueError, match="degree 0; give an integer of at least 1"):
        models.Monomial(0)
