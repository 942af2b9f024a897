"""The record of a study."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_robust._core import Figure, Scalar, SlopeFit, Table


@dataclasses.dataclass(frozen=True)
class Study:
    """What an experiment over widths found, as plain data for a report.

    Attributes:
        name: Name in files, unique in a report.
        title: Heading.
        text: What was done and what the numbers say, in sentences.
        figures: What to draw.
        tables: What to tabulate.
        histories: Folder that holds the history of every run of training, None where none was kept.
    """

    name: str
    title: str
    text: str
    figures: Sequence[Figure]
    tables: Sequence[Table]
    histories: str | None = None


def history_folder(histories: str | os.PathLike[str] | None, *names: Any) -> Path | None:
    """Where the history of one run goes, called after its settings: "adversarial_width64_seed0"."""
    return None if histories is None else Path(histories) / "_".join(str(name) for name in names)


def kept_in(histories: str | os.PathLike[str] | None, study: Study) -> Study:
    """The study with the name of the folder of its histories."""
    return study if histories is None else dataclasses.replace(study, histories=os.fspath(histories))


SLOPE_COLUMNS = ("quantity", "setting", "slope", "lower", "upper", "expected", "largest departure from the line")


def slope_row(quantity: str, setting: str, fit: SlopeFit, expected: str) -> tuple[Scalar, ...]:
    """A row under `SLOPE_COLUMNS`; the departure is that of the logarithm of the ordinate, times 100."""
    departure = f"{100 * fit.max_log_residual:.1f} %"
    return (quantity, setting, fit.slope, fit.lower, fit.upper, expected, departure)
