"""T3: with noisy labels the flipped sets are known exactly, and robustly they are 2^d times as large."""

from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.certify import Network, pieces_on_polygon, pieces_on_segment
from ntk_robust.constructions import class_student, clipped, union_volume
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._overfitting import affine_layer, as_array, host_rng, on_host
from ntk_robust.theory.checks.shi2024_clean_labels import area, together

_EPSILON = 1.0 / 64
_RATIOS = {"quick": (0.5, 0.125, 1.0 / 64), "full": (1.0, 0.5, 0.125, 1.0 / 64, 1.0 / 512)}  # τ/ε
_SAMPLED = {"quick": ((3, 40000), (6, 40000)), "full": ((3, 200000), (6, 200000), (10, 200000))}
_SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
_STANDARD_ERRORS = 4.0
_EXACT = 1e-10


class _Flips(NamedTuple):
    """Measure of the flipped set, and of the points from which the adversary reaches it."""

    clean: float
    robust: float


def _run(size: Size, key: Key[Array, ""]) -> Report:
    del key
    conclusions, rows = [], []
    measured: dict[int, list[_Flips]] = {1: [], 2: []}
    for dim in (1, 2):
        for ratio in _RATIOS[size]:
            tau = ratio * _EPSILON
            case = _Case.of(dim, tau)
            found = case.flips()
            measured[dim].append(found)
            bad = int(np.sum(case.bad))
            clean, robust = (bad * union_volume(r, tau / 2, dim) for r in (_EPSILON, 2 * _EPSILON))
            for what, value, expected in (("flipped", found.clean, clean), ("robustly flipped", found.robust, robust)):
                name = f"measure of the {what} set, d = {dim}, τ/ε = {ratio:g}"
                slack = _EXACT * expected
                conclusions.append(Claim(name, value, "==", expected, slack, 2 * slack, "rounding of cells"))
            rows.append(
                (dim, ratio, "cells", found.clean / clean, found.robust / robust, found.robust / found.clean, 2**dim)
            )
        narrow = _RATIOS[size][-1]
        limit = measured[dim][-1].robust / measured[dim][-1].clean
        name = f"robust over clean excess, d = {dim}, τ/ε = {narrow:g}"
        # V(2ε, c) ≥ (4ε)^d and V(ε, c) ≤ (2ε + 2c)^d with c = τ/2
        predicted = (2.0**dim * (1 - 0.5 * dim * narrow), 2.0**dim)
        conclusions.append(Claim(name, limit, "in", predicted, 1e-9, 2e-9, "the limit is 2^d"))
    for dim, num in _SAMPLED[size]:
        claims, row = _sampled(dim, num)
        conclusions += claims
        rows.append(row)
    columns = ("d", "τ/ε", "method", "flipped / predicted", "robustly flipped / predicted", "robust / clean", "2^d")
    caption = "Predicted: the number of bad points times V(ε, τ/2) and V(2ε, τ/2)."
    table = Table("noisy_labels", "What noisy labels flip", columns, rows, caption)
    notes = ("Robust overfitting is benign for τ ≪ ε if and only if n p (4ε)^d ≪ 1.",)
    return Report(_hypotheses(), tuple(conclusions), (table,), (_figure(size, measured),), notes)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    del size, key
    found = _Case.of(2, _EPSILON / 2).flips()
    notes = ("Broken on purpose: the conclusion for clean labels, that no sign changes, where labels are noisy.",)
    return Report((), (exact_claim("measure of the flipped set", found.clean, "==", 0),), notes=notes)


class _Case(NamedTuple):
    """A teacher that is positive right of the middle, and points of which some have the other label."""

    teacher: Network
    student: Network
    xs: np.ndarray
    labels: np.ndarray
    bad: np.ndarray
    tau: float

    @classmethod
    def of(cls, dim: int, tau: float) -> "_Case":
        """Eight points on a line of the cube, an eighth apart, half of them bad."""
        row = np.zeros((1, dim))
        row[0, 0] = 4.0
        teacher = clipped(Network((affine_layer(row, [-2.0]),), (dim,), scalar=True), 1.0)
        xs = np.full((8, dim), 0.5)
        xs[:, 0] = (np.arange(8) + 0.5) / 8
        xs[:, 1:] += (np.arange(8) % 2)[:, None] / 8
        bad = np.isin(np.arange(8), (1, 2, 5, 7))
        labels = np.where(xs[:, 0] > 0.5, 1.0, -1.0) * np.where(bad, -1.0, 1.0)
        student = class_student(teacher, as_array(xs), as_array(labels), epsilon=_EPSILON, tau=tau)
        return cls(teacher, student, xs, labels, bad, tau)

    def flips(self) -> _Flips:
        """By cells around every point; off the supports the functions are equal (T1)."""
        reach = _EPSILON + 1.25 * self.tau
        both = together(self.student, self.teacher)
        clean = robust = 0.0
        for x in self.xs:
            if len(x) == 1:
                pieces = pieces_on_segment(both, x - reach, x + reach)
                ends = [
                    p for p, v in zip(pieces.pieces, pieces.values, strict=True) if np.prod(np.sign(v.sum(axis=0))) <= 0
                ]
                length = 2 * reach * sum(float(p[1] - p[0]) for p in ends)
                clean += length
                robust += length + 2 * _EPSILON if ends else 0.0
                continue
            pieces = pieces_on_polygon(both, x + reach * _SQUARE)
            cells = [
                p for p, v in zip(pieces.pieces, pieces.values, strict=True) if np.prod(np.sign(v.sum(axis=0))) <= 0
            ]
            if cells:
                clean += sum(area(cell) for cell in cells)
                corners = np.concatenate(cells)
                # the set is convex: a cube plus an l1 ball; its Minkowski sum with a square is that of its corners
                reached = (corners[:, None] + _EPSILON * _SQUARE).reshape(-1, 2)
                robust += area(hull(reached)) + sum(area(cell) for cell in cells) - area(hull(corners))
        return _Flips(clean, robust)


def hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull, in order."""
    from scipy.spatial import ConvexHull  # noqa: PLC0415 - scipy's parts load slowly

    return points[ConvexHull(points).vertices]


def _sampled(dim: int, num: int) -> tuple[tuple[Claim, ...], tuple]:
    """Monte Carlo around one bad point; the adversary's best move is straight towards it."""
    tau = _EPSILON / 4
    case = _Case.of(dim, tau)
    x = case.xs[np.flatnonzero(case.bad)[0]]
    rng = host_rng(jr.key(dim))
    claims, shares, student, teacher = [], [], on_host(case.student), on_host(case.teacher)
    for what, radius, step in (("flipped", _EPSILON, 0.0), ("robustly flipped", 2 * _EPSILON, _EPSILON)):
        reach = radius + tau
        points = x + rng.uniform(-reach, reach, (num, dim))
        moved = points + np.clip(x - points, -step, step)
        flipped = student(moved) * teacher(moved) <= 0
        fraction = float(np.mean(flipped))
        expected = union_volume(radius, tau / 2, dim) / (2 * reach) ** dim
        error = _STANDARD_ERRORS * float(np.sqrt(expected * (1 - expected) / num))
        name = f"share of the cube that is {what}, d = {dim}"
        claims.append(Claim(name, fraction, "==", expected, error, 0.1 * expected, "4 standard errors"))
        shares.append((fraction / expected, fraction * (2 * reach) ** dim))
    row = (dim, 0.25, f"{num} points", shares[0][0], shares[1][0], shares[1][1] / shares[0][1], 2**dim)
    return tuple(claims), row


def _hypotheses() -> tuple[Claim, ...]:
    case = _Case.of(2, _EPSILON)
    reach = _EPSILON + case.tau
    ends = [pieces_on_polygon(case.teacher, x + reach * _SQUARE) for x in case.xs]
    opposite = sum(
        bool(found.maximum[0] * label < 0) if label > 0 else bool(found.minimum[0] * label < 0)
        for found, label in zip(ends, case.labels, strict=True)
    )
    return (
        exact_claim("points with the teacher's opposite sign on their whole support", opposite, "==", np.sum(case.bad)),
        exact_claim("bad points", np.sum(case.bad), ">=", 1),
    )


def _figure(size: Size, measured: dict[int, list[_Flips]]) -> Figure:
    ratios = list(_RATIOS[size])
    series = []
    for dim, found in measured.items():
        series.append(Series(f"d = {dim}, measured", ratios, [f.robust / f.clean for f in found], style="points"))
        grid = np.geomspace(min(ratios), max(ratios), 33)
        law = [union_volume(2.0, t / 2, dim) / union_volume(1.0, t / 2, dim) for t in grid]
        series.append(Series(f"d = {dim}, V(2ε, τ/2) / V(ε, τ/2)", grid.tolist(), law, style="dashed"))
    return Figure(
        "noisy_labels",
        "Robust over clean excess risk",
        "τ/ε",
        "ratio",
        series,
        "log",
        "linear",
        "Towards narrow transitions the robust excess is 2^d times the clean one.",
    )


CHECK = Check(
    citation="In the setting of Shi et al. (arXiv 2024), item T3 of docs/theory/shi2024",
    statement=(
        "Around points whose label is not the teacher's, with disjoint supports, the student's sign is flipped exactly "
        "where D_i ≤ τ/2 for the l1 distance D_i to B(x_i, ε), and the adversary reaches a flip exactly from where the "
        "distance to B(x_i, 2ε) is at most τ/2: volumes V(ε, τ/2) and V(2ε, τ/2) per bad point; ratio → 2^d for τ → 0."
    ),
    run=_run,
    control=_control,
)
