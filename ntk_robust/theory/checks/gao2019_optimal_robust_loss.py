"""The smallest robust loss near initialization, from both sides by convex duality, and training that lands there."""

import math
from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.expressiveness import ErrorCurve, PointSets, TangentKernel, error_curve
from ntk_robust.kernels import AbstractKernel, analytic_ntk
from ntk_robust.losses import Absolute
from ntk_robust.models import AbstractActivation, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, summation_error
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._adversaries import arc_attacks
from ntk_robust.theory.checks._circle import ArcRun, CircleProblem, arc_grids, losses_on_arcs, make_problem

_GRID = 17  # points of each arc: these are the perturbation sets
_HALF_ANGLE = 0.5
_RESOLUTION = 1e-6


class Case(NamedTuple):
    """A network and the radii of its balls.

    Attributes:
        activation: σ.
        num_train: n.
        width: m.
        radii: R.
        num_steps: T.
    """

    activation: AbstractActivation
    num_train: int
    width: int
    radii: tuple[float, ...]
    num_steps: int


_CASES = {
    "quick": {"softplus": Case(Softplus(), 2, 1024, (1.0, 2.0), 400)},
    "full": {
        "softplus": Case(Softplus(), 4, 8192, (1.0, 2.0, 4.0, 8.0), 800),
        "tanh": Case(Tanh(), 2, 8192, (0.5, 1.0, 2.0), 800),
    },
}


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, 1.0, ("The perturbation sets are grids of 17 points on each arc, known to the attack.",))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: training is projected on balls of three times the radius that the dual knows."
    return _report(size, key, 3.0, (note,))


def _report(size: Size, key: Key[Array, ""], stretch: float, notes: tuple[str, ...]) -> Report:
    conclusions, rows, figures = [], [], []
    for name, case in _CASES[size].items():
        init_key, run_key = jr.split(key)
        problem = make_problem(case.num_train, case.width, case.activation, _HALF_ANGLE, key=init_key)
        curve = linearized_optimum(problem, TangentKernel(problem.net, problem.params), case.radii)
        infinite = linearized_optimum(problem, analytic_ntk(problem.net), case.radii)
        runs = [
            losses_on_arcs(
                problem,
                arc_attacks(_GRID, ("oracle",))["oracle"],
                step_size=radius / (_lipschitz(case) * math.sqrt(case.num_steps)),
                num_steps=case.num_steps,
                radius=stretch * radius,
                key=run_key,
            )
            for radius in case.radii
        ]
        for fit, limit, run in zip(curve.fits, infinite.fits, runs, strict=True):
            explicit = _displaced_loss(problem, fit.points, fit.coefficients)
            claims, row = _sandwich(f"{name}, R = {fit.radius:g}", case, fit, run, explicit)
            conclusions += claims
            gap = limit.error_upper - limit.error_lower
            conclusions.append(
                Claim(f"duality gap, infinitely wide, {name}, R = {fit.radius:g}", gap, "<=", 1e-3, 1e-9, _RESOLUTION)
            )
            rows.append((name, case.num_train, case.width, fit.radius, *row, limit.error_lower, limit.error_upper))
        figures.append(_figure(name, case, (curve, infinite), runs))
    columns = (
        *(
            "activation",
            "n",
            "m",
            "R",
            "dual",
            "L^lin of V",
            "C_2 R²/(2√m)",
            "L_*(W_0 + V)",
            "smallest L_* in training",
        ),
        *("allowed by the regret", "infinitely wide, dual", "infinitely wide, primal"),
    )
    table = Table("optimal_robust_loss", "The smallest robust loss in B(R), from both sides", columns, rows)
    return Report((), tuple(conclusions), (table,), tuple(figures), notes)


def linearized_optimum(problem: CircleProblem, kernel: AbstractKernel, radii: tuple[float, ...]) -> ErrorCurve:
    """L^lin(R) of a kernel on the grids, from both sides."""
    grids = arc_grids(problem.xs, problem.arcs, _GRID)
    targets = np.repeat(np.asarray(problem.ys)[:, None], _GRID, axis=1)
    return error_curve(kernel, PointSets(grids, targets), list(radii), relative_gap=1e-4)


