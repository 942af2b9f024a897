"""Reports are complete, self-contained, strict, honest about what is missing, and replace nothing but reports."""

import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from ntk_robust._core import Figure, Series, Table
from ntk_robust.report import figure_svg, overall_verdict, prepare_report_folder, write_report
from ntk_robust.report._format import format_value
from ntk_robust.report._page import _prose
from ntk_robust.studies import Study
from ntk_robust.theory import Check, CheckResult, Claim, Report, Verdict, run_check

FIGURE = Figure(
    "drift",
    "Drift <of> the kernel",
    "width",
    "drift",
    (
        Series("measured", (1.0, 2.0, 4.0), (0.4, 0.2, 0.1), (0.3, 0.1, 0.05), (0.5, 0.3, 0.2)),
        Series("cloud", (1.0, 2.0), (0.4, float("nan")), (0.3, 0.1), (0.5, 0.3), style="points"),
        Series("bound", (1.0, 2.0, 4.0), (1.0, 0.5, 0.0), style="dashed"),
    ),
    "log",
    "log",
    "The band is an interval.",
)
TABLE = Table("sizes", "Sizes", ("width", "error", "fine"), ((1024, 1.5e-7, True), (2048, float("inf"), None)))
RUN = {"versions": {"jax": "0.0"}, "device": {"kind": "cpu"}, "seed": 3, "arguments": {"profile": "quick"}}


