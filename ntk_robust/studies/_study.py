"""The record of a study."""

import dataclasses
from collections.abc import Sequence

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
    """

    name: str
    title: str
    text: str
    figures: Sequence[Figure]
    tables: Sequence[Table]


SLOPE_COLUMNS = ("quantity", "setting", "slope", "lower", "upper", "expected", "largest departure from the line")


def slope_row(quantity: str, setting: str, fit: SlopeFit, expected: str) -> tuple[Scalar, ...]:
    """A row under `SLOPE_COLUMNS`; the departure is that of the logarithm of the ordinate, times 100."""
    departure = f"{100 * fit.max_log_residual:.1f} %"
    return (quantity, setting, fit.slope, fit.lower, fit.upper, expected, departure)
