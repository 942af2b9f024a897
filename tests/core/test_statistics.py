import numpy as np
import pytest
import scipy.stats

from ntk_robust._core import slope_fit

WIDTHS = np.array([64.0, 128.0, 256.0, 512.0])


def test_an_exact_power_law_gives_its_exponent_and_prefactor():
    fit = slope_fit(WIDTHS, np.stack([3.0 * WIDTHS**-0.5] * 4))
    assert fit.slope == pytest.approx(-0.5, abs=1e-12)
    assert fit.upper - fit.lower < 1e-12
    assert fit.max_log_residual < 1e-12
    np.testing.assert_allclose(fit.predict(WIDTHS), 3.0 * WIDTHS**-0.5)


def test_the_slope_is_that_of_linear_regression_on_all_points():
    y = np.exp(np.random.default_rng(1).normal(size=(5, 4))) * WIDTHS**0.3
    expected = scipy.stats.linregress(np.tile(np.log(WIDTHS), 5), np.log(y).ravel())
    fit = slope_fit(WIDTHS, y)
    assert fit.slope == pytest.approx(expected.slope)
    assert fit.log_prefactor == pytest.approx(expected.intercept)


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_interval_covers_the_true_exponent_as_often_as_it_says(seeds):
    rng, trials = np.random.default_rng(2), 400
    hits = 0
    for _ in range(trials):
        fit = slope_fit(WIDTHS, WIDTHS**-0.5 * np.exp(0.1 * rng.normal(size=(seeds, 4))), confidence=0.9)
        hits += fit.lower <= -0.5 <= fit.upper
    standard_error = np.sqrt(0.9 * 0.1 / trials)
    assert hits / trials > 0.9 - 4 * standard_error


def test_curvature_shows_in_the_residual():
    assert slope_fit(WIDTHS, np.stack([1.0 + 100.0 / WIDTHS] * 2)).max_log_residual > 0.05


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.array([2.0, 2.0]), np.ones((3, 2)), "different abscissae"),
        (np.array([1.0, 2.0]), np.ones((1, 2)), "at least two seeds"),
        (np.array([1.0, 2.0]), np.array([[1.0, -1.0], [1.0, 1.0]]), "y_by_seed"),
        (np.array([0.0, 2.0]), np.ones((3, 2)), "x has values"),
    ],
)
def test_impossible_measurements_are_refused_in_words(x, y, words):
    with pytest.raises(ValueError, match=words):
        slope_fit(x, y)
