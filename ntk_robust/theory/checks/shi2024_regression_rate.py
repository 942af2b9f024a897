"""T4: the overfitted student keeps the teacher's rate if its cubes are small, and pays a floor if they are not."""

from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Key
from numpy.polynomial import Polynomial

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.constructions import Breakpoints, breakpoints, clip_gate_student, robust_risk, spline_teacher
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._overfitting import ROUNDING, as_array, host_rng, on_host, student_on_line

# f* = 3x(1 - x): a quadratic, so that every risk is an exact integral, and the spline has a bias of order h².
TARGET = Polynomial([0.0, 3.0, -3.0])
SIGMA = 0.25
BOUND = 1.0
_MARGIN = 0.25


class _Sizes(NamedTuple):
    pieces: tuple[int, ...]
    num_draws: int


# n = pieces^5 / 8, so that pieces grow like n^(1/5)
_SIZES = {"quick": _Sizes((4, 5, 7), 12), "full": _Sizes((4, 5, 6, 8, 10), 40)}
_GRID_SHARE = 0.2  # c of ε = c/n
_STANDARD_ERRORS = 4.0


class Risks(NamedTuple):
    """Standard risks of one draw."""

    teacher: float
    student: float
    bound: float


def draw(xs: np.ndarray, key: Key[Array, ""]) -> np.ndarray:
    """Labels f*(x) ± σ."""
    return TARGET(xs) + SIGMA * host_rng(key).choice([-1.0, 1.0], xs.shape)


def teacher_on_line(xs: np.ndarray, ys: np.ndarray, pieces: int) -> Breakpoints:
    """The clipped least-squares spline, from its network."""
    network = spline_teacher(as_array(xs[:, None]), as_array(ys), num_pieces=pieces, bound=BOUND)
    return breakpoints(network, -_MARGIN, 1.0 + _MARGIN)


def _risks(xs: np.ndarray, ys: np.ndarray, pieces: int, epsilon: float, tau: float) -> Risks:
    teacher = teacher_on_line(xs, ys, pieces)
    student = student_on_line(teacher, xs, ys, epsilon=epsilon, tau=tau, bound=BOUND)
    found = [robust_risk(f, TARGET, epsilon=0.0) for f in (teacher, student)]
    # V(ε, τ) = 2ε + 2τ in one dimension
    return Risks(found[0], found[1], found[0] + 4 * BOUND**2 * len(xs) * (2 * epsilon + 2 * tau))


def _designs(n: int, key: Key[Array, ""], *, spread: bool) -> dict[str, tuple[np.ndarray, float, float]]:
    """Points with the radius and transition of each design."""
    iid = np.sort(host_rng(key).uniform(size=n))
    apart = float(np.min(np.diff(iid)))
    grid = (np.arange(n) + 0.5) / n
    found = {
        "independent": (iid, 0.45 * apart, 0.1 * apart),
        "grid": (grid, _GRID_SHARE / n, 0.1 / n),
    }
    if spread:  # the control: independent points, and the radius of the grid
        found = {"independent": (grid, _GRID_SHARE / n, 0.1 / n)}
    return found


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, spread=False)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, spread=True)


