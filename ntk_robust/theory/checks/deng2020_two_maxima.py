"""At most two local maxima where the contraction is below 1, and ascent ends in the one of its side."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.models import Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._two_layer_landscapes import (
    Case,
    Problem,
    bounds_of,
    converged,
    distinct,
    generator,
    limits,
    make_problem,
    maxima_of,
    starts_in_ball,
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
_BROKEN = Case(Tanh(), 20, 100, 6.0, 1.0)
_STARTS = {"quick": 40, "full": 300}
_STEPS = 3000
_SWEEP = {"quick": (0.5, 2.0, 6.0), "full": (0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 6.0, 10.0)}


def _run(size: Size, key: Key[Array, ""]) -> Report:
    rng = generator(key)
    hypotheses, conclusions, rows = [], [], []
    for case in _CASES[size]:
        problem = make_problem(case, rng)
        found = _explored(problem, _STARTS[size], rng, inside_theory=True)
        name = str(case)
        hypotheses.append(Claim(f"contraction ρ, {name}", found.contraction, "<=", 1.0, 1e-9, 1e-9))
        conclusions += [
            *_claims(name, found),
            Claim(
                f"largest distance of a limit from the fixed point of its side over ε, {name}",
                found.distance,
                "<=",
                0.0,
                1e-9,
                1e-7,
            ),
            Claim(
                f"measured contraction of ±ε g/|g| over ρ, {name}",
                found.measured_contraction / found.contraction,
                "<=",
                1.0,
                1e-6,
                1e-3,
                "200 pairs of points, half of them close",
            ),
        ]
        rows.append((name, found.contraction, found.measured_contraction, found.num_limits, found.sides))
    columns = ("problem", "ρ", "measured contraction", "distinct limits", "sides of y among the starts")
    table = Table("limits", f"Limits of up to {_STARTS[size]} ascents", columns, rows)
    return Report(tuple(hypotheses), tuple(conclusions), (table,), (_figure(size, rng),))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    rng = generator(key)
    found = _explored(make_problem(_BROKEN, rng), _STARTS[size], rng, inside_theory=False)
    note = f"Broken on purpose: an input scale at which the contraction is not below 1 ({found.contraction:.3g})."
    return Report((), tuple(_claims(str(_BROKEN), found)), notes=(note,))


def _claims(name: str, found: "Explored") -> list[Claim]:
    return [
        exact_claim(f"distinct limits with L > 0, {name}", found.num_limits, "<=", 2),
        exact_claim(f"ascents that end on the other side, {name}", found.crossed, "==", 0),
    ]


class Explored(NamedTuple):
    """What ascents from many starts found."""

    contraction: float
    measured_contraction: float
    num_limits: int
    sides: int
    crossed: int
    distance: float


def _explored(problem: Problem, num_starts: int, rng: np.random.Generator, *, inside_theory: bool) -> Explored:
    bounds, maxima = bounds_of(problem), maxima_of(problem)
    problem = problem.aimed(bounds, 0.1)
    count, steps = problem.affordable(num_starts, _STEPS)
    starts = starts_in_ball(problem, count, rng)
    step = float(1 / bounds.lipschitz(problem.target))
    if not inside_theory:
        # There 1/Λ is far too small to get anywhere; a small share of the radius per step will do.
        residuals = limits(problem, starts, 0.0, 0).start_residuals
        step = 0.03 * float(problem.epsilon / bounds.slope) / float(np.abs(residuals).max())
    ends = limits(problem, starts, step, steps)
    targets = np.where(ends.start_residuals[:, None] > 0, np.asarray(maxima.highest), np.asarray(maxima.lowest))
    epsilon = float(problem.epsilon)
    pairs = np.array(starts_in_ball(problem, 400, rng)).reshape(2, 200, -1)
    pairs[1, :100] = pairs[0, :100] + 1e-4 * (pairs[1, :100] - pairs[0, :100])
    images = _fixed_point_map(problem, pairs)
    ratios = np.linalg.norm(images[0] - images[1], axis=1) / np.linalg.norm(pairs[0] - pairs[1], axis=1)
    contraction = float(bounds.contraction)
    return Explored(
        contraction,
        float(ratios.max()),
        len(distinct(ends.deltas if inside_theory else converged(problem, ends.deltas), 1e-3 * epsilon)),
        len(set(np.sign(ends.start_residuals))),
        int(np.sum(np.sign(ends.residuals) != np.sign(ends.start_residuals))),
        float(np.linalg.norm(ends.deltas - targets, axis=1).max() / epsilon),
    )


def _fixed_point_map(problem: Problem, deltas: Float[np.ndarray, "two n d"]) -> Float[np.ndarray, "two n d"]:
    """ε g/|g| from the formula of g."""
    x, weights, readout = (np.asarray(part) for part in (problem.x, problem.net.weights, problem.net.readout))
    slopes = np.asarray(problem.net.activation.derivative(jnp.asarray((x + deltas) @ weights.T)))
    gradients = (readout * slopes) @ weights
    return float(problem.epsilon) * gradients / np.linalg.norm(gradients, axis=-1, keepdims=True)


def _figure(size: Size, rng: np.random.Generator) -> Figure:
    problem = make_problem(Case(Tanh(), 20, 100, 1.0, 1.0), rng)
    scales = _SWEEP[size]
    counts = [
        float(
            _explored(
                problem._replace(x=scale * problem.x, epsilon=scale * problem.epsilon),
                _STARTS[size],
                rng,
                inside_theory=False,
            ).num_limits
        )
        for scale in scales
    ]
    return Figure(
        name="limits",
        title="Distinct limits of ascents against the input scale (tanh, d = 20, m = 100, τ = 1)",
        x_label="input scale s",
        y_label=f"distinct limits of {_STARTS[size]} ascents",
        series=(
            Series("one network", [float(scale) for scale in scales], counts),
            Series("at most two", [float(scales[0]), float(scales[-1])], [2.0, 2.0], style="dashed"),
        ),
        x_scale="log",
        caption="A smaller input scale at a fixed ratio makes the landscape regular: two maxima, one for each side.",
    )


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A6 of docs/theory/deng2020",
    statement=(
        "If ρ = ε sup|H|/inf|g| < 1, L has at most two local maxima over the ball, where f is largest and smallest; "
        "projected gradient ascent with η ≤ 1/Λ and r_0 ≠ 0 converges to the one on its side; both are fixed points of "
        "δ ↦ ±ε g/|g|, which contracts with the factor ρ."
    ),
    run=_run,
    control=_control,
)
