"""T2: with clean labels the overfitted student has the teacher's sign everywhere, so that overfitting costs nothing."""

from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.certify import Network, Nonlinearity, Parallel, PiecewiseLinear, pieces_on_polygon
from ntk_robust.constructions import class_student, clipped, separation
from ntk_robust.constructions import num_parameters as count
from ntk_robust.data import load_dataset
from ntk_robust.models import Identity
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._overfitting import affine_layer, as_array, host_rng, on_host, relu_layer

_SLIVER = 1e-12
_EPSILON, _TAU = 3.0 / 64, 1.0 / 64
_STEP = 3.0 / 16
_GRID = {"quick": 161, "full": 641}
_PER_AXIS = {"quick": 4, "full": 5}
_NUM_DIGITS = {"quick": 200, "full": 1200}
_SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, noisy=False)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, noisy=True)


def _report(size: Size, key: Key[Array, ""], *, noisy: bool) -> Report:
    plane, rows, figure = _plane(size, key, noisy=noisy)
    hypotheses, conclusions = list(plane.hypotheses), list(plane.conclusions)
    if not noisy:
        digits = _digits(size, key)
        hypotheses += digits.hypotheses
        conclusions += digits.conclusions
        rows.append(digits.row)
    columns = ("data", "points", "teacher's parameters", "student's", "robust 0-1 risk of both")
    table = Table("clean_labels", "The same risk before and after overfitting", columns, rows)
    if noisy:
        notes = ("Broken on purpose: a quarter of the labels are those of the other class.",)
        return Report((), tuple(conclusions), (table,), notes=notes)
    notes = (
        "In the plane all cells are enumerated; on digits the statement is sampled, also where it is most at risk.",
    )
    return Report(tuple(hypotheses), tuple(conclusions), (table,), (figure,), notes)


class _Part(NamedTuple):
    """Claims of one data set, and its row of the table."""

    hypotheses: tuple[Claim, ...]
    conclusions: tuple[Claim, ...]
    row: tuple = ()


