"""T6: independent points lie close together, so that zero adversarial training error forces tiny radii."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._overfitting import host_rng


class _Sizes(NamedTuple):
    nums: tuple[int, ...]
    dims: tuple[int, ...]
    num_draws: int


_SIZES = {"quick": _Sizes((10, 40), (1, 2, 8), 4000), "full": _Sizes((10, 40, 160), (1, 2, 8, 64), 20000)}
# n, d, number of draws, key -> points
_Draw: TypeAlias = Callable[[int, int, int, Key[Array, ""]], np.ndarray]
# Levels of n² (2t)^d / 2, the expected number of close pairs in the limit: e^-level is the Poisson limit.
_LEVELS = (0.25, 1.0, 3.0)
_STANDARD_ERRORS = 4.0
_EDGE = 1e-12


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, lambda n, d, count, k: host_rng(k).uniform(size=(count, n, d)), key, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    def jittered(n: int, d: int, count: int, k: Key[Array, ""]) -> np.ndarray:
        """One point in each of n cells of the first axis, in its middle half."""
        shares = host_rng(k).uniform(size=(count, n, d))
        shares[..., 0] = (np.arange(n) + 0.25 + 0.5 * shares[..., 0]) / n
        return shares

    note = "Broken on purpose: the points are spread over a grid of cells, not independent."
    return _report(size, jittered, key, (note,))


def _report(size: Size, draw: _Draw, key: Key[Array, ""], notes: tuple[str, ...]) -> Report:
    sizes = _SIZES[size]
    conclusions, rows, series = [], [], []
    means: dict[int, list[float]] = {d: [] for d in sizes.dims}
    for d in sizes.dims:
        for n in sizes.nums:
            num_draws = max(1000, sizes.num_draws * 40 // (n * d)) if d > 1 else sizes.num_draws
            found = separations(draw(n, d, num_draws, jr.fold_in(jr.fold_in(key, d), n)))
            means[d].append(float(np.mean(n * (2 * found) ** d)))
            shown = []
            for level in _LEVELS:
                t = 0.5 * (2 * level / n**2) ** (1 / d)
                if t > 1.0:
                    continue
                frequency = float(np.mean(found >= t))
                error = _STANDARD_ERRORS * float(
                    np.sqrt(max(frequency * (1 - frequency), 0.25 / num_draws) / num_draws)
                )
                lower, upper = bounds(n, d, t)
                what = f"P(sep ≥ t), n = {n}, d = {d}, {level:g} close pairs expected"
                if d == 1:
                    exact = max(0.0, 1 - (n - 1) * t) ** n
                    conclusions.append(
                        Claim(what, frequency, "in", (exact - _EDGE, exact + _EDGE), error, 0.12, "exact")
                    )
                else:
                    conclusions.append(Claim(what, frequency, "in", (lower, upper), error, 0.15, "4 standard errors"))
                rows.append((d, n, level, t, frequency, lower, upper, float(np.exp(-level))))
                shown.append((level, frequency))
            label = f"d = {d}, n = {n}"
            series.append(Series(label, [s[0] for s in shown], [s[1] for s in shown], style="points"))
        products = [n * mean for n, mean in zip(sizes.nums, means[d], strict=True)]
        if d <= 2:  # the limit is that of small t, and in eight dimensions t is a third of the cube at n = 40
            ratio = products[-1] / products[0]
            conclusions.append(
                Claim(f"n² E(2 sep)^d at the largest n over the smallest, d = {d}", ratio, "in", (0.5, 2.0), 0.0, 0.0)
            )
    grid = np.linspace(0.2, 3.2, 31)
    series.append(Series("Poisson limit", grid.tolist(), np.exp(-grid).tolist(), style="dashed"))
    columns = ("d", "n", "close pairs expected", "t", "frequency", "lower bound", "upper bound", "Poisson limit")
    table = Table(
        "separation", "Frequency of sep ≥ t", columns, rows, "Uniform independent points in the unit cube, l∞."
    )
    figure = Figure(
        "separation",
        "How often independent points are t apart",
        "n² (2t)^d / 2, the close pairs expected for large n",
        "frequency of sep ≥ t",
        series,
        caption="In one dimension the law is (1 − (n − 1)t)^n. In high dimension faces of the cube keep points apart.",
    )
    scope = (
        "The last claims are a trend: with n^2 (2 sep)^d of order 1, a radius of half the separation has n (4 ε)^d = "
        "O(1/n), so that T4's condition is free and T5's bound negligible on independent designs."
    )
    return Report((), tuple(conclusions), (table,), (figure,), (*notes, scope))


def separations(points: Float[np.ndarray, "draws n d"]) -> Float[np.ndarray, " draws"]:
    """Smallest l∞ distance of two points, for each draw."""
    if points.shape[2] == 1:
        return np.min(np.diff(np.sort(points[..., 0], axis=1), axis=1), axis=1)
    smallest = np.full(len(points), np.inf)
    for i in range(points.shape[1] - 1):
        distances = np.max(np.abs(points[:, i + 1 :] - points[:, i : i + 1]), axis=2)
        smallest = np.minimum(smallest, np.min(distances, axis=1))
    return smallest


def bounds(n: int, d: int, t: float) -> tuple[float, float]:
    """1 - n(n-1)/2 (2t)^d and exp(-n(n-1)/2 (t/2)^d)."""
    pairs = n * (n - 1) / 2
    return max(0.0, 1 - pairs * (2 * t) ** d), float(np.exp(-pairs * (t / 2) ** d))


CHECK = Check(
    citation="In the setting of Shi et al. (arXiv 2024), item T6 of docs/theory/shi2024",
    statement=(
        "For n independent uniform points of [0, 1]^d, 1 − n(n−1)/2 (2t)^d ≤ P(sep ≥ t) ≤ exp(−n(n−1)/2 (t/2)^d); for "
        "d = 1 it is (1 − (n−1)t)^n. Hence a radius of half the separation is of order n^{−2/d}."
    ),
    run=_run,
    control=_control,
)
