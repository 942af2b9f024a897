"""First- and second-order certificates against every stationary point of a problem that has them all in closed form."""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.landscape import local_maximum_of_cube
from ntk_robust.models import Softplus, Tanh
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
    local_certificates,
    make_problem,
    starts_in_ball,
)

_CASES = {
    "quick": (Case(Tanh(), 20, 100, 1.0, 0.5), Case(Softplus(), 20, 100, 2.0, 0.5)),
    "full": (
        Case(Tanh(), 20, 100, 1.0, 0.5),
        Case(Softplus(), 20, 100, 2.0, 0.5),
        Case(Tanh(), 64, 1000, 1.0, 0.5, "digits"),
        Case(Tanh(), 784, 2000, 1.0, 0.2),
    ),
}
_SQUARE = {"quick": Case(SQUARE, 8, 100, 1.0, 2.0), "full": Case(SQUARE, 16, 400, 1.0, 2.0)}
_DRAWS = {"quick": 6, "full": 40}
_ANGLE = 1e-3
_PROBES = 200
_CUBES = 6


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, second_order=True)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: the second-order condition is left out, so that saddles count as maxima."
    return _report(size, key, second_order=False, notes=(note,))


class Judged(NamedTuple):
    """Stationary points, what the certificate says of them, and what their neighbors say.

    Attributes:
        strict: Whether the certificate calls it a strict local maximum.
        beaten: Whether some neighbor on the sphere or inside is better.
        margins: κ, where λ > 0.
    """

    strict: Bool[np.ndarray, " n"]
    beaten: Bool[np.ndarray, " n"]
    margins: Float[np.ndarray, " n"]


def _report(size: Size, key: Key[Array, ""], *, second_order: bool, notes: tuple[str, ...] = ()) -> Report:
    rng = generator(key)
    judged = [_judge(_SQUARE[size], rng, second_order=second_order) for _ in range(_DRAWS[size])]
    strict, beaten, margins = (np.concatenate(part) for part in zip(*judged, strict=True))
    certified = "points with λ > 0 and κ > 0" if second_order else "points with λ > 0"
    conclusions = [
        exact_claim(f"{certified} that a neighbor beats", np.sum(strict & beaten), "==", 0),
        exact_claim("refused points that no neighbor beats", np.sum(~strict & ~beaten), "==", 0),
        exact_claim("stationary points refused", np.sum(~strict), ">=", 1, "saddles and minima"),
    ]
    rows = []
    for case in _CASES[size]:
        name = str(case)
        problem = make_problem(case, rng)
        bounds = bounds_of(problem)
        problem = problem.aimed(bounds, 0.5)
        count, steps = problem.affordable(40, 3000)
        ends = limits(problem, starts_in_ball(problem, count, rng), 0.5 / bounds.slope**2, steps)
        # Every run has a batch of the same size, whether or not limits coincide.
        found = local_certificates(problem, jnp.asarray(ends.deltas))
        residual, margin = float(np.max(found.residual)), float(np.min(found.margin))
        seconds, predicted = _second_derivatives(problem, ends.deltas[0], np.asarray(found.direction[0]))
        formula = float(problem.epsilon**2 * (found.eigenvalues[0, 0] - found.multiplier[0]))
        number = len(distinct(ends.deltas, 1e-4 * float(problem.epsilon)))
        conclusions += [
            Claim(f"largest KKT residual of the limits of ascent, {name}", residual, "<=", 0.0, 1e-12, 1e-10),
            Claim(f"smallest κ of the limits of ascent, {name}", margin, ">=", 0.0, 1e-6, 1e-6),
            Claim(
                f"second derivative along the weakest great circle over its formula, {name}",
                seconds / formula,
                "==",
                1.0,
                predicted / abs(formula),
                1e-3,
                "central differences of L at two angles; their difference is the uncertainty",
            ),
        ]
        rows.append((name, number, margin, residual))
    vertices = _vertices(rng)
    conclusions += [
        exact_claim(
            "vertices of cubes certified and beaten by a neighbor", np.sum(vertices.strict & vertices.beaten), "==", 0
        ),
        exact_claim(
            "vertices of cubes refused and beaten by none", np.sum(~vertices.strict & ~vertices.beaten), "==", 0
        ),
        exact_claim("vertices of cubes certified", np.sum(vertices.strict), ">=", 1),
    ]
    columns = ("problem", "distinct limits of up to 40 starts", "smallest margin κ", "largest KKT residual")
    table = Table("limits", "Limits of ascent under the certificate", columns, rows)
    figure = Figure(
        name="margins",
        title="Stationary points with λ > 0 of the squared error of squares",
        x_label="rank of the stationary point",
        y_label="margin κ",
        series=(
            Series("no neighbor is better", *_ranked(margins, ~beaten), style="points"),
            Series("a neighbor is better", *_ranked(margins, beaten), style="points"),
            Series("κ = 0", [0.0, float(len(margins))], [0.0, 0.0], style="dashed"),
        ),
        caption="The sign of κ decides: above 0 are the local maxima, below are saddles and minima.",
    )
    return Report((), tuple(conclusions), (table,), (figure,), notes)


def _ranked(margins: Float[np.ndarray, " n"], chosen: Bool[np.ndarray, " n"]) -> tuple[list[float], list[float]]:
    order = np.argsort(margins)
    ranks = np.flatnonzero((chosen & np.isfinite(margins))[order])
    return ranks.astype(float).tolist(), margins[order][ranks].tolist()


