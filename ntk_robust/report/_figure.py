"""Figures as SVG."""

import io
import re
from typing import Any

import numpy as np

from ntk_robust._core import Figure

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
_LONG_LEGEND = 6


def figure_svg(figure: Figure) -> str:
    """The figure as one `<svg>` element without background, whose colors are `INK`, `RULE` and `PALETTE` only.

    Equal figures give equal text, and identifiers begin with the figure's name, so that several fit one page. On a
    logarithmic axis, points that are not positive are left out. Title and caption are the page's business.
    """
    import matplotlib as mpl  # noqa: PLC0415  (slow to import, and only reports draw)
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": figure.name}):
        canvas = Canvas(figsize=(5.6, 3.5), layout="constrained")
        axes = canvas.add_subplot()
        axes.set(xlabel=figure.x_label, ylabel=figure.y_label, xscale=figure.x_scale, yscale=figure.y_scale)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        for number, series in enumerate(figure.series):
            x, y = np.asarray(series.x, float), np.asarray(series.y, float)
            style: dict[str, Any] = dict(_FORMATS[series.style])
            if series.style == "line" and len(x) > _MANY_POINTS:
                del style["marker"]
            color = PALETTE[number % len(PALETTE)]
            axes.plot(*_drawable(figure, x, y), label=series.label, color=color, **style)
            if series.y_lower is not None and series.y_upper is not None:
                x, lower, upper = _drawable(
                    figure, x, np.asarray(series.y_lower, float), np.asarray(series.y_upper, float)
                )
                if series.style == "points":
                    axes.vlines(x, lower, upper, color=color, linewidth=1.2)
                else:
                    axes.fill_between(x, lower, upper, color=color, alpha=0.18, linewidth=0)
        if len(figure.series) > _LONG_LEGEND:
            canvas.legend(loc="outside right center")
        elif len(figure.series) > 1:
            axes.legend()
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(stream.getvalue(), figure.name)


def _drawable(figure: Figure, x: np.ndarray, *ys: np.ndarray) -> tuple[np.ndarray, ...]:
    """The points that every axis can show."""
    kept = np.isfinite(x) & ((x > 0) | (figure.x_scale == "linear"))
    for y in ys:
        kept &= np.isfinite(y) & ((y > 0) | (figure.y_scale == "linear"))
    return (x[kept], *(y[kept] for y in ys))


def _embedded(text: str, name: str) -> str:
    """The `<svg>` element alone, without metadata, its identifiers prefixed by the figure's name."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)
