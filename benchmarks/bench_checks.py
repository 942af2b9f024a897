"""Verdicts of theorem checks and what they cost, each in a process of its own.

    python benchmarks/bench_checks.py PATTERN ... [--profile quick|full] [--out FILE.json]

Every check whose name starts with a pattern is run with its control (seed 0, float64); verdicts, claims and process CPU
seconds, imports and compilation included, go into the record beside those of other checks and of the other profile.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SEED = 0


def main() -> None:
    """Runs checks and puts them into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="+")
    parser.add_argument("--profile", choices=["quick", "full"], default="quick")
    parser.add_argument("--here", action="store_true", help="one check, in this process, to stdout")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_checks.json")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.patterns[0], arguments.profile)))
        return
    from ntk_robust._core import provenance, write_json_atomically
    from ntk_robust.theory import check_names

    for name in check_names():
        if not name.startswith(tuple(arguments.patterns)):
            continue
        command = [sys.executable, __file__, name, "--profile", arguments.profile, "--here"]
        completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(completed.stdout.splitlines()[-1])
        record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        profile = record.get(arguments.profile, {}) | {name: found}
        new = {"environment": provenance(), arguments.profile: dict(sorted(profile.items()))}
        write_json_atomically(arguments.out, record | new)
        print(name, found["verdict"], found["control_verdict"], f"{found['cpu_s']:.0f} s", flush=True)


def measure(name: str, profile: str) -> dict[str, Any]:
    """One check and its control."""
    import jax.random as jr

    from ntk_robust.theory import run_check, select

    found = run_check(select([name])[0], profile, jr.key(SEED)).record()
    kept = ("name", "role", "verdict", "measured", "relation", "predicted", "uncertainty", "tightness")
    return {
        "verdict": found["verdict"],
        "control_verdict": found["control_verdict"],
        "cpu_s": time.process_time(),
        "claims": [{key: claim[key] for key in kept} for claim in found["claims"]],
        "violated_controls": [claim["name"] for claim in found["control_claims"] if claim["verdict"] == "VIOLATED"],
    }


if __name__ == "__main__":
    main()
