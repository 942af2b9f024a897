"""Projected gradient ascent with steps up to 2/Λ never loses loss and never changes sides, and 2/Λ is sharp."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.landscape import Ascent
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
    make_problem,
    problem_of,
    starts_in_ball,
    trajectories,
)

_CASES = {
    "quick": (Case(Tanh(), 20, 100, 1.0, 0.3), Case(Softplus(), 20, 100, 2.0, 0.3)),
    "full": (
        Case(Tanh(), 20, 100, 1.0, 0.3),
        Case(Tanh(), 20, 100, 5.0, 1.0),
        Case(Softplus(), 20, 100, 2.0, 0.3),
        Case(Tanh(), 64, 1000, 1.0, 0.3, "digits"),
        Case(Tanh(), 784, 4000, 1.0, 0.1),
    ),
}
_STARTS = 10
_FAR = 1e4  # distance of the target of the sharp problem, in units of what f varies
_SHARP_FACTORS = (1.0, 1.0005, 1.001, 1.002, 1.005, 1.01)


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, (1.0, 2.0), ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, (2.02,), ("Broken on purpose: steps of 2.02/Λ.",))


def _report(size: Size, key: Key[Array, ""], factors: tuple[float, ...], notes: tuple[str, ...]) -> Report:
    rng = generator(key)
    problems = {str(case): make_problem(case, rng) for case in _CASES[size]} | {"sharp": sharp_problem(20, 100)}
    conclusions, rows, series = [], [], []
    allowed = max(factors) <= 2
    for name, unaimed in problems.items():
        bounds = bounds_of(unaimed)
        problem = unaimed.aimed(bounds, _FAR if name == "sharp" else 0.3)
        lipschitz = float(bounds.lipschitz(problem.target))
        starts = starts_in_ball(problem, _STARTS, rng)
        # ∇²L = g gᵀ + r H is bounded from below by the second term alone, and the proof needs no more.
        one_sided = float(bounds.residual_upper(problem.target) * bounds.curvature)
        constants = [(f"η = {factor:g}/Λ", factor, lipschitz) for factor in factors]
        for label, factor, constant in [*constants, ("η = 2/Λ_-", 2.0, one_sided)] if allowed else constants:
            found = trajectories(problem, starts, jnp.asarray(factor / constant))
            shortfall, decrease, flips = _shortfalls(problem, found, factor / constant, constant)
            scale = float(bounds.loss_upper(problem.target))
            rounding = 4 * problem.rounding * float(bounds.residual_upper(problem.target)) / scale
            step = f"{label}, {name}"
            conclusions += [
                Claim(
                    f"largest shortfall of the gain over sup L, {step}",
                    shortfall / scale,
                    "<=",
                    0.0,
                    rounding,
                    max(1e-9, 2 * rounding),
                    "(1/η − Λ/2)|δ_{t+1} − δ_t|² is promised at every step; rounding of two values of L",
                ),
                exact_claim(f"ascents whose residual changes its sign, {step}", flips, "==", 0),
            ]
            rows.append((name, label, factor * lipschitz / constant, shortfall / scale, decrease / scale, flips))
            if name == str(_CASES[size][0]):
                values = np.asarray(found.values[0]) / scale
                series.append(Series(label, np.arange(float(len(values))).tolist(), values.tolist()))
        if name == "sharp" and allowed:
            conclusions.append(_sharpness(problem, starts, lipschitz))
    figure = Figure(
        name="loss",
        title=f"Loss along one ascent ({next(iter(problems))})",
        x_label="step t",
        y_label="L(δ_t) / bound of sup L",
        series=tuple(series),
        caption="It never falls for η up to 2/Λ, nor up to the longer 2/Λ_-.",
    )
    columns = (
        "problem",
        "step size",
        "η Λ",
        "largest shortfall / sup L",
        "largest decrease of L / sup L",
        "sign changes",
    )
    table = Table("ascents", "Steps of ascents against the promised gain", columns, rows)
    return Report((), tuple(conclusions), (table,), (figure,), notes)


def sharp_problem(dim: int, width: int) -> Problem:
    r"""f(u) = −2|u|² around a center whose ball holds the top, seen from a target far below: L is almost −const·f.

    Then $\Lambda$ is almost $|r| \Vert H\Vert$, and around the top a step $η$ multiplies the distance by $1 - ηΛ$.
    """
    weights, readout = np.zeros((width, dim)), np.zeros(width)
    weights[:dim], readout[:dim] = np.eye(dim), -2.0
    x = np.zeros(dim)
    x[0] = 0.5
    return problem_of(weights, readout, x, 1.0, SQUARE)


def _shortfalls(problem: Problem, found: Ascent, step: float, lipschitz: float) -> tuple[float, float, int]:
    """Largest missing gain, largest decrease of L, and how many ascents change the sign of the residual."""
    values, lengths = np.asarray(found.values), np.asarray(found.step_lengths)
    gains = np.diff(values, axis=1)
    promised = max(1 / step - lipschitz / 2, 0.0) * lengths**2  # beyond 2/Λ the inequality says less than monotone
    weights, x = np.asarray(problem.net.weights), np.asarray(problem.x)
    bend = np.asarray(problem.net.activation(jnp.asarray((x + np.asarray(found.deltas)) @ weights.T)))
    signs = np.sign(bend @ np.asarray(problem.net.readout) - float(problem.target))
    flips = int(np.sum(np.any(signs != signs[:, :1], axis=1)))
    return float(np.max(promised - gains)), float(np.max(-gains)), flips


def _sharpness(problem: Problem, starts: Float[Array, "n d"], lipschitz: float) -> Claim:
    """The smallest of some factors beyond 2/Λ at which the loss falls."""
    for factor in _SHARP_FACTORS:
        found = trajectories(problem, starts, jnp.asarray(2 * factor / lipschitz))
        if float(np.min(np.diff(np.asarray(found.values), axis=1))) < -1e-12 * float(np.max(found.values)):
            break
    else:
        factor = np.inf
    note = "a constructed problem: 2/Λ cannot be improved by more than this"
    return exact_claim("factor on 2/Λ at which L falls, sharp", factor, "in", (1.0005, 1.01), note)


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A3 of docs/theory/deng2020",
    statement=(
        "If ∇L is Λ-Lipschitz on the ball and η ≤ 2/Λ, each step of projected gradient ascent gains at least "
        "(1/η − Λ/2)|δ_{t+1} − δ_t|², and all residuals have the sign of the first; Λ = sup|g|² + sup|r| sup|H| will "
        "do, sup|r| sup|H| as well, and 2 is sharp."
    ),
    run=_run,
    control=_control,
)
