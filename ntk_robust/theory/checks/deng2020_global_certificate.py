"""The a-posteriori certificate of a global maximum against search, its reach, and what happens past it."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.landscape import vertex_is_maximum
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
    global_certificate,
    limits,
    make_problem,
    maxima_of,
    starts_in_ball,
)

_CASES = {
    "quick": (Case(Tanh(), 20, 100, 0.5, 0.2),),
    "full": (
        Case(Tanh(), 20, 100, 0.5, 0.2),
        Case(Softplus(), 20, 100, 2.0, 0.2),
        Case(Tanh(), 64, 1000, 0.5, 0.2, "digits"),
        Case(Tanh(), 784, 4000, 0.2, 0.2),
    ),
}
_STARTS = {"quick": 40, "full": 2000}
_STEPS = 400
_POINTS = 10_000
_PAST = Case(Tanh(), 20, 100, 6.0, 1.0)  # far past the scales that can be certified
_PAST_STARTS, _PAST_STEPS = 40, 3000
_SCALES = {"quick": np.geomspace(0.1, 30.0, 12), "full": np.geomspace(0.05, 50.0, 40)}
_DRAWS = {"quick": 2, "full": 10}
_WIDTHS = {"quick": (100,), "full": (100, 400, 1600)}


def _run(size: Size, key: Key[Array, ""]) -> Report:
    rng = generator(key)
    hypotheses, conclusions, rows = [], [], []
    for case in _CASES[size]:
        tested = _tested(case, _STARTS[size], rng)
        hypotheses += tested.hypotheses
        conclusions += tested.conclusions
        rows.append(tested.row)
    past = _past(rng)
    conclusions += [
        exact_claim(f"points certified past the threshold, {_PAST}", past.certified, "==", 0),
        exact_claim(f"local maxima found past the threshold, {_PAST}", past.num_maxima, ">=", 3),
        *_vertex_claims(rng),
    ]
    reach = _reach(size, rng)
    conclusions.append(
        exact_claim(
            "largest certified scale, softplus over tanh",
            reach.largest["softplus", _WIDTHS[size][0]] / reach.largest["tanh", _WIDTHS[size][0]],
            ">=",
            1.0,
            f"means over {_DRAWS[size]} draws, d = 20, m = {_WIDTHS[size][0]}, τ = 0.1",
        )
    )
    columns = ("problem", "μ", "M_+", "distance bound used", "gap bound used", "best of search minus certified")
    table = Table("certified", "Certified maxima of f", columns, rows)
    reach_rows = [(name, width, scale) for (name, width), scale in reach.largest.items()]
    reach_table = Table("reach", "Largest certified input scale", ("activation", "m", "s"), reach_rows)
    figure = Figure(
        name="reach",
        title="Share of problems whose both maxima are certified",
        x_label="input scale s",
        y_label="certified share",
        series=tuple(
            Series(f"{name}, m = {width}", _SCALES[size].tolist(), shares.tolist())
            for (name, width), shares in reach.shares.items()
        ),
        x_scale="log",
        caption=f"d = 20, τ = 0.1, {_DRAWS[size]} draws. It falls to zero: a certificate that stayed would be wrong.",
    )
    return Report(tuple(hypotheses), tuple(conclusions), (table, reach_table), (figure,))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    del size
    past = _past(generator(key))
    claim = Claim(
        f"best of search above the maximum, {_PAST}",
        past.surplus,
        "<=",
        0.0,
        past.rounding,
        1e-9,
        f"of {_PAST_STARTS} ascents",
    )
    note = "Broken on purpose: the bound of the curvature is left out, so that any first-order point counts as global."
    return Report((), (claim,), notes=(note,))


class Tested(NamedTuple):
    """Claims and a row for one problem."""

    hypotheses: list[Claim]
    conclusions: list[Claim]
    row: tuple[str, float, float, float, float, float]


def _tested(case: Case, num_starts: int, rng: np.random.Generator) -> Tested:
    name = str(case)
    problem = make_problem(case, rng)
    bounds, found = bounds_of(problem), maxima_of(problem)
    num_starts, steps = problem.affordable(num_starts, _STEPS)
    points = np.asarray(starts_in_ball(problem, _POINTS if case.dim < 100 else num_starts, rng))
    outputs, rounding = [_outputs(problem, points)], 0.0
    for side in (0.2, -0.2):  # in high dimension all ascents from random starts go to the side where the center is
        aimed = problem.aimed(bounds, side)
        step = 1 / bounds.lipschitz(aimed.target)
        ends = limits(aimed, starts_in_ball(problem, num_starts // 2, rng), step, steps)
        outputs.append(ends.residuals + float(aimed.target))
        rounding = max(rounding, aimed.rounding)
    outputs = np.concatenate(outputs)
    highest, lowest = found.highest_certificate, found.lowest_certificate
    over = float(outputs.max() - found.highest_output), float(found.lowest_output - outputs.min())
    conclusions = [
        Claim(
            f"best of search above the certified {kind}, {name}",
            surplus,
            "<=",
            0.0,
            4 * rounding + float(certificate.gap),
            1e-9,
            f"{num_starts} ascents, and random points; the certified gap is part of the uncertainty",
        )
        for kind, surplus, certificate in zip(("largest f", "smallest f"), over, (highest, lowest), strict=True)
    ]
    hypotheses = [
        Claim(
            f"M_+ over μ, {kind}, {name}", float(certificate.curvature / certificate.multiplier), "<=", 1.0, 1e-9, 1e-9
        )
        for kind, certificate in (("largest f", highest), ("smallest f", lowest))
    ]
    distance, gap = _approximate(problem, np.asarray(found.highest), float(found.highest_output), rng)
    conclusions += [
        Claim(f"distance of the maximum over its bound, approximate points, {name}", distance, "<=", 1.0, 1e-6, 1e-3),
        Claim(f"value gap over its bound, approximate points, {name}", gap, "<=", 1.0, 1e-6, 1e-3),
    ]
    row = (name, float(highest.multiplier), float(highest.curvature), distance, gap, max(over))
    return Tested(hypotheses, conclusions, row)


def _outputs(problem: Problem, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """f(x + δ), the activation alone by JAX."""
    z = (np.asarray(problem.x) + points) @ np.asarray(problem.net.weights).T
    return np.asarray(problem.net.activation(jnp.asarray(z))) @ np.asarray(problem.net.readout)


def _approximate(
    problem: Problem, maximum: Float[np.ndarray, " d"], value: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Worst share of both bounds that points of the sphere at angles from 1e-3 to 0.3 use."""
    epsilon, shares = float(problem.epsilon), []
    for angle in np.geomspace(1e-3, 0.3, 6):
        tangent = rng.normal(size=len(maximum))
        tangent -= (tangent @ maximum) * maximum / epsilon**2
        point = np.cos(angle) * maximum + epsilon * np.sin(angle) * tangent / np.linalg.norm(tangent)
        found = global_certificate(problem, jnp.asarray(point), jnp.asarray(1.0))
        if bool(found.certified):
            gap = value - float(_outputs(problem, point[None])[0])
            shares.append((np.linalg.norm(point - maximum) / float(found.distance), gap / float(found.gap)))
    distances, gaps = zip(*shares, strict=True)
    return float(max(distances)), float(max(gaps))


