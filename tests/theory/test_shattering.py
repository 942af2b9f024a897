"""The integer constructions of item D8 against plain geometry in floating point."""

from fractions import Fraction

import numpy as np
import pytest

from ntk_robust.theory.checks.gao2019_robustness_ratio import predicted_count, shattered_by_one_pair
from ntk_robust.theory.checks.gao2019_shattering import realize, simplex_labelings


def geometry(d: int, n: int, half_separation: float, labels: np.ndarray) -> tuple[float, float]:
    """Smallest distance of two data points, and largest distance of a shattered point from its data point, δ = d."""
    data, farthest = [], 0.0
    for cluster in range(n // 2):
        signs = labels[cluster * d : (cluster + 1) * d]
        center = 7.0 * d * (cluster + 1) * np.eye(d)[0]
        pair = {sign: center + sign * half_separation * signs / np.sqrt(d) for sign in (-1, 1)}
        data += pair.values()
        for k in range(d):
            point = center + np.sqrt(d) * np.eye(d)[k]
            farthest = max(farthest, np.linalg.norm(point - pair[signs[k]]))
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(data) for b in data[:i]]
    return min(gaps), farthest


@pytest.mark.parametrize(("d", "n"), [(3, 4), (5, 2), (4, 6)])
@pytest.mark.parametrize("half", [Fraction(1, 4), Fraction(1, 100), Fraction(1, 2), Fraction(2)])
def test_the_integers_agree_with_geometry_in_floating_point(d, n, half):
    rng = np.random.default_rng(d * n)
    labelings = rng.choice([-1, 1], size=(5, n // 2 * d))
    outcome = realize(d, n, d + half, labelings)
    for labels, separated, forced in zip(labelings, outcome.separated, outcome.forced, strict=True):
        gap, farthest = geometry(d, n, float(d + half), labels)
        assert separated == (gap > 2 * d)
        assert forced == (farthest <= d)


def test_the_slack_is_the_one_of_the_proof():
    outcome = realize(6, 4, Fraction(25, 4), np.ones((1, 12), int))
    assert outcome.slack == float(Fraction(6, 2) + Fraction(7, 16)) / 36


def test_data_closer_than_two_radii_are_noticed():
    assert not realize(4, 2, Fraction(4), np.ones((1, 4), int)).separated.any()
    assert not realize(4, 2, Fraction(15, 4), np.ones((1, 4), int)).separated.any()


def test_a_simplex_is_shattered_by_one_pair_in_every_labeling():
    assert [simplex_labelings(d) for d in (2, 3, 4)] == [(8, 8), (16, 16), (32, 32)]


@pytest.mark.parametrize(("ratio", "count"), [(Fraction(9, 10), 5), (Fraction(4, 5), 2), (Fraction(99, 100), 8)])
def test_the_number_of_points_follows_the_robustness_ratio(ratio, count):
    assert shattered_by_one_pair(ratio, 8) == min(count, 8) == min(predicted_count(ratio), 8)


def test_at_the_ratio_where_a_point_is_gained_it_just_touches():
    # 1/(1 − ρ²) = 4 for ρ² = 3/4: 3/4 is no square of a fraction, so approach it from both sides.
    below, above = Fraction(8660, 10000), Fraction(8661, 10000)
    assert (shattered_by_one_pair(below, 5), shattered_by_one_pair(above, 5)) == (3, 4)