def roof_teacher() -> Network:
    """4 (x_1 - 1/2 + |x_2 - 1/2| / 2 - 1/16), clipped to [-1, 1]: dyadic, with a kinked boundary."""
    first = affine_layer([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [0.0, 0.0, -0.5, 0.5])
    second = affine_layer([[4.0, -4.0, 2.0, 2.0]], [-2.25])
    return clipped(Network((first, relu_layer(), second), (2,), scalar=True), 1.0)


def together(first: Network, second: Network) -> Network:
    """Both networks' outputs, with cells cut where one of them is 0."""
    columns = [affine_layer([[1.0], [0.0]]), affine_layer([[0.0], [1.0]])]
    branches = ((*first.layers, columns[0]), (*second.layers, columns[1]))
    return Network((Parallel(branches), Nonlinearity(Identity())), first.input_shape)


def area(corners: np.ndarray) -> float:
    """Of a polygon, by the shoelace formula."""
    x, y = corners[:, 0], corners[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def unlike_area(pieces: PiecewiseLinear) -> float:
    """Area of the cells on which the two outputs have unlike signs, or the first is 0 and the second is not."""
    total = 0.0
    for corners, values in zip(pieces.pieces, pieces.values, strict=True):
        # no cell has both signs of one output
        first, second = (np.sign(np.sum(values[:, i])) for i in (0, 1))
        total += area(corners) if first != second else 0.0
    return total


def _plane(size: Size, key: Key[Array, ""], *, noisy: bool) -> tuple[_Part, list, Figure]:
    teacher = roof_teacher()
    per_axis = _PER_AXIS[size]
    lattice = (np.stack(np.meshgrid(*[np.arange(per_axis)] * 2), axis=-1).reshape(-1, 2) + 0.5) * _STEP + 1.0 / 16
    square = (_EPSILON + _TAU) * _SQUARE
    around = [pieces_on_polygon(teacher, x + square) for x in lattice]
    lowest = np.array([found.minimum[0] for found in around])
    highest = np.array([found.maximum[0] for found in around])
    kept = (lowest > 0) | (highest < 0)
    xs, labels = lattice[kept], np.where(lowest[kept] > 0, 1.0, -1.0)
    if noisy:
        flipped = host_rng(key).permutation(len(xs))[: max(1, len(xs) // 4)]
        labels[flipped] *= -1.0
    student = class_student(teacher, as_array(xs), as_array(labels), epsilon=_EPSILON, tau=_TAU)
    cells = pieces_on_polygon(together(student, teacher), 0.5 + 0.75 * _SQUARE)
    differs = unlike_area(cells)
    risks = _grid_risks(size, student, teacher)
    apart = separation(as_array(xs), as_array(labels))
    margins = np.where(labels > 0, lowest[kept], -highest[kept])
    hypotheses = (
        exact_claim("separation of unlike points in the plane", apart, ">=", 2 * (_EPSILON + _TAU), "2ε + 2τ"),
        exact_claim("smallest y f_T on the cubes of radius ε + τ, by cells", np.min(margins), ">=", 2.0**-10),
    )
    conclusions = (
        Claim(
            "area where the signs differ, by cells",
            differs,
            "<=",
            0.0,
            _SLIVER,
            2 * _SLIVER,
            f"{len(cells.pieces)} cells; rounding makes slivers",
        ),
        exact_claim("grid points with another robust 0-1 loss", np.sum(risks[0] != risks[1]), "==", 0),
        exact_claim("points memorized", len(xs), ">=", 8),
    )
    row = ("the plane", len(xs), count(teacher), count(student), float(np.mean(risks[1])))
    series = []
    for sign, name in ((1.0, "label +1"), (-1.0, "label −1")):
        chosen = xs[labels == sign]
        series.append(Series(name, chosen[:, 0].tolist(), chosen[:, 1].tolist(), style="points"))
    boundary = np.linspace(-0.25, 1.25, 61)
    series.append(Series("f_T = 0", (0.5625 - 0.5 * np.abs(boundary - 0.5)).tolist(), boundary.tolist()))
    caption = "The student has its label on every cube and the teacher's sign everywhere."
    figure = Figure("clean_labels", "Clean points and the teacher's boundary", "x₁", "x₂", series, caption=caption)
    return _Part(hypotheses, conclusions), [row], figure


def _grid_risks(size: Size, student: Network, teacher: Network) -> tuple[np.ndarray, np.ndarray]:
    """Whether each network has another sign than the teacher's somewhere within ε of grid points."""
    import scipy.ndimage  # noqa: PLC0415 - one filter, and scipy's parts load slowly

    axis = np.linspace(-0.25, 1.25, _GRID[size])
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    label = np.sign(on_host(teacher)(points))
    window = 2 * int(_EPSILON / (axis[1] - axis[0])) + 1
    wrong = []
    for network in (student, teacher):
        signs = np.sign(on_host(network)(points)).reshape(len(axis), -1)
        low, high = (f(signs, size=window) for f in (scipy.ndimage.minimum_filter, scipy.ndimage.maximum_filter))
        wrong.append(np.where(label > 0, low.ravel() <= 0, high.ravel() >= 0))
    return wrong[0], wrong[1]


def _digits(size: Size, key: Key[Array, ""]) -> _Part:
    """Odd against even digits with a linear teacher, whose minimum on a cube is known exactly."""
    data = load_dataset("digits", dtype=np.float64)
    xs, test = np.asarray(data.x_train), np.asarray(data.x_test)
    signs = np.where(np.asarray(data.y_train) % 2, 1.0, -1.0)
    design = np.concatenate([xs, np.ones((len(xs), 1))], axis=1)
    weights = np.linalg.solve(design.T @ design + np.eye(65), design.T @ signs)
    weights = np.round(weights * 2**10) / 2**10
    teacher = Network((affine_layer(weights[None, :-1], weights[-1:]),), (64,), scalar=True)
    epsilon = tau = 1.0 / 128
    margins = signs * on_host(teacher)(xs) - (epsilon + tau) * np.sum(np.abs(weights[:-1]))
    good = np.flatnonzero(margins > 0)
    rows = np.sort(host_rng(key).permutation(good)[: _NUM_DIGITS[size]])
    xs, signs = xs[rows], signs[rows]
    student = class_student(teacher, as_array(xs), as_array(signs), epsilon=epsilon, tau=tau)
    rng = host_rng(jr.fold_in(key, 1))
    near = xs + rng.uniform(-epsilon - tau, epsilon + tau, xs.shape)
    # where the teacher is worst on the cubes around test and training points
    towards = np.sign(on_host(teacher)(test))[:, None] * np.sign(weights[:-1])[None, :]
    worst = test - epsilon * towards
    edge = xs - (epsilon + tau) * signs[:, None] * np.sign(weights[:-1])[None, :]
    points = np.concatenate([test, near, worst, edge])
    unlike = int(np.sum(np.sign(on_host(student)(points)) != np.sign(on_host(teacher)(points))))
    truth = np.where(np.asarray(data.y_test) % 2, 1.0, -1.0)
    risk = float(np.mean(truth * on_host(teacher)(worst) <= 0))
    apart = separation(as_array(xs), as_array(signs))
    return _Part(
        (
            exact_claim("separation of unlike digits", apart, ">=", 2 * (epsilon + tau), "2ε + 2τ"),
            exact_claim("smallest y f_T on the digits' cubes of radius ε + τ", np.min(margins[rows]), ">=", 0),
        ),
        (exact_claim(f"points with unlike signs, of {len(points)} around digits", unlike, "==", 0),),
        ("digits, odd or even", len(xs), count(teacher), count(student), risk),
    )


CHECK = Check(
    citation="In the setting of Shi et al. (arXiv 2024), item T2 of docs/theory/shi2024",
    statement=(
        "If unlike points are at least 2ε + 2τ apart and f_T has the sign of y_i on B(x_i, ε + τ) for every i, then "
        "the student for classes has the teacher's sign everywhere, and the same robust 0-1 risk."
    ),
    run=_run,
    control=_control,
)
