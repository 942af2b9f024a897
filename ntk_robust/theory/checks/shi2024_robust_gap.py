"""T5: every function with zero adversarial training error pays for the noise around every point, robustly."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.certify import network_of
from ntk_robust.constructions import Breakpoints, breakpoints, interpolation_bound, robust_risk
from ntk_robust.losses import Squared
from ntk_robust.models import FullyConnected
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._overfitting import ROUNDING, as_array, student_on_line
from ntk_robust.theory.checks.shi2024_regression_rate import BOUND, SIGMA, TARGET, draw, teacher_on_line
from ntk_robust.training import fit

_SHARE = 0.2  # c of ε = c/n on the grid
_TRANSITION = 0.1  # τ = 0.1/n


class _Sizes(NamedTuple):
    nums: tuple[int, ...]
    num_draws: int
    trained: tuple[int, ...]
    num_steps: int


_SIZES = {
    "quick": _Sizes((20, 80, 320), 8, (6,), 1500),
    "full": _Sizes((20, 80, 320, 1280), 40, (6, 8, 10), 12000),
}
_STANDARD_ERRORS = 4.0
_CLOSE_ENOUGH = 0.15  # largest deviation on the cubes at which a trained network counts as a robust interpolant


class _Drawn(NamedTuple):
    """One draw: robust risks and their bounds."""

    lower: float
    student: float
    upper: float
    teacher: float


def _run(size: Size, key: Key[Array, ""]) -> Report:
    sizes = _SIZES[size]
    design_key, train_key = jr.split(key)
    conclusions, rows = [], []
    by_n = []
    for n in sizes.nums:
        drawn = [_draw(n, k) for k in jr.split(jr.fold_in(design_key, n), sizes.num_draws)]
        by_n.append(drawn)
        lower, student, upper, teacher = (np.array(part) for part in zip(*drawn, strict=True))
        conclusions += [
            Claim(
                f"smallest R_adv(f_S) / LB(2ε) over draws, n = {n}",
                float(np.min(student / lower)),
                ">=",
                1.0,
                ROUNDING,
                2 * ROUNDING,
            ),
            Claim(
                f"largest R_adv(f_S) / upper bound over draws, n = {n}",
                float(np.max(student / upper)),
                "<=",
                1.0,
                ROUNDING,
                2 * ROUNDING,
            ),
        ]
        # E LB = 4cσ² plus the variation of f* over the cubes, at most sup f*'² (2ε)² of their measure 4c
        flat = 4 * _SHARE * SIGMA**2
        extra = 4 * _SHARE * (3.0 * 2 * _SHARE / n) ** 2
        error = _STANDARD_ERRORS * float(np.std(lower, ddof=1) / np.sqrt(len(lower))) + ROUNDING
        predicted = (flat, flat + extra)
        conclusions.append(
            Claim(f"mean of LB(2ε) on the grid, n = {n}", float(np.mean(lower)), "in", predicted, error, 0.1 * flat)
        )
        rows.append(
            (n, *(float(np.mean(part)) for part in (teacher, lower, student, upper)), float(np.mean(lower / student)))
        )
    trained_rows = []
    for n in sizes.trained:
        claims, row = _trained(n, sizes.num_steps, jr.fold_in(train_key, n))
        conclusions += claims
        trained_rows.append(row)
    columns = ("n", "R_adv(f_T)", "LB(2ε)", "R_adv(f_S)", "upper bound", "LB / R_adv(f_S)")
    caption = f"Means over {sizes.num_draws} draws on the grid, ε = {_SHARE}/n, τ = {_TRANSITION}/n, noise ±{SIGMA}."
    table = Table("robust_gap", "Robust risks on the grid, exact", columns, rows, caption)
    columns = ("n", "largest |f − y| on the cubes", "LB(2ε)", "LB − 2η√LB", "R_adv", "R_std")
    caption = "Adversarially trained networks of one input; the deviation η on the cubes is exact, by breakpoints."
    trained_table = Table("robust_gap_trained", "Trained robust interpolants", columns, trained_rows, caption)
    notes = (
        "A trained network never has zero error: with |f − y_i| ≤ η on the cubes, R_adv ≥ E(max|y_i − f*| − η)_+² ≥ "
        "LB − 2η√LB, by the same proof and Cauchy and Schwarz.",
    )
    return Report((), tuple(conclusions), (table, trained_table), (_figure(sizes, by_n),), notes)


def _control(size: Size, key: Key[Array, ""]) -> Report:
    sizes = _SIZES[size]
    conclusions = []
    for n in sizes.nums:
        drawn = [_draw(n, k) for k in jr.split(jr.fold_in(key, n), sizes.num_draws)]
        smallest = min(one.teacher / one.lower for one in drawn)
        what = f"smallest R_adv / LB(2ε) over draws, n = {n}"
        conclusions.append(Claim(what, smallest, ">=", 1.0, ROUNDING, 2 * ROUNDING))
    notes = ("Broken on purpose: the function is the teacher, which does not fit the noise, and so need not pay.",)
    return Report((), tuple(conclusions), notes=notes)


def _draw(n: int, key: Key[Array, ""]) -> _Drawn:
    xs = (np.arange(n) + 0.5) / n
    ys = draw(xs, key)
    epsilon, tau = _SHARE / n, _TRANSITION / n
    teacher = teacher_on_line(xs, ys, max(3, round(2.5 * n**0.2)))
    student = student_on_line(teacher, xs, ys, epsilon=epsilon, tau=tau, bound=BOUND)
    taught = robust_risk(teacher, TARGET, epsilon=epsilon)
    return _Drawn(
        interpolation_bound(as_array(xs), as_array(ys), TARGET, radius=2 * epsilon),
        robust_risk(student, TARGET, epsilon=epsilon),
        # off the cubes of radius 2ε + τ the window meets no support, and f_S = f_T on it
        taught + 4 * BOUND**2 * n * (4 * epsilon + 2 * tau),
        taught,
    )


def _trained(n: int, num_steps: int, key: Key[Array, ""]) -> tuple[tuple[Claim, ...], tuple[int | float, ...]]:
    """An adversarially trained network, with its exact deviation on the cubes and its exact robust risk."""
    noise_key, init_key, fit_key = jr.split(key, 3)
    xs = (np.arange(n) + 0.5) / n
    ys = draw(xs, noise_key)
    epsilon = _SHARE / n
    # inputs n times as large: the network sees points one apart
    model = FullyConnected(1, 128, 2, "scalar", parameterization="standard", b_std=2.0)
    result = fit(
        model.apply,
        model.init(key=init_key, dtype=jnp.float64),
        as_array(n * xs[:, None] - n / 2),
        as_array(ys),
        loss=Squared(),
        attack=PGD(3, 0.5),
        perturbations=LinfBall(n * epsilon),
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
        num_steps=num_steps,
        throw=True,
        key=fit_key,
    )
    scaled = breakpoints(network_of(model, result.params), -0.75 * n, 0.75 * n)
    function = Breakpoints((scaled.points + n / 2) / n, scaled.values)
    deviation = largest_deviation(function, xs, ys, epsilon)
    bound = interpolation_bound(as_array(xs), as_array(ys), TARGET, radius=2 * epsilon)
    risk = robust_risk(function, TARGET, epsilon=epsilon)
    predicted = bound - 2 * deviation * float(np.sqrt(bound))
    claims = (
        exact_claim(f"largest deviation of the trained network on the cubes, n = {n}", deviation, "<=", _CLOSE_ENOUGH),
        Claim(f"R_adv of the trained network, n = {n}", risk, ">=", predicted, ROUNDING, 2 * ROUNDING),
    )
    return claims, (n, deviation, bound, predicted, risk, robust_risk(function, TARGET, epsilon=0.0))


def largest_deviation(function: Breakpoints, xs: np.ndarray, ys: np.ndarray, epsilon: float) -> float:
    """max_i sup over B(x_i, ε) of |f - y_i|, at the ends of the cubes and at the breakpoints inside."""
    worst = 0.0
    for x, y in zip(xs, ys, strict=True):
        inside = function.points[np.abs(function.points - x) <= epsilon]
        values = function(np.concatenate([inside, [x - epsilon, x + epsilon]]))
        worst = max(worst, float(np.max(np.abs(values - y))))
    return worst


def _figure(sizes: _Sizes, by_n: list[list[_Drawn]]) -> Figure:
    labels = {
        "student": "overfitted student",
        "lower": "lower bound for every robust interpolant",
        "teacher": "teacher",
    }
    series = []
    for part, label in labels.items():
        values = np.array([[getattr(one, part) for one in drawn] for drawn in by_n])
        band = (values.mean(axis=1), values.min(axis=1), values.max(axis=1))
        series.append(
            Series(label, sizes.nums, *(b.tolist() for b in band), style="dashed" if part == "lower" else "line")
        )
    return Figure(
        "robust_gap",
        "Robust risk against n on a grid with ε = 0.2/n",
        "n",
        "R_adv",
        series,
        "log",
        "log",
        "All risks exact. The bound is flat at about 4cσ² whatever the method, while the teacher's risk falls.",
    )


CHECK = Check(
    citation="In the setting of Shi et al. (arXiv 2024), item T5 of docs/theory/shi2024",
    statement=(
        "Every f with f = y_i on all B(x_i, ε) has R_adv(f) ≥ LB(2ε) = E max over |x − x_i| ≤ 2ε of (y_i − f*(x))², on "
        "the grid with ε = c/n about 4cσ² for every n; R_adv(f_S) ≤ R_adv(f_T) + 4M² n (4ε + 2τ) for the student."
    ),
    run=_run,
    control=_control,
)
