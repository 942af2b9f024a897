"""A function of the RKHS as an explicit network near initialization: norm, linearization error, sup-norm error."""

import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, SlopeFit, Table, slope_fit
from ntk_robust.expressiveness import FeatureNetwork, random_feature_network, representer
from ntk_robust.models import AbstractActivation, PairedTwoLayerNet, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, summation_error
from ntk_robust.theory._report import Report

_WIDTHS = {"quick": (2**6, 2**11), "full": (2**6, 2**8, 2**10, 2**12, 2**14)}
_NUM_SEEDS = {"quick": 96, "full": 256}
_CONFIDENCE = 0.9973
_RESOLUTION = 0.15
_GRID_ANGLES = np.arange(48) * 2 * math.pi / 48  # where sup norms on the circle are taken
_SPACING = 0.125  # of the trapezoidal rule for the kernel
_CENTERS = ((0.3, 1.5), (2.0, -2.0), (4.4, 1.0))  # angle and coefficient


class Variant(NamedTuple):
    r"""A way to draw and to move the neurons, and what is known of it.

    Attributes:
        draw: "sampled", "orthogonal" or "leverage".
        paired: Whether both neurons of a pair move.
        norm_squared: $\|W - W_0\|^2$ over $\|h\|^2$, in the limit.
    """

    draw: Literal["sampled", "orthogonal", "leverage"]
    paired: bool
    norm_squared: float