def _report(size: Size, key: Key[Array, ""], *, spread: bool) -> Report:
    sizes = _SIZES[size]
    nums = [pieces**5 // 8 for pieces in sizes.pieces]
    risks: dict[str, list[list[Risks]]] = {}
    for pieces, n in zip(sizes.pieces, nums, strict=True):
        by_design: dict[str, list[Risks]] = {}
        for k in jr.split(jr.fold_in(key, n), sizes.num_draws):
            point_key, noise_key = jr.split(k)
            for name, (xs, epsilon, tau) in _designs(n, point_key, spread=spread).items():
                by_design.setdefault(name, []).append(_risks(xs, draw(xs, noise_key), pieces, epsilon, tau))
        for name, rows in by_design.items():
            risks.setdefault(name, []).append(rows)
    conclusions, rows, series = [], [], []
    for name, by_n in risks.items():
        teacher, student, bound = (
            np.array([[getattr(r, part) for r in column] for column in by_n]).T
            for part in ("teacher", "student", "bound")
        )
        used = float(np.max(student / bound))
        what = f"largest R_std(f_S) / bound over draws, {name}"
        conclusions.append(Claim(what, used, "<=", 1.0, ROUNDING, 2 * ROUNDING))
        if name == "independent":
            ratio = slope_fit(np.array(nums, float), student / teacher)
            half = 0.5 * (ratio.upper - ratio.lower)
            what = "exponent of the student's risk over the teacher's, independent"
            conclusions.append(Claim(what, ratio.slope, "<=", 0.05, half, 0.1, "trend: the student keeps the rate"))
        else:
            floor = 2 * _GRID_SHARE * SIGMA**2
            for n, column in zip(nums, student.T, strict=True):
                error = _STANDARD_ERRORS * float(np.std(column, ddof=1) / np.sqrt(len(column)))
                claim = Claim(
                    f"mean R_std(f_S) on the grid, n = {n}", float(np.mean(column)), ">=", floor, error, 0.2 * floor
                )
                conclusions.append(claim)
            expected = [_expected_risk(n, pieces) for n, pieces in zip(nums, sizes.pieces, strict=True)]
            relative = (teacher / np.array(expected)).ravel()
            error = _STANDARD_ERRORS * float(np.std(relative, ddof=1) / np.sqrt(relative.size))
            what = "mean of R_std(f_T) over its closed form, grid"
            conclusions.append(Claim(what, float(np.mean(relative)), "==", 1.0, error, 0.7, "4 standard errors"))
            slope = float(np.polyfit(np.log(nums), np.log(expected), 1)[0])
            conclusions.append(
                exact_claim("exponent of the teacher's expected risk", slope, "in", (-0.9, -0.7), "trend")
            )
        for part, values in (("teacher", teacher), ("student", student)):
            band = [values.mean(axis=0), values.min(axis=0), values.max(axis=0)]
            series.append(Series(f"{part}, {name}", nums, *(b.tolist() for b in band)))
        for n, pieces, t, s, b in zip(nums, sizes.pieces, teacher.T, student.T, bound.T, strict=True):
            rows.append((name, n, pieces, float(t.mean()), float(s.mean()), float(b.mean()), float(np.mean(s / b))))
    conclusions.append(_same_function(key))
    start = float(np.mean([r.teacher for r in next(iter(risks.values()))[0]]))
    series.append(Series("slope −4/5", nums, [start * (n / nums[0]) ** -0.8 for n in nums], style="dashed"))
    columns = ("design", "n", "pieces", "R_std(f_T)", "R_std(f_S)", "bound", "mean R_std(f_S) / bound")
    caption = f"Means over {sizes.num_draws} draws; f* = 3x(1 − x), noise ±{SIGMA}; least-squares linear splines."
    table = Table("regression_rate", "Standard risks of teacher and overfitted student", columns, rows, caption)
    figure = Figure(
        "regression_rate",
        "Standard risk of teacher and student against n",
        "n",
        "R_std",
        series,
        "log",
        "log",
        "On independent points the radius shrinks like the separation, n^-2, and the student keeps the rate. On a grid "
        "with ε = 0.2/n it pays the floor 2cσ² for the noise that it memorizes.",
    )
    notes = (
        ("Broken on purpose: the design called independent is a grid with ε = 0.2/n, where the rate is lost.",)
        if spread
        else ("Rates have constants that the theory does not name: the exponents are trends.",)
    )
    return Report((), tuple(conclusions), (table,), (figure,), notes)


def _expected_risk(n: int, pieces: int) -> float:
    """Expected risk of the spline on the grid before it is clipped: squared bias plus σ² tr((HᵀH)⁻¹ G)."""
    xs, width = (np.arange(n) + 0.5) / n, 1.0 / pieces
    hats = np.maximum(0.0, 1.0 - np.abs(pieces * xs[:, None] - np.arange(pieces + 1)))
    normal = hats.T @ hats
    gram = width / 6 * (np.diag(np.full(pieces + 1, 4.0)) + np.eye(pieces + 1, k=1) + np.eye(pieces + 1, k=-1))
    gram[[0, -1], [0, -1]] = width / 3
    fitted = Breakpoints(np.arange(pieces + 1) / pieces, np.linalg.solve(normal, hats.T @ TARGET(xs)))
    return robust_risk(fitted, TARGET, epsilon=0.0) + SIGMA**2 * float(np.trace(np.linalg.solve(normal, gram)))


def _same_function(key: Key[Array, ""]) -> Claim:
    """The formula on the line against the network that the library builds."""
    xs = (np.arange(20) + 0.5) / 20
    ys = draw(xs, key)
    teacher = spline_teacher(as_array(xs[:, None]), as_array(ys), num_pieces=3, bound=BOUND)
    network = clip_gate_student(teacher, as_array(xs[:, None]), as_array(ys), epsilon=0.01, tau=0.02, bound=BOUND)
    on_line = student_on_line(breakpoints(teacher, -0.2, 1.2), xs, ys, epsilon=0.01, tau=0.02, bound=BOUND)
    grid = np.linspace(-0.2, 1.2, 2001)
    largest = float(np.max(np.abs(on_host(network)(grid[:, None]) - on_line(grid))))
    return Claim("largest |network − formula| of a student on a line", largest, "<=", 0.0, ROUNDING, 2 * ROUNDING)


CHECK = Check(
    citation="In the setting of Shi et al. (arXiv 2024), item T4 of docs/theory/shi2024",
    statement=(
        "For the clip-gate student R_std(f_S) ≤ R_std(f_T) + 4M² c_max n V(ε, τ); it keeps the teacher's rate "
        "n^{−2r/(2r+d)} where the cubes are small enough, as they must be on independent points, and on disjoint cubes "
        "E R_std(f_S) ≥ c_min n (2ε)^d σ²."
    ),
    run=_run,
    control=_control,
)
