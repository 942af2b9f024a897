"""Keeps what reports of `ntk-robust study` found, for the documentation.

    ntk-robust study --data mnist --dtype float32 --out study_mnist
    python benchmarks/collect_studies.py study_mnist [MORE_REPORTS ...]

Writes results/cpu/studies_DATA.json for each data set among the reports, with the version, device, precision, seed and
arguments of each study, but not the folders of the machine that ran it. `tables.py` makes tables and figures from it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ntk_robust._core import write_json_atomically


def main() -> None:
    """Merges the reports; a study that is already there is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="folders that the command wrote")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "cpu")
    arguments = parser.parse_args()
    for report in arguments.reports:
        run = json.loads((report / "run.json").read_text())
        found = json.loads((report / "results.json").read_text())["studies"]
        run["arguments"] = {key: value for key, value in run["arguments"].items() if key not in ("out", "data_dir")}
        path = arguments.results / f"studies_{run['arguments']['data']}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        write_json_atomically(path, kept | {study["name"]: {"run": run, "study": rounded(study)} for study in found})
        print(f"{path}: {', '.join(study['name'] for study in found)}")


def rounded(value: Any) -> Any:
    """Numbers to six digits, as much as tables and figures show."""
    match value:
        case dict():
            return {name: rounded(item) for name, item in value.items()}
        case list():
            return [rounded(item) for item in value]
        case float():
            return float(f"{value:.6g}")
    return value


if __name__ == "__main__":
    main()
