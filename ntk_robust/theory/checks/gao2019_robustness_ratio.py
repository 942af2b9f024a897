"""How many points one pair of balls shatters at robustness ratio ρ: the factor d needs ρ close to 1."""

import itertools
from fractions import Fraction

import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import exact_claim
from ntk_robust.theory._report import Report

_RATIOS = tuple(Fraction(*pair) for pair in ((1, 2), (3, 5), (7, 10), (3, 4), (4, 5), (17, 20), (9, 10), (19, 20)))
_LARGEST = {"quick": 10, "full": 14}
_DIMENSION = 12


def _run(size: Size, key: Key[Array, ""]) -> Report:
    del key
    rows = [(ratio, shattered_by_one_pair(ratio, _LARGEST[size]), predicted_count(ratio)) for ratio in _RATIOS]
    return _report(rows, _LARGEST[size], "All arithmetic is on fractions.")


def _control(size: Size, key: Key[Array, ""]) -> Report:
    del key
    rows = [(ratio, shattered_by_one_pair(ratio, _LARGEST[size]), _DIMENSION) for ratio in _RATIOS]
    return _report(rows, _LARGEST[size], "Broken on purpose: d points, as for ρ → 1, claimed at every ρ.")


def _report(rows: list[tuple[Fraction, int, int]], largest: int, note: str) -> Report:
    conclusions = [
        exact_claim(f"points shattered by one pair, ρ={ratio}", found, "==", min(predicted, largest))
        for ratio, found, predicted in rows
    ]
    ratios = [float(ratio) for ratio, _, _ in rows]
    figure = Figure(
        name="robustness_ratio",
        title="Points shattered by one pair of balls",
        x_label="robustness ratio ρ = δ / half separation",
        y_label="points",
        series=(
            Series("found", ratios, [float(found) for _, found, _ in rows], style="points"),
            Series("1/(1 − ρ²)", ratios, [float(1 / (1 - ratio**2)) for ratio, _, _ in rows], style="dashed"),
        ),
        caption=f"Tried up to {largest} points. Without ρ → 1 the number does not grow with the dimension.",
    )
    table = Table(
        "robustness_ratio",
        "Points shattered by one pair",
        ("ρ", "found", "predicted", "upper bound for an even number of points"),
        [(float(ratio), found, predicted, int(1 + 1 / (1 - ratio**2)) // 2 * 2) for ratio, found, predicted in rows],
        caption="The last column bounds every construction with an isolated pair, whatever its points.",
    )
    return Report((), tuple(conclusions), (table,), (figure,), (note,))


def shattered_by_one_pair(ratio: Fraction, largest: int) -> int:
    """The largest k ≤ `largest` for which the k orthogonal points of item D8 are shattered at robustness ratio ρ.

    The half separation is 1, so δ = ρ; the points are e_j/√k, and a labeling s puts the data at ±Σ_j s_j e_j/√k.
    Multiplied by √k, all lengths are integers; every labeling of each k is tried, up to the common sign.
    """
    found = 0
    for count in range(1, largest + 1):
        radius_squared = count * ratio * ratio
        signs = np.array([(1, *rest) for rest in itertools.product((-1, 1), repeat=count - 1)])
        gaps = np.eye(count, dtype=int)[None] - signs[:, :, None] * signs[:, None, :]
        farthest = int(np.max(np.sum(gaps * gaps, axis=-1)))
        if farthest <= radius_squared:
            found = count
    return found


def predicted_count(ratio: Fraction) -> int:
    """⌊1/(1 − ρ²)⌋."""
    return int(1 / (1 - ratio * ratio))


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), section 6 (number recalled); item D8 of docs/theory/gao2019",
    statement=(
        "With data 2δ/ρ apart, the construction shatters min(d, ⌊1/(1 − ρ²)⌋) points per pair: for fixed ρ < 1 there "
        "is no factor d."
    ),
    run=_run,
    control=_control,
)
