"""Robust interpolation of any n points costs a VC dimension of about n d / 2: shattering in exact integers."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from ntk_robust._core import Table
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report

# (d, n) with floor(n/2) d = 12 points (13 for odd n), so that all labelings are tried.
_EXHAUSTIVE = ((3, 8), (3, 9), (4, 6), (6, 4), (12, 2))
_RANDOM = {"quick": ((64, 6), (1024, 2)), "full": ((64, 20), (256, 12), (1024, 8))}
_SIMPLEX = {"quick": (2, 3, 5), "full": (2, 3, 5, 8)}
_NUM_RANDOM_LABELINGS = 64


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(
        size, key, lambda d: Fraction(4 * d + 1, 4), "δ = d and γ = 1/4, for which δ² − distance² = d/2 + 7/16."
    )


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, lambda d: Fraction(2 * d), "Broken on purpose: the points of a pair are 4δ apart.")


def _report(size: Size, key: Key[Array, ""], half_separation: Callable[[int], Fraction], note: str) -> Report:
    cases = [(d, n, "all") for d, n in _EXHAUSTIVE] + [(d, n, "random") for d, n in _RANDOM[size]]
    outside, conclusions, rows = 0, [], []
    for (d, n, kind), case_key in zip(cases, jr.split(key, len(cases)), strict=True):
        points = (n // 2) * d + n % 2
        labelings = _labelings(points, kind, case_key)
        outcome = realize(d, n, half_separation(d), labelings)
        outside += np.sum(~outcome.separated)
        missed = np.sum(~outcome.forced)
        which = f"{kind} {len(labelings)} labelings of {points} points"
        conclusions.append(exact_claim(f"labelings not forced, d={d}, n={n}", missed, "==", 0, which))
        rows.append((d, n, points, kind, len(labelings), int(missed), outcome.slack))
    conclusions += [_simplex_claim(d) for d in _SIMPLEX[size]]
    columns = ("d", "n", "points", "which", "labelings", "not forced", "smallest (δ² − distance²)/δ²")
    return Report(
        hypotheses=(exact_claim("data sets with two points at most 2δ apart", outside, "==", 0),),
        conclusions=tuple(conclusions),
        tables=(Table("shattering", "Labelings that every robust interpolation class contains", columns, rows),),
        notes=(note, "All arithmetic is on integers and fractions."),
    )


class Outcome(NamedTuple):
    """What the construction does for each labeling.

    Attributes:
        separated: Whether the data set lies in S_δ: any two of its points more than 2δ apart.
        forced: Whether each shattered point lies in the closed δ-ball of a data point with the wanted label.
        slack: The smallest (δ² − distance²)/δ² over points and labelings.
    """

    separated: Bool[np.ndarray, " s"]
    forced: Bool[np.ndarray, " s"]
    slack: float


def realize(d: int, n: int, half_separation: Fraction, labelings: Int[np.ndarray, "s points"]) -> Outcome:
    """The construction of item D8 for δ = d, on integers.

    All lengths are multiplied by √d and by the denominator q of `half_separation` h, which makes them integers: the
    points are q d e_k around their center, the data ± q h (y_1, …, y_d), and (q √d δ)² = q² d³. Centers lie
    5 q d ⌈√d⌉ ≥ 5 q √d δ apart on the first axis; for odd n one more data point beyond them is its own shattered point.

    Args:
        d: Dimension.
        n: Number of data points.
        half_separation: h = δ + γ: half the distance of the two points of a pair, in the unit where δ = d.
        labelings: Signs ±1, one row for each labeling of the `shattered_points(d, n)` points.
    """
    pairs, q = n // 2, half_separation.denominator
    radius_squared = q * q * d**3
    step = 5 * q * d * (isqrt(d - 1) + 1)
    centers = np.zeros((pairs, 1, d), np.int64)
    centers[:, 0, 0] = step * np.arange(1, pairs + 1)
    signs = labelings[:, : pairs * d].reshape(-1, pairs, 1, d)
    offsets = half_separation.numerator * signs
    lone = np.zeros((len(labelings), n % 2, d), np.int64)
    data = np.concatenate([(centers + offsets)[:, :, 0], (centers - offsets)[:, :, 0], lone], axis=1)
    separated = np.ones(len(labelings), bool)
    for i, j in itertools.combinations(range(n), 2):
        separated &= np.sum((data[:, i] - data[:, j]) ** 2, axis=-1) > 4 * radius_squared
    points = q * d * np.eye(d, dtype=np.int64)
    # |p_k − s_k o|² = |p_k|² − 2 s_k p_k·o + |o|² for each point k of a pair and the offset o of its data
    inner = signs[:, :, 0] * (offsets[:, :, 0] @ points.T)
    squared = np.sum(points**2, axis=1) - 2 * inner + np.sum(offsets**2, axis=-1)
    slack = radius_squared - squared
    return Outcome(separated, np.all(slack >= 0, axis=(1, 2)), int(slack.min()) / radius_squared)


def simplex_labelings(d: int) -> tuple[int, int]:
    """How many labelings of the d + 1 vertices of a regular simplex one pair of points forces, and of how many.

    The vertices are v_k = e_k − 1/(d+1) in the hyperplane Σ x = 0 of R^{d+1}, and δ² = d. For a labeling s with
    mean s̄, g = s − s̄ has <g, v_k> = s_k − s̄, so that z = −(s̄/|g|²) g is equally far from both sides; the data are
    z ± λ g with the smallest rational λ of denominator 2^20 such that λ|g| > δ. All in fractions.
    """
    vertices = [[Fraction(int(i == k)) - Fraction(1, d + 1) for i in range(d + 1)] for k in range(d + 1)]
    forced = 0
    for signs in itertools.product((-1, 1), repeat=d + 1):
        mean = Fraction(sum(signs), d + 1)
        g = [sign - mean for sign in signs]
        norm_squared = sum((entry * entry for entry in g), Fraction(0))
        if norm_squared == 0:  # one label only: the centroid, and a second point far away
            forced += all(_squared(vertex) <= d for vertex in vertices)
            continue
        scale = Fraction(isqrt(int(d / norm_squared * 4**20)) + 1, 2**20)
        data = {s: [(s * scale - mean / norm_squared) * entry for entry in g] for s in (-1, 1)}
        apart = 4 * scale * scale * norm_squared > 4 * d
        inside = all(
            _squared([a - b for a, b in zip(vertex, data[sign], strict=True)]) <= d
            for vertex, sign in zip(vertices, signs, strict=True)
        )
        forced += apart and inside
    return forced, 2 ** (d + 1)


def _simplex_claim(d: int) -> Claim:
    forced, total = simplex_labelings(d)
    note = "one pair shatters d + 1 points; more is impossible, since a hyperplane separates its two balls"
    return exact_claim(f"labelings of d + 1 simplex vertices forced by one pair, d={d}", forced, "==", total, note)


def _squared(vector: list[Fraction]) -> Fraction:
    return sum((entry * entry for entry in vector), Fraction(0))


def _labelings(points: int, kind: str, key: Key[Array, ""]) -> Int[np.ndarray, "s points"]:
    if kind == "all":
        return np.array(list(itertools.product((-1, 1), repeat=points)), np.int64)
    return np.asarray(jr.rademacher(key, (_NUM_RANDOM_LABELINGS, points), "int64"))


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), section 6 (number recalled); item D8 of docs/theory/gao2019",
    statement=(
        "A class that robustly interpolates, with closed δ-balls, any n points more than 2δ apart under any labels has "
        "VC dimension at least ⌊n/2⌋ d, plus 1 for odd n; one pair alone shatters d + 1 points."
    ),
    run=_run,
    control=_control,
)
