"""What the radius of the perturbations does to the movement of weights and kernel."""

import os
from typing import Literal

import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import AbstractProgress
from ntk_robust.data import Dataset
from ntk_robust.studies._comparison import Comparison, sizes
from ntk_robust.studies._runs import ATTACK, PROCEDURE
from ntk_robust.studies._study import Study

_SIZES = sizes(quick=(0.0, 0.025, 0.05, 0.1, 0.2), full=(0.0, 0.0125, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3))


def perturbation_radius(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Displacement, path length, drift and accuracy of adversarial training against the radius $\varepsilon$.

    Every radius starts from the same networks; $\varepsilon = 0$ is natural training. Accuracy under attack is
    measured at the radius of training.

    Args:
        dataset: Integer-labelled images.
        size: "quick" takes two minutes on small images.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks, attacks and the choice of examples.

    Returns:
        The study: figures against the radius and the means over seeds.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If a run meets numbers that are not finite.
    """
    compared = Comparison.of(
        dataset,
        size,
        _SIZES,
        field="epsilon",
        setting="l∞ radius ε (units of the pixels)",
        title="perturbation radius",
        histories=histories,
        progress=progress,
        key=key,
        modes={"adversarial": ATTACK},
    )
    moved, drift = (compared.column("adversarial", name) for name in ("displacement", "kernel_drift"))
    names = ("displacement", "path_length", "kernel_drift", "linearization_error", "surrogate_loss")
    return Study(
        name="perturbation_radius",
        title="What the radius of the perturbations does",
        text=(
            f"{PROCEDURE}; {compared.conditions}. At ε = {compared.values[-1]:g} the displacement is "
            f"{_ratio(moved)} times that at {compared.values[0]:g}, and the change of the kernel {_ratio(drift)} times."
        ),
        figures=(
            compared.figure(["displacement"], "Displacement against the radius"),
            compared.figure(["kernel_drift"], "Change of the kernel against the radius"),
            compared.figure(["surrogate_loss"], "Loss under attack against the radius", log_y=True),
            compared.figure(
                ["natural_accuracy", "adversarial_accuracy"],
                "Test accuracy against the radius",
                caption="Adversarial accuracy is that of one attack at the radius of training, an upper bound.",
            ),
        ),
        tables=(compared.table((*names, "natural_accuracy", "adversarial_accuracy")),),
        histories=compared.histories,
    )


def _ratio(values: np.ndarray) -> str:
    """Of the last over the first column: mean over seeds with the smallest and the largest."""
    ratios = values[:, -1] / values[:, 0]
    return f"{np.mean(ratios):.2f} [{np.min(ratios):.2f}, {np.max(ratios):.2f}]"
