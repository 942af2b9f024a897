"""The exact factor by which a step of projected gradient ascent comes nearer to its limit."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.models import Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._two_layer_landscapes import (
    Case,
    Problem,
    bounds_of,
    generator,
    limits,
    local_certificates,
    make_problem,
    maxima_of,
)

_CASES = {
    "quick": (Case(Tanh(), 20, 100, 1.0, 0.3), Case(Softplus(), 20, 100, 2.0, 0.3)),
    "full": (
        Case(Tanh(), 20, 100, 1.0, 0.3),
        Case(Softplus(), 20, 100, 2.0, 0.3),
        Case(Tanh(), 64, 1000, 1.0, 0.3, "digits"),
        Case(Tanh(), 784, 2000, 1.0, 0.1),
    ),
}
_STEPS_OVER_LIPSCHITZ = (0.1, 1.0, 10.0, 1000.0)
_ANGLE = 2e-4
_RESOLUTION = 1e-6
_SHOWN_STEPS = 12
_BATCH = 40  # one shape for all programs, that of other checks


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, curved=True)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: the rate 1/(1 + ηλ) of a network without curvature."
    return _report(size, key, curved=False, notes=(note,))


class Rates(NamedTuple):
    """Factors per step at one maximum, for one step size.

    Attributes:
        predicted: max |1 + ηh|/(1 + ηλ).
        measured: What one step did to a small displacement along the slowest direction.
        error: Of the measurement.
    """

    predicted: float
    measured: float
    error: float


def _report(size: Size, key: Key[Array, ""], *, curved: bool, notes: tuple[str, ...] = ()) -> Report:
    rng = generator(key)
    hypotheses, conclusions, rows, series = [], [], [], []
    for case in _CASES[size]:
        name = str(case)
        problem = make_problem(case, rng)
        bounds = bounds_of(problem)
        problem = problem.aimed(bounds, 0.5)
        maximum = np.asarray(maxima_of(problem).highest)
        found = local_certificates(
            problem, jnp.asarray(np.resize(maximum, (problem.affordable(_BATCH, 1)[0], case.dim)))
        )
        margin, multiplier = float(found.margin[0]), float(found.multiplier[0])
        hypotheses += [
            Claim(f"margin κ of the maximum, {name}", margin, ">=", 0.0, 1e-9, 1e-9),
            Claim(f"KKT residual of the maximum, {name}", float(found.residual[0]), "<=", 0.0, 1e-12, 1e-9),
        ]
        for factor in _STEPS_OVER_LIPSCHITZ:
            step = factor / float(bounds.lipschitz(problem.target))
            eigenvalues = np.asarray(found.eigenvalues[0])
            if not curved:
                eigenvalues = np.zeros_like(eigenvalues)
            predicted = float(np.max(np.abs(1 + step * eigenvalues)) / (1 + step * multiplier))
            measured, error = _one_step(problem, maximum, step)
            conclusions.append(
                Claim(
                    f"measured over predicted factor, η = {factor:g}/Λ, {name}",
                    measured / predicted,
                    "==",
                    1.0,
                    error / predicted,
                    _RESOLUTION,
                    "mean of both signs of the displacement; the change from twice the displacement is the uncertainty",
                )
            )
            rows.append((name, factor, predicted, measured))
            if len(series) < 2 * len(_STEPS_OVER_LIPSCHITZ) - 2 and factor < 1000:
                series += _decay(problem, maximum, step, predicted, f"η = {factor:g}/Λ")
    figure = Figure(
        name="decay",
        title=f"Distance from the maximum ({_CASES[size][0]})",
        x_label="step t",
        y_label="|δ_t − δ*| / ε",
        series=tuple(series),
        y_scale="log",
        caption="Dashed: the predicted factor per step, from the start along the slowest direction.",
    )
    table = Table("rates", "Factors per step", ("problem", "η Λ", "predicted", "measured"), rows)
    return Report(tuple(hypotheses), tuple(conclusions), (table,), (figure,), notes)


def slowest_direction(problem: Problem, maximum: Float[np.ndarray, " d"], step: float) -> Float[np.ndarray, " d"]:
    """Unit tangent vector with the largest |1 + ηh|, from the formula of the Hessian in NumPy."""
    normal = maximum / np.linalg.norm(maximum)
    projector = np.eye(len(maximum)) - np.outer(normal, normal)
    residual = float(problem.residual(jnp.asarray(maximum)))
    hessian = residual * np.asarray(problem.net.hessian(problem.x + jnp.asarray(maximum)))
    eigenvalues, vectors = np.linalg.eigh(projector @ hessian @ projector)
    tangent = np.abs(vectors.T @ normal) < 0.5
    factors = np.where(tangent, np.abs(1 + step * eigenvalues), -1.0)
    return vectors[:, np.argmax(factors)]


def _one_step(problem: Problem, maximum: Float[np.ndarray, " d"], step: float) -> tuple[float, float]:
    """The factor of one step along the slowest direction, and the error left by the size of the displacement."""
    direction = slowest_direction(problem, maximum, step)
    epsilon = float(problem.epsilon)
    angles = np.array([_ANGLE, -_ANGLE, 2 * _ANGLE, -2 * _ANGLE])
    starts = np.outer(np.cos(angles), maximum) + epsilon * np.outer(np.sin(angles), direction)
    # The even part of the displacement, which both signs share, is no part of the rate.
    ends = limits(problem, jnp.asarray(np.resize(starts, (_BATCH, len(maximum)))), step, 1).deltas @ direction
    fine, coarse = (abs(ends[i] - ends[i + 1]) / (2 * epsilon * np.sin(angles[i])) for i in (0, 2))
    rounding = 64 * np.finfo(float).eps * len(maximum) / _ANGLE
    return float(fine + (fine - coarse) / 3), float(abs(fine - coarse)) + rounding


def _decay(problem: Problem, maximum: Float[np.ndarray, " d"], step: float, rate: float, label: str) -> list[Series]:
    direction, epsilon = slowest_direction(problem, maximum, step), float(problem.epsilon)
    point = np.cos(0.01) * maximum + epsilon * np.sin(0.01) * direction
    points = [point]
    batch = np.resize(point, (_BATCH, len(point)))
    for _ in range(_SHOWN_STEPS):
        batch = limits(problem, jnp.asarray(batch), step, 1).deltas
        points.append(batch[0])
    distances = np.linalg.norm(np.stack(points) - maximum, axis=1) / epsilon
    steps = np.arange(float(len(points)))
    return [
        Series(label, steps.tolist(), distances.tolist(), style="points"),
        Series(f"{label}, predicted", steps.tolist(), (distances[0] * rate**steps).tolist(), style="dashed"),
    ]


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A7 of docs/theory/deng2020",
    statement=(
        "Near a first-order point δ* of the sphere with λ > 0, projected gradient ascent comes nearer by the factor "
        "max_i |1 + ηh_i|/(1 + ηλ) per step, h_i the eigenvalues of r∇²f on the tangent space."
    ),
    run=_run,
    control=_control,
)
