"""One protocol for every registered check."""

import functools
import time
from pathlib import Path

import jax
import jax.random as jr
import pytest

from ntk_robust.theory import CheckResult, Verdict, check_names, run_check, select

DOCS = Path(__file__).parents[2] / "docs" / "theory"
SEED = 7
QUICK_CPU_SECONDS = 60
# The others are slow tests.
CHEAP = {
    "gao2019_linearization_remainder",
    "gao2019_nearest_neighbor_network",
    "gao2019_robustness_ratio",
    "gao2019_shattering",
    "shi2024_separation",
}


@functools.cache
def result(name: str) -> tuple[CheckResult, float]:
    started = time.process_time()
    found = run_check(select([name])[0], "quick", jr.key(SEED))
    return found, time.process_time() - started


def marks(name: str) -> list[pytest.MarkDecorator]:
    """One worker per check: its tests share a result."""
    return [pytest.mark.xdist_group(name), *([] if name in CHEAP else [pytest.mark.slow])]


every_check = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in check_names()])


@every_check
def test_a_check_is_supported_and_its_control_violated_within_its_time(name):
    found, seconds = result(name)
    assert found.name == name
    bad = [claim for claim in (*found.report.hypotheses, *found.report.conclusions) if claim.verdict != "SUPPORTED"]
    assert bad == []
    assert found.verdict is Verdict.SUPPORTED
    assert found.control_verdict is Verdict.VIOLATED
    assert seconds < QUICK_CPU_SECONDS


@every_check
def test_a_check_gives_the_same_report_for_the_same_key(name):
    with jax.enable_x64(True):
        again = select([name])[0].run("quick", jr.key(SEED))
    assert again == result(name)[0].report


@every_check
def test_a_control_says_what_it_breaks(name):
    assert any("Broken on purpose" in note for note in result(name)[0].control_report.notes)


@pytest.mark.parametrize("name", check_names())
def test_a_citation_names_authors_venue_item_and_a_page_that_names_the_check(name):
    check = select([name])[0]
    author, year = name.split("_")[0][:-4], name.split("_")[0][-4:]
    assert author.capitalize() in check.citation
    assert year in check.citation
    assert f"docs/theory/{author}{year}" in check.citation
    assert f"`{name}`" in (DOCS / f"{author}{year}.md").read_text()


@every_check
def test_a_record_of_a_check_is_strict_json(name):
    import json

    record = json.loads(json.dumps(result(name)[0].record(), allow_nan=False))
    assert record["verdict"] == "SUPPORTED"
    assert all(claim["verdict"] == "SUPPORTED" for claim in record["claims"])
