"""Contours behind the curves of a figure."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from ntk_robust._core import Contours, Figure, Series
from ntk_robust.report import figure_svg, write_report
from ntk_robust.report._figure import INK, PALETTE, RULE
from ntk_robust.studies import Study

GRID = [-1.0, -0.5, 0.0, 0.5, 1.0]
HILL = Contours("loss", GRID, GRID, [[float("nan") if x == y == 1 else x * x - y for x in GRID] for y in GRID])
PATH = Series("ascent", [0.0, 0.2, 0.9], [0.0, -0.3, -1.0])
FIGURE = Figure("slice", "A slice", "first", "second", (PATH,), contours=HILL)


def test_contours_are_shaded_in_the_palette_and_drawn_to_one_scale_under_the_series():
    svg = figure_svg(FIGURE)
    assert svg == figure_svg(FIGURE)
    ET.fromstring(svg)
    colors = {color.lower() for color in re.findall(r"#[0-9a-fA-F]{6}", svg)}
    assert colors <= {INK, RULE, *PALETTE}
    assert svg.count("fill-opacity") > 5
    # One scale: the axes' rectangle, the clip path of a square grid, is a square.
    width, height = re.findall(r'<clipPath[^>]*>\s*<rect[^>]*?width="([\d.]+)" height="([\d.]+)"', svg)[0]
    assert float(width) == pytest.approx(float(height), rel=0.05)


def test_a_constant_or_an_empty_grid_draws_nothing_behind():
    for value in (1.0, float("nan")):
        flat = Contours("flat", GRID, GRID, [[value] * 5] * 5)
        svg = figure_svg(Figure("slice", "A", "x", "y", (PATH,), contours=flat))
        assert "fill-opacity" not in svg


def test_a_grid_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"contours 'loss' have 2 rows of \[3, 5\] values on a grid of 2 rows and 5"):
        Contours("loss", GRID, GRID[:2], [[0.0] * 5, [0.0] * 3])


def test_a_report_shows_contours_and_keeps_their_numbers(tmp_path):
    study = Study("slices", "Slices", "Text.", [FIGURE], [])
    write_report(tmp_path, studies=[study], run={"seed": 0})
    page = (tmp_path / "index.html").read_text()
    assert page.count("fill-opacity") > 5
    record = json.loads((tmp_path / "results.json").read_text())["studies"][0]["figures"][0]["contours"]
    assert record["values"][4] == [2.0 - 2.0, -0.75, -1.0, -0.75, "nan"]
