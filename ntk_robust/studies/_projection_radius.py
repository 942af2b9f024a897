"""Whether the projection of Gao et al. binds, and what it costs."""

import os
from typing import Literal

import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import AbstractProgress
from ntk_robust.data import Dataset
from ntk_robust.studies._comparison import Comparison, sizes
from ntk_robust.studies._runs import EPSILON, PROCEDURE
from ntk_robust.studies._study import Study

_SIZES = sizes(quick=(0.25, 1.0, 4.0, 16.0, 64.0), full=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0))


def projection_radius(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Training projected on balls around the initialization, against their radius.

    After every step each layer is projected on $\Vert W^{(h)} - W_0^{(h)}\Vert_F \le r$. In the parameterization of
    Gao et al. this is the set $B(R)$ with $R = r \sqrt m$; here weights are of order one, and $r$ is the distance.

    Args:
        dataset: Integer-labelled images.
        size: "quick" takes two minutes on small images.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks, attacks and the choice of examples.

    Returns:
        The study: how often the projection moved the weights, losses and accuracies, against the radius.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If a run meets numbers that are not finite.
    """
    compared = Comparison.of(
        dataset,
        size,
        _SIZES,
        field="weight_radius",
        setting="radius r of each layer's ball (weight units)",
        title="projection radius",
        histories=histories,
        progress=progress,
        key=key,
    )
    names = ("projected", "displacement", "kernel_drift", "surrogate_loss")
    return Study(
        name="projection_radius",
        title="Does projection around the initialization bind?",
        text=(
            f"{PROCEDURE}, each layer projected on a ball around its initialization after every step; "
            f"{compared.conditions}; l∞ radius {EPSILON}. "
            + " ".join(_sentence(compared, mode) for mode in compared.measured)
        ),
        figures=(
            compared.figure(["projected"], "How often the projection moves the weights"),
            compared.figure(["surrogate_loss"], "Loss under the training attack against the radius", log_y=True),
            compared.figure(["kernel_drift"], "Change of the kernel against the radius", log_y=True),
            compared.figure(
                ["natural_accuracy", "adversarial_accuracy"],
                "Test accuracy against the radius of the weights",
                caption="Adversarial accuracy is that of one attack, an upper bound of the robust accuracy.",
            ),
        ),
        tables=(compared.table((*names, "natural_accuracy", "adversarial_accuracy")),),
        histories=compared.histories,
    )


def _sentence(compared: Comparison, mode: str) -> str:
    """Up to which radius the projection still acted at all."""
    acted = compared.column(mode, "projected").max(axis=0) > 0
    radii = np.asarray(compared.values)
    if not acted.any():
        return f"In {mode} training it never moved the weights."
    if acted.all():
        return f"In {mode} training it moved the weights at every radius."
    return (
        f"In {mode} training it moved the weights up to r = {radii[acted].max():g} and no longer from "
        f"{radii[~acted].min():g} on."
    )
