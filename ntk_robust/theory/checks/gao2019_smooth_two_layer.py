"""Unprojected adversarial training of a smooth two-layer net reaches L_*(U) + ε in the promised number of steps."""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.losses import Absolute
from ntk_robust.models import AbstractActivation, PairedParams, Softplus, Tanh
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim, summation_error
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._adversaries import ArcAttack, arc_attacks
from ntk_robust.theory.checks._circle import (
    CircleProblem,
    Comparator,
    grid_gap,
    kernel_fit,
    make_problem,
    mean_loss,
    train_on_arcs,
)
from ntk_robust.training import Step

# the maximizer on a grid of the arcs, its opposite, a random point, and one of them by turns
_ATTACKS = ("oracle", "weakest", "random", "switching")
_RESOLUTION = 1e-9


class Case(NamedTuple):
    """A problem at exactly the width that the theorem asks for.

    Attributes:
        problem: Data, arcs, network and W_0.
        comparator: U, with R and the bounds of L_*(U).
        epsilon: ε = 2 G C_2 R²/√m, the accuracy for which m is the required width.
        step_size: α.
        num_steps: T = ⌈2R²/(αε)⌉.
        oracle_points: Points of the grid of each arc that the attacks see.
    """

    problem: CircleProblem
    comparator: Comparator
    epsilon: float
    step_size: float
    num_steps: int
    oracle_points: int


class Watched(NamedTuple):
    """What a run did, step by step.

    Attributes:
        surrogate_loss: L_A(W_t).
        comparator_loss: ℓ_t(U).
        distance: |W_t − U|².
        next_distance: |W_{t+1} − U|².
        displacement: |W_t − W_0|.
        size: |W_{t+1}|.
        off_sphere: The largest | |x'| − 1 | of the step.
    """

    surrogate_loss: Float[np.ndarray, " steps"]
    comparator_loss: Float[np.ndarray, " steps"]
    distance: Float[np.ndarray, " steps"]
    next_distance: Float[np.ndarray, " steps"]
    displacement: Float[np.ndarray, " steps"]
    size: Float[np.ndarray, " steps"]
    off_sphere: Float[np.ndarray, " steps"]


class Watch(eqx.Module):
    """Measures a step of the library's loop against U.

    Attributes:
        problem: The problem.
        comparator: U.
    """

    problem: CircleProblem
    comparator: PairedParams

    def __call__(self, step: Step) -> dict[str, Array]:
        """The fields of `Watched` but for the loss, which the loop records itself."""
        return {
            "comparator_loss": mean_loss(self.problem, self.comparator, step.xs_adv),
            "distance": _squared_distance(step.params, self.comparator),
            "next_distance": _squared_distance(step.next_params, self.comparator),
            "displacement": jnp.sqrt(_squared_distance(step.params, self.problem.params)),
            "size": jnp.sqrt(jnp.sum(step.next_params.plus**2) + jnp.sum(step.next_params.minus**2)),
            "off_sphere": jnp.max(jnp.abs(jnp.linalg.norm(step.xs_adv, axis=1) - 1)),
        }


def _squared_distance(params: PairedParams, other: PairedParams) -> Float[Array, ""]:
    return jnp.sum((params.plus - other.plus) ** 2) + jnp.sum((params.minus - other.minus) ** 2)


