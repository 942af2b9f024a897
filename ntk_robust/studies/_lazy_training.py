"""From rich to lazy training by the scale of the output, naturally and adversarially."""

import os
from typing import Literal

import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import AbstractProgress, Figure, Series, Table
from ntk_robust.data import Dataset
from ntk_robust.studies._comparison import LABELS, Comparison, sizes
from ntk_robust.studies._runs import EPSILON, PROCEDURE
from ntk_robust.studies._study import Study

_LEFT = 0.1  # relative change of the kernel that counts as having left the lazy regime


_SIZES = sizes(quick=(0.25, 1.0, 4.0, 16.0), full=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0))


def lazy_training(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""How the scale $α$ of the output makes training lazy, and which kind of training leaves the lazy regime earlier.

    The network is $α (f(W, x) - f(W_0, x))$ and the learning rate is divided by $α^2$, so that time runs alike in
    the space of functions (Chizat, Oyallon, Bach 2019). Training counts as having left the lazy regime when the
    empirical NTK has changed by a tenth of its norm.

    Args:
        dataset: Integer-labelled images.
        size: "quick" takes two minutes on small images.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks, attacks and the choice of examples.

    Returns:
        The study: displacement, drift and linearization error against $α$, drift against time, accuracies.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If a run meets numbers that are not finite.
    """
    compared = Comparison.of(
        dataset,
        size,
        _SIZES,
        field="output_scale",
        setting="output scale α",
        title="lazy training",
        histories=histories,
        progress=progress,
        key=key,
        num_probings=20,
    )
    exits = _exits(compared)
    names = ("displacement", "kernel_drift", "linearization_error", "surrogate_loss")
    return Study(
        name="lazy_training",
        title="From rich to lazy: the scale of the output",
        text=(
            f"{PROCEDURE}, centered and scaled by α with the learning rate over α²; {compared.conditions}; l∞ radius "
            f"{EPSILON}. {_verdict(compared)}"
        ),
        figures=(
            compared.figure(["kernel_drift"], "Change of the kernel against the output scale", log_y=True),
            compared.figure(["linearization_error"], "Distance from the tangent against the output scale", log_y=True),
            compared.figure(["relative_displacement"], "Displacement against the output scale", log_y=True),
            _over_time(compared),
            compared.figure(
                ["natural_accuracy", "adversarial_accuracy"],
                "Test accuracy against the output scale",
                caption="Adversarial accuracy is that of one attack, an upper bound of the robust accuracy.",
            ),
        ),
        tables=(compared.table((*names, "natural_accuracy", "adversarial_accuracy")), exits),
        histories=compared.histories,
    )


def _first_exits(compared: Comparison, mode: str) -> np.ndarray:
    """First measured step of each run (seeds x values) with a kernel that changed by a tenth; inf for never."""
    return np.array(
        [
            [run.steps[run.kernel_drift > _LEFT][0] if (run.kernel_drift > _LEFT).any() else np.inf for run in rows]
            for rows in compared.measured[mode]
        ]
    ).T


def _exits(compared: Comparison) -> Table:
    rows = []
    for mode in compared.measured:
        for value, exits in zip(compared.values, _first_exits(compared, mode).T, strict=True):
            median = float(np.median(exits))
            rows.append(
                (mode, value, f"{median:.0f}" if np.isfinite(median) else "never", int(np.isfinite(exits).sum()))
            )
    return Table(
        "exits",
        "When training leaves the lazy regime",
        ("training", compared.setting, "median step", "runs that left"),
        rows,
        f"First measured step at which the empirical NTK differs from its initial value by {_LEFT:.0%} of its norm.",
    )


def _verdict(compared: Comparison) -> str:
    """Which kind of training left earlier, run by run from the same networks."""
    natural, adversarial = (_first_exits(compared, mode) for mode in ("natural", "adversarial"))
    earlier, later = int((adversarial < natural).sum()), int((natural < adversarial).sum())
    drifts = [compared.column(mode, "kernel_drift") for mode in ("natural", "adversarial")]
    ratio = float(np.exp(np.mean(np.log(drifts[1] / drifts[0]))))
    return (
        f"From the same networks adversarial training left the lazy regime before natural training in {earlier} of "
        f"{natural.size} pairs of runs and after it in {later}; in the others both left between the same two "
        f"measurements or neither did. At the end its kernel had changed {ratio:.2f} times as much (geometric mean of "
        "all pairs)."
    )


def _over_time(compared: Comparison) -> Figure:
    series = []
    for mode, by_value in compared.measured.items():
        for value, rows in zip(compared.values, by_value, strict=True):
            drift = np.mean([run.kernel_drift for run in rows], axis=0)
            style = "line" if mode == "adversarial" else "dashed"
            # The change at step 0 is zero, which has no place on a logarithmic axis.
            series.append(Series(f"{mode}, α = {value:g}", rows[0].steps[1:].tolist(), drift[1:].tolist(), style=style))
    return Figure(
        "drift_over_time",
        "Change of the kernel while training",
        "step",
        LABELS["kernel_drift"],
        series,
        y_scale="log",
        caption="Mean over seeds.",
    )
