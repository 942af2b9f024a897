"""Iterations of projected gradient ascent against bounds with measured constants, and how they grow with d and m."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.landscape import Ascent, BallBounds, ball_bounds, projected_gradient_ascent
from ntk_robust.models import Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._two_layer_landscapes import (
    Case,
    Problem,
    bounds_of,
    generator,
    make_problem,
    starts_in_ball,
    trajectories,
)

_CASES = {
    "quick": (Case(Tanh(), 20, 100, 0.5, 0.2), Case(Softplus(), 20, 100, 1.0, 0.2), Case(Tanh(), 20, 100, 0.02, 0.2)),
    "full": (
        Case(Tanh(), 20, 100, 0.5, 0.2),
        Case(Softplus(), 20, 100, 1.0, 0.2),
        Case(Tanh(), 20, 100, 0.02, 0.2),
        Case(Tanh(), 64, 1000, 0.5, 0.2, "digits"),
        Case(Tanh(), 784, 4000, 0.2, 0.2),
    ),
}
_STARTS = 10
_TOLERANCE = 1e-8
_GROWTH = {"quick": ((8, 16, 32, 64), (64, 256), 12), "full": ((16, 32, 64, 128, 256, 512), (500, 1000, 2000), 20)}
_GROWTH_STEPS = 400


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, 1.0, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, 1e-3, ("Broken on purpose: steps of 0.001/Λ against the bounds for 1/Λ.",))


def _report(size: Size, key: Key[Array, ""], factor: float, notes: tuple[str, ...]) -> Report:
    rng = generator(key)
    hypotheses, conclusions, rows, series = [], [], [], []
    for case in _CASES[size]:
        problem, name = make_problem(case, rng), str(case)
        bounds = bounds_of(problem)
        # The smallest case is almost linear, and far enough from y for the bound to mean something.
        problem = problem.aimed(bounds, 1.0)
        hypotheses.append(
            Claim(
                f"ε sup|H| over |g(0)|, {name}",
                float(bounds.epsilon * bounds.curvature / bounds.slope),
                "<=",
                1.0,
                1e-9,
                1e-9,
                "so that inf|g| > 0",
            )
        )
        center = jnp.zeros((1, case.dim))
        starts = jnp.concatenate([center, starts_in_ball(problem, _STARTS - 1, rng)])
        found = trajectories(problem, starts, factor / bounds.lipschitz(problem.target))
        gradient_ratio, kkt_ratio, hits = _against_bounds(problem, bounds, found, factor)
        bound = math.ceil(float(bounds.steps_to_sphere(problem.target)))
        conclusions += [
            Claim(
                f"min_t |p_t|/η over its bound, worst T and start, {name}",
                gradient_ratio,
                "<=",
                1.0,
                1e-9,
                1e-6,
                "√(2Λ(L_max − L_0)/T) for T up to 60",
            ),
            Claim(f"KKT residual over 2|p_t|/η, worst step on the sphere, {name}", kkt_ratio, "<=", 1.0, 1e-6, 1e-3),
            exact_claim(f"first step on the sphere from 0, {name}", hits[0], "<=", bound, "⌈N_0⌉"),
        ]
        rows.append((name, int(hits[0]), int(max(hits)), bound, gradient_ratio, kkt_ratio))
        residuals = np.asarray(found.residuals[0])
        series.append(Series(name, np.arange(float(len(residuals))).tolist(), residuals.tolist()))
    growth, growth_table, growth_figure = _growth(size, rng) if factor == 1.0 else ([], (), ())
    columns = (
        "problem",
        "first step on the sphere from 0",
        "the same, worst start",
        "⌈N_0⌉",
        "worst |p_t|/η over its bound",
        "worst KKT residual over its bound",
    )
    table = Table("bounds", "Iterations against the bounds", columns, rows)
    figure = Figure(
        name="residual",
        title="First-order condition along ascents from 0",
        x_label="step t",
        y_label="KKT residual / |∇L|",
        series=tuple(series),
        y_scale="log",
        caption="1 inside the ball; on the sphere the tangent part of the gradient, which falls geometrically (A7).",
    )
    return Report(tuple(hypotheses), (*conclusions, *growth), (table, *growth_table), (figure, *growth_figure), notes)


def _against_bounds(
    problem: Problem, bounds: BallBounds, found: Ascent, factor: float
) -> tuple[float, float, list[int]]:
    lipschitz, target = float(bounds.lipschitz(problem.target)), problem.target
    values, lengths = np.asarray(found.values), np.asarray(found.step_lengths)
    gained = float(bounds.loss_upper(target)) - values[:, :1]
    steps = np.arange(1, lengths.shape[1] + 1)
    best = np.minimum.accumulate(lengths, axis=1) * lipschitz / factor
    gradient_ratio = float(np.max(best / np.sqrt(2 * lipschitz * gained / steps)))
    # The residual is relative to the gradient; the bound 2|p_t|/η is that of the point after the step.
    gradients = np.linalg.norm(np.asarray(_gradients(problem, found.deltas)), axis=-1)
    residuals = (np.asarray(found.residuals) * gradients)[:, 1:]
    on_sphere = np.asarray(found.relative_norms)[:, 1:] > 1 - 1e-12
    noise = 1e-10 * gradients.max()
    ratios = residuals / (2 * lengths * lipschitz / factor + noise)
    hits = np.asarray(jax.vmap(lambda ascent: ascent.first_on_sphere)(found))
    return gradient_ratio, float(np.max(ratios[on_sphere], initial=0.0)), [int(hit) for hit in hits]


@eqx.filter_jit
def _gradients(problem: Problem, deltas: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
    return jax.vmap(jax.vmap(jax.grad(problem.loss)))(deltas)


def _growth(size: Size, rng: np.random.Generator) -> tuple[list[Claim], tuple[Table, ...], tuple[Figure, ...]]:
    """A trend: steps 1/Λ from 0 to a KKT residual of 1e-8, at fixed s and τ, padded to one shape."""
    dims, widths, draws = _GROWTH[size]
    shape = (max(dims), max(widths))
    by_dim = np.stack([_steps([Case(Tanh(), d, widths[0], 0.5, 0.2)] * draws, shape, rng) for d in dims], axis=1)
    by_width = np.stack([_steps([Case(Tanh(), dims[1], m, 0.5, 0.2)] * draws, shape, rng) for m in widths], axis=1)
    claims, rows = [], []
    for name, values, steps, highest in (("d", dims, by_dim, 0.5), ("m", widths, by_width, 0.25)):
        fit = slope_fit(np.array(values, float), steps, confidence=0.9973)
        half = max(fit.upper - fit.slope, fit.slope - fit.lower)
        note = f"a trend; {draws} draws, steps 1/Λ from 0 to a KKT residual of {_TOLERANCE:g}"
        claims.append(Claim(f"exponent of the iterations in {name}", fit.slope, "<=", highest, half, 0.25, note))
        rows += [
            (name, value, float(column.mean()), float(column.max()))
            for value, column in zip(values, steps.T, strict=True)
        ]
    table = Table(
        "growth",
        f"Steps to a KKT residual of {_TOLERANCE:g}, tanh, s = 0.5, τ = 0.2",
        ("varied", "value", "mean steps", "largest"),
        rows,
    )
    figure = Figure(
        name="growth",
        title="Iterations against the dimension",
        x_label="dimension d",
        y_label=f"steps to a KKT residual of {_TOLERANCE:g}",
        series=(
            Series(
                f"m = {widths[0]}",
                [float(d) for d in dims],
                by_dim.mean(axis=0).tolist(),
                by_dim.min(axis=0).tolist(),
                by_dim.max(axis=0).tolist(),
            ),
        ),
        x_scale="log",
        y_scale="log",
        caption="Mean over draws with the range. Polynomial growth of a small degree is what the paper claims.",
    )
    return claims, (table,), (figure,)


def _steps(cases: list[Case], shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, " draws"]:
    """Zero columns and zero neurons change nothing but the shape."""
    dim, width = shape

    def padded(case: Case) -> Problem:
        problem = make_problem(case, rng)
        more, further = width - case.width, dim - case.dim
        net = problem.net
        net = eqx.tree_at(
            lambda n: (n.weights, n.biases, n.readout),
            net,
            (
                np.pad(np.asarray(net.weights), ((0, more), (0, further))),
                np.zeros(width),
                np.pad(np.asarray(net.readout), (0, more)),
            ),
        )
        return problem._replace(net=net, x=np.pad(np.asarray(problem.x), (0, further)))

    problems = [padded(case) for case in cases]
    stacked = jax.tree.map(lambda *parts: jnp.asarray(np.stack([np.asarray(part) for part in parts])), *problems)
    return np.asarray(_steps_to_tolerance(stacked), float)


@eqx.filter_jit
def _steps_to_tolerance(problems: Problem) -> Float[Array, " draws"]:
    def count(problem: Problem) -> Float[Array, ""]:
        bounds = ball_bounds(problem.net, problem.x, problem.epsilon)
        aimed = problem.aimed(bounds, 1.0)
        step = 1 / bounds.lipschitz(aimed.target)
        found = projected_gradient_ascent(
            aimed.loss, aimed.epsilon, jnp.zeros_like(aimed.x), step_size=step, num_steps=_GROWTH_STEPS
        )
        reached = found.residuals < _TOLERANCE
        return jnp.where(jnp.any(reached), jnp.argmax(reached).astype(float), jnp.nan)

    return jax.lax.map(count, problems)


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A4 of docs/theory/deng2020",
    statement=(
        "With η = 1/Λ, min_{t<T} |δ_{t+1} − δ_t|/η ≤ √(2Λ(L_max − L_0)/T), points on the sphere meet the first-order "
        "condition up to 2|δ_{t+1} − δ_t|/η, and where inf|g| > 0 the sphere is reached within "
        "⌈2Λ(L_max − L_0)/(r_0² inf|g|²)⌉ steps. The growth with d and m is a trend."
    ),
    run=_run,
    control=_control,
)
