"""T7: robust memorization costs a number of weights linear in n, and smoothness enters through the teacher alone."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.certify import Network
from ntk_robust.constructions import (
    class_student,
    clip_gate_student,
    hat_teacher,
    localized_teacher,
    num_hidden_layers,
    num_parameters,
    taylor_teacher,
)
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._overfitting import (
    affine_layer,
    as_array,
    host_rng,
    lattice_points,
    on_host,
    random_teacher,
)

_EPSILON, _TAU, _STEP = 1.0 / 128, 1.0 / 64, 1.0 / 32
_DIM = 3


class _Sizes(NamedTuple):
    nums: tuple[int, ...]
    shattered: int
    cells: tuple[int, ...]


_SIZES = {
    "quick": _Sizes((50, 200, 800), 6, (4, 8, 16)),
    "full": _Sizes((50, 200, 800, 3200), 9, (4, 8, 16, 32)),
}
# sin(3x) and its derivatives: of every smoothness, so that the teacher sets the rate
_DERIVATIVES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: np.sin(3 * x),
    lambda x: 3 * np.cos(3 * x),
    lambda x: -9 * np.sin(3 * x),
    lambda x: -27 * np.cos(3 * x),
)
_NUM_POINTS = 2001


def _run(size: Size, key: Key[Array, ""]) -> Report:
    sizes = _SIZES[size]
    conclusions, rows = [], []
    teacher = random_teacher(_DIM, key)
    rng = host_rng(key)
    extras = []
    for n in sizes.nums:
        xs = lattice_points(n, _DIM, _STEP, key)
        ys = rng.integers(-64, 65, n) / 64
        student = clip_gate_student(teacher, as_array(xs), as_array(ys), epsilon=_EPSILON, tau=_TAU, bound=1.0)
        extras.append(num_parameters(student) - num_parameters(teacher))
        bound = n * (6 * _DIM + 3) + 24
        conclusions.append(exact_claim(f"weights besides the teacher's, n = {n}, d = {_DIM}", extras[-1], "<=", bound))
        rows.append((n, extras[-1], extras[-1] / n, num_hidden_layers(student)))
    slope = float(np.polyfit(np.log(sizes.nums), np.log(extras), 1)[0])
    conclusions.append(exact_claim("exponent of n in the number of weights", slope, "in", (0.97, 1.0)))
    conclusions += _shattering(sizes.shattered, sizes.shattered, key)
    rates, series, teacher_rows = _teachers(sizes)
    conclusions += rates
    tables = (
        Table("capacity", "Weights of the clip-gate student", ("n", "weights", "per point", "hidden layers"), rows),
        Table("teachers", "Teachers of sin 3x", ("teacher", "cells N", "parameters", "largest error"), teacher_rows),
    )
    figure = Figure(
        "teachers",
        "Uniform error of the teachers against their parameters",
        "nonzero parameters",
        "largest error on [0, 1], off the rims of the constants",
        series,
        "log",
        "log",
        "The smoother the target, the fewer parameters a margin costs: error about P^-r for r = 1, 2, 3, 4.",
    )
    notes = (
        "Bartlett, Harvey, Liaw and Mehrabian (2019) bound the VC dimension by a constant times P L log P; the "
        "constant is not named here, so that the comparison with n is a trend.",
    )
    return Report((), tuple(conclusions), tables, (figure,), notes)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    points = _SIZES[size].shattered
    notes = ("Broken on purpose: the class has bumps for half of the points only.",)
    return Report((), _shattering(points, points // 2, key), notes=notes)


def _shattering(num_points: int, num_bumps: int, key: Key[Array, ""]) -> tuple[Claim, ...]:
    """How many labelings of the cubes one architecture realizes, tried one by one, at corners and centers."""
    xs = lattice_points(num_points, 2, 0.25, key)
    teacher = Network((affine_layer([[1.0, -1.0]]),), (2,), scalar=True)
    corners = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=2))) / 16
    points = (xs[:, None] + corners).reshape(-1, 2)
    realized, sizes, deepest = 0, set(), 0
    for labels in itertools.product((-1.0, 1.0), repeat=num_points):
        student = class_student(
            teacher, as_array(xs[:num_bumps]), as_array(np.array(labels[:num_bumps])), epsilon=1.0 / 16, tau=1.0 / 8
        )
        values = on_host(student)(points).reshape(num_points, -1)
        realized += bool(np.all(values * np.array(labels)[:, None] > 0))
        sizes.add(num_parameters(student))
        deepest = num_hidden_layers(student)
    largest = max(sizes)
    return (
        exact_claim(f"labelings of {num_points} cubes that are realized", realized, "==", 2**num_points),
        exact_claim(
            f"P L log₂ P of the class that shatters {num_points} points",
            largest * deepest * float(np.log2(largest)),
            ">=",
            num_points,
            "trend: the theorem's constant is not named",
        ),
    )


def _teachers(sizes: _Sizes) -> tuple[list[Claim], list[Series], list[tuple]]:
    """Uniform errors of teachers (a) to (c) on a fine grid, against the cells."""
    points = np.linspace(0.0, 1.0, _NUM_POINTS)
    truth = _DERIVATIVES[0](points)
    rim = 2.0**-10

    def constants(cells: int) -> Network:
        return localized_teacher(lambda p: _DERIVATIVES[0](p[:, 0]), input_dim=1, num_cells=cells, tau=rim)

    def hats(cells: int) -> Network:
        return hat_teacher(lambda p: _DERIVATIVES[0](p[:, 0]), input_dim=1, num_cells=cells)

    def taylor(terms: int) -> Callable[[int], Network]:
        return lambda cells: taylor_teacher(_DERIVATIVES[:terms], num_cells=cells, bound=32.0, levels=18)

    kinds: dict[str, tuple[Callable[[int], Network], int]] = {
        "(a) constants": (constants, 1),
        "(b) hats": (hats, 2),
        "(c) Taylor, 3 terms": (taylor(3), 3),
        "(c) Taylor, 4 terms": (taylor(4), 4),
    }
    claims, series, rows = [], [], []
    for name, (make, order) in kinds.items():
        errors, parameters = [], []
        for cells in sizes.cells:
            network = make(cells)
            found = np.abs(on_host(network)(points[:, None]) - truth)
            nearest = np.abs(points * cells - np.round(points * cells)) / cells
            errors.append(float(np.max(found[nearest >= rim] if order == 1 else found)))
            parameters.append(num_parameters(network))
            rows.append((name, cells, parameters[-1], errors[-1]))
        slope = float(np.polyfit(np.log(sizes.cells), np.log(errors), 1)[0])
        claims.append(
            exact_claim(f"exponent of N in the error of {name}", slope, "in", (-order - 0.25, -order + 0.25), "trend")
        )
        series.append(Series(name, parameters, errors))
    return claims, series, rows


CHECK = Check(
    citation="In the setting of Shi et al. (arXiv 2024), item T7 of docs/theory/shi2024",
    statement=(
        "One architecture with n(6d + 3) + O(1) weights besides the teacher's robustly memorizes all labelings of n "
        "points, so that it shatters them, and no class with far fewer weights can; a target of smoothness r gets by "
        "with a teacher of error N^{−r} on N cells."
    ),
    run=_run,
    control=_control,
)
