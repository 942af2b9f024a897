"""Losses against closed forms in higher precision, their Lipschitz constants, and extreme inputs."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_robust import losses

SCALAR_LOSSES = [
    losses.Squared(),
    losses.Absolute(),
    losses.Huber(0.7),
    losses.Hinge(),
    losses.Logistic(),
    losses.Margin(),
]
LOGIT_LOSSES = [losses.CrossEntropy(), losses.Margin()]


def name_of(loss):
    return type(loss).__name__


def closed_form(loss, f, y):
    e = abs(f - y)
    return {
        "Squared": lambda: e**2 / 2,
        "Absolute": lambda: e,
        "Huber": lambda: e**2 / 2 if e <= 0.7 else 0.7 * (e - 0.35),
        "Hinge": lambda: max(0.0, 1 - y * f),
        "Logistic": lambda: float(mpmath.log1p(mpmath.exp(-mpmath.mpf(y * f)))),
        "Margin": lambda: -y * f,
    }[name_of(loss)]()


@pytest.mark.parametrize("loss", SCALAR_LOSSES, ids=name_of)
def test_scalar_losses_equal_their_closed_forms(loss):
    for f in (-30.0, -1.3, -0.2, 0.0, 0.31, 2.5, 40.0):
        for y in (-1.0, 1.0):
            assert float(loss(jnp.asarray(f), jnp.asarray(y))) == pytest.approx(closed_form(loss, f, y), rel=1e-14)


cross_entropy = jax.jit(losses.CrossEntropy())


@given(st.lists(st.floats(-60, 60), min_size=4, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_cross_entropy_equals_the_logarithm_of_softmax_in_fifty_digits(logits, data):
    label = data.draw(st.integers(0, 3))
    with mpmath.workdps(50):
        others = [mpmath.exp(mpmath.mpf(z) - mpmath.mpf(logits[label])) for j, z in enumerate(logits) if j != label]
        expected = float(mpmath.log1p(mpmath.fsum(others)))
    found = float(cross_entropy(jnp.asarray(logits, float), jnp.asarray(label)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_a_confident_float32_network_still_has_a_gradient():
    logits = jnp.asarray([60.0, 0.0, 1.0], jnp.float32)
    label = jnp.asarray(0)
    gradient = jax.jit(jax.grad(losses.CrossEntropy()))(logits, label)
    naive = jax.jit(jax.grad(lambda z: jax.nn.logsumexp(z) - z[label]))(logits)
    assert naive[0] == 0  # the fault this form avoids
    np.testing.assert_allclose(gradient[0], -(math.exp(-60) + math.exp(-59)), rtol=1e-5)
    np.testing.assert_allclose(gradient[2], math.exp(-59), rtol=1e-5)


@pytest.mark.parametrize("loss", LOGIT_LOSSES, ids=name_of)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_losses_of_logits_keep_dtype_and_have_finite_gradients_at_extreme_logits(loss, dtype):
    both = jax.jit(jax.value_and_grad(loss))
    for logits in ([1e30, -1e30, 0.0], [0.0, 1e30, 1e30], [0.0, 0.0, 0.0], [-1e30, 88.0, 1e4]):
        for label in range(3):
            value, gradient = both(jnp.asarray(logits, dtype), jnp.asarray(label))
            assert value.dtype == dtype
            assert bool(jnp.isfinite(value)), (logits, label)
            assert bool(jnp.isfinite(gradient).all()), (logits, label)


@pytest.mark.parametrize("loss", SCALAR_LOSSES, ids=name_of)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_losses_of_scalars_keep_dtype_and_have_finite_gradients_at_extreme_outputs(loss, dtype):
    both = jax.jit(jax.value_and_grad(loss))
    for f in (-1e15, -1.0, 0.0, 1.0, 1e15):
        value, gradient = both(jnp.asarray(f, dtype), jnp.asarray(1.0, dtype))
        assert value.dtype == dtype
        assert bool(jnp.isfinite(value))
        assert bool(jnp.isfinite(gradient))


@pytest.mark.parametrize("loss", [loss for loss in SCALAR_LOSSES if not isinstance(loss, losses.Squared)], ids=name_of)
def test_no_slope_of_a_scalar_loss_exceeds_its_lipschitz_constant(loss, key):
    outputs = 3 * jax.random.normal(key, (500,))
    for y in (-1.0, 1.0):
        slopes = jax.jit(jax.vmap(jax.grad(loss), (0, None)))(outputs, jnp.asarray(y))
        assert float(jnp.abs(slopes).max()) <= loss.lipschitz + 1e-12


@pytest.mark.parametrize("loss", LOGIT_LOSSES, ids=name_of)
def test_the_lipschitz_constant_of_a_logit_loss_bounds_its_gradient_and_is_reached(loss, key):
    logits = 20 * jax.random.normal(key, (500, 4))
    norms = np.linalg.norm(jax.jit(jax.vmap(jax.grad(loss), (0, None)))(logits, jnp.asarray(1)), axis=1)
    assert float(norms.max()) <= loss.lipschitz + 1e-12
    assert float(norms.max()) >= loss.lipschitz - 1e-3


def test_the_squared_loss_has_no_lipschitz_constant():
    assert losses.Squared().lipschitz == math.inf


def test_the_margin_is_negative_exactly_when_the_prediction_is_strictly_right(key):
    logits = jnp.round(2 * jax.random.normal(key, (300, 3)))  # rounded so that ties occur
    for label in range(3):
        margins = jax.vmap(losses.Margin(), (0, None))(logits, jnp.asarray(label))
        others = np.delete(np.asarray(logits), label, axis=1).max(axis=1)
        assert (np.asarray(margins) == 0).any()
        np.testing.assert_array_equal(np.asarray(margins < 0), np.asarray(logits)[:, label] > others)


def test_dlr_is_the_margin_over_the_spread_and_ignores_shift_and_scale():
    logits, label = jnp.asarray([1.0, 4.0, 3.0, 2.0]), jnp.asarray(2)
    assert float(losses.DLR()(logits, label)) == pytest.approx((4 - 3) / (4 - 2))
    assert float(losses.DLR()(1e4 * logits - 7, label)) == pytest.approx(0.5)
    pair = jnp.asarray([2, 0])
    assert float(losses.TargetedDLR()(logits, pair)) == pytest.approx((1 - 3) / (4 - (2 + 1) / 2))
    for loss, target in ((losses.DLR(), label), (losses.TargetedDLR(), pair)):
        assert bool(jnp.isfinite(jax.grad(loss)(jnp.zeros(4), target)).all())
        assert loss.lipschitz == math.inf


def test_huber_joins_its_two_pieces_with_equal_value_and_slope():
    loss = losses.Huber(0.5)
    below, above = (jax.value_and_grad(loss)(jnp.asarray(0.5 + s), jnp.asarray(0.0)) for s in (-1e-9, 1e-9))
    np.testing.assert_allclose(below, above, atol=2e-9)


@pytest.mark.parametrize(
    ("loss", "output", "target", "message"),
    [
        (losses.CrossEntropy(), jnp.zeros(()), jnp.asarray(0), "at least two logits"),
        (losses.CrossEntropy(), jnp.zeros(1), jnp.asarray(0), "at least two logits"),
        (losses.CrossEntropy(), jnp.zeros(3), jnp.asarray(1.0), "integer label"),
        (losses.Margin(), jnp.zeros(3), jnp.zeros(3), "integer label"),
        (losses.Margin(), jnp.zeros(()), jnp.asarray(1), "must be floating"),
        (losses.DLR(), jnp.zeros(2), jnp.asarray(0), "at least 3 logits"),
        (losses.TargetedDLR(), jnp.zeros(3), jnp.asarray([0, 1]), "at least 4 logits"),
        (losses.TargetedDLR(), jnp.zeros(4), jnp.asarray(0), "the pair"),
        (losses.Logistic(), jnp.zeros(3), jnp.asarray(1), "one scalar output"),
        (losses.Squared(), jnp.zeros(3), jnp.zeros(2), "output's shape"),
    ],
)
def test_a_target_that_does_not_fit_the_loss_gives_one_clear_error(loss, output, target, message):
    with pytest.raises(ValueError, match=message):
        loss(output, target)


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.inf, math.nan])
def test_hubers_threshold_must_be_positive_and_finite(threshold):
    with pytest.raises(ValueError, match="positive and finite"):
        losses.Huber(threshold)
