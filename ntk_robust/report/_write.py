"""Reports in folders: the page, the numbers, and what made them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ntk_robust._core import to_jsonable, write_json_atomically, write_text_atomically
from ntk_robust.report._page import render_page

FORMAT = "ntk_robust report 1"
FILES = ("results.json", "run.json", "index.html")

# Against misuse in code that forgets a verdict: the order in which verdicts spoil a report.
_SEVERITY = ("VIOLATED", "INCONCLUSIVE", "SUPPORTED", "NOT_APPLICABLE")


def prepare_report_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path, made if it is missing, after making sure that a report can go there.

    A report may replace an earlier report and nothing else.

    Raises:
        ValueError: If something that is not a report stands in its place.
        OSError: If the folder cannot be made or written.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder for the report")
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()) and not _holds_report(path):
        foreign = sorted(entry.name for entry in path.iterdir())
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"{path} holds {foreign[0]!r}{others} but no report of ntk_robust; name an empty or a new folder"
        )
    return path


def write_report(
    folder: str | os.PathLike[str],
    *,
    studies: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    pending: Sequence[str] = (),
    title: str = "Robustness in the neural-tangent-kernel regime",
    summary: str = "",
) -> Path:
    """The page written, `index.html`, with `results.json` and `run.json` beside it; each is replaced atomically.

    Call it after every finished part: what is on disk is then a valid report of what was finished, and says what is
    pending.

    Args:
        folder: Where to write; see `prepare_report_folder`.
        studies: Records of studies: name, title, text, figures, tables, and claims where there are any.
        checks: Records of checks (`CheckResult.record()`).
        run: What made the numbers: provenance, seed, arguments.
        pending: Names of the parts that are still to come.
        title: Heading of the page.
        summary: One sentence below it.

    Raises:
        OSError: If a file cannot be written; the message names it.
    """
    results = to_jsonable(
        {
            "format": FORMAT,
            "title": title,
            "summary": summary,
            "verdict": overall_verdict(studies, checks, pending),
            "complete": not pending,
            "pending": pending,
            "studies": studies,
            "checks": checks,
        }
    )
    run = to_jsonable(run)
    path = Path(folder)
    write_json_atomically(path / "run.json", run)
    write_json_atomically(path / "results.json", results)
    return write_text_atomically(path / "index.html", render_page(results, run))


def overall_verdict(
    studies: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]], pending: Sequence[str] = ()
) -> str:
    """The worst verdict of all: VIOLATED (also where a control is not violated), then INCONCLUSIVE, then SUPPORTED.

    A report with pending parts is at best INCONCLUSIVE; one whose every verdict is NOT_APPLICABLE is that.
    """
    found = {check["verdict"] for check in checks}
    found |= {"VIOLATED" for check in checks if check["control_verdict"] != "VIOLATED"}
    found |= {claim["verdict"] for study in studies for claim in study.get("claims") or ()}
    if pending:
        found.add("INCONCLUSIVE")
    return next((verdict for verdict in _SEVERITY if verdict in found), "SUPPORTED")


def _holds_report(path: Path) -> bool:
    try:
        return json.loads((path / "results.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False
