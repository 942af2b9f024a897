"""Figures as SVG."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_robust._core import Contours, Figure

INK = "#1f2430"
RULE = "#d9dce3"
PALETTE = ("#2f6fde", "#d9622b", "#1f9d6b", "#b03a9b", "#b8860b", "#5b6ee1", "#c2374d", "#3a9ab8")

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}
_FORMATS = {"line": {"marker": "o"}, "points": {"marker": "o", "linestyle": "none"}, "dashed": {"linestyle": "--"}}
_MANY_POINTS = 40
_FEW_TICKS = 8
_SMALL_LEGEND = 3
_LONG_LABEL = 30
_LEVELS = 12


def figure_svg(figure: Figure) -> str:
    """The figure as one `<svg>` element without background, whose colors are `INK`, `RULE` and `PALETTE` only.

    Equal figures give equal text, and identifiers begin with the figure's name, so that several fit one page. On a
    logarithmic axis, points that are not positive are left out. Title and caption are the page's business.
    """
    import matplotlib as mpl  # noqa: PLC0415  (slow to import, and only reports draw)
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": figure.name}):
        legend_columns = 2 if max((len(series.label) for series in figure.series), default=0) < _LONG_LABEL else 1
        legend_rows = -(-len(figure.series) // legend_columns) if len(figure.series) > _SMALL_LEGEND else 0
        canvas = Canvas(figsize=(5.6, 3.5 + 0.2 * legend_rows), layout="constrained")
        axes = canvas.add_subplot()
        axes.set(xlabel=_set(figure.x_label), ylabel=_set(figure.y_label))
        axes.set(xscale=figure.x_scale, yscale=figure.y_scale)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        if figure.contours is not None:
            axes.grid(visible=False)
            axes.set_aspect("equal")
            _draw_contours(axes, figure.contours)
        for number, series in enumerate(figure.series):
            x, y = np.asarray(series.x, float), np.asarray(series.y, float)
            style: dict[str, Any] = dict(_FORMATS[series.style])
            if series.style == "line" and len(x) > _MANY_POINTS:
                del style["marker"]
            color = PALETTE[number % len(PALETTE)]
            axes.plot(*_drawable(figure, x, y), label=_set(series.label), color=color, **style)
            if series.y_lower is not None and series.y_upper is not None:
                x, lower, upper = _drawable(
                    figure, x, np.asarray(series.y_lower, float), np.asarray(series.y_upper, float)
                )
                if series.style == "points":
                    axes.vlines(x, lower, upper, color=color, linewidth=1.2)
                else:
                    axes.fill_between(x, lower, upper, color=color, alpha=0.18, linewidth=0)
        if figure.x_scale == "log":
            _plain_ticks(axes.xaxis, [series.x for series in figure.series], at_values=True)
        if figure.y_scale == "log":
            _plain_ticks(axes.yaxis, [series.y for series in figure.series], at_values=False)
        if legend_rows:
            canvas.legend(loc="outside lower center", ncols=legend_columns)
        elif len(figure.series) > 1:
            axes.legend()
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(stream.getvalue(), figure.name)


def _draw_contours(axes: Any, contours: Contours) -> None:
    """Shades of one color, darker for larger values, with labeled lines between them."""
    x, y, values = (np.asarray(part, float) for part in (contours.x, contours.y, contours.values))
    drawn = np.ma.masked_invalid(values)
    if drawn.count() == 0 or drawn.min() == drawn.max():
        return
    levels = np.linspace(float(drawn.min()), float(drawn.max()), _LEVELS + 1)
    shades = [(PALETTE[0], 0.04 + 0.6 * step / (_LEVELS - 1)) for step in range(_LEVELS)]
    axes.contourf(x, y, drawn, levels=levels, colors=shades)
    lines = axes.contour(x, y, drawn, levels=levels[1:-1:2], colors=INK, linewidths=0.5)
    axes.clabel(lines, fontsize=7, fmt=lambda value: f"{value:.3g}")


def _drawable(figure: Figure, x: np.ndarray, *ys: np.ndarray) -> tuple[np.ndarray, ...]:
    """The points that every axis can show."""
    kept = np.isfinite(x) & ((x > 0) | (figure.x_scale == "linear"))
    for y in ys:
        kept &= np.isfinite(y) & ((y > 0) | (figure.y_scale == "linear"))
    return (x[kept], *(y[kept] for y in ys))


def _plain_ticks(axis: Any, parts: Sequence[Sequence[float]], *, at_values: bool) -> None:
    """Ticks with plain numbers where a logarithmic axis spans little, `at_values` themselves if those are few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator  # noqa: PLC0415

    values = np.unique(np.concatenate([np.asarray(part, float) for part in parts]))
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0 or values[-1] > 200 * values[0] or values[-1] >= 1e5 or values[0] < 1e-4:
        return
    if at_values and len(values) <= _FEW_TICKS:
        locator = FixedLocator(values.tolist())
    else:
        locator = LogLocator(subs=(1, 2, 5)) if values[-1] > 4 * values[0] else MaxNLocator(5)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _set(label: str) -> str:
    """A label whose subscripts of one character, as in W_0, are set as such."""
    return re.sub(r"(?<=\S)_([^\W_]|\*)(?![A-Za-z0-9])", r"$_{\1}$", label.replace("$", r"\$"))


def _embedded(text: str, name: str) -> str:
    """The `<svg>` element alone, without metadata, its identifiers prefixed by the figure's name."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)
