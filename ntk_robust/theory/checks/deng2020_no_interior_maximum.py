"""Where the gradient has no zero, every local maximum of the squared error is on the sphere."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.models import Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._two_layer_landscapes import (
    SQUARE,
    Case,
    Problem,
    bounds_of,
    generator,
    limits,
    make_problem,
    starts_in_ball,
    trajectories,
)

_CASES = {
    "quick": (Case(Tanh(), 20, 100, 0.5, 0.2), Case(Softplus(), 20, 100, 1.0, 0.2)),
    "full": (
        Case(Tanh(), 20, 100, 0.5, 0.2),
        Case(Softplus(), 20, 100, 1.0, 0.2),
        Case(Tanh(), 64, 1000, 0.5, 0.2, "digits"),
        Case(Tanh(), 784, 4000, 0.2, 0.2),
    ),
}
_STARTS = {"quick": 40, "full": 200}
_STEPS = 2000
# r_0 in units of ε|g|/√d: both signs of the residual are frequent in the ball; in the control's all starts are below
# the top.
_OFFSET, _OFFSET_BELOW = 0.5, 20.0


def _run(size: Size, key: Key[Array, ""]) -> Report:
    rng = generator(key)
    problems = {str(case): make_problem(case, rng) for case in _CASES[size]}
    return _report(problems, _STARTS[size], rng, assumed=True)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    rng = generator(key)
    case = Case(SQUARE, 20, 100, 0.5, 2.0)
    problem = make_problem(case, rng)
    net = problem.net
    top = problem._replace(
        net=net.__class__(net.weights, net.biases, -jnp.abs(net.readout), net.offset, net.activation)
    )
    note = "Broken on purpose: squares with equal signs in a ball that contains their top, where the gradient is zero."
    return _report({str(case): top}, _STARTS[size], rng, assumed=False, notes=(note,))


def _report(
    problems: dict[str, Problem],
    num_starts: int,
    rng: np.random.Generator,
    *,
    assumed: bool,
    notes: tuple[str, ...] = (),
) -> Report:
    hypotheses, conclusions, rows, series = [], [], [], []
    for name, start_problem in problems.items():
        bounds = bounds_of(start_problem)
        offset = (_OFFSET if assumed else _OFFSET_BELOW) / len(start_problem.x) ** 0.5
        problem = start_problem.aimed(bounds, offset)
        if assumed:
            hypotheses.append(
                Claim(
                    f"ε sup|H| over |g(0)|, {name}",
                    float(bounds.epsilon * bounds.curvature / bounds.slope),
                    "<=",
                    1.0,
                    1e-9,
                    1e-9,
                    "below 1 the gradient has no zero in the ball; |H| bounded by intervals",
                )
            )
        count, steps = problem.affordable(num_starts, _STEPS)
        starts = starts_in_ball(problem, count, rng)
        step = 1 / bounds.lipschitz(problem.target)
        found = limits(problem, starts, step, steps)
        norms = np.linalg.norm(found.deltas, axis=1) / float(problem.epsilon)
        positive = found.start_residuals != 0
        descended = limits(problem, starts, -step, steps)
        inside = np.linalg.norm(descended.deltas, axis=1) < (1 - 1e-6) * float(problem.epsilon)
        loss_rounding = 4 * problem.rounding**2
        conclusions += [
            Claim(
                f"smallest |δ|/ε of the limits of ascent, {name}",
                float(norms[positive].min()),
                ">=",
                1.0,
                1e-12,
                1e-11,
                f"{count} starts, {steps} steps of 1/Λ",
            ),
            exact_claim(f"sides of y among the starts, {name}", len(set(np.sign(found.start_residuals))), "==", 2)
            if assumed
            else exact_claim(f"limits, {name}", len(norms), "==", count),
            Claim(
                f"largest L at interior limits of descent, {name}",
                float(descended.losses[inside].max(initial=0.0)),
                "<=",
                0.0,
                loss_rounding,
                1e-15,
                "critical points inside have L = 0: minima",
            ),
        ]
        rows.append((name, count, float(norms.min()), int(inside.sum())))
        if not series:
            for values in np.asarray(trajectories(problem, starts[:10], step).relative_norms)[:6]:
                label = f"start {len(series) + 1}"
                series.append(Series(label, np.arange(float(len(values))).tolist(), values.tolist()))
    figure = Figure(
        name="norms",
        title=f"Ascents go to the sphere ({next(iter(problems))})",
        x_label="step t",
        y_label="|δ_t| / ε",
        series=tuple(series),
        caption="Each line is one start, uniform in the ball; 1 is the sphere.",
    )
    columns = ("problem", "starts", "smallest |δ|/ε of their limits", "limits of descent inside the ball")
    table = Table("limits", "Where ascent and descent end", columns, rows)
    return Report(tuple(hypotheses), tuple(conclusions), (table,), (figure,), notes)


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A1 of docs/theory/deng2020",
    statement=(
        "Where g = ∇f has no zero in the open ball, every local maximum of L = ½(f − y)² over the ball |δ| ≤ ε lies on "
        "the sphere, and every critical point inside has L = 0."
    ),
    run=_run,
    control=_control,
)
