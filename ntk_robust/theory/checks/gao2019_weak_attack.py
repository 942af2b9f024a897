"""A small surrogate loss is no robustness: what the theorem promises of a weak attack, and what it does not."""

import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.models import Softplus
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, summation_error
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._adversaries import arc_attacks
from ntk_robust.theory.checks._circle import ArcRun, losses_on_arcs, make_problem

_GRID = 17
_HALF_ANGLE = 1.2
_STEP_SIZE = 0.05
_SIZES = {"quick": (2, 512, 300), "full": (4, 4096, 4000)}
_SMALL = 0.1
_LARGE = 0.3


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, ("identity", "weakest"), ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: training against the strongest attack, which leaves no gap."
    return _report(size, key, ("oracle",), (note,))


def _report(size: Size, key: Key[Array, ""], names: tuple[str, ...], notes: tuple[str, ...]) -> Report:
    init_key, run_key = jr.split(key)
    num_train, width, num_steps = _SIZES[size]
    problem = make_problem(num_train, width, Softplus(), _HALF_ANGLE, key=init_key)
    runs = {
        name: losses_on_arcs(problem, attack, step_size=_STEP_SIZE, num_steps=num_steps, key=run_key)
        for name, attack in arc_attacks(_GRID, names).items()
    }
    rounding = summation_error(4 * width, 8 * width**0.5)
    conclusions = [claim for name, run in runs.items() for claim in _claims(name, run, rounding)]
    rows = [
        (name, num_train, width, float(np.min(run.surrogate_loss)), float(run.robust_loss[_best(run)]))
        for name, run in runs.items()
    ]
    columns = ("attack", "n", "m", "smallest L_A", "L_* there")
    steps = np.arange(float(num_steps)).tolist()
    figure = Figure(
        name="weak_attack",
        title="Training against a weak attack",
        x_label="step t",
        y_label="loss",
        series=tuple(
            series
            for name, run in runs.items()
            for series in (
                Series(f"L_A, {name}", steps, run.surrogate_loss.tolist()),
                Series(f"L_*, {name}", steps, run.robust_loss.tolist(), style="dashed"),
            )
        ),
        caption="The convergence theorem is about L_A, the loss under the attack of training.",
    )
    table = Table("weak_attack", "Losses after training against weak attacks", columns, rows)
    return Report((), tuple(conclusions), (table,), (figure,), (*notes, "A demonstration: no theorem promises a gap."))


def _best(run: ArcRun) -> int:
    return int(np.argmin(run.surrogate_loss))


def _claims(name: str, run: ArcRun, rounding: float) -> list[Claim]:
    best = _best(run)
    return [
        Claim(
            f"largest L_A − L_*, {name}",
            float(np.max(run.surrogate_loss - run.robust_loss)),
            "<=",
            0.0,
            rounding,
            1e-6,
        ),
        Claim(f"smallest L_A, {name}", float(run.surrogate_loss[best]), "<=", _SMALL, rounding, 1e-6),
        Claim(
            f"L_* − L_A at the smallest L_A, {name}",
            float(run.robust_loss[best] - run.surrogate_loss[best]),
            ">=",
            _LARGE,
            rounding,
            1e-6,
        ),
    ]


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), remark after theorem 4.1 (recalled); item D7 of "
        "docs/theory/gao2019"
    ),
    statement=(
        "L_A(W) ≤ L_*(W) for every attack A; training against an attack that does nothing, or helps, makes L_A small "
        "and leaves L_* large: the guarantee is for the attack used in training only."
    ),
    run=_run,
    control=_control,
)
