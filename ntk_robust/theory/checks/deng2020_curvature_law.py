"""How slope and curvature at a random initialization depend on the input scale."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.landscape import CurvatureStatistics, curvature_law, curvature_statistics
from ntk_robust.models import AbstractActivation, Erf, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._two_layer_landscapes import Case, Problem, generator, make_problem

_ACTIVATIONS = (Softplus(), Tanh(), Erf())
_RATIO = 0.1
_MOMENTS = {
    "quick": (20_000, ((3, 5, 0.3), (30, 2, 2.0))),
    "full": (200_000, ((3, 5, 0.3), (30, 2, 2.0), (100, 50, 5.0))),
}
_DRAWS = {"quick": (100, 5000, 8), "full": (400, 20_000, 8)}
_SCALES = (0.02, 0.04, 0.08, 0.16)
_EDGE_AT = 1  # which of the scales the edge is compared at
_EDGE_RESOLUTION = {"quick": 0.5, "full": 0.2}  # the finite dimension is seen, and few draws are


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, _ACTIVATIONS, lambda activation: activation, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: the law of softplus, linear in s and with the edge 2, for odd activations."
    return _report(size, key, _ACTIVATIONS[1:], lambda _: Softplus(), (note,))


def _report(
    size: Size,
    key: Key[Array, ""],
    activations: tuple[AbstractActivation, ...],
    law_of: Callable[[AbstractActivation], AbstractActivation],
    notes: tuple[str, ...],
) -> Report:
    rng = generator(key)
    conclusions = [claim for activation in activations for claim in _moment_claims(size, activation, rng)]
    rows, series = [], []
    dim, width, draws = _DRAWS[size]
    for activation in activations:
        name = type(activation).__name__.lower()
        predicted_by = law_of(activation)
        found = [_statistics_of(activation, dim, width, rng) for _ in range(draws)]
        relative = np.stack([np.asarray(each.relative) for each in found])
        fit = slope_fit(np.array(_SCALES), relative, confidence=0.9973)
        half = max(fit.upper - fit.slope, fit.slope - fit.lower)
        conclusions.append(
            Claim(
                f"exponent of ρ_0 in s, {name}",
                fit.slope,
                "in",
                (_orders(predicted_by) - 0.1, _orders(predicted_by) + 0.1),
                half,
                0.05,
                f"s from {_SCALES[0]} to {_SCALES[-1]}, d = {dim}, m = {width}, {draws} draws",
            )
        )
        conclusions.append(_edge_claim(size, activation, predicted_by, found))
        laws = [curvature_law(activation, scale).relative(_RATIO) for scale in _SCALES]
        rows += [
            (name, scale, float(mean), law, float(mean) / law)
            for scale, mean, law in zip(_SCALES, relative.mean(axis=0), laws, strict=True)
        ]
        scales = [float(scale) for scale in _SCALES]
        series += [
            Series(
                name,
                scales,
                relative.mean(axis=0).tolist(),
                relative.min(axis=0).tolist(),
                relative.max(axis=0).tolist(),
            ),
            Series(f"{name}, limit", scales, laws, style="dashed"),
        ]
    figure = Figure(
        name="curvature",
        title="Curvature across the ball at initialization, at a fixed perturbation ratio",
        x_label="input scale s",
        y_label="ρ_0 = ε|H|/|g|",
        series=tuple(series),
        x_scale="log",
        y_scale="log",
        caption=f"τ = {_RATIO}, d = {dim}, m = {width}. Smaller inputs see a more regular landscape.",
    )
    table = Table("curvature", "ρ_0 against its limit", ("activation", "s", "ρ_0", "limit", "over the limit"), rows)
    return Report((), tuple(conclusions), (table,), (figure,), notes)


def _orders(activation: AbstractActivation) -> float:
    """The exponent of ρ_0 in s."""
    return 1.0 if isinstance(activation, Softplus) else 2.0


def _moment_claims(size: Size, activation: AbstractActivation, rng: np.random.Generator) -> list[Claim]:
    """The mean of |g|² over independent networks against its exact value."""
    draws, cases = _MOMENTS[size]
    claims = []
    for dim, width, scale in cases:
        squares = []
        for _ in range(10):
            weights = rng.normal(size=(draws // 10, width, dim)) / math.sqrt(dim)
            signs = rng.choice((-1.0, 1.0), (draws // 10, width)) / math.sqrt(width)
            x = rng.normal(size=dim)
            x *= scale * math.sqrt(dim) / np.linalg.norm(x)
            slopes = np.asarray(activation.derivative(jnp.asarray(weights @ x)))
            squares.append(np.sum(np.einsum("nm,nmd->nd", signs * slopes, weights) ** 2, axis=1))
        values = np.concatenate(squares)
        law = curvature_law(activation, scale).gradient_norm_squared(dim, 1 / math.sqrt(dim))
        error = 4 * float(values.std(ddof=1)) / math.sqrt(len(values))
        name = type(activation).__name__.lower()
        claims.append(
            Claim(
                f"mean |g|² over its exact value, {name}, d={dim}, m={width}, s={scale:g}",
                float(values.mean()) / law,
                "==",
                1.0,
                error / law,
                0.05,
                f"four standard errors of {len(values)} networks",
            )
        )
    return claims


@eqx.filter_jit
def _statistics(problem: Problem, scales: Float[Array, " k"]) -> CurvatureStatistics:
    def at(scale: Float[Array, ""]) -> CurvatureStatistics:
        return curvature_statistics(problem.net, scale * problem.x, scale * problem.epsilon)

    return jax.lax.map(at, scales)


def _statistics_of(
    activation: AbstractActivation, dim: int, width: int, rng: np.random.Generator
) -> CurvatureStatistics:
    """Of one network at all scales."""
    problem = make_problem(Case(activation, dim, width, 1.0, _RATIO), rng)
    return _statistics(problem, jnp.asarray(_SCALES))


def _edge_claim(
    size: Size,
    activation: AbstractActivation,
    predicted_by: AbstractActivation,
    found: list[CurvatureStatistics],
) -> Claim:
    """Half the distance of the extreme eigenvalues of H in the unit of its limit."""
    dim = _DRAWS[size][0]
    scale = _SCALES[_EDGE_AT]
    unit = math.sqrt(dim * curvature_law(activation, scale).curvature) / dim
    edges = [float(each.highest[_EDGE_AT] - each.lowest[_EDGE_AT]) / 2 / unit for each in found]
    error = 4 * float(np.std(edges, ddof=1)) / math.sqrt(len(edges)) + 2 * dim ** (-2 / 3)
    name = type(activation).__name__.lower()
    return Claim(
        f"edge of the spectrum, {name}",
        float(np.mean(edges)),
        "==",
        curvature_law(predicted_by, scale).edge,
        error,
        _EDGE_RESOLUTION[size],
        f"four standard errors of {len(edges)} draws, plus 2 d^(-2/3) for the finite dimension {dim}",
    )


CHECK = Check(
    citation="In the setting of Deng et al. (ICML 2020); item A8 of docs/theory/deng2020",
    statement=(
        "At a Gaussian initialization E|g|² = s_w²[(d − 1) E σ'(sZ)² + E σ'(sZ)² Z²] exactly; |H| → "
        "e s_w² √(d E σ''(sZ)²), e = 2 or β²/√(β² − 1) for β² > 2; so ρ_0 = ε|H|/|g| at a fixed ratio falls like s for "
        "softplus and like s² for tanh and erf."
    ),
    run=_run,
    control=_control,
)
