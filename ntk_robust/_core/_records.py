"""Figures and tables as data: what computes them knows nothing of how they are drawn."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

Scalar: TypeAlias = float | int | str | bool | None


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve or cloud of a figure, with an optional band.

    Attributes:
        label: What the legend says.
        x: Abscissae, in the unit of the figure's axis.
        y: Ordinates, as many.
        y_lower: Lower ends of the band, as many, or None.
        y_upper: Upper ends of the band, as many, or None.
        style: How it is drawn; "dashed" is for predictions and bounds.
    """

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    y_lower: Sequence[float | int] | None = None
    y_upper: Sequence[float | int] | None = None
    style: Literal["line", "points", "dashed"] = "line"

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.x, self.y, self.y_lower, self.y_upper) if part is not None}
        if len(lengths) != 1:
            raise ValueError(f"series {self.label!r} has parts of {sorted(lengths)} points; give each as many as x")


@dataclasses.dataclass(frozen=True)
class Contours:
    """A function of two variables on a grid, drawn as filled contours behind a figure's series.

    Attributes:
        label: What the values are, with their unit.
        x: Abscissae of the columns, increasing.
        y: Ordinates of the rows, increasing.
        values: One row for each of `y`, with one number for each of `x`; nan where nothing is to be drawn.
    """

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    values: Sequence[Sequence[float | int]]

    def __post_init__(self) -> None:
        lengths = sorted({len(row) for row in self.values})
        if len(self.values) != len(self.y) or lengths != [len(self.x)]:
            raise ValueError(
                f"contours {self.label!r} have {len(self.values)} rows of {lengths} values on a grid of {len(self.y)} "
                f"rows and {len(self.x)} columns; give one row for each y and one value for each x"
            )


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        name: File name without ending, unique in a report.
        title: Heading.
        x_label: What the abscissa is, with its unit.
        y_label: What the ordinate is, with its unit.
        series: What is drawn, in this order.
        x_scale: "linear" or "log".
        y_scale: "linear" or "log".
        caption: What a reader should see in it, and on which side of the truth it is.
        contours: What lies behind the series, or None. Both axes are then drawn to one scale.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    caption: str = ""
    contours: Contours | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a report; each row has as many cells as there are columns."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Scalar]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name!r}: a row of {len(row)} cells under {len(self.columns)} columns; make them agree"
                )
