"""How far the gradient and the output of a ReLU layer can leave their linearization in B(R): exact worst cases."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim
from ntk_robust.theory._report import Report

# The density of √m |z| at 0 for z ~ N(0, 2/m): how many neurons lie within c of their kink is κ m^{3/2} c.
_KAPPA = 1 / math.sqrt(math.pi)
_CHANGE_CONSTANT = math.sqrt(2) * (3 * _KAPPA**2) ** (1 / 6)
_REMAINDER_CONSTANT = 0.75 * 2 ** (-2 / 3) * _KAPPA ** (1 / 3)

# With a_r ~ N(0, 1), as in the deep network, both constants grow by (E|a|³)^{1/3}.
_GAUSSIAN_READOUT = (2 * math.sqrt(2 / math.pi)) ** (1 / 3)

_RESOLUTION = 0.02
_CONFIDENCE = 0.9973
_NUM_SEEDS = 16
_WIDTHS = {"quick": (2**14, 2**16, 2**18, 2**20), "full": (2**14, 2**16, 2**18, 2**20, 2**22)}
_RADII = (0.5, 1.0, 2.0, 4.0)


class Measured(NamedTuple):
    """Relative gradient change and remainder, one row per seed.

    Attributes:
        widths: m, at R = 1.
        change_by_width: sup |∇f(W) − ∇f(W_0)| / |∇f(W_0)|.
        remainder_by_width: sup of f(W) − f(W_0) − <∇f(W_0), W − W_0>.
        change_by_radius: The first, at the second largest m, for the radii.
        remainder_by_radius: The second, likewise.
        gaussian_change: The first by width, with a_r ~ N(0, 1).
        gaussian_remainder: The second, likewise.
    """

    widths: tuple[int, ...]
    change_by_width: Float[np.ndarray, "seeds widths"]
    remainder_by_width: Float[np.ndarray, "seeds widths"]
    change_by_radius: Float[np.ndarray, "seeds radii"]
    remainder_by_radius: Float[np.ndarray, "seeds radii"]
    gaussian_change: Float[np.ndarray, "seeds widths"]
    gaussian_remainder: Float[np.ndarray, "seeds widths"]


class Layer(NamedTuple):
    """A ReLU layer at one input of norm 1.

    Attributes:
        preactivations: z_r ~ N(0, 2/m).
        readout: a_r: signs, or from N(0, 1).
    """

    preactivations: Float[np.ndarray, " m"]
    readout: Num[np.ndarray, " m"]


def _run(size: Size, key: Key[Array, ""]) -> Report:
    def worst(layer: Layer, radius: float) -> tuple[float, float]:
        return largest_gradient_change(layer, radius), largest_remainder(layer, radius)

    return _report(_measure(size, key, worst), ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))

    def random(layer: Layer, radius: float) -> tuple[float, float]:
        return in_random_direction(layer, radius, rng)

    return _report(_measure(size, key, random), ("Broken on purpose: a random direction instead of the worst one.",))


def _measure(size: Size, key: Key[Array, ""], measure: Callable[[Layer, float], tuple[float, float]]) -> Measured:
    widths = _WIDTHS[size]
    by_width, by_radius, gaussian = [], [], []
    for seed_key in jr.split(key, _NUM_SEEDS):
        rng = np.random.default_rng(np.asarray(jr.key_data(seed_key)))
        layers = [_layer(width, rng) for width in widths]
        by_width.append([measure(layer, 1.0) for layer in layers])
        by_radius.append([measure(layers[-2], radius) for radius in _RADII])
        gaussian.append(
            [measure(layer._replace(readout=rng.normal(size=m)), 1.0) for layer, m in zip(layers, widths, strict=True)]
        )
    columns = (values[..., part] for values in map(np.array, (by_width, by_radius, gaussian)) for part in (0, 1))
    return Measured(widths, *columns)


def _layer(width: int, rng: np.random.Generator) -> Layer:
    return Layer(rng.normal(size=width) * math.sqrt(2 / width), 2 * rng.integers(2, size=width) - 1)


def largest_gradient_change(layer: Layer, radius: float) -> float:
    r"""The supremum over $\|δW\|_F ≤ R/\sqrt m$ of $\|∇f(W) − ∇f(W_0)\| / \|∇f(W_0)\|$.

    Moving neuron r over its kink costs at least z_r² of the squared budget and changes the squared gradient by a_r²: a
    knapsack, filled in the order of z_r²/a_r². With equal values that is exact; else it falls short of the fractional
    optimum, and so of the supremum, by less than the one neuron that no longer fits.
    """
    z, a = layer.preactivations, layer.readout
    first = _first(np.abs(z / a))
    costs, values = np.cumsum(z[first] ** 2), np.cumsum(a[first] ** 2)
    flipped = np.searchsorted(costs, radius**2 / len(z), side="right")
    return math.sqrt((values[flipped - 1] if flipped else 0.0) / np.sum(a[z > 0] ** 2))


def largest_remainder(layer: Layer, radius: float) -> float:
    r"""The supremum over $\|δW\|_F ≤ R/\sqrt m$ of $f(W) − f(W_0) − ⟨∇f(W_0), W − W_0⟩$.

    A shift v of z_r against its sign adds a_r (|v| − |z_r|)_+; only a_r > 0 helps. Over a set of such neurons the best
    are shifts in proportion to a_r, by Cauchy-Schwarz: $B (\sum a_r^2)^{1/2} − \sum a_r|z_r|$, a concave function of
    $\sum a_r^2$ less a sum, so that the best sets are those of the smallest |z_r|/a_r: exactly for equal a_r, else but
    for one neuron.
    """
    raises = layer.readout > 0
    z, a = np.abs(layer.preactivations[raises]), layer.readout[raises]
    first = _first(z / a)
    budget = radius / math.sqrt(len(layer.preactivations))
    found = np.sqrt(np.cumsum(a[first] ** 2)) * budget - np.cumsum(a[first] * z[first])
    return float(np.max(found, initial=0.0))


def _first(ratios: Float[np.ndarray, " m"]) -> Int[np.ndarray, " k"]:
    """Where the smallest 40 m^{2/3} ratios are, in order: more neurons than ever move, for the radii here."""
    count = min(len(ratios), int(40 * len(ratios) ** (2 / 3)))
    first = np.argpartition(ratios, count - 1)[:count]
    return first[np.argsort(ratios[first])]


def in_random_direction(layer: Layer, radius: float, rng: np.random.Generator) -> tuple[float, float]:
    """Both quantities at one random point of the sphere of radius R/√m, shifts along the input."""
    z = layer.preactivations
    shifts = rng.normal(size=len(z))
    shifts *= radius / math.sqrt(len(z)) / np.linalg.norm(shifts)
    remainder = layer.readout @ (np.maximum(z + shifts, 0) - np.maximum(z, 0) - (z > 0) * shifts)
    flipped = np.sum((z + shifts > 0) != (z > 0))
    return math.sqrt(flipped / np.sum(z > 0)), abs(float(remainder))


def _report(found: Measured, notes: tuple[str, ...]) -> Report:
    widths, radii = np.array(found.widths, float), np.array(_RADII)
    # The averages are biased by about one over the number of neurons that move; a slope sees at most twice that over
    # the logarithm of its range.
    by_width = 2 / _num_moved(widths[0], 1.0) / math.log(widths[-1] / widths[0])
    by_radius = 2 / _num_moved(widths[-2], radii[0]) / math.log(radii[-1] / radii[0])
    slopes = (
        ("gradient change against m", widths, found.change_by_width, -1 / 6, by_width),
        ("gradient change against R", radii, found.change_by_radius, 1 / 3, by_radius),
        ("remainder against m", widths, found.remainder_by_width, -1 / 6, by_width),
        ("remainder against R", radii, found.remainder_by_radius, 4 / 3, by_radius),
    )
    conclusions = [_slope_claim(*slope) for slope in slopes]
    laws = (
        ("gradient change", found.change_by_width, _CHANGE_CONSTANT),
        ("remainder", found.remainder_by_width, _REMAINDER_CONSTANT),
        ("gradient change, Gaussian a", found.gaussian_change, _CHANGE_CONSTANT * _GAUSSIAN_READOUT),
        ("remainder, Gaussian a", found.gaussian_remainder, _REMAINDER_CONSTANT * _GAUSSIAN_READOUT),
    )
    conclusions += [_constant_claim(name, found.widths[-1], values[:, -1], constant) for name, values, constant in laws]
    rows = [
        (
            int(width),
            *(float(np.mean(values[:, i])) for values in (found.change_by_width, found.remainder_by_width)),
            *(constant * width ** (-1 / 6) for constant in (_CHANGE_CONSTANT, _REMAINDER_CONSTANT)),
        )
        for i, width in enumerate(found.widths)
    ]
    columns = ("m", "gradient change", "remainder", "law of the change", "law of the remainder")
    figure = Figure(
        name="gradient_stability",
        title="Worst case over B(R) of one ReLU layer, R = 1",
        x_label="width m",
        y_label="relative to the gradient; in units of the output",
        series=tuple(
            part
            for name, values, constant in laws
            for part in (
                Series(name, widths.tolist(), np.mean(values, axis=0).tolist(), style="points"),
                Series(
                    f"{constant:.3f} m^(-1/6)",
                    widths.tolist(),
                    (constant * widths ** (-1 / 6)).tolist(),
                    style="dashed",
                ),
            )
        ),
        x_scale="log",
        y_scale="log",
        caption="Exact suprema, averaged over seeds, with the derived laws.",
    )
    return Report(
        (),
        tuple(conclusions),
        (Table("gradient_stability", "Exact worst cases at R = 1", columns, rows),),
        (figure,),
        (
            *notes,
            "One layer at one input. How the suprema grow with the depth is another check's trend.",
        ),
    )


def _num_moved(width: float, radius: float) -> float:
    """About how many neurons move in the remainder's worst case, the smaller one of the two counts."""
    return (_KAPPA * width * radius / 4) ** (2 / 3)