class Past(NamedTuple):
    """A problem past the threshold: what is certified, how many maxima there are, how far search beats the first."""

    certified: int
    num_maxima: int
    surplus: float
    rounding: float


def _past(rng: np.random.Generator) -> Past:
    problem = make_problem(_PAST, rng)
    bounds, found = bounds_of(problem), maxima_of(problem)
    problem = problem._replace(
        target=bounds.output - 10 * bounds.epsilon * bounds.slope
    )  # one side only: L grows with f
    step = 0.02 * float(bounds.epsilon) / float(bounds.slope) / float(bounds.output - problem.target)
    ends = limits(problem, starts_in_ball(problem, _PAST_STARTS, rng), step, _PAST_STEPS)
    certified = int(found.highest_certificate.certified) + int(found.lowest_certificate.certified)
    first = ends.residuals[0]
    maxima = distinct(converged(problem, ends.deltas), 0.01 * float(problem.epsilon))
    return Past(certified, len(maxima), float(ends.residuals.max() - first), 4 * problem.rounding)


@eqx.filter_jit
def _vertex(problem: Problem, epsilon: Float[Array, ""], corners: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
    def f(delta: Float[Array, " d"]) -> Float[Array, ""]:
        return problem.net(problem.x + delta)

    vertex = epsilon * jnp.sign(jax.grad(f)(jnp.zeros_like(problem.x)))
    certified = vertex_is_maximum(problem.net, problem.x, epsilon, vertex)
    return certified, f(vertex), jnp.max(jax.vmap(f)(corners))


def _vertex_claims(rng: np.random.Generator) -> list[Claim]:
    """The point of FGSM in a small cube, and random vertices and points of it."""
    problem = make_problem(Case(Tanh(), 20, 100, 0.5, 0.2), rng)
    epsilon = 0.005
    corners = epsilon * np.concatenate([rng.choice((-1.0, 1.0), (4000, 20)), rng.uniform(-1, 1, (1000, 20))])
    certified, value, best = _vertex(problem, jnp.asarray(epsilon), jnp.asarray(corners))
    gone, _, _ = _vertex(problem, jnp.asarray(10.0), jnp.asarray(corners))
    surplus, rounding = float(best - value), 4 * problem.rounding
    return [
        exact_claim("vertex of FGSM certified, ε = 0.005", bool(certified), "==", 1),
        Claim("best of 5000 points of the cube above the certified vertex", surplus, "<=", 0.0, rounding, 1e-9),
        exact_claim("vertex of FGSM certified, ε = 10", bool(gone), "==", 0),
    ]


class Reach(NamedTuple):
    """By activation and width: share of certified problems for each scale, and the largest scale, mean over draws."""

    shares: dict[tuple[str, int], Float[np.ndarray, " scales"]]
    largest: dict[tuple[str, int], float]


def _reach(size: Size, rng: np.random.Generator) -> Reach:
    shares, largest = {}, {}
    for activation in (Tanh(), Softplus()):
        for width in _WIDTHS[size]:
            certified = np.zeros((_DRAWS[size], len(_SCALES[size])), bool)
            for draw in range(_DRAWS[size]):
                problem = make_problem(Case(activation, 20, width, 1.0, 0.1), rng)
                for i, scale in enumerate(_SCALES[size]):
                    found = maxima_of(problem._replace(x=scale * problem.x, epsilon=scale * problem.epsilon))
                    certified[draw, i] = bool(found.certified)
            name = type(activation).__name__.lower()
            shares[name, width] = certified.mean(axis=0)
            tops = [_SCALES[size][row].max(initial=0.0) for row in certified]
            largest[name, width] = float(np.mean(tops))
    return Reach(shares, largest)


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A5 of docs/theory/deng2020",
    statement=(
        "With ∇²φ ⪯ M_+ on the ball, a point of the sphere with ∇φ = μδ + q, μ > M_+, is within 2|q|/(μ − M_+) of the "
        "unique global maximum of φ = ±f and at most |q|²/(2(μ − M_+)) below it; likewise at vertices of a cube. Past "
        "a scale the certificate disappears, and there are more maxima."
    ),
    run=_run,
    control=_control,
)
