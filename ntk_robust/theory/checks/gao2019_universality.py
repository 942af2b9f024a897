"""Which harmonics the tangent kernels lack, and a function that no radius of the kernel's ball reaches."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.expressiveness import ErrorCurve, Fit, error_curve, harmonic_support, whole_circle
from ntk_robust.kernels import analytic_ntk
from ntk_robust.models import AbstractActivation, Erf, Gelu, PairedTwoLayerNet, QuadraticRelu, Relu, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, Relation, exact_claim
from ntk_robust.theory._report import Report

_CONSTANT = 1 / math.sqrt(2)
_DEGREES = 8
# Degrees of spherical harmonics on the whole sphere, below 8, for which the kernel has nothing.
_LACKING: dict[str, tuple[AbstractActivation, set[int]]] = {
    "ReLU": (Relu(), {3, 5, 7}),
    "softplus": (Softplus(), {3, 5, 7}),
    "tanh": (Tanh(), {0, 2, 4, 6}),
    "GELU": (Gelu(), {3, 5, 7}),
    "erf": (Erf(), {0, 2, 4, 6}),
    "ReLU²": (QuadraticRelu(), {4, 6}),
}
_NAMES = {"quick": ("ReLU", "tanh"), "full": tuple(_LACKING)}
_RADII = {"quick": (1.0, 100.0), "full": (1.0, 10.0, 100.0, 1000.0)}
_SLICE_RADII = (16.0, 128.0)
_GAP = 0.02


def _run(size: Size, key: Key[Array, ""]) -> Report:
    del key  # nothing is random
    return _report(size, 0.0, ("All supported degrees are those below 8; more cannot be said by a computation.",))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    del key
    note = "Broken on purpose: the claims of the whole sphere, for its slice with a constant last coordinate."
    return _report(size, _CONSTANT, (note,))


def third_harmonic(x: Float[Array, " 3"]) -> Float[Array, ""]:
    """The cosine of three times the angle around the third axis."""
    u = x[0] / jnp.linalg.norm(x[:2])
    return 4.0 * u**3 - 3.0 * u


def _report(size: Size, constant: float, notes: tuple[str, ...]) -> Report:
    conclusions, rows = [], []
    for name in _NAMES[size] if not constant else _NAMES[size][:1]:
        activation, lacking = _LACKING[name]
        kernel = analytic_ntk(PairedTwoLayerNet(3, 2, activation))
        whole = harmonic_support(kernel, 3, num_degrees=_DEGREES, constant=constant or None)
        on_slice = harmonic_support(kernel, 3, num_degrees=_DEGREES, constant=_CONSTANT)
        missing = sorted(lacking)
        largest = int(np.argmax(np.abs(whole.mass[missing])))
        conclusions += [
            Claim(
                f"largest share of the degrees {', '.join(map(str, missing))}, {name}",
                float(np.abs(whole.mass[missing])[largest]) / whole.total,
                "==",
                0.0,
                float(np.max(whole.error[missing])) / whole.total,
                1e-12,
                "on the whole sphere of three dimensions; uncertainty of quadrature and rounding",
            ),
            exact_claim(
                f"degrees below 8 that are present, {name}", np.sum(whole.present), "==", _DEGREES - len(missing)
            ),
            exact_claim(f"degrees below 8 on the slice, {name}", np.sum(on_slice.present), "==", _DEGREES),
        ]
        rows.append((name, whole.parity(), on_slice.parity(), whole.margin, on_slice.margin))
    relu = analytic_ntk(PairedTwoLayerNet(3, 2, Relu()))
    tanh = analytic_ntk(PairedTwoLayerNet(3, 2, Tanh()))
    on_circle = error_curve(
        tanh if constant else relu,
        whole_circle(third_harmonic, 3.0, constant),
        list(_SLICE_RADII[:1] if constant else _RADII[size]),
        relative_gap=_GAP,
    )
    conclusions += [
        _certified(f"best uniform error for cos 3φ, R = {fit.radius:g}", fit, "==", 1.0) for fit in on_circle.fits
    ]
    curves = [("constant 0", on_circle)]
    if not constant:
        reached = error_curve(tanh, whole_circle(third_harmonic, 3.0, _CONSTANT), list(_SLICE_RADII), relative_gap=_GAP)
        last = reached.fits[-1]
        conclusions.append(_certified(f"uniform error of tanh on the slice, R = {last.radius:g}", last, "<=", 0.5))
        curves.append(("tanh, constant 1/√2", reached))
    columns = (
        "activation",
        "degrees on the sphere",
        "degrees on the slice",
        "margin on the sphere",
        "margin on the slice",
    )
    table = Table("universality", "Harmonics below degree 8 in tangent kernels of two-layer networks", columns, rows)
    return Report((), tuple(conclusions), (table,), (_figure(curves),), notes)


def _certified(name: str, fit: Fit, relation: Relation, predicted: float) -> Claim:
    """A claim on the smallest error, which lies between its two bounds."""
    middle, half = (fit.error_upper + fit.error_lower) / 2, (fit.error_upper - fit.error_lower) / 2
    return Claim(name, middle, relation, predicted, half, 0.02, "half of what is between the certified bounds")


def _figure(curves: list[tuple[str, ErrorCurve]]) -> Figure:
    return Figure(
        name="universality",
        title="Best uniform approximation of cos 3φ on the circle",
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
        caption="Bands are certified; without a constant coordinate a bias-free ReLU kernel never gets off 1.",
    )


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), section 5, universality of the tangent kernel (recalled); "
        "section Universality of docs/theory/gao2019"
    ),
    statement=(
        "On the whole sphere the tangent kernels of bias-free two-layer nets lack harmonics (ReLU, softplus, GELU: odd "
        "degrees from 3 on; tanh, erf: even ones), so that cos 3φ keeps the uniform error 1 at every radius; on the "
        "slice of constant last coordinate all degrees are present, and the error falls with the radius."
    ),
    run=_run,
    control=_control,
)
