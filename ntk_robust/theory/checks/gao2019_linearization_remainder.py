"""The remainder of linearization of a smooth two-layer net in B(R): its bound, and points that nearly attain it."""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.models import AbstractActivation, Relu, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, summation_error
from ntk_robust.theory._report import Report

_WIDTHS = {"quick": (2**8, 2**10, 2**12, 2**14), "full": (2**8, 2**10, 2**12, 2**14, 2**16)}
_RADII = (0.5, 1.0, 2.0, 4.0)
_NUM_SEEDS = 4
_SLOPE_RESOLUTION = 0.02
_BLOCK = 4096


class Bending(NamedTuple):
    """An activation, and where its slope changes fastest.

    Attributes:
        activation: σ.
        smoothness: C_2, as claimed.
        raises: Where σ'' is largest.
        lowers: Where it is smallest, infinite if it is never negative.
    """

    activation: AbstractActivation
    smoothness: float
    raises: float
    lowers: float


def _run(size: Size, key: Key[Array, ""]) -> Report:
    inflection = math.atanh(1 / math.sqrt(3))
    bendings = {
        "softplus": Bending(Softplus(), Softplus().smoothness, 0.0, math.inf),
        "tanh": Bending(Tanh(), Tanh().smoothness, -inflection, inflection),
    }
    return _report(bendings, size, key, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: a ReLU, whose slope is not Lipschitz, under softplus' constant C_2 = 1/4."
    return _report({"relu": Bending(Relu(), Softplus().smoothness, 0.0, math.inf)}, size, key, (note,))


def largest_found(
    bending: Bending,
    preactivations: Float[np.ndarray, " m"],
    signs: Float[np.ndarray, " m"],
    radius: float,
) -> tuple[float, float]:
    r"""A large remainder at one input of norm 1 and some W with |W − W_0| = R, and the bound for its rounding.

    f = m^{-1/2} Σ_r a_r σ(z_r). The k neurons nearest to where a_r σ'' is largest are shifted by R/√k along the input,
    towards that place; the best k of a grid is kept. Any point of B(R) gives a lower bound for the supremum.
    """
    targets = np.where(signs > 0, bending.raises, bending.lowers)
    nearest = np.argsort(np.abs(preactivations - targets))[: len(signs) // 4]
    z, a, target = preactivations[nearest], signs[nearest], targets[nearest]
    counts = np.unique(np.geomspace(1, len(nearest), 24).astype(int))
    moves = np.arange(len(nearest)) < counts[:, None]
    shifts = np.where(moves, radius / np.sqrt(counts)[:, None], 0.0) * -np.sign(z - target)
    sigma, slope = _evaluated(bending.activation, z)
    moved = np.tile(sigma, (len(counts), 1))
    moved[moves], _ = _evaluated(bending.activation, (z + shifts)[moves])
    root = math.sqrt(len(signs))
    values = (moved - sigma - slope * shifts) @ a / root
    sizes = np.sum((np.abs(moved) + np.abs(sigma) + np.abs(shifts)) * moves, axis=1) / root
    best = int(np.argmax(values))
    # Only the neurons that move enter the sums; activations are good to a few units in the last place.
    return float(values[best]), summation_error(int(counts[best]) + 10, float(sizes[best]))


def _evaluated(
    activation: AbstractActivation, z: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """σ and σ', in blocks of one size, so that one program does for all widths."""
    padded = np.zeros(-(-len(z) // _BLOCK) * _BLOCK)
    padded[: len(z)] = z
    blocks = [_block(activation, jnp.asarray(block)) for block in padded.reshape(-1, _BLOCK)]
    values, slopes = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*blocks, strict=True))
    return values[: len(z)], slopes[: len(z)]


@eqx.filter_jit
def _block(activation: AbstractActivation, z: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    return activation(z), activation.derivative(z)


def _report(bendings: dict[str, Bending], size: Size, key: Key[Array, ""], notes: tuple[str, ...]) -> Report:
    widths, radii = np.array(_WIDTHS[size], float), np.array(_RADII)
    conclusions, rows, series = [], [], []
    for name, bending in bendings.items():
        found = np.zeros((_NUM_SEEDS, len(widths), len(radii)))
        errors = np.zeros_like(found)
        for seed, seed_key in enumerate(jr.split(key, _NUM_SEEDS)):
            rng = np.random.default_rng(np.asarray(jr.key_data(seed_key)))
            for i, width in enumerate(_WIDTHS[size]):
                pairs = rng.normal(size=width // 2)
                signs = rng.choice(np.array([-1.0, 1.0]), width // 2)
                layer = np.concatenate([pairs, pairs]), np.concatenate([signs, -signs])
                for j, radius in enumerate(_RADII):
                    found[seed, i, j], errors[seed, i, j] = largest_found(bending, *layer, radius)
        bounds = bending.smoothness * radii**2 / (2 * np.sqrt(widths)[:, None])
        ratios = found / bounds
        conclusions.append(
            Claim(
                f"largest remainder over C_2 R²/(2√m), {name}",
                float(np.max(ratios)),
                "<=",
                1.0,
                float(np.max(errors / bounds)),
                1e-7,
                "over all widths, radii and seeds; uncertainty is the rounding bound",
            )
        )
        unit = int(np.flatnonzero(radii == 1)[0])
        conclusions += [
            _slope_claim(f"exponent of the supremum in m, {name}", widths, found[:, :, unit], ratios[:, :, unit], -0.5),
            _slope_claim(f"exponent of the supremum in R, {name}", radii, found[:, -1], ratios[:, -1], 2.0),
        ]
        rows += [
            (
                name,
                int(width),
                float(radius),
                float(np.mean(found[:, i, j])),
                float(bounds[i, j]),
                float(np.mean(ratios[:, i, j])),
            )
            for i, width in enumerate(widths)
            for j, radius in enumerate(radii)
        ]
        series += [
            Series(f"{name}, found", widths.tolist(), np.mean(found[:, :, unit], axis=0).tolist(), style="points"),
            Series(f"{name}, C_2 R²/(2√m)", widths.tolist(), bounds[:, unit].tolist(), style="dashed"),
        ]
    columns = ("activation", "m", "R", "found", "bound", "found / bound")
    figure = Figure(
        name="linearization_remainder",
        title="Remainder of linearization in B(R), R = 1",
        x_label="width m",
        y_label="output",
        series=tuple(series),
        x_scale="log",
        y_scale="log",
        caption="Points of B(R) found by construction are lower bounds for the supremum; the lines are upper bounds.",
    )
    table = Table("linearization_remainder", "Remainders found and their bound", columns, rows)
    return Report((), tuple(conclusions), (table,), (figure,), notes)


def _slope_claim(
    name: str,
    x: Float[np.ndarray, " n"],
    found: Float[np.ndarray, "seeds n"],
    ratios: Float[np.ndarray, "seeds n"],
    predicted: float,
) -> Claim:
    """The supremum lies between what was found and the bound, which limits how far its slope is from that found."""
    fit = slope_fit(x, found, confidence=0.9973)
    centered = np.log(x) - np.mean(np.log(x))
    weights = centered / (centered @ centered)
    gap = max(0.0, -math.log(float(np.min(ratios)))) * float(np.sum(weights[weights > 0]))
    half_width = max(fit.upper - fit.slope, fit.slope - fit.lower)
    note = "interval over seeds at 99.73%, plus what lies between found and bound"
    return Claim(name, fit.slope, "==", predicted, half_width + gap, _SLOPE_RESOLUTION, note)


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), section 5 (number recalled); item D5 of docs/theory/gao2019",
    statement=(
        "For a two-layer net with |a_r| = 1, output scale 1/√m, |x| = 1 and C_2-Lipschitz σ', every W with "
        "|W − W_0| ≤ R has |f(W, x) − f(W_0, x) − <∇f(W_0, x), W − W_0>| ≤ C_2 R²/(2√m), and the supremum is "
        "C_2 R²/(2√m) (1 − o(1))."
    ),
    run=_run,
    control=_control,
)