def _slope_claim(
    name: str, x: Float[np.ndarray, " n"], values: Float[np.ndarray, "seeds n"], predicted: float, bias: float
) -> Claim:
    fit = slope_fit(x, np.maximum(values, 1e-300), confidence=_CONFIDENCE)
    half_width = max(fit.upper - fit.slope, fit.slope - fit.lower)
    note = f"interval over {len(values)} seeds at {_CONFIDENCE:.2%}, plus {bias:.1g} for finite widths"
    return Claim(f"exponent of the {name}", fit.slope, "==", predicted, half_width + bias, _RESOLUTION, note)


def _constant_claim(name: str, width: int, values: Float[np.ndarray, " seeds"], constant: float) -> Claim:
    ratios = values / (constant * width ** (-1 / 6))
    error = 4 * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
    return Claim(
        f"{name} over its law at m = {width}",
        float(np.mean(ratios)),
        "==",
        1.0,
        error + 2 / _num_moved(float(width), 1.0),
        _RESOLUTION,
        "four standard errors over seeds, plus 2 over the number of neurons that move",
    )


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), proof of Thm 4.1 (recalled); item D5 of docs/theory/gao2019",
    statement=(
        "For f = Σ a_r relu(w_r·x), |a_r| = 1, |x| = 1, w_r·x ~ N(0, 2/m), the suprema over |W − W_0| ≤ R/√m are, for "
        "large m and random signs: relative gradient change √2 (3/π)^{1/6} R^{1/3} m^{-1/6}, and remainder "
        "¾ (κ/4)^{1/3} R^{4/3} m^{-1/6} with κ = 1/√π; both times (E|a|³)^{1/3} for a_r ~ N(0, 1)."
    ),
    run=_run,
    control=_control,
)