def _judge(case: Case, rng: np.random.Generator, *, second_order: bool) -> Judged:
    """All stationary points with r ≠ 0 of one network of squares."""
    problem = make_problem(case, rng)
    problem = problem.aimed(bounds_of(problem), 0.5)
    points = stationary_points(problem)
    batch = np.resize(points, (2 * case.dim, case.dim))  # one shape for every draw
    found = local_certificates(problem, jnp.asarray(batch))
    multipliers, margins = np.asarray(found.multiplier)[: len(points)], np.asarray(found.margin)[: len(points)]
    strict = np.asarray(found.is_strict)[: len(points)] if second_order else multipliers > 0
    directions = np.asarray(found.direction)[: len(points)]
    beaten = np.array([_is_beaten(problem, *pair, rng) for pair in zip(points, directions, strict=True)])
    return Judged(strict, beaten, np.where(multipliers > 0, margins, np.nan))


def stationary_points(problem: Problem) -> Float[np.ndarray, "n d"]:
    r"""Points of the sphere where the gradient of a quadratic f is radial, by a linear eigenproblem of twice the size.

    |(μ − H)^{-1} g| = ε, with g and H at the center, says that μ is an eigenvalue of [[H, −g gᵀ/ε²], [−I, H]].
    """
    x, weights, readout = (np.asarray(part) for part in (problem.x, problem.net.weights, problem.net.readout))
    epsilon, dim = float(problem.epsilon), len(x)
    hessian = 2 * weights.T @ (readout[:, None] * weights)
    gradient = hessian @ x
    pencil = np.block([[hessian, -np.outer(gradient, gradient) / epsilon**2], [-np.eye(dim), hessian]])
    roots = np.linalg.eigvals(pencil)
    real = np.sort(roots[np.abs(roots.imag) < 1e-9 * np.abs(roots).max()].real)
    points = [np.linalg.solve(mu * np.eye(dim) - hessian, gradient) for mu in real]
    return np.stack([point for point in points if abs(np.linalg.norm(point) / epsilon - 1) < 1e-6])


def _losses(problem: Problem, deltas: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """L for squares, without JAX."""
    weights, readout = np.asarray(problem.net.weights), np.asarray(problem.net.readout)
    outputs = ((np.asarray(problem.x) + deltas) @ weights.T) ** 2 @ readout
    return 0.5 * (outputs - float(problem.target)) ** 2


def _is_beaten(
    problem: Problem, point: Float[np.ndarray, " d"], direction: Float[np.ndarray, " d"], rng: np.random.Generator
) -> bool:
    """Whether a step along the weakest direction, a random one of the sphere, or inwards, makes L larger."""
    epsilon = float(problem.epsilon)
    tangents = rng.normal(size=(_PROBES, len(point)))
    tangents -= np.outer(tangents @ point, point) / epsilon**2
    tangents = np.concatenate([tangents / np.linalg.norm(tangents, axis=1, keepdims=True), direction[None]])
    around = np.cos(_ANGLE) * point + epsilon * np.sin(_ANGLE) * np.concatenate([tangents, -tangents])
    neighbors = np.concatenate([around, (1 - _ANGLE) * point[None]])
    here = _losses(problem, point[None])[0]
    return bool(_losses(problem, neighbors).max() > here * (1 + 1e-12))


@eqx.filter_jit
def _along(problem: Problem, deltas: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.vmap(problem.loss)(deltas)


def _second_derivatives(
    problem: Problem, point: Float[np.ndarray, " d"], direction: Float[np.ndarray, " d"]
) -> tuple[float, float]:
    """Central second difference of L along a great circle, extrapolated from two angles, and their difference."""
    angles = np.array([-2e-2, -1e-2, 0.0, 1e-2, 2e-2])
    circle = np.outer(np.cos(angles), point) + float(problem.epsilon) * np.outer(np.sin(angles), direction)
    values = np.asarray(_along(problem, jnp.asarray(circle)))
    coarse = (values[0] - 2 * values[2] + values[4]) / angles[4] ** 2
    fine = (values[1] - 2 * values[2] + values[3]) / angles[3] ** 2
    return float(fine + (fine - coarse) / 3), float(abs(fine - coarse) / 3)


@eqx.filter_jit
def _cube_verdicts(problem: Problem, corners: Float[Array, "n d"], moved: Float[Array, "n k d"]) -> tuple[Array, Array]:
    def judge(corner: Array, neighbors: Array) -> tuple[Array, Array]:
        best = jnp.max(jax.vmap(problem.loss)(neighbors))
        return local_maximum_of_cube(problem.loss, problem.epsilon, corner).is_strict, best > problem.loss(corner)

    return jax.vmap(judge)(corners, moved)


def _vertices(rng: np.random.Generator) -> Judged:
    """Every vertex of cubes of six dimensions, with its neighbors along each edge and along random directions."""
    judged = []
    for _ in range(_CUBES):
        problem = make_problem(Case(Tanh(), 6, 60, 0.5, 0.01), rng)._replace(target=jnp.asarray(-1.0))
        corners = float(problem.epsilon) * np.array(list(itertools.product((-1.0, 1.0), repeat=6)))
        inward = np.concatenate([np.eye(6), rng.uniform(size=(20, 6))])
        moved = corners[:, None, :] * (1 - 1e-3 * inward[None])
        judged.append(_cube_verdicts(problem, jnp.asarray(corners), jnp.asarray(moved)))
    strict, beaten = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*judged, strict=True))
    return Judged(strict, beaten, np.zeros(len(strict)))


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A2 of docs/theory/deng2020",
    statement=(
        "At a point of the sphere with ∇L = λδ, L > 0: λ > 0 and κ = 1 − ε h_max/|g| > 0, h_max the largest eigenvalue "
        "of ±∇²f on the tangent space, make it a strict local maximum of L over the ball, and a local maximum has "
        "λ ≥ 0, κ ≥ 0. At a vertex of a cube the signs of the gradient decide."
    ),
    run=_run,
    control=_control,
)
