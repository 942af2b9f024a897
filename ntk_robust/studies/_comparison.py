"""Runs compared along one setting, with natural and adversarial training side by side."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import AbstractProgress, Figure, SilentProgress, Table
from ntk_robust.attacks import AbstractAttack
from ntk_robust.data import Dataset, subset
from ntk_robust.studies._runs import MODES, Measured, Run, banded, by_name
from ntk_robust.studies._study import history_folder

LABELS = {
    "displacement": "displacement ‖W − W₀‖ (weight units)",
    "relative_displacement": "relative displacement ‖W − W₀‖ / ‖W₀‖",
    "path_length": "path length (weight units)",
    "kernel_drift": "kernel drift ‖Θ − Θ₀‖ / ‖Θ₀‖",
    "linearization_error": "‖f − f_lin‖ / ‖f − f₀‖ on test examples",
    "projected": "fraction of steps that were projected",
    "surrogate_loss": "surrogate loss at the end",
    "natural_accuracy": "natural accuracy",
    "adversarial_accuracy": "adversarial accuracy",
}


class Size(NamedTuple):
    """How much of everything; `values` are those of the setting."""

    values: tuple[float, ...]
    width: int
    num_seeds: int
    num_train: int
    num_test: int
    num_kernel: int
    num_steps: int


def sizes(quick: tuple[float, ...], full: tuple[float, ...]) -> dict[str, Size]:
    """The two sizes of a comparison, from the values of its setting."""
    return {
        "quick": Size(quick, width=256, num_seeds=3, num_train=100, num_test=100, num_kernel=20, num_steps=500),
        "full": Size(full, width=512, num_seeds=6, num_train=500, num_test=300, num_kernel=50, num_steps=1000),
    }


class Comparison(NamedTuple):
    """What runs came to, for each mode of training and each value of one setting.

    Attributes:
        setting: Name of the setting with its unit.
        size: How much of everything.
        dataset: Name of the data.
        measured: Per mode and value, one run per seed.
        histories: Folder with the history of every run, None where none was kept.
    """

    setting: str
    size: Size
    dataset: str
    measured: dict[str, list[list[Measured]]]
    histories: str | None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        chosen: str,
        among: Mapping[str, Size],
        *,
        field: str,
        setting: str,
        title: str,
        histories: str | os.PathLike[str] | None,
        progress: AbstractProgress | None,
        key: Key[Array, ""],
        modes: Mapping[str, AbstractAttack] = MODES,
        num_probings: int = 1,
    ) -> "Comparison":
        """Every run of the size called `chosen`; `field` is the attribute of `Run` that is set to the values.

        Histories go to folders of their own in `histories`. The kernel is measured `num_probings` times after the
        start.

        Raises:
            ValueError: For an unknown size.
            FloatingPointError: If a run meets numbers that are not finite.
        """
        if chosen not in among:
            raise ValueError(f"size is {chosen!r}; choose 'quick' or 'full'")
        size = among[chosen]
        data_key, run_key = jr.split(key)
        data = subset(dataset, size.num_train, size.num_test, key=data_key)
        measured: dict[str, list[list[Measured]]] = {mode: [] for mode in modes}
        with (progress or SilentProgress()).task(title, len(size.values) * size.num_seeds * len(modes)) as task:
            for value in size.values:
                for mode, attack in modes.items():
                    run = Run(data, size.width, size.num_steps, size.num_kernel, attack, num_probings=num_probings)
                    run = run._replace(**{field: value})
                    rows = []
                    for seed in range(size.num_seeds):
                        # Every value and all modes start from the same networks.
                        history = history_folder(histories, mode, f"{field}{value:g}", f"seed{seed}")
                        rows.append(run.measure(jr.fold_in(run_key, seed), history))
                        task.advance(1, adversarial_accuracy=rows[-1].numbers["adversarial_accuracy"])
                    measured[mode].append(rows)
        return cls(setting, size, data.name, measured, None if histories is None else os.fspath(histories))

    @property
    def values(self) -> list[float]:
        """Of the setting."""
        return [float(value) for value in self.size.values]

    @property
    def conditions(self) -> str:
        """What was done, as the beginning of a sentence."""
        size = self.size
        return (
            f"width {size.width}, {size.num_steps} steps, {size.num_train} examples of {self.dataset}, "
            f"{size.num_seeds} networks for each value"
        )

    def column(self, mode: str, name: str) -> np.ndarray:
        """Of shape (seeds, values)."""
        return np.stack([by_name(rows)[name] for rows in self.measured[mode]], axis=1)

    def figure(self, names: Sequence[str], title: str, *, log_y: bool = False, caption: str = "") -> Figure:
        """Quantities against the setting; with several of them the legend says which."""
        series = [
            banded(
                f"{mode}, {name.replace('_', ' ')}" if len(names) > 1 else mode, self.values, self.column(mode, name)
            )
            for mode in self.measured
            for name in names
        ]
        return Figure(
            name=names[0],
            title=title,
            x_label=self.setting,
            y_label=LABELS[names[0]] if len(names) == 1 else "fraction classified right",
            series=series,
            x_scale="log" if min(self.values) > 0 else "linear",
            y_scale="log" if log_y else "linear",
            caption=caption or "Mean over seeds; the band reaches from the smallest to the largest.",
        )

    def table(self, names: Sequence[str]) -> Table:
        """Means over seeds."""
        rows = [
            (mode, value, *(float(np.mean(self.column(mode, name)[:, i])) for name in names))
            for mode in self.measured
            for i, value in enumerate(self.values)
        ]
        columns = ("training", self.setting, *(name.replace("_", " ") for name in names))
        return Table("runs", "Means over seeds", columns, rows, "Accuracies are those on test examples.")
