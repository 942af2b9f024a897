"""Reports in folders: the page, the numbers, and what made them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ntk_robust._core import to_jsonable, write_json_atomically, write_text_atomically
from ntk_robust.report._page import render_page
from ntk_robust.studies import Study
from ntk_robust.theory import CheckResult, Verdict

FORMAT = "ntk_robust report 1"


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
    studies: Sequence[Study] = (),
    checks: Sequence[CheckResult] = (),
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
        studies: What studies found.
        checks: What checks and their controls found.
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
            "verdict": overall_verdict(checks, pending) if checks else None,
            "complete": not pending,
            "pending": pending,
            "studies": studies,
            "checks": [check.record() for check in checks],
        }
    )
    run = to_jsonable(run)
    path = Path(folder)
    write_json_atomically(path / "run.json", run)
    write_json_atomically(path / "results.json", results)
    return write_text_atomically(path / "index.html", render_page(results, run))


def overall_verdict(checks: Sequence[CheckResult], pending: Sequence[str] = ()) -> Verdict:
    """The worst of all: VIOLATED (also where a control is not), INCONCLUSIVE, NOT_APPLICABLE, SUPPORTED in this order.

    With parts pending it is at best INCONCLUSIVE.
    """
    found = {check.verdict for check in checks}
    found |= {Verdict.VIOLATED for check in checks if check.control_verdict is not Verdict.VIOLATED}
    if pending:
        found.add(Verdict.INCONCLUSIVE)
    order = (Verdict.VIOLATED, Verdict.INCONCLUSIVE, Verdict.NOT_APPLICABLE)
    return next((verdict for verdict in order if verdict in found), Verdict.SUPPORTED)


def _holds_report(path: Path) -> bool:
    try:
        return json.loads((path / "results.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False
