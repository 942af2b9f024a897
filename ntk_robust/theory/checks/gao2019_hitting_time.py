"""Steps of adversarial training: the bound 2R²/(αε) over radii, accuracies and attacks, and how loose it is."""

import math
from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.losses import Absolute
from ntk_robust.models import AbstractActivation, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._adversaries import ArcAttack, arc_attacks
from ntk_robust.theory.checks._circle import CircleProblem, Comparator, kernel_fit, make_problem, train_on_arcs
from ntk_robust.training import Step

_GRID = 17
_HALF_ANGLE = 0.5
_RIDGES = (1.0, 0.1, 0.01)  # a smaller one gives a larger R and a smaller L_*(U)
_SHARES = (4.0, 2.0, 1.0)  # ε over the smallest that the width allows
_BELOW = (1 / 4, 1 / 16)  # and beyond what the theorem covers
_LONGEST = 600  # steps of a run at most


class Case(NamedTuple):
    """A network.

    Attributes:
        activation: σ.
        num_train: n.
        width: m.
        attacks: Names.
    """

    activation: AbstractActivation
    num_train: int
    width: int
    attacks: tuple[str, ...]


_CASES = {
    "quick": {"softplus": Case(Softplus(), 2, 512, ("oracle", "weakest"))},
    "full": {
        "softplus": Case(Softplus(), 4, 2048, ("oracle", "weakest", "random", "switching")),
        "tanh": Case(Tanh(), 2, 2048, ("oracle", "weakest", "random", "switching")),
    },
}


def _run(size: Size, key: Key[Array, ""]) -> Report:
    note = "How much earlier than promised is no theorem; rows below the required width are not covered by one at all."
    return _report(size, key, 1.0, (note,))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, -1.0, ("Broken on purpose: steps along the gradient instead of against it.",))


def _report(size: Size, key: Key[Array, ""], sign: float, notes: tuple[str, ...]) -> Report:
    hypotheses, conclusions, rows, series = [], [], [], []
    for name, case in _CASES[size].items():
        init_key, run_key = jr.split(key)
        problem = make_problem(case.num_train, case.width, case.activation, _HALF_ANGLE, key=init_key)
        for ridge in _RIDGES if sign > 0 else _RIDGES[-1:]:
            comparator = kernel_fit(problem, ridge)
            smallest = 2 * case.activation.smoothness * comparator.radius**2 / math.sqrt(case.width)
            for share in (*_SHARES, *_BELOW) if sign > 0 else _SHARES:
                epsilon = share * smallest
                step_size = epsilon / (Absolute().lipschitz * case.activation.lipschitz) ** 2
                bound = math.ceil(2 * comparator.radius**2 / (step_size * epsilon))
                title = f"{name}, R = {comparator.radius:.2f}, ε = {epsilon:.3g}"
                hits = {
                    attack: first_hit(
                        problem, comparator, adversary, epsilon=epsilon, step_size=sign * step_size, key=run_key
                    )
                    for attack, adversary in arc_attacks(_GRID, case.attacks if sign > 0 else ("oracle",)).items()
                }
                if share >= 1.0:
                    required = 4 * (case.activation.smoothness * comparator.radius**2 / epsilon) ** 2
                    width = float(case.width)
                    hypotheses.append(
                        Claim(
                            f"width, {title}", width, ">=", required, 1e-12 * width, 1e-9 * width, "4 G² C_2² R⁴ / ε²"
                        )
                    )
                    conclusions += [
                        exact_claim(f"first step with L_A ≤ L_*(U) + ε, {title}, {attack}", hit, "<=", bound - 1)
                        for attack, hit in hits.items()
                    ]
                rows += [
                    (
                        f"{name}, {attack}",
                        *(comparator.radius, epsilon, step_size, 1.0 / share**2, bound, hit, bound / max(hit, 1)),
                    )
                    for attack, hit in hits.items()
                ]
        if sign > 0:
            series += _series(name, [row for row in rows if row[0].startswith(name)])
    columns = (
        *("activation, attack", "R", "ε", "α = ε / (G² C_1²)", "required width over m", "T = 2R²/(αε)", "first hit"),
        "T / first hit",
    )
    caption = (
        "The first hit is the first step with L_A(W_t) ≤ L_*(U) + ε. Where the required width is more than m "
        f"the theorem says nothing; {_LONGEST} stands for none in as many steps."
    )
    table = Table("hitting_time", "Steps that the bound promises, and steps taken", columns, rows, caption)
    figures = () if sign < 0 else (_figure(series),)
    return Report(tuple(hypotheses), tuple(conclusions), (table,), figures, notes)


def first_hit(
    problem: CircleProblem,
    comparator: Comparator,
    attack: ArcAttack,
    *,
    epsilon: float,
    step_size: float,
    key: Key[Array, ""],
) -> int:
    """The first step with L_A ≤ L_*(U) + ε, L_*(U) taken from below; the number of steps tried if there is none."""
    result = train_on_arcs(problem, attack, step_size=step_size, num_steps=_LONGEST, record=_nothing, key=key)
    losses: Float[np.ndarray, " steps"] = np.asarray(result.history["surrogate_loss"])
    hits = losses <= comparator.robust_loss_lower + epsilon
    return int(np.argmax(hits)) if hits.any() else _LONGEST


def _nothing(step: Step) -> dict[str, Array]:
    del step
    return {}


def _series(name: str, rows: list[tuple]) -> list[Series]:
    """Hits and bounds against ε, for the largest R and the strongest attack."""
    largest = max(row[1] for row in rows)
    chosen = sorted((row for row in rows if row[1] == largest and row[0].endswith("oracle")), key=lambda row: row[2])
    places = [row[2] for row in chosen]
    return [
        Series(f"first hit, {name}", places, [float(max(row[6], 1)) for row in chosen], style="points"),
        Series(f"2R²/(αε), {name}", places, [float(row[5]) for row in chosen], style="dashed"),
    ]


def _figure(series: list[Series]) -> Figure:
    return Figure(
        name="hitting_time",
        title="Steps of adversarial training on the circle against the strongest attack",
        x_label="accuracy ε",
        y_label="steps",
        series=tuple(series),
        x_scale="log",
        y_scale="log",
        caption="Step size α = ε; the bound falls like ε^(-2).",
    )


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), number of steps of the two-layer theorem (number and rates "
        "recalled); item D3 of docs/theory/gao2019"
    ),
    statement=(
        "Wherever m ≥ 4G²C_2²R⁴/ε², with α = ε/(G²C_1²) unprojected adversarial training of a smooth two-layer net has "
        "its first L_A(W_t) ≤ L_*(U) + ε before step T = 2R²/(αε), for every attack, over radii R and accuracies ε."
    ),
    run=_run,
    control=_control,
)
