"""How far training moves weights and kernel, naturally and adversarially, against width."""

import os
from typing import Literal, NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import AbstractProgress, Figure, Series, SilentProgress, SlopeFit, Table, slope_fit
from ntk_robust.data import Dataset, subset
from ntk_robust.studies._runs import EPSILON, MODES, PROCEDURE, Run, banded, by_name
from ntk_robust.studies._study import SLOPE_COLUMNS, Study, history_folder, kept_in, slope_row


class _Size(NamedTuple):
    widths: tuple[int, ...]
    num_seeds: int
    num_train: int
    num_test: int
    num_kernel: int
    num_steps: int


_SIZES = {
    "quick": _Size(widths=(64, 128, 256, 512), num_seeds=3, num_train=100, num_test=100, num_kernel=20, num_steps=200),
    "full": _Size(
        widths=(64, 128, 256, 512, 1024, 2048), num_seeds=6, num_train=500, num_test=300, num_kernel=50, num_steps=400
    ),
}

# What is known about the exponents in NTK parameterization with two hidden layers: the weights move by a width-free
# distance, of weights whose norm grows like the width; the kernel's change is at most of order -1/2 (Jacot et al. 2018,
# Lee et al. 2019), and -1 to leading order of a smooth network (Dyer and Gur-Ari 2020).
_QUANTITIES = {
    "displacement": ("displacement ‖W − W₀‖ (weight units)", "0"),
    "relative_displacement": ("relative displacement ‖W − W₀‖ / ‖W₀‖", "-1"),
    "kernel_drift": ("kernel drift ‖Θ − Θ₀‖ / ‖Θ₀‖", "-1/2 or steeper"),
}
_RESULTS = ("surrogate_loss", "natural_accuracy", "adversarial_accuracy")


def training_displacement(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Displacement of weights and drift of the empirical NTK in natural and adversarial training, against width.

    Full-batch gradient descent with momentum on the cross-entropy of fully connected ReLU networks in NTK
    parameterization, the same number of steps at every width; the attack is PGD in the l∞ ball of radius 0.1 within
    the valid pixels.

    Args:
        dataset: Integer-labelled images.
        size: "quick" ends within two minutes on two cores.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks, attacks and the choice of examples.

    Returns:
        The study: one figure per quantity and one of accuracies, the numbers, and the fitted slopes.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If a run meets numbers that are not finite.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    sizes = _SIZES[size]
    data_key, run_key = jr.split(key)
    data = subset(dataset, sizes.num_train, sizes.num_test, key=data_key)
    names = (*_QUANTITIES, *_RESULTS)
    arrays = {mode: {name: np.zeros((sizes.num_seeds, len(sizes.widths))) for name in names} for mode in MODES}
    runs = len(sizes.widths) * sizes.num_seeds * len(MODES)
    with (progress or SilentProgress()).task("training displacement", runs) as task:
        for column, width in enumerate(sizes.widths):
            for mode, attack in MODES.items():
                rows = []
                for seed in range(sizes.num_seeds):
                    # Both kinds of training start from the same networks.
                    run = Run(data, width, sizes.num_steps, sizes.num_kernel, attack, tangent=False)
                    history = history_folder(histories, mode, f"width{width}", f"seed{seed}")
                    rows.append(run.measure(jr.fold_in(jr.fold_in(run_key, width), seed), history))
                    accuracy = rows[-1].numbers["adversarial_accuracy"]
                    task.advance(1, width=float(width), adversarial_accuracy=accuracy)
                found = by_name(rows)
                for name in names:
                    arrays[mode][name][:, column] = found[name]
    return kept_in(histories, _write_up(data, sizes, arrays))


def _write_up(data: Dataset, sizes: _Size, measured: dict[str, dict[str, np.ndarray]]) -> Study:
    widths = [float(width) for width in sizes.widths]
    figures, slopes, sentences = [], [], []
    for name, (label, expected) in _QUANTITIES.items():
        series = []
        for mode, arrays in measured.items():
            fitted = slope_fit(np.array(widths), arrays[name])
            slopes.append(slope_row(label, mode, fitted, expected))
            sentences.append(f"{name.replace('_', ' ')}, {mode}: {_interval(fitted)}")
            series.append(banded(mode, widths, arrays[name]))
            series.append(Series(f"{mode}, fit", widths, fitted.predict(np.array(widths)).tolist(), style="dashed"))
        figures.append(
            Figure(
                name=name,
                title=f"{name.replace('_', ' ').capitalize()} against width",
                x_label="width",
                y_label=label,
                series=series,
                x_scale="log",
                y_scale="log",
                caption="Mean over seeds; the band reaches from the smallest to the largest seed.",
            )
        )
    figures.append(
        Figure(
            name="accuracy",
            title="Test accuracy against width",
            x_label="width",
            y_label="fraction classified right",
            series=[
                banded(f"{mode} training, {name.replace('_', ' ')}", widths, arrays[name])
                for mode, arrays in measured.items()
                for name in ("natural_accuracy", "adversarial_accuracy")
            ],
            x_scale="log",
            caption="Adversarial accuracy is an upper bound of the robust accuracy: it is that of one attack.",
        )
    )
    names = (*_QUANTITIES, *_RESULTS)
    rows = [
        (mode, width, *(float(np.mean(arrays[name][:, column])) for name in names))
        for mode, arrays in measured.items()
        for column, width in enumerate(sizes.widths)
    ]
    return Study(
        name="training_displacement",
        title="How far training moves weights and kernel, against width",
        text=(
            f"{PROCEDURE}, {sizes.num_steps} steps "
            f"on {sizes.num_train} examples of {data.name}: natural, and adversarial with PGD "
            f"in the l∞ ball of radius {EPSILON}; {sizes.num_seeds} networks per width. Fitted exponents of "
            f"the width, with 95 % intervals over seeds: {'; '.join(sentences)}. Near the kernel regime the "
            "weights move by a distance free of width, so that the relative displacement falls like the "
            "inverse norm of the weights, and the kernel's change vanishes."
        ),
        figures=tuple(figures),
        tables=(
            Table("slopes", "Fitted exponents of the width", SLOPE_COLUMNS, slopes, "95 % intervals over seeds."),
            Table(
                "runs",
                "Means over seeds",
                ("training", "width", *(name.replace("_", " ") for name in names)),
                rows,
                "Accuracies on test examples; the surrogate loss is that of the last step under the training attack.",
            ),
        ),
    )


def _interval(fitted: SlopeFit) -> str:
    return f"{fitted.slope:.3f} [{fitted.lower:.3f}, {fitted.upper:.3f}]"
