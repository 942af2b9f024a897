"""Lines and ranges of activations, against evaluation at very many points and against the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ntk_robust import models
from ntk_robust.certify import _relaxation, _shapes
from ntk_robust.certify._relaxation import Slopes
from ntk_robust.certify._shapes import Interval

ACTIVATIONS = [
    models.Relu(),
    models.LeakyRelu(0.2),
    models.LeakyRelu(1.5),
    models.Abs(),
    models.Identity(),
    models.Tanh(),
    models.Erf(),
    models.Gelu(),
    models.Softplus(),
    models.Monomial(2),
    models.Monomial(3),
    models.QuadraticRelu(),
    models.Sin(),
    models.Cos(),
]
NUM_INTERVALS, NUM_POINTS = 400, 251  # 10^5 points for each activation and dtype


def name(activation):
    return type(activation).__name__ + str(getattr(activation, "slope", getattr(activation, "degree", "")))


def intervals(rng, dtype):
    """Narrow and wide, near 0 and far, of width 0, and with an end at a kink."""
    middle = rng.normal(size=NUM_INTERVALS) * rng.choice([0.1, 1.0, 4.0], NUM_INTERVALS)
    half = np.abs(rng.normal(size=NUM_INTERVALS)) * rng.choice([1e-6, 1e-2, 1.0, 5.0], NUM_INTERVALS)
    lower, upper = (middle - half).astype(dtype), (middle + half).astype(dtype)
    upper[:5], lower[5:10], lower[10:15] = lower[:5], 0, np.minimum(lower[10:15], 0)
    upper[10:15] = 0
    return np.minimum(lower, upper), np.maximum(lower, upper)


def points_of(lower, upper):
    share = np.linspace(0, 1, NUM_POINTS)[:, None]
    return np.clip((lower + (upper - lower) * share).astype(lower.dtype), lower, upper)


def violation(around, points, values):
    """By how much values leave the lines at points, at most 0 if they do not; in float64."""
    parts = [np.asarray(part, np.float64) for part in around]
    points, values = np.asarray(points, np.float64), np.asarray(values, np.float64)
    return max(np.max(parts[0] * points + parts[1] - values), np.max(values - parts[2] * points - parts[3]))


def everything(*arguments):
    return jax.tree.map(np.asarray, compute(*arguments))


@jax.jit
def compute(activation, lower, upper, shares):
    slopes = _shapes.slope_range(activation, lower, upper)
    anything = [slopes.lower + share * (slopes.upper - slopes.lower) for share in shares]
    return (
        _relaxation.lines(activation, lower, upper, _relaxation.tightest_slopes(activation, lower, upper)),
        _relaxation.lines(activation, lower, upper, Slopes(*anything)),
        _shapes.value_range(activation, lower, upper),
        slopes,
    )


USUAL = (models.Relu, models.Tanh)


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        pytest.param(s, dtype, id=f"{name(s)}-{dtype.__name__}", marks=() if isinstance(s, USUAL) else pytest.mark.slow)
        for s in ACTIVATIONS
        for dtype in (np.float32, np.float64)
        if dtype is np.float32 or isinstance(s, (*USUAL, models.Gelu))
    ],
)
def test_no_value_of_an_activation_leaves_its_lines_or_its_range(activation, dtype):
    rng = np.random.default_rng(0)
    lower, upper = intervals(rng, dtype)
    shares = rng.uniform(size=(2, NUM_INTERVALS)).astype(dtype)
    tightest, anything, values, slopes = everything(activation, lower, upper, shares)
    points = points_of(lower, upper)
    computed = np.asarray(activation(jnp.asarray(points)))
    assert violation(tightest, points, computed) <= 0
    assert violation(anything, points, computed) <= 0
    assert np.all((computed >= values.lower) & (computed <= values.upper))
    wide = upper - lower > 1e-2  # a secant of points that almost coincide is rounding
    secants = np.diff(computed[::50, wide].astype(np.float64), axis=0) / np.diff(points[::50, wide], axis=0)
    assert np.all((secants >= slopes.lower[wide] - 2e-3) & (secants <= slopes.upper[wide] + 2e-3))


def test_a_line_with_a_wrong_slope_is_noticed():
    rng = np.random.default_rng(1)
    lower, upper = intervals(rng, np.float64)
    for activation in (models.Relu(), models.Tanh()):
        around = everything(activation, lower, upper, rng.uniform(size=(2, NUM_INTERVALS)))[0]
        points = points_of(lower, upper)
        computed = np.asarray(activation(jnp.asarray(points)))
        wrong = around._replace(upper_slope=around.upper_slope * 1.01)
        assert violation(around, points, computed) <= 0 < violation(wrong, points, computed)
        wrong = around._replace(lower_slope=around.lower_slope + 0.01)
        assert violation(wrong, points, computed) > 0
        assert violation(around._replace(upper_offset=around.lower_offset), points, computed) > 0


def test_lines_of_relu_are_those_of_crown():
    lower, upper = np.array([-1.0, -3.0, -1.0, 0.5, -2.0]), np.array([2.0, 1.0, 1.0, 1.0, -0.5])
    around = everything(models.Relu(), lower, upper, np.zeros((2, 5)))[0]
    # u / (u - l), and 1 where u > -l; the line above passes through (l, 0)
    np.testing.assert_allclose(around.upper_slope, [2 / 3, 1 / 4, 1 / 2, 1, 0], atol=1e-15)
    np.testing.assert_allclose(around.upper_offset, [2 / 3, 3 / 4, 1 / 2, 0, 0], atol=1e-14)
    np.testing.assert_allclose(around.lower_slope, [1, 0, 0, 1, 0], atol=0)
    np.testing.assert_allclose(around.lower_offset, 0, atol=1e-14)


@pytest.mark.slow
def test_lines_of_a_convex_activation_are_chord_and_tangent_at_the_midpoint():
    lower, upper = np.array([-1.0, 0.5]), np.array([2.0, 1.5])
    around = everything(models.Softplus(), lower, upper, np.zeros((2, 2)))[0]
    softplus, middle = np.logaddexp(0, [lower, upper]), (lower + upper) / 2
    chord = (softplus[1] - softplus[0]) / (upper - lower)
    np.testing.assert_allclose(around.upper_slope, chord, atol=1e-12)
    np.testing.assert_allclose(around.upper_offset, softplus[0] - chord * lower, atol=1e-12)
    np.testing.assert_allclose(around.lower_slope, scipy.special.expit(middle), atol=1e-3)
    tangent_at_middle = np.logaddexp(0, middle)
    assert np.all(around.lower_slope * middle + around.lower_offset <= tangent_at_middle)
    np.testing.assert_allclose(around.lower_slope * middle + around.lower_offset, tangent_at_middle, atol=4e-4)


@pytest.mark.slow
def test_lines_of_tanh_touch_it_as_closely_as_any_can():
    lower, upper = np.array([-1.0, -0.3, 0.2]), np.array([2.0, 2.5, 1.0])
    around = everything(models.Tanh(), lower, upper, np.zeros((2, 3)))[0]
    points = points_of(lower, upper)
    for sign, slope, offset in ((1, *around[2:]), (-1, *around[:2])):
        gaps = sign * (np.asarray(slope) * points + np.asarray(offset) - np.tanh(points))
        assert np.all(gaps.min(axis=0) >= 0)
        assert np.all(gaps.min(axis=0) < 1.5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [models.Tanh(), models.Softplus()], ids=name)
def test_no_difference_of_paired_values_leaves_its_range_or_its_lines(activation):
    rng = np.random.default_rng(2)
    lower, upper = intervals(rng, np.float64)
    spread = np.abs(rng.normal(size=NUM_INTERVALS)) * 0.1
    moved, minus = Interval(-spread, 0.3 * spread), Interval(lower, upper)
    plus = Interval(lower + moved.lower, upper + moved.upper)

    @jax.jit
    def enclose(moved, plus, minus):
        factor = _shapes.slope_range(activation, *plus)
        found = _relaxation.difference_range(activation, moved, plus, minus)
        return found, factor, _relaxation.product_lines(factor, *moved)

    found, factor, product = jax.tree.map(np.asarray, enclose(moved, plus, minus))
    for _ in range(50):
        q = lower + (upper - lower) * rng.uniform(size=NUM_INTERVALS)
        t = moved.lower + (moved.upper - moved.lower) * rng.uniform(size=NUM_INTERVALS)
        p = np.clip(q + t, *plus)
        difference = np.asarray(activation(jnp.asarray(p)) - activation(jnp.asarray(q)))
        assert np.all((difference >= found.lower) & (difference <= found.upper))
        for s in factor:
            assert violation(product, p - q, np.asarray(s) * (p - q)) <= 1e-15