def _lipschitz(case: Case) -> float:
    return Absolute().lipschitz * case.activation.lipschitz


def _displaced_loss(problem: CircleProblem, points: Float[Array, "s 3"], coefficients: Float[Array, " s"]) -> float:
    """L_*(W_0 + V) on the grids, V the displacement whose linearization was found."""
    params = TangentKernel(problem.net, problem.params).displaced(points, coefficients)
    grids = arc_grids(problem.xs, problem.arcs, _GRID)
    outputs = np.asarray(jax.vmap(jax.vmap(lambda x: problem.net.apply(params, x)))(grids))
    return float(np.mean(np.max(np.abs(outputs - np.asarray(problem.ys)[:, None]), axis=1)))


def _sandwich(name: str, case: Case, fit, run: ArcRun, explicit: float) -> tuple[list[Claim], tuple[float, ...]]:
    root, radius = math.sqrt(case.width), fit.radius
    g = Absolute().lipschitz
    remainder = g * case.activation.smoothness * radius**2 / (2 * root)
    regret = radius * _lipschitz(case) / math.sqrt(case.num_steps) + 4 * remainder
    rounding = summation_error(4 * case.width, 4.0 * root)
    smallest = float(np.min(run.robust_loss))
    lower, upper = fit.error_lower - remainder, fit.error_upper + remainder
    claims = [
        Claim(f"duality gap of L^lin, {name}", fit.error_upper - fit.error_lower, "<=", 1e-3, rounding, _RESOLUTION),
        Claim(f"smallest L_* in training, {name}", smallest, ">=", lower, rounding, _RESOLUTION, "dual − C_2 R²/(2√m)"),
        Claim(
            f"smallest L_A in training, {name}",
            float(np.min(run.surrogate_loss)),
            "<=",
            upper + regret,
            rounding,
            _RESOLUTION,
            "L^lin + C_2 R²/(2√m) + G C_1 R/√T + 2 G C_2 R²/√m",
        ),
        Claim(f"L_*(W_0 + V), {name}", explicit, "in", (lower, upper), rounding, _RESOLUTION),
    ]
    return claims, (fit.error_lower, fit.error_upper, remainder, explicit, smallest, upper + regret)


def _figure(name: str, case: Case, curves: tuple[ErrorCurve, ErrorCurve], runs: list[ArcRun]) -> Figure:
    curve, infinite = curves
    radii = np.linspace(case.radii[0], case.radii[-1], 60)
    remainder = Absolute().lipschitz * case.activation.smoothness * radii**2 / (2 * math.sqrt(case.width))
    lower = [max(0.0, curve.lower(radius) - bend) for radius, bend in zip(radii, remainder, strict=True)]
    upper = [curve.upper(radius) + bend for radius, bend in zip(radii, remainder, strict=True)]
    return Figure(
        name=f"optimal_robust_loss_{name}",
        title=f"Smallest robust loss near initialization, {name}, m = {case.width}",
        x_label="radius R",
        y_label="robust loss",
        series=(
            Series("lower bound by duality", radii.tolist(), lower, style="dashed"),
            Series("upper bound", radii.tolist(), upper, style="dashed"),
            Series("L^lin, infinitely wide", radii.tolist(), [infinite.lower(radius) for radius in radii]),
            Series(
                "smallest in training",
                list(case.radii),
                [float(np.min(run.robust_loss)) for run in runs],
                style="points",
            ),
        ),
        caption="No weights of B(R) have a robust loss below the lower line; training comes down to it.",
    )


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), the comparator of the convergence theorems (numbers recalled); "
        "item D4 of docs/theory/gao2019"
    ),
    statement=(
        "Paired two-layer net, |x| = 1, σ' C_2-Lipschitz, loss |f − y|. With L^lin(R) the smallest robust loss of the "
        "linearized net, a convex program with a dual, min over B(R) of L_* is within C_2R²/(2√m) of L^lin(R); T steps "
        "of projected adversarial training reach L^lin(R) + C_2R²/(2√m) + C_1R/√T + 2C_2R²/√m, and never go below "
        "L^lin(R) − C_2R²/(2√m) on all of the perturbation sets."
    ),
    run=_run,
    control=_control,
)
