"""What one training run looks like as a study."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float

from ntk_robust._core import Figure, Series, Table
from ntk_robust.data import Dataset
from ntk_robust.studies import Study
from ntk_robust.training import TrainingResult


def training_study(
    result: TrainingResult,
    *,
    layers: tuple[str, ...],
    dataset: Dataset,
    dynamics: str,
    grams: tuple[Float[Array, "n n"], Float[Array, "n n"]] | None,
    evaluation: dict[str, Any],
) -> Study:
    """Curves of losses, accuracies, movement and kernel, spectra before and after, and the evaluation.

    Args:
        result: The run.
        layers: Names of the layers that train.
        dataset: What it was trained on.
        dynamics: A sentence on what was trained, empty for the network itself.
        grams: The kernel before and after, None where it was not measured.
        evaluation: For each part of the data, numbers by name.
    """
    figures = [_loss(result), *_probed(result, layers)]
    if grams is not None:
        figures.append(_spectra(*grams))
    columns = ["part", *(name.replace("_", " ") for name in next(iter(evaluation.values()), {"natural_accuracy": 0}))]
    table = Table(
        "evaluation",
        "Evaluation at the last weights",
        columns,
        [(part, *numbers.values()) for part, numbers in evaluation.items()],
        caption="Accuracy under an attack is an upper bound of the robust accuracy.",
    )
    text = f"{result.num_steps} steps on {len(dataset.x_train)} examples of {dataset.name}.{dynamics}"
    projected = np.asarray(result.history["projected"])
    if projected.any():
        text += f" The constraint moved the weights in {int(projected.sum())} of them."
    if result.message:
        text += f"\n\n{result.message}"
    return Study(name="training", title="Training run", text=text, figures=figures, tables=[table])


def _loss(result: TrainingResult) -> Figure:
    losses = np.asarray(result.history["surrogate_loss"])
    lowest = np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf))
    steps = list(range(len(losses)))
    return Figure(
        "loss",
        "Surrogate loss",
        "step",
        "cross-entropy under the attack",
        (Series("batch", steps, losses.tolist()), Series("smallest so far", steps, lowest.tolist(), style="dashed")),
        y_scale="log",
        caption="Mean loss of each batch at the points that the attack found: a lower bound of the robust loss.",
    )


def _probed(result: TrainingResult, layers: tuple[str, ...]) -> list[Figure]:
    """What was measured every few steps."""
    steps, probes = np.asarray(result.probe_steps).tolist(), result.probes

    def curve(label: str, values: Float[Array, " probings"], style: Literal["line", "dashed"] = "line") -> Series:
        return Series(label, steps, np.asarray(values).tolist(), style=style)

    moved = probes["displacement"]
    path = [0.0, *np.asarray(result.path_length).tolist()]
    figures = [
        Figure(
            "accuracy",
            "Natural accuracy",
            "step",
            "fraction classified right",
            tuple(curve(part, probes[part]["natural_accuracy"]) for part in ("train", "test")),
        ),
        Figure(
            "displacement",
            "Relative displacement from initialization",
            "step",
            "‖W − W₀‖ / ‖W₀‖ (Frobenius)",
            tuple(curve(f"layer {name}", moved["relative"][:, i]) for i, name in enumerate(layers)),
        ),
        Figure(
            "path",
            "Displacement and length of the path",
            "step",
            "weight units (Frobenius)",
            (
                curve("displacement ‖W − W₀‖", moved["total"]),
                Series("path length", steps, [path[min(step, len(path) - 1)] for step in steps], style="dashed"),
            ),
            caption="The path is the sum of the lengths of all steps; noise makes it longer than the displacement.",
        ),
        Figure(
            "linearization",
            "Distance from the tangent at initialization",
            "step",
            "outputs, root mean square",
            (
                curve("f − f_lin on test examples", probes["linearization"]["linearization_error"]),
                curve("largest", probes["linearization"]["largest_linearization_error"], "dashed"),
            ),
        ),
    ]
    if "kernel" in probes:
        figures.append(
            Figure(
                "drift",
                "Change of the empirical NTK",
                "step",
                "‖Θ − Θ₀‖ / ‖Θ₀‖ (Frobenius)",
                (
                    curve("drift", probes["kernel"]["kernel_drift"]),
                    curve("angle, radians", probes["kernel"]["kernel_angle"], "dashed"),
                ),
            )
        )
    return figures


def _spectra(before: Float[Array, "n n"], after: Float[Array, "n n"]) -> Figure:
    def spectrum(label: str, gram: Float[Array, "n n"], style: Literal["line", "dashed"]) -> Series:
        eigenvalues = np.linalg.eigvalsh(np.asarray(gram))[::-1]
        rounding = eigenvalues[0] * len(eigenvalues) * np.finfo(eigenvalues.dtype).eps
        positive = eigenvalues[eigenvalues > rounding]
        return Series(label, list(range(1, len(positive) + 1)), positive.tolist(), style=style)

    series = (spectrum("before", before, "dashed"), spectrum("after", after, "line"))
    return Figure(
        "spectra",
        "Eigenvalues of the empirical NTK",
        "rank",
        "eigenvalue",
        series,
        x_scale="log",
        y_scale="log",
        caption="Before and after training, on the same points; eigenvalues below rounding are left out.",
    )
