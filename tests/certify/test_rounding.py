"""What floating point does to activations and sums, measured against the allowance that bounds make for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ntk_robust import models
from ntk_robust.certify import _shapes
from ntk_robust.certify._rounding import slack_factor


@pytest.mark.parametrize(
    ("activation", "reference"),
    [
        (models.Tanh(), np.tanh),
        (models.Erf(), scipy.special.erf),
        (models.Gelu(), lambda z: z * scipy.special.ndtr(z)),
        (models.Softplus(), lambda z: np.logaddexp(0, z)),
        (models.Sin(), np.sin),
        (models.Cos(), np.cos),
        (models.Monomial(3), lambda z: z**3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, models.AbstractActivation) else "",
)
def test_evaluation_in_float32_stays_within_half_of_the_assumed_rounding(activation, reference):
    z = np.concatenate([np.linspace(-12, 12, 200_000), np.geomspace(1e-6, 1, 2000)]).astype(np.float32)
    exact = reference(z.astype(np.float64))
    computed = np.asarray(jax.jit(activation)(jnp.asarray(z)), np.float64)
    unit = np.finfo(np.float32).eps * (np.abs(exact) + np.minimum(np.abs(z), 1))
    assert np.max(np.abs(computed - exact) / unit) < 0.5 * _shapes._EVALUATION_ULPS


def test_rounded_sums_stay_within_their_allowance_and_would_not_within_a_hundredth_of_it():
    rng = np.random.default_rng(0)
    worst = 0.0
    for num_terms in (3, 100, 1000):
        weights = rng.normal(size=(200, num_terms)).astype(np.float32)
        points = rng.normal(size=(num_terms, 50)).astype(np.float32)
        exact = weights.astype(np.float64) @ points.astype(np.float64)
        sizes = np.abs(weights).astype(np.float64) @ np.abs(points).astype(np.float64)
        for computed in (weights @ points, np.cumsum(weights[:, :, None] * points[None, :, :10], axis=1)[:, -1]):
            part = computed.shape[1]
            excess = np.abs(computed - exact[:, :part]) / (slack_factor(num_terms, np.float32) * sizes[:, :part])
            assert np.max(excess) < 1
            worst = max(worst, float(np.max(excess)))
    assert worst > 0.01


def test_dtypes_and_lengths_without_a_useful_allowance_are_refused():
    with pytest.raises(ValueError, match="float16"):
        slack_factor(10, np.float16)
    with pytest.raises(ValueError, match="1000000 terms"):
        slack_factor(10**6, np.float32)
