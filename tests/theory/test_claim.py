"""The verdict of one claim, by table."""

import math
from fractions import Fraction

import numpy as np
import pytest

from ntk_robust.theory import Claim, Verdict, exact_claim, summation_error

S, V, I = Verdict.SUPPORTED, Verdict.VIOLATED, Verdict.INCONCLUSIVE

TABLE = [
    # measured, relation, predicted, uncertainty, resolution, verdict
    (0.9, "<=", 1.0, 0.01, 0.02, S),  # clear of the bound
    (1.0, "<=", 1.0, 0.0, 0.0, S),  # attained exactly
    (1.0 + 1e-12, "<=", 1.0, 0.0, 0.0, V),  # exact arithmetic overlooks nothing
    (1.005, "<=", 1.0, 0.01, 0.02, S),  # above, but by less than the resolution even at the far end
    (1.005, "<=", 1.0, 0.01, 0.01, I),  # the far end leaves the resolution
    (1.05, "<=", 1.0, 0.01, 0.2, V),  # beyond the noise is a violation, however coarse the resolution
    (1.05, "<=", 1.0, 0.1, 0.02, I),  # noise hides a violation
    (0.5, "<=", 1.0, 0.1, 0.02, I),  # noise larger than the resolution buys no support, not even far away
    (9.0, "<=", 1.0, 1.0, 0.02, V),  # and it does not hide a violation that is larger still
    (1.1, ">=", 1.0, 0.01, 0.02, S),
    (0.9, ">=", 1.0, 0.01, 0.02, V),
    (0.995, ">=", 1.0, 0.01, 0.02, S),
    (0.97, ">=", 1.0, 0.04, 0.02, I),
    (1.0, "==", 1.0, 0.0, 0.0, S),
    (1.01, "==", 1.0, 0.02, 0.05, S),
    (1.01, "==", 1.0, 0.02, 0.02, I),
    (1.01, "==", 1.0, 0.001, 0.05, V),  # departs by ten uncertainties: the resolution does not excuse it
    (1.0, "==", 1.0, 0.1, 0.05, I),
    (0.5, "in", (0.4, 0.6), 0.01, 0.02, S),
    (0.39, "in", (0.4, 0.6), 0.005, 0.02, V),
    (0.61, "in", (0.4, 0.6), 0.005, 0.02, V),
    (0.61, "in", (0.4, 0.6), 0.02, 0.05, S),
    (0.5, "in", (0.4, 0.6), 0.3, 0.05, I),
    (math.nan, "<=", 1.0, 0.0, 1.0, I),
    (0.0, "<=", 1.0, math.nan, 1.0, I),
    (math.inf, "<=", 1.0, 0.0, 1.0, V),
    (math.inf, "==", 1.0, 0.0, 1.0, V),
    (0.0, "<=", 1.0, math.inf, 1.0, I),
]


@pytest.mark.parametrize("row", TABLE)
def test_the_verdict_compares_the_interval(row):
    *fields, verdict = row
    assert Claim("c", *fields).verdict is verdict


@pytest.mark.parametrize("relation", ["<=", ">=", "==", "in"])
def test_what_is_inconclusive_stays_so_under_more_noise(relation):
    rng = np.random.default_rng(0)
    left = set()
    for measured, small, resolution in rng.normal(size=(300, 3)) * 0.1:
        predicted = (-0.05, 0.05) if relation == "in" else 0.0
        verdicts = [
            Claim("c", measured, relation, predicted, factor * abs(small), abs(resolution)).verdict
            for factor in (1, 2, 4, 8, 64)
        ]
        if I in verdicts:
            assert set(verdicts[verdicts.index(I) :]) == {I}
            left.add(verdicts[0])
    assert left == {S, V, I}


def test_a_greater_equal_claim_is_the_mirror_image_of_a_less_equal_claim():
    for measured, relation, predicted, uncertainty, resolution, verdict in TABLE:
        if relation == "<=":
            assert Claim("c", -measured, ">=", -predicted, uncertainty, resolution).verdict is verdict


def test_tightness_is_the_used_part_of_a_bound_and_a_bound_a_million_times_too_large_is_vacuous():
    assert Claim("c", 0.5, "<=", 2.0, 0.0, 0.0).tightness == 0.25
    assert Claim("c", 8.0, ">=", 2.0, 0.0, 0.0).tightness == 0.25
    assert Claim("c", -1.0, "<=", 2.0, 0.0, 0.0).tightness is None
    assert Claim("c", 1.0, "==", 1.0, 0.0, 0.0).tightness is None
    vacuous = Claim("c", 1.0, "<=", 1e6, 0.0, 0.0)
    assert vacuous.verdict is S
    assert vacuous.vacuous
    assert not Claim("c", 0.5, "<=", 1.0, 0.0, 0.0).vacuous


def test_exact_claims_take_integers_and_fractions_and_overlook_nothing():
    assert exact_claim("failures", 0, "==", 0).verdict is S
    assert exact_claim("failures", 1, "==", 0).verdict is V
    assert exact_claim("margin", Fraction(1, 3), ">=", 0).verdict is S


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c", 1.0, "<", 1.0, 0.0, 0.0), "'<'"),
        (("c", 1.0, "in", 1.0, 0.0, 0.0), "takes"),
        (("c", 1.0, "==", (0.0, 1.0), 0.0, 0.0), "takes"),
        (("c", 1.0, "in", (1.0, 0.0), 0.0, 0.0), "lower end first"),
        (("c", 1.0, "<=", math.inf, 0.0, 0.0), "finite"),
        (("c", 1.0, "<=", 1.0, -1.0, 0.0), "negative"),
        (("c", 1.0, "<=", 1.0, 0.0, math.nan), "negative"),
    ],
)
def test_impossible_claims_are_refused_with_the_value_that_came(arguments, message):
    with pytest.raises(Exception, match=message):
        Claim(*arguments)


def test_the_summation_bound_covers_the_rounding_of_a_hostile_sum():
    rng = np.random.default_rng(1)
    terms = rng.normal(size=5000) * 10.0 ** rng.integers(-8, 8, size=5000)
    naive = 0.0
    for term in terms:
        naive += term
    error = abs(Fraction(naive) - sum((Fraction(term) for term in terms), Fraction(0)))
    assert 0 < error <= summation_error(len(terms), float(np.abs(terms).sum()))
