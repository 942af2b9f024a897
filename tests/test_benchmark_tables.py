"""The tables of the documentation say what the committed results say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_pages_are_what_the_results_say(page):
    text = page.read_text()
    assert text.count("<!-- table:") >= 1
    assert tables.rendered(text) == text, "run python benchmarks/tables.py"


def test_a_number_that_no_result_says_would_be_noticed():
    text = tables.PAGES[0].read_text()
    assert tables.rendered(text.replace("| float32 |", "| float16 |", 1)) != text.replace(
        "| float32 |", "| float16 |", 1
    )