def _run(size: Size, key: Key[Array, ""]) -> Report:
    case_key, run_key = jr.split(key)
    found = [
        (
            name,
            case,
            {
                attack: train(case, adversary, case.step_size, run_key)
                for attack, adversary in arc_attacks(case.oracle_points, _ATTACKS).items()
            },
        )
        for name, case in _cases(size, case_key).items()
    ]
    return _report(found, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    case_key, run_key = jr.split(key)
    name, case = next(iter(_cases(size, case_key).items()))
    run = train(case, arc_attacks(case.oracle_points, ("oracle",))["oracle"], -case.step_size, run_key)
    note = "Broken on purpose: steps along the gradient instead of against it."
    return _report([(name, case, {"oracle": run})], (note,))


def _cases(size: Size, key: Key[Array, ""]) -> dict[str, Case]:
    softplus_key, tanh_key = jr.split(key)
    if size == "quick":
        return {
            "softplus": make_case(2, 512, Softplus(), (0.5, 33), 0.01, key=softplus_key),
            "tanh": make_case(2, 1024, Tanh(), (0.5, 33), 0.01, key=tanh_key),
        }
    return {
        "softplus": make_case(4, 24_000, Softplus(), (0.15, 17), 0.03, key=softplus_key),
        "tanh": make_case(4, 24_000, Tanh(), (0.15, 17), 0.03, key=tanh_key),
    }


def make_case(
    num_train: int,
    width: int,
    activation: AbstractActivation,
    arcs: tuple[float, int],
    ridge: float,
    *,
    key: Key[Array, ""],
) -> Case:
    """The problem of `num_train` points, U from a ridge regression, and the constants of the theorem for them.

    `arcs` are their half angle and the points of each that the attacks see.
    """
    half_angle, oracle_points = arcs
    problem = make_problem(num_train, width, activation, half_angle, key=key)
    comparator = kernel_fit(problem, ridge)
    lipschitz = Absolute().lipschitz
    epsilon = 2 * lipschitz * activation.smoothness * comparator.radius**2 / math.sqrt(width)
    step_size = epsilon / (lipschitz * activation.lipschitz) ** 2
    num_steps = math.ceil(2 * comparator.radius**2 / (step_size * epsilon))
    return Case(problem, comparator, epsilon, step_size, num_steps, oracle_points)


def train(case: Case, attack: ArcAttack, step_size: float, key: Key[Array, ""]) -> Watched:
    """T steps of the library's loop, without projection."""
    watch = Watch(case.problem, case.comparator.params)
    result = train_on_arcs(case.problem, attack, step_size=step_size, num_steps=case.num_steps, record=watch, key=key)
    return Watched(**{name: np.asarray(result.history[name]) for name in Watched._fields})


def _report(found: list[tuple[str, Case, dict[str, Watched]]], notes: tuple[str, ...]) -> Report:
    hypotheses, conclusions, rows = [], [], []
    for name, case, runs in found:
        hypotheses += _hypotheses(name, case, runs)
        for attack, run in runs.items():
            conclusions += _conclusions(f"{name}, {attack}", case, run)
            rows.append((f"{name}, {attack}", *_row(case, run)))
    columns = (
        *("activation, attack", "n", "m", "R", "L_*(U)", "ε", "α", "T", "first hit", "T / first hit", "min L_A"),
        *("max |W_t − W_0| / R", "oracle's gap at U"),
    )
    caption = (
        "The first hit is the first step with L_A(W_t) ≤ L_*(U) + ε; T is the step by which the theorem promises it. "
        "The oracle's gap is a certified bound for what its grid can miss."
    )
    return Report(
        hypotheses=tuple(hypotheses),
        conclusions=tuple(conclusions),
        tables=(
            Table(
                "smooth_two_layer", "Adversarial training on the circle at the required width", columns, rows, caption
            ),
        ),
        figures=tuple(_figure(*each) for each in found),
        notes=notes,
    )


def _constants(case: Case) -> tuple[float, float, float]:
    activation = case.problem.net.activation
    return Absolute().lipschitz, activation.lipschitz, activation.smoothness


def _hypotheses(name: str, case: Case, runs: dict[str, Watched]) -> list[Claim]:
    g, c1, c2 = _constants(case)
    radius, epsilon, width = case.comparator.radius, case.epsilon, float(case.problem.net.width)
    points = jnp.linspace(-12.0, 12.0, 24_001)
    slopes = np.asarray(case.problem.net.activation.derivative(points))
    bends = np.abs(np.diff(slopes)) / float(points[1] - points[0])
    required = 4 * (g * c2 * radius**2 / epsilon) ** 2
    off_sphere = max(float(np.max(run.off_sphere)) for run in runs.values())
    return [
        Claim(f"|σ'| on a grid against C_1, {name}", float(np.max(np.abs(slopes))), "<=", c1, 1e-14, 1e-12),
        Claim(f"difference quotient of σ' against C_2, {name}", float(np.max(bends)), "<=", c2, 1e-12, 1e-9),
        Claim(f"width against 4 G² C_2² R⁴ / ε², {name}", width, ">=", required, 1e-12 * width, 1e-9 * width),
        exact_claim(
            f"number of steps against 2R²/(αε), {name}",
            case.num_steps,
            ">=",
            2 * radius**2 / (case.step_size * epsilon),
        ),
        Claim(f"largest | |x'| − 1 |, {name}", off_sphere, "==", 0.0, 1e-14, 1e-12),
    ]


def _conclusions(name: str, case: Case, run: Watched) -> list[Claim]:
    g, c1, c2 = _constants(case)
    alpha, root = case.step_size, math.sqrt(case.problem.net.width)
    growth = run.distance * (1 + alpha * g * c2 / root)
    bound = growth - 2 * alpha * (run.surrogate_loss - run.comparator_loss) + (alpha * g * c1) ** 2
    excess = (run.next_distance - bound) / case.comparator.radius**2
    # Sums over all weights, and W_{t+1} as stored.
    count = 3 * case.problem.net.width + 8
    stored = 2 * np.sqrt(run.next_distance) * summation_error(3, 1.0) * run.size
    errors = (
        summation_error(count, 1.0) * (run.distance + run.next_distance + 4 * alpha) + stored
    ) / case.comparator.radius**2
    worst = int(np.argmax(excess))
    hit = first_hit(case, run)
    reached = run.displacement[: hit + 1]
    return [
        exact_claim(
            f"first step with L_A ≤ L_*(U) + ε, {name}",
            hit,
            "<=",
            case.num_steps - 1,
            "T where there is none; L_*(U) is taken from below",
        ),
        Claim(
            f"one-step recursion (*), left minus right over R², {name}",
            float(excess[worst]),
            "<=",
            0.0,
            float(np.max(errors)),
            _RESOLUTION,
            "with ℓ_t(U) in place of L_*(U), which is the stronger form; uncertainty is the rounding bound",
        ),
        Claim(
            f"largest |W_t − W_0| up to the hit against 2R, {name}",
            float(np.max(reached)),
            "<=",
            2 * case.comparator.radius,
            summation_error(count, float(np.max(reached))),
            _RESOLUTION,
        ),
    ]


def first_hit(case: Case, run: Watched) -> int:
    """The first step with L_A(W_t) ≤ L_*(U) + ε, T where there is none."""
    hits = run.surrogate_loss <= case.comparator.robust_loss_lower + case.epsilon
    return int(np.argmax(hits)) if hits.any() else case.num_steps


def _row(case: Case, run: Watched) -> tuple[float | int, ...]:
    hit, radius = first_hit(case, run), case.comparator.radius
    return (
        *(len(case.problem.xs), case.problem.net.width, radius, case.comparator.robust_loss_upper),
        *(case.epsilon, case.step_size, case.num_steps, hit, case.num_steps / max(hit, 1)),
        *(float(np.min(run.surrogate_loss)), float(np.max(run.displacement)) / radius),
        grid_gap(case.problem, case.comparator.params, case.oracle_points),
    )


def _figure(name: str, case: Case, runs: dict[str, Watched]) -> Figure:
    steps = np.arange(float(case.num_steps)).tolist()
    level = case.comparator.robust_loss_upper + case.epsilon
    return Figure(
        name=f"smooth_two_layer_{name}",
        title=f"Unprojected adversarial training on the circle, {name}, m = {case.problem.net.width}",
        x_label="step t",
        y_label="L_A(W_t)",
        series=(
            *(Series(attack, steps, run.surrogate_loss.tolist()) for attack, run in runs.items()),
            Series("L_*(U) + ε", [0.0, float(case.num_steps)], [level, level], style="dashed"),
        ),
        caption="The theorem promises that each curve meets the dashed line within the frame, for every attack.",
    )


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), the two-layer theorem without projection (number and rates "
        "recalled); item D3 of docs/theory/gao2019"
    ),
    statement=(
        "Two-layer net with |a_r| = 1, |x| = 1, |σ'| ≤ C_1, σ' C_2-Lipschitz, loss convex and G-Lipschitz, any U with "
        "|U − W_0| ≤ R. If m ≥ 4G²C_2²R⁴/ε², α ≤ ε/(G²C_1²) and T ≥ 2R²/(αε), then min_{t<T} L_A(W_t) ≤ L_*(U) + ε for "
        "every attack and every W_0, and |W_t − W_0| ≤ 2R up to the first hit."
    ),
    run=_run,
    control=_control,
)