def check_result(measured: float, control: float, uncertainty: float = 0.0) -> CheckResult:
    def experiment(value: float) -> Callable[..., Report]:
        claim = Claim("error & more", value, "<=", 1.0, uncertainty, 0.0, note="exact")
        return lambda size, key: Report((), (claim,), (TABLE,), (FIGURE,), ("A note.",))

    check = Check(
        "Someone (2020), Theorem 1", "For all x, a < b.", experiment(measured), experiment(control), "some2020"
    )
    return run_check(check, "quick", jax.random.key(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two studies and a check."""
    folder = tmp_path_factory.mktemp("made") / "report"
    prepare_report_folder(folder)
    studies = [Study(name, "Kernels", "One.\n\nTwo.", [FIGURE], [TABLE]) for name in ("kernels", "other")]
    write_report(folder, studies=studies, checks=[check_result(0.5, 2.0)], run=RUN, summary="A summary.")
    return folder


class Page(html.parser.HTMLParser):
    """Collects identifiers, references, text, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            assert value is not None
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def strict(path: Path) -> Any:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_page_is_well_formed_refers_to_itself_only_and_no_identifier_appears_twice(folder: Path) -> None:
    page = parsed(folder / "index.html")
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids) > 50
    assert page.references
    for reference in page.references:
        assert reference.startswith("#")
        assert reference[1:] in page.ids
    assert "@import" not in (folder / "index.html").read_text(encoding="utf-8")


def test_the_page_shows_every_claim_figure_table_and_what_made_them_escaped(folder: Path) -> None:
    text = " ".join(parsed(folder / "index.html").text)
    raw = (folder / "index.html").read_text(encoding="utf-8")
    for part in ("A summary.", "some2020", "For all x, a < b.", "Someone (2020), Theorem 1", "error & more", "A note."):
        assert part in text
    for part in (
        "1.5×10⁻⁷",
        "∞",
        "Two.",
        "versions · jax",
        "Drift <of> the kernel",
        "The band is an interval.",
    ):
        assert part in text
    assert "<of>" not in raw
    assert raw.count("<svg") == 3
    assert len(re.findall(r'class="badge SUPPORTED"', raw)) >= 4
    assert 'class="badge control VIOLATED">control VIOLATED' in raw


def test_the_numbers_on_disk_are_strict_json_with_the_verdict(folder: Path) -> None:
    results, run = strict(folder / "results.json"), strict(folder / "run.json")
    assert run == RUN
    assert (results["verdict"], results["complete"], results["pending"]) == ("SUPPORTED", True, [])
    assert [study["name"] for study in results["studies"]] == ["kernels", "other"]
    assert results["checks"][0]["control_verdict"] == "VIOLATED"
    assert results["studies"][0]["tables"][0]["rows"][1][1] == "inf"
    assert results["studies"][0]["figures"][0]["series"][1]["y"] == [0.4, "nan"]


def test_an_unfinished_report_says_what_is_pending_and_is_not_supported(tmp_path: Path) -> None:
    write_report(tmp_path, checks=[check_result(0.5, 2.0)], run=RUN, pending=["gao2019_regret"])
    results = strict(tmp_path / "results.json")
    assert (results["verdict"], results["complete"]) == ("INCONCLUSIVE", False)
    text = " ".join(parsed(tmp_path / "index.html").text)
    assert "gao2019_regret" in text
    assert "incomplete" in text


def test_the_overall_verdict_is_the_worst_and_a_control_that_holds_is_a_failure() -> None:
    supported, violated = check_result(0.5, 2.0), check_result(2.0, 2.0)
    noisy, blind = check_result(0.5, 2.0, uncertainty=0.1), check_result(0.5, 0.5)
    assert overall_verdict([supported]) is Verdict.SUPPORTED
    assert overall_verdict([supported, violated]) is Verdict.VIOLATED
    assert overall_verdict([supported, noisy]) is Verdict.INCONCLUSIVE
    assert overall_verdict([supported], pending=["more"]) is Verdict.INCONCLUSIVE
    assert blind.verdict is Verdict.INCONCLUSIVE
    assert overall_verdict([supported, blind]) is Verdict.VIOLATED
    unmet = dataclasses.replace(supported, verdict=Verdict.NOT_APPLICABLE)
    assert overall_verdict([supported, unmet]) is Verdict.NOT_APPLICABLE


def test_a_figure_leaves_out_what_a_logarithmic_axis_cannot_show_and_equal_figures_give_equal_text() -> None:
    svg = figure_svg(FIGURE)
    assert svg == figure_svg(FIGURE)
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert all(element.get("id", "drift-").startswith("drift-") for element in root.iter())
    shown = "".join(root.itertext())
    for part in ("measured", "cloud", "bound", "width"):
        assert part in shown
    assert "2026" not in svg
    steps = [float(step**2) for step in range(100)]
    linear = Figure("a", "A", "x", "y", (Series("s", steps, [-step for step in steps]),))
    assert len(re.findall("L ", figure_svg(linear))) > 5


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    ours = prepare_report_folder(tmp_path / "deep" / "report")
    write_report(ours, run=RUN)
    assert prepare_report_folder(ours) == ours

    foreign = tmp_path / "work"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ValueError, match=r"work holds 'thesis\.tex' but no report of ntk_robust; name an empty or a new"
    ):
        prepare_report_folder(foreign)
    (foreign / "results.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match=r"'results\.json' and 1 more but no report"):
        prepare_report_folder(foreign)

    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        prepare_report_folder(file)
    with pytest.raises(OSError, match="file"):
        prepare_report_folder(file / "below")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1\u2009234\u2009567"),
        (-3, "−3"),
        (0.0, "0"),
        (-0.00123456789, "−0.0012346"),
        (1.5e-7, "1.5×10⁻⁷"),
        (2e20, "2×10²⁰"),
        (float("nan"), "not a number"),
        ("-inf", "−∞"),
        ([1, 2.5], "1, 2.5"),
        ("plain", "plain"),
    ],
)
def test_values_read_as_a_reader_wants_them(value: Any, text: str) -> None:
    assert format_value(value) == text


def test_subscripts_and_superscripts_of_one_character_or_in_braces_are_set() -> None:
    assert _prose("min_{t<T} L_A(W_t) ≤ |x_i^t|") == (
        "min<sub>t&lt;T</sub> L<sub>A</sub>(W<sub>t</sub>) ≤ |x<sub>i</sub><sup>t</sup>|"
    )
    assert _prose("L_*(U), C_2²") == "L<sub>*</sub>(U), C<sub>2</sub>²"
    assert _prose("gao2019_regret in file_name.py, a _b and 2^10") == "gao2019_regret in file_name.py, a _b and 2^10"
