"""Which harmonics the tangent kernels lack, and a function that no radius of the kernel's ball reaches."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.expressiveness import (
    ArcSets,
    ErrorCurve,
    Fit,
    HarmonicSupport,
    error_curve,
    harmonic_support,
    whole_circle,
)
from ntk_robust.kernels import AbstractKernel, analytic_ntk
from ntk_robust.models import AbstractActivation, Erf, Gelu, PairedTwoLayerNet, QuadraticRelu, Relu, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, Relation, exact_claim
from ntk_robust.theory._report import Report

_CONSTANT = 1 / math.sqrt(2)
_DEGREES = 8
_DEGREES_OF_CIRCLE = 33
_TERMS = 400
_ROUNDING = 1e4 * float(np.finfo(np.float64).eps)  # of kernel values, relative; measured, and generous


class _Case(NamedTuple):
    """What theory says of an activation on the whole sphere.

    Attributes:
        activation: The activation.
        lacking: Degrees of spherical harmonics below 8 for which the kernel has nothing.
        frequency: m: no function of the kernel's space comes closer to cos mφ on a great circle than 0 does.
    """

    activation: AbstractActivation
    lacking: tuple[int, ...]
    frequency: int


_CASES = {
    "ReLU": _Case(Relu(), (3, 5, 7), 3),
    "tanh": _Case(Tanh(), (0, 2, 4, 6), 2),
    "softplus": _Case(Softplus(), (3, 5, 7), 3),
    "GELU": _Case(Gelu(), (3, 5, 7), 3),
    "erf": _Case(Erf(), (0, 2, 4, 6), 2),
    "ReLU²": _Case(QuadraticRelu(), (4, 6), 4),
}
_FITTED = ("ReLU", "tanh")
_ON_SLICE = "tanh"
_NAMES = {"quick": _FITTED, "full": tuple(_CASES)}
_RADII = {"quick": (1.0, 100.0), "full": (1.0, 10.0, 100.0, 1000.0)}
_SHARES = {"quick": (0.5,), "full": (0.25, 0.5, 0.75)}
_GAP = 0.02


def _run(size: Size, key: Key[Array, ""]) -> Report:
    del key  # nothing is random
    conclusions, rows, curves = [], [], []
    for name in _NAMES[size]:
        case, kernel = _CASES[name], _kernel(name)
        whole = harmonic_support(kernel, 3, num_degrees=_DEGREES)
        on_slice, of_slice = _of_slice(kernel)
        conclusions += [*_claims_of_sphere(name, whole), *_claims_of_slice(name, on_slice)]
        rows.append((name, whole.parity(), on_slice.parity(), whole.margin, on_slice.margin))
        if name in _FITTED:
            stuck = error_curve(kernel, _circle(case.frequency, 0.0), list(_RADII[size]), relative_gap=_GAP)
            conclusions += _claims_of_stuck(name, stuck)
            curves.append((f"{name}, cos {case.frequency}φ, constant 0", stuck))
        else:
            conclusions.append(_witness(name, kernel))
        if name == _ON_SLICE:
            law, curve = _on_the_slice(kernel, of_slice, _SHARES[size])
            conclusions += law
            curves.append((f"{name}, cos 3φ, constant 1/√2", curve))
    columns = (
        "activation",
        "degrees on the sphere",
        "degrees on the slice",
        "margin on the sphere",
        "margin on the slice",
    )
    table = Table("universality", "Harmonics below degree 8 in tangent kernels of two-layer networks", columns, rows)
    notes = ("All supported degrees are those below 8; more cannot be said by a computation.",)
    return Report((), tuple(conclusions), (table,), (_figure(curves),), notes)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    del size, key
    note = "Broken on purpose: the claims of the whole sphere, for its slice with a constant last coordinate."
    kernel = _kernel("tanh")
    on_slice, _ = _of_slice(kernel)
    radius = 0.5 / math.sqrt(on_slice.mass[_CASES["tanh"].frequency])
    curve = error_curve(kernel, _circle(_CASES["tanh"].frequency, _CONSTANT), [radius], relative_gap=_GAP)
    return Report((), (*_claims_of_sphere("tanh", on_slice), *_claims_of_stuck("tanh", curve)), (), (), (note,))


def _kernel(name: str) -> AbstractKernel:
    return analytic_ntk(PairedTwoLayerNet(3, 2, _CASES[name].activation))


def _of_slice(kernel: AbstractKernel) -> tuple[HarmonicSupport, HarmonicSupport]:
    """Harmonics on the slice: those of degrees below 8, and all that are needed."""
    found = harmonic_support(kernel, 3, num_degrees=_DEGREES_OF_CIRCLE, constant=_CONSTANT)
    return HarmonicSupport(found.dim, found.mass[:_DEGREES], found.error[:_DEGREES], found.total), found


def _claims_of_sphere(name: str, found: HarmonicSupport) -> list[Claim]:
    """What is missing is missing, and the smallest of what is there is as large as Hermite coefficients say."""
    missing = list(_CASES[name].lacking)
    there = [degree for degree in range(_DEGREES) if degree not in missing]
    largest = missing[int(np.argmax(np.abs(found.mass[missing])))]
    smallest = there[int(np.argmin(found.mass[there]))]
    lower, upper = degree_shares(_CASES[name].activation, _DEGREES, _TERMS)
    return [
        Claim(
            f"largest share of a degree that must vanish, {name}",
            float(abs(found.mass[largest])) / found.total,
            "==",
            0.0,
            float(np.max(found.error[missing])) / found.total,
            1e-12,
            f"degrees {', '.join(map(str, missing))} of the whole sphere; uncertainty of quadrature and rounding",
        ),
        Claim(
            f"smallest share of another degree below 8, {name}",
            float(found.mass[smallest]) / found.total,
            "in",
            (float(lower[smallest]), float(upper[smallest])),
            float(found.error[smallest]) / found.total,
            1e-12,
            f"degree {smallest}; the prediction is a sum over Hermite coefficients of σ' and what is left of it",
        ),
        exact_claim(f"degrees below 8 that are present, {name}", np.sum(found.present), "==", _DEGREES - len(missing)),
    ]


def _claims_of_slice(name: str, found: HarmonicSupport) -> list[Claim]:
    return [exact_claim(f"degrees below 8 on the slice, {name}", np.sum(found.present), "==", _DEGREES)]


def _witness(name: str, kernel: AbstractKernel) -> Claim:
    """The functional of 2m points with signs in turns, which is 1 at cos mφ."""
    frequency = _CASES[name].frequency
    angles = np.arange(2 * frequency) * math.pi / frequency
    points = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
    weights = (-1.0) ** np.arange(2 * frequency) / (2 * frequency)
    gram = np.asarray(kernel.gram(jnp.asarray(points)))
    return Claim(
        f"squared norm of the functional of {2 * frequency} points, {name}",
        float(weights @ gram @ weights) / float(gram[0, 0]),
        "==",
        0.0,
        _ROUNDING,
        1e-10,
        f"over k(x, x); no function of norm R is closer to cos {frequency}φ than 1 − R times the norm",
    )


def _claims_of_stuck(name: str, curve: ErrorCurve) -> list[Claim]:
    frequency = _CASES[name].frequency
    return [
        _certified(f"best uniform error for cos {frequency}φ, {name}, R = {fit.radius:g}", fit, "==", 1.0)
        for fit in curve.fits
    ]


def _on_the_slice(
    kernel: AbstractKernel, found: HarmonicSupport, shares: tuple[float, ...]
) -> tuple[list[Claim], ErrorCurve]:
    r"""Errors for cos 3φ between $1 - R\sqrt{g_3 + g_9 + …}$ and $1 - R\sqrt{g_3}$, at shares of the norm of cos 3φ."""
    left = max(found.total - float(np.sum(found.mass)), 0.0) + float(np.sum(found.error))
    norm = 1.0 / math.sqrt(found.mass[3])
    curve = error_curve(kernel, _circle(3, _CONSTANT), [share * norm for share in shares], relative_gap=_GAP)
    forced = math.sqrt(float(np.sum(found.mass[3::6])) + left)
    return [
        _certified(
            f"best uniform error for cos 3φ on the slice, {_ON_SLICE}, R = {share:g} of its norm",
            fit,
            "in",
            (1.0 - fit.radius * forced, 1.0 - share),
        )
        for share, fit in zip(shares, curve.fits, strict=True)
    ], curve


def degree_shares(
    activation: AbstractActivation, degrees: int, terms: int
) -> tuple[Float[np.ndarray, " degrees"], Float[np.ndarray, " degrees"]]:
    r"""Lower and upper bounds of the share of each degree of harmonics on the sphere in $R^3$, from the power series.

    $\kappa(t) = \sum_k \hat c_k^2 t^{k+1}$ with the Hermite coefficients of σ'; the share that a power $t^n$ has of a
    degree is not negative, and the powers left out have at most what is left of κ(1) = E σ'². Coefficients are by
    quadrature between integers, since σ' may jump at 0.

    Args:
        activation: σ.
        degrees: How many, from 0 on.
        terms: How many coefficients.
    """
    nodes, weights = np.polynomial.legendre.leggauss(32)
    z = (np.arange(-40, 40)[:, None] + (1.0 + nodes) / 2.0).ravel()
    slopes, mass = np.asarray(activation.derivative(jnp.asarray(z))), np.tile(weights / 2.0, 80)
    before, now = np.zeros_like(z), np.exp(-(z**2) / 4.0) / (2.0 * math.pi) ** 0.25
    measure = slopes * mass * now  # Hermite functions are normalized polynomials times the root of the density
    total = float(np.sum(mass * (slopes * now) ** 2))
    powers = np.zeros(terms + 1)
    for k in range(terms):
        powers[k + 1] = float(measure @ now) ** 2
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    walk, shares = np.zeros(terms + degrees), np.zeros(terms + degrees)
    walk[0] = 1.0
    rungs = np.arange(terms + degrees)
    for power in powers:  # t P_k = (k + 1)/(2k + 1) P_{k+1} + k/(2k + 1) P_{k-1}
        shares += power * walk
        up, down = walk * (rungs + 1) / (2 * rungs + 1), walk * rungs / (2 * rungs + 1)
        walk = np.concatenate([[0.0], up[:-1]]) + np.concatenate([down[1:], [0.0]])
    shares, rounding = shares[:degrees] / total, terms * float(np.finfo(np.float64).eps)
    return shares - rounding, shares + max(1.0 - float(np.sum(powers)) / total, 0.0) + rounding


def _circle(frequency: int, constant: float) -> ArcSets:
    """The circle with the cosine of so many times the angle as its target."""
    return whole_circle(_TARGETS[frequency], float(frequency), constant)


def second_harmonic(x: Float[Array, " 3"]) -> Float[Array, ""]:
    """The cosine of twice the angle around the third axis."""
    u = x[0] / jnp.linalg.norm(x[:2])
    return 2.0 * u**2 - 1.0


def third_harmonic(x: Float[Array, " 3"]) -> Float[Array, ""]:
    """The cosine of three times the angle around the third axis."""
    u = x[0] / jnp.linalg.norm(x[:2])
    return 4.0 * u**3 - 3.0 * u


_TARGETS: dict[int, Callable[[Float[Array, " 3"]], Float[Array, ""]]] = {2: second_harmonic, 3: third_harmonic}


def _certified(name: str, fit: Fit, relation: Relation, predicted: float | tuple[float, float]) -> Claim:
    """A claim on the smallest error, which lies between its two bounds."""
    middle, half = (fit.error_upper + fit.error_lower) / 2, (fit.error_upper - fit.error_lower) / 2
    return Claim(name, middle, relation, predicted, half, 0.02, "half of what is between the certified bounds")


def _figure(curves: list[tuple[str, ErrorCurve]]) -> Figure:
    return Figure(
        name="universality",
        title="Best uniform approximation of a harmonic on the circle",
        x_label="radius R in the kernel's space",
        y_label="smallest error",
        series=tuple(
            Series(
                name,
                [fit.radius for fit in curve.fits],
                [(fit.error_upper + fit.error_lower) / 2 for fit in curve.fits],
                [fit.error_lower for fit in curve.fits],
                [fit.error_upper for fit in curve.fits],
            )
            for name, curve in curves
        ),
        x_scale="log",
        caption="Bands are certified; without a constant coordinate kernels without biases never get off 1.",
    )


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), section 5, universality of the tangent kernel (recalled); "
        "section Universality of docs/theory/gao2019"
    ),
    statement=(
        "On the whole sphere the tangent kernels of bias-free two-layer nets lack harmonics (ReLU, softplus, GELU: odd "
        "degrees from 3 on; tanh, erf: even ones; ReLU²: even ones from 4 on), so that cos 3φ (cos 2φ, cos 4φ) keeps "
        "the uniform error 1 at every radius; on the slice of constant last coordinate all degrees are present, and "
        "the error falls with the radius, by 1 over the norm of cos 3φ."
    ),
    run=_run,
    control=_control,
)
