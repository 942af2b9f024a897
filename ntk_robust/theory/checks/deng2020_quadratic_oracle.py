"""Networks of squares, whose maxima are known at every scale: what ascent finds of them."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.landscape import local_quadratic_maximum, quadratic_maximum
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._two_layer_landscapes import (
    SQUARE,
    Case,
    Problem,
    bounds_of,
    distinct,
    generator,
    limits,
    make_problem,
    starts_in_ball,
)

_CASES = {
    "quick": (Case(SQUARE, 10, 40, 1.0, 0.5), Case(SQUARE, 10, 40, 1.0, 3.0)),
    "full": (
        Case(SQUARE, 10, 40, 1.0, 0.5),
        Case(SQUARE, 10, 40, 1.0, 3.0),
        Case(SQUARE, 64, 400, 1.0, 1.0, "digits"),
        Case(SQUARE, 100, 400, 1.0, 2.0),
    ),
}
_DRAWS = {"quick": 3, "full": 6}
_STARTS = 40
_STEPS = 8000
_TOLERANCE = 1e-4


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, curved=True)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: the maximum of the linear part of the network as the oracle."
    return _report(size, key, curved=False, notes=(note,))


def _report(size: Size, key: Key[Array, ""], *, curved: bool, notes: tuple[str, ...] = ()) -> Report:
    rng = generator(key)
    conclusions, rows = [], []
    for case in _CASES[size]:
        found = [_explored(make_problem(case, rng), rng, curved=curved) for _ in range(_DRAWS[size])]
        name = str(case)
        conclusions += [
            Claim(
                f"largest value of an ascent above the oracle, relative to ε|g|, {name}",
                max(each.surplus for each in found),
                "<=",
                0.0,
                1e-10,
                1e-9,
                f"{_DRAWS[size]} networks, {_STARTS} starts",
            ),
            exact_claim(
                f"most distinct limits of one network, {name}", max(each.num_limits for each in found), "<=", 4
            ),
            Claim(
                f"largest distance of a limit from the nearest predicted maximum over ε, {name}",
                max(each.distance for each in found),
                "<=",
                0.0,
                1e-9,
                _TOLERANCE,
                f"at most four predicted ones; {_STEPS} steps of 1/Λ_-",
            ),
        ]
        rows += [
            (name, each.relative_curvature, each.num_predicted, each.num_limits, each.share_global, each.surplus)
            for each in found
        ]
    columns = (
        "problem",
        "ε|H|/|g(0)|",
        "local maxima predicted",
        "distinct limits",
        "share of starts that reach the largest of their side",
        "best ascent minus oracle",
    )
    figure = Figure(
        name="global",
        title="How often ascent finds the largest value of its side",
        x_label="ε|H|/|g(0)|",
        y_label="share of starts",
        series=(Series("one network each", [row[1] for row in rows], [row[4] for row in rows], style="points"),),
        x_scale="log",
        caption="Past the contraction of A6; below 1 some starts end in a maximum that is not global.",
    )
    table = Table("limits", "Ascents of squares against the oracle", columns, rows)
    return Report((), tuple(conclusions), (table,), (figure,), notes)


class Explored(NamedTuple):
    """What ascents of one network found, against the oracle."""

    relative_curvature: float
    surplus: float
    num_limits: int
    num_predicted: int
    distance: float
    share_global: float


@eqx.filter_jit
def _oracles(
    gradient: Float[Array, " d"], hessian: Float[Array, "d d"], epsilon: Float[Array, ""]
) -> tuple[Float[Array, "4 d"], Float[Array, " 4"]]:
    """Points and values of the global and the other local maximum of f and of −f, in this order."""
    found = [
        oracle(sign * gradient, sign * hessian, epsilon)
        for sign in (1.0, -1.0)
        for oracle in (quadratic_maximum, local_quadratic_maximum)
    ]
    return jnp.stack([each.delta for each in found]), jnp.stack([each.value for each in found])


def _explored(problem: Problem, rng: np.random.Generator, *, curved: bool) -> Explored:
    bounds = bounds_of(problem)
    problem = problem.aimed(bounds, 0.1)
    x, weights, readout = (np.asarray(part) for part in (problem.x, problem.net.weights, problem.net.readout))
    epsilon = float(problem.epsilon)
    hessian = 2 * weights.T @ (readout[:, None] * weights)
    gradient, center = hessian @ x, float(bounds.output)
    points, values = _oracles(jnp.asarray(gradient), jnp.asarray(hessian if curved else 0 * hessian), problem.epsilon)
    values, points = np.asarray(values), np.asarray(points)
    step = 1 / float(bounds.residual_upper(problem.target) * bounds.curvature)  # 1/Λ_- of item A3
    ends = limits(problem, starts_in_ball(problem, _STARTS, rng), step, _STEPS)
    outputs = ends.residuals + float(problem.target)
    rises = np.where(ends.residuals > 0, outputs - center, center - outputs)  # of ±f on the limit's own side
    best = np.where(ends.residuals > 0, values[0], values[2])
    scale = epsilon * np.linalg.norm(gradient)
    # Local maxima of L are those maxima of ±f that lie on their own side of y.
    own_side = np.array([1, 1, -1, -1]) * (np.array([1, 1, -1, -1]) * values + center - float(problem.target)) > 0
    predicted = points[np.isfinite(values) & own_side]
    gaps = np.linalg.norm(ends.deltas[:, None] - predicted[None], axis=2).min(axis=1) / epsilon
    return Explored(
        float(epsilon * np.abs(np.linalg.eigvalsh(hessian)).max() / np.linalg.norm(gradient)),
        float(np.max(rises - best) / scale),
        len(distinct(ends.deltas, 10 * _TOLERANCE * epsilon)),
        len(predicted),
        float(gaps.max()),
        float(np.mean(rises > best - 1e-6 * scale)),
    )


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A9 of docs/theory/deng2020",
    statement=(
        "For σ(t) = t², at every input scale, the largest values of f and −f over the ball are those of the secular "
        "equation; each side has at most one more local maximum, so that L has at most four, and ascent ends in one of "
        "them."
    ),
    run=_run,
    control=_control,
)
