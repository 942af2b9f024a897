"""A function of the RKHS as an explicit network near initialization: norm, linearization error, sup-norm error."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.expressiveness import representer
from ntk_robust.models import AbstractActivation, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, summation_error
from ntk_robust.theory._report import Report

_WIDTHS = {"quick": (2**6, 2**8, 2**10, 2**12), "full": (2**6, 2**8, 2**10, 2**12, 2**14, 2**16)}
_NUM_SEEDS = 256
_CONFIDENCE = 0.9973
_RESOLUTION = 0.15
_GRID_ANGLES = np.arange(48) * 2 * math.pi / 48  # where sup norms on the circle are taken
_SPACING = 0.125  # of the trapezoidal rule for the kernel
_CENTERS = ((0.3, 1.5), (2.0, -2.0), (4.4, 1.0))  # angle and coefficient


class Bending(NamedTuple):
    """An activation with bounds of its derivatives.

    Attributes:
        activation: σ, with C_1 and C_2.
        third: C_3 ≥ |σ'''|.
    """

    activation: AbstractActivation
    third: float


_BENDINGS = {
    "softplus": Bending(Softplus(), 1 / (6 * math.sqrt(3))),
    "tanh": Bending(Tanh(), 2.0),
}


class Target(NamedTuple):
    """A function h = Σ_i β_i K(z_i, ·).

    Attributes:
        centers: z_i.
        coefficients: β_i.
        values: h on the grid.
    """

    centers: Float[Array, "k 3"]
    coefficients: Float[Array, " k"]
    values: Float[Array, " grid"]


class Errors(NamedTuple):
    """What one random network does.

    Attributes:
        norm_squared: |W − W_0|².
        linearization: The largest |f(W, x) − (2/m) Σ_r c(w_r)·x σ'(w_r·x)| on the circle.
        total: The largest |f(W, x) − h(x)| on the circle.
    """

    norm_squared: Float[Array, "*seeds"]
    linearization: Float[Array, "*seeds"]
    total: Float[Array, "*seeds"]


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(_BENDINGS, size, key, -1.0, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: both neurons of a pair are moved alike, so that their contributions cancel."
    return _report({"softplus": _BENDINGS["softplus"]}, size, key, 1.0, (note,))


@functools.partial(jax.jit, static_argnames=("activation", "width"))
def approximant_errors(
    activation: AbstractActivation,
    width: int,
    keys: Key[Array, " seeds"],
    target: Target,
    twin: Float[Array, ""],
) -> Errors:
    r"""The networks with w_r + (a_r/√m) c(w_r) and w̄_r + `twin` (a_r/√m) c(w_r), measured on a grid of the circle.

    c(w) = Σ_i β_i z_i σ'(w·z_i) is the representer of h = Σ_i β_i K(z_i, ·); the construction has `twin` = −1.
    """
    points, root = jnp.asarray(_circle(_GRID_ANGLES)), math.sqrt(width)

    def one(key: Array) -> Errors:
        weight_key, sign_key = jr.split(key)
        weights = jr.normal(weight_key, (width // 2, 3), points.dtype)
        signs = jr.rademacher(sign_key, (width // 2,), points.dtype)
        moved_by = representer(activation, target.centers, target.coefficients, weights)
        moves = signs[:, None] * moved_by / root
        pairs = activation((weights + moves) @ points.T) - activation((weights + twin * moves) @ points.T)
        average = 2 / width * jnp.sum((moved_by @ points.T) * activation.derivative(weights @ points.T), axis=0)
        outputs = signs @ pairs / root
        return Errors(
            (1 + twin**2) * jnp.sum(moves**2),
            jnp.max(jnp.abs(outputs - average)),
            jnp.max(jnp.abs(outputs - target.values)),
        )

    return jax.lax.map(one, keys)


def kernel(
    bending: Bending, x: Float[np.ndarray, "n 3"], z: Float[np.ndarray, "k 3"], spacing: float
) -> Float[np.ndarray, "n k"]:
    """K(x, z) = <x, z> E σ'(w·x) σ'(w·z) for unit vectors.

    The trapezoidal rule for a Gaussian integral of functions that are analytic in a strip, as these are, converges
    geometrically in 1/spacing.
    """

    def slope(values: np.ndarray) -> np.ndarray:
        return np.asarray(bending.activation.derivative(jnp.asarray(values)))

    roots = np.arange(-9, 9 + spacing / 2, spacing)
    weights = spacing * np.exp(-(roots**2) / 2) / math.sqrt(2 * math.pi)
    cosines = x @ z.T
    sines = np.sqrt(np.maximum(1 - cosines**2, 0))
    second = cosines[..., None, None] * roots[:, None] + sines[..., None, None] * roots
    averages = np.einsum("i,j,i,nkij->nk", weights, weights, slope(roots), slope(second))
    return cosines * averages


def _circle(angles: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Points of the sphere slice with constant 1/√2."""
    return np.stack([np.cos(angles), np.sin(angles), np.ones_like(angles)], axis=-1) / math.sqrt(2)


def _centers() -> tuple[Float[np.ndarray, "k 3"], Float[np.ndarray, " k"]]:
    angles, coefficients = np.array(_CENTERS).T
    return _circle(angles), coefficients


def _report(
    bendings: dict[str, Bending], size: Size, key: Key[Array, ""], twin: float, notes: tuple[str, ...]
) -> Report:
    hypotheses, conclusions, rows, series = [], [], [], []
    widths = np.array(_WIDTHS[size], float)
    centers, coefficients = _centers()
    grid = _circle(_GRID_ANGLES)
    for name, bending in bendings.items():
        gram = kernel(bending, centers, centers, _SPACING)
        target = kernel(bending, grid, centers, _SPACING) @ coefficients
        quadrature = float(np.max(np.abs(target - kernel(bending, grid, centers, 2 * _SPACING) @ coefficients)))
        norm_squared = float(coefficients @ gram @ coefficients)
        largest = bending.activation.lipschitz * float(np.sum(np.abs(coefficients)))
        hypotheses.append(Claim(f"error of the quadrature for h, {name}", quadrature, "<=", 1e-6, 0.0, 1e-9))
        networks = jr.split(key, _NUM_SEEDS)
        function = Target(*(jnp.asarray(part) for part in (centers, coefficients, target)))
        found = [
            approximant_errors(bending.activation, width, networks, function, jnp.asarray(twin))
            for width in _WIDTHS[size]
        ]
        norms, linearization, total = (np.stack(parts, axis=1) for parts in zip(*found, strict=True))
        first = bending.activation.smoothness * largest**2 / (2 * np.sqrt(widths))
        second = bending.third * largest**3 / (6 * widths)
        ratios = norms[:, -1] / norm_squared
        rounding = summation_error(int(widths[-1]) + 40, 4 * largest)
        conclusions += [
            Claim(
                f"|W − W_0|² over |h|² at m = {int(widths[-1])}, {name}",
                float(np.mean(ratios)),
                "==",
                1.0,
                4 * float(np.std(ratios, ddof=1)) / math.sqrt(_NUM_SEEDS) + quadrature,
                0.05,
                "mean over seeds; four standard errors",
            ),
            _bound_claim(
                f"linearization error over C_2 B²/(2√m), {name}", linearization / first, rounding / np.min(first)
            ),
            _bound_claim(
                f"linearization error over C_3 B³/(6m), {name}", linearization / second, rounding / np.min(second)
            ),
            _slope_claim(f"exponent of the linearization error in m, {name}", widths, linearization, -1.0),
            _slope_claim(f"exponent of the sup-norm error in m, {name}", widths, total, -0.5),
        ]
        rows += [
            (
                name,
                int(width),
                float(np.mean(norms[:, i])),
                norm_squared,
                *(float(np.mean(part[:, i])) for part in (total, linearization)),
                float(second[i]),
            )
            for i, width in enumerate(widths)
        ]
        series += [
            Series(f"sup-norm error, {name}", widths.tolist(), np.mean(total, axis=0).tolist(), style="points"),
            Series(
                f"linearization error, {name}", widths.tolist(), np.mean(linearization, axis=0).tolist(), style="points"
            ),
            Series(f"C_3 B³/(6m), {name}", widths.tolist(), second.tolist(), style="dashed"),
        ]
    columns = ("activation", "m", "|W − W_0|²", "|h|²", "sup-norm error", "linearization error", "C_3 B³/(6m)")
    figure = Figure(
        name="random_features",
        title="A function of the RKHS as a network near initialization",
        x_label="width m",
        y_label="largest error on the circle",
        series=tuple(series),
        x_scale="log",
        y_scale="log",
        caption="Means over seeds; the dashed lines are upper bounds for the linearization errors.",
    )
    table = Table("random_features", "The explicit network, means over seeds", columns, rows)
    return Report(tuple(hypotheses), tuple(conclusions), (table,), (figure,), notes)


def _bound_claim(name: str, ratios: Float[np.ndarray, "seeds widths"], error: float) -> Claim:
    note = "the largest over widths, seeds and the grid; uncertainty is the rounding bound"
    return Claim(name, float(np.max(ratios)), "<=", 1.0, float(error), 1e-4, note)


def _slope_claim(
    name: str, x: Float[np.ndarray, " n"], values: Float[np.ndarray, "seeds n"], predicted: float
) -> Claim:
    """A largest value over a grid exceeds the law by about its spread, which fades with m: that tilts the slope."""
    fit = slope_fit(x, values, confidence=_CONFIDENCE)
    spread = np.std(np.log(values), axis=0)
    tilt = abs(float(spread[0] - spread[-1])) / math.log(x[-1] / x[0])
    half_width = max(fit.upper - fit.slope, fit.slope - fit.lower)
    note = f"a trend; interval over {len(values)} seeds at {_CONFIDENCE:.2%}, plus {tilt:.3f} for finite widths"
    return Claim(name, fit.slope, "==", predicted, half_width + tilt, _RESOLUTION, note)


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), Thm 5.1 (number recalled); item D6 of docs/theory/gao2019",
    statement=(
        "h = Σ β_i K(z_i, ·) is approximated by the paired net with w_r + (a_r/√m) c(w_r) and w̄_r − (a_r/√m) c(w_r), "
        "c(w) = Σ β_i z_i σ'(w·z_i): |W − W_0|² → |h|²; the output differs from (2/m) Σ c(w_r)·x σ'(w_r·x) by at most "
        "min(C_2 B²/(2√m), C_3 B³/(6m)), B = C_1 Σ|β_i|; the sup-norm error falls like m^{-1/2}."
    ),
    run=_run,
    control=_control,
)
