"""One protocol for every registered check.

Where NTK_ROBUST_REPORT names the folder of a report of `reproduce --profile quick`, its records are graded and compared
with a second run in this process, which needs the compiler's settings of the first one (XLA_FLAGS=); else both runs are
made here.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import pytest

from ntk_robust.cli._common import named_key
from ntk_robust.theory import CheckResult, Verdict, check_names, run_check, select

DOCS = Path(__file__).parents[2] / "docs" / "theory"
REPORT = os.environ.get("NTK_ROBUST_REPORT")
SEED = 0  # that of `reproduce`
QUICK_SECONDS = 120  # of a busy machine
# The others are slow tests.
CHEAP = {
    "gao2019_linearization_remainder",
    "gao2019_nearest_neighbor_network",
    "gao2019_robustness_ratio",
    "gao2019_shattering",
    "shi2024_separation",
}


@functools.cache
def record(name: str) -> dict[str, Any]:
    if REPORT is not None:
        records = json.loads((Path(REPORT) / "results.json").read_text(encoding="utf-8"))["checks"]
        return next(found for found in records if found["name"] == name)
    return as_json(run_check(select([name])[0], "quick", named_key(SEED, name)))


def as_json(result: CheckResult) -> dict[str, Any]:
    return json.loads(json.dumps(result.record(), allow_nan=False))


def marks(name: str) -> list[pytest.MarkDecorator]:
    """One worker per check: its tests share a result."""
    return [pytest.mark.xdist_group(name), *([] if name in CHEAP else [pytest.mark.slow])]


every_check = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in check_names()])


@every_check
def test_a_check_is_supported_and_its_control_violated_within_its_time(name):
    found = record(name)
    assert [claim for claim in found["claims"] if claim["verdict"] != "SUPPORTED"] == []
    assert (found["verdict"], found["control_verdict"]) == ("SUPPORTED", "VIOLATED")
    assert found["seconds"] < QUICK_SECONDS


@every_check
def test_a_check_gives_the_same_report_for_the_same_key(name):
    check = select([name])[0]
    with jax.enable_x64(True):
        again = check.run("quick", named_key(SEED, name))
    verdict = Verdict.SUPPORTED
    second = as_json(CheckResult(name, check.citation, check.statement, verdict, verdict, again, again, seconds=0.0))
    for part in ("claims", "tables", "figures", "notes"):
        assert second[part] == record(name)[part]


@every_check
def test_a_control_says_what_it_breaks(name):
    assert any("Broken on purpose" in note for note in record(name)["control_notes"])


@pytest.mark.parametrize("name", check_names())
def test_a_citation_names_authors_venue_item_and_a_page_that_names_the_check(name):
    check = select([name])[0]
    author, year = name.split("_")[0][:-4], name.split("_")[0][-4:]
    assert author.capitalize() in check.citation
    assert year in check.citation
    assert f"docs/theory/{author}{year}" in check.citation
    assert f"`{name}`" in (DOCS / f"{author}{year}.md").read_text()