_VARIANTS = {
    "sampled": Variant("sampled", True, 1.0),
    "one neuron of a pair": Variant("sampled", False, 2.0),
    "orthogonal": Variant("orthogonal", True, 1.0),
    "leverage": Variant("leverage", True, 1.0),
}


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
        largest: The largest |c(w_r)|, weighted as it enters.
        linearization: The largest |f(W, x) − (2/m) Σ_r c(w_r)·x σ'(w_r·x)| on the circle.
        total: The largest |f(W, x) − h(x)| on the circle.
    """

    norm_squared: Float[Array | np.ndarray, "*seeds"]
    largest: Float[Array | np.ndarray, "*seeds"]
    linearization: Float[Array | np.ndarray, "*seeds"]
    total: Float[Array | np.ndarray, "*seeds"]


def _run(size: Size, key: Key[Array, ""]) -> Report:
    names = ("softplus",) if size == "quick" else tuple(_BENDINGS)
    return _report(names, tuple(_VARIANTS), size, key)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: both neurons of a pair are moved alike, so that their contributions cancel."
    return _report(("softplus",), ("sampled",), size, key, alike=True, notes=(note,))


def networks(net: PairedTwoLayerNet, keys: Key[Array, " seeds"], target: Target, variant: Variant) -> FeatureNetwork:
    """One network of `expressiveness` for each key; not compiled, which would take longer than the numbers."""

    def network(key: Key[Array, ""]) -> FeatureNetwork:
        return random_feature_network(
            net, target.centers, target.coefficients, key=key, draw=variant.draw, paired=variant.paired
        )

    return jax.vmap(network)(keys)


@jax.jit
def approximant_errors(found: FeatureNetwork, target: Target) -> Errors:
    """What the networks do on a grid of the circle."""
    points, net = jnp.asarray(_circle(_GRID_ANGLES)), found.net
    root = math.sqrt(net.width)

    def one(network: FeatureNetwork) -> Errors:
        weights, params = network.start.plus, network.params
        c = network.importance[:, None] * representer(net.activation, target.centers, target.coefficients, weights)
        average = 2 / net.width * jnp.sum((c @ points.T) * net.activation.derivative(weights @ points.T), axis=0)
        outputs = params.signs @ (net.activation(params.plus @ points.T) - net.activation(params.minus @ points.T))
        return Errors(
            network.displacement() ** 2,
            jnp.max(jnp.linalg.norm(c, axis=1)),
            jnp.max(jnp.abs(outputs / root - average)),
            jnp.max(jnp.abs(outputs / root - target.values)),
        )

    return jax.lax.map(one, found)


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
    names: tuple[str, ...],
    variants: tuple[str, ...],
    size: Size,
    key: Key[Array, ""],
    *,
    alike: bool = False,
    notes: tuple[str, ...] = (),
) -> Report:
    hypotheses, conclusions, rows, series = [], [], [], []
    widths, keys = np.array(_WIDTHS[size], float), jr.split(key, _NUM_SEEDS[size])
    centers, coefficients = _centers()
    grid = _circle(_GRID_ANGLES)
    for name in names:
        bending = _BENDINGS[name]
        gram = kernel(bending, centers, centers, _SPACING)
        values = kernel(bending, grid, centers, _SPACING) @ coefficients
        quadrature = float(np.max(np.abs(values - kernel(bending, grid, centers, 2 * _SPACING) @ coefficients)))
        norm_squared = float(coefficients @ gram @ coefficients)
        hypotheses.append(Claim(f"error of the quadrature for h, {name}", quadrature, "<=", 1e-6, 0.0, 1e-9))
        target = Target(*(jnp.asarray(part) for part in (centers, coefficients, values)))
        for which in variants:
            errors = _measure(bending.activation, _VARIANTS[which], _WIDTHS[size], keys, target, alike=alike)
            claims, prefactor = _claims(
                f"{name}, {which}",
                bending,
                _VARIANTS[which],
                widths,
                errors,
                norm_squared=norm_squared,
                quadrature=quadrature,
            )
            conclusions += claims
            total, linearization = np.mean(errors.total, axis=0), np.mean(errors.linearization, axis=0)
            rows += [
                (
                    f"{name}, {which}",
                    int(width),
                    float(np.mean(errors.norm_squared[:, i])) / norm_squared,
                    float(total[i]),
                    float(linearization[i]),
                    prefactor,
                )
                for i, width in enumerate(widths)
            ]
            series += [
                Series(f"sup-norm error, {name}, {which}", widths.tolist(), total.tolist(), style="points"),
                Series(f"linearization, {name}, {which}", widths.tolist(), linearization.tolist(), style="dashed"),
            ]
    columns = ("activation, variant", "m", "|W − W_0|² / |h|²", "sup-norm error", "linearization error")
    figure = Figure(
        name="random_features",
        title="A function of the RKHS as a network near initialization",
        x_label="width m",
        y_label="largest error on the circle",
        series=tuple(series),
        x_scale="log",
        y_scale="log",
        caption="Means over seeds: sup-norm errors fall like m^(-1/2), errors of linearization like 1/m.",
    )
    caption = "The last column is the sup-norm error times √m, fitted over the widths: what a better draw saves."
    table = Table("random_features", "Explicit networks, means over seeds", (*columns, "error times √m"), rows, caption)
    return Report(tuple(hypotheses), tuple(conclusions), (table,), (figure,), notes)


def _measure(
    activation: AbstractActivation,
    variant: Variant,
    widths: tuple[int, ...],
    keys: Key[Array, " seeds"],
    target: Target,
    *,
    alike: bool,
) -> Errors:
    """One column for each width."""
    columns = []
    for width in widths:
        found = networks(PairedTwoLayerNet(3, width, activation), keys, target, variant)
        if alike:
            found = eqx.tree_at(lambda network: network.params.minus, found, found.params.plus)
        columns.append(approximant_errors(found, target))
    return Errors(*(np.stack(parts, axis=1) for parts in zip(*columns, strict=True)))


def _claims(
    name: str,
    bending: Bending,
    variant: Variant,
    widths: Float[np.ndarray, " n"],
    errors: Errors,
    *,
    norm_squared: float,
    quadrature: float,
) -> tuple[list[Claim], float]:
    """What is said of one variant, and its sup-norm error times √m."""
    ratios = np.asarray(errors.norm_squared[:, -1]) / norm_squared
    error = 4 * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios)) + quadrature
    title = f"|W − W_0|² over |h|² at m = {int(widths[-1])}, {name}"
    note = "mean over seeds; four standard errors"
    exact = variant.draw != "leverage"  # there |W − W_0|² → (E|c|)², which is smaller
    largest = np.asarray(errors.largest)
    # of a pair that moves by ±t: C_2 t², and C_3 t³/3 without the even order; one that moves by 2t: 2 C_2 t²
    first = bending.activation.smoothness * largest**2 / (2 * np.sqrt(widths)) * (1 if variant.paired else 2)
    rounding = summation_error(int(widths[-1]) + 40, 4 * float(np.max(largest)))
    linearization, total = np.asarray(errors.linearization), np.asarray(errors.total)
    fit = _slope(widths, total)
    claims = [
        Claim(title, float(np.mean(ratios)), "==" if exact else "<=", variant.norm_squared, error, 0.05, note),
        _bound_claim(
            f"linearization error over C_2 B²/({'2' if variant.paired else ''}√m), {name}",
            linearization / first,
            rounding / float(np.min(first)),
        ),
        _slope_claim(f"exponent of the linearization error in m, {name}", widths, linearization, -1.0),
        _slope_claim(f"exponent of the sup-norm error in m, {name}", widths, total, -0.5),
    ]
    if variant.paired:
        second = bending.third * largest**3 / (6 * widths)
        claims.append(
            _bound_claim(
                f"linearization error over C_3 B³/(6m), {name}", linearization / second, rounding / np.min(second)
            )
        )
    return claims, float(np.exp(fit.log_prefactor + (fit.slope + 0.5) * np.mean(np.log(widths))))


def _slope(x: Float[np.ndarray, " n"], values: Float[np.ndarray, "seeds n"]) -> SlopeFit:
    return slope_fit(x, values, confidence=_CONFIDENCE)


def _bound_claim(name: str, ratios: Float[np.ndarray, "seeds widths"], error: float) -> Claim:
    note = "the largest over widths, seeds and the grid; uncertainty is the rounding bound"
    return Claim(name, float(np.max(ratios)), "<=", 1.0, float(error), 1e-4, note)


def _slope_claim(
    name: str, x: Float[np.ndarray, " n"], values: Float[np.ndarray, "seeds n"], predicted: float
) -> Claim:
    """A largest value over a grid exceeds the law by about its spread, which fades with m: that tilts the slope."""
    fit = _slope(x, values)
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
        "min(C_2 B²/(2√m), C_3 B³/(6m)), B = max|c(w_r)| ≤ C_1 Σ|β_i|, and typically by O(1/m); the sup-norm error "
        "falls like m^{-1/2}. Moving one neuron of a pair twice as far costs 2|h|² and C_2 B²/√m. Orthogonal draws "
        "keep all of this; draws in proportion to |c| have |W − W_0|² → (E|c|)² ≤ |h|²."
    ),
    run=_run,
    control=_control,
)
