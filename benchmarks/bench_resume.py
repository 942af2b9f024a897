"""Training runs killed with signal 9 again and again and resumed: do they end with the bits of an uninterrupted run?

    python benchmarks/bench_resume.py [--kills 3] [--seed 0] [--only NAME ...] [--out FILE]

Every row is one `ntk-robust train` command on digits. It runs once as a whole. Then it runs in another folder and is
killed within a second, at random, after it wrote its first history, in the middle of steps or of the writing of a
checkpoint, is resumed by --resume after each kill, and runs to the end after the last. All weights, all histories of
losses and all results of probes must be equal to the last bit, and every resumed process must have gone on, not begun
anew. Rows of other runs that the record holds already are kept.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

COMMON = ("--num-train", "60", "--num-test", "20", "--width", "32", "--num-steps", "3000", "--probe-every", "100")
COMMON += ("--kernel-points", "0", "--batch-size", "20", "--attack-steps", "3")
ROWS = {
    "adversarial, sgd": (),
    "adversarial, momentum, cosine": ("--optimizer", "momentum", "--schedule", "cosine", "--learning-rate", "0.1"),
    "adversarial, adam": ("--optimizer", "adam", "--learning-rate", "0.01"),
    "adversarial, projected layers": ("--weight-radius", "0.5"),
    "adversarial, projected neurons": ("--weight-radius", "0.2", "--weight-set", "neurons"),
    "fgsm with random start, sgd": ("--attack", "fgsm-rs"),
    "natural, adam": ("--attack", "none", "--optimizer", "adam", "--learning-rate", "0.01"),
    "trades, momentum": ("--method", "trades", "--optimizer", "momentum", "--learning-rate", "0.1"),
    "mart, adam": ("--method", "mart", "--optimizer", "adam", "--learning-rate", "0.01"),
    "awp, sgd": ("--method", "awp"),
    "free, adam": ("--method", "free", "--optimizer", "adam", "--learning-rate", "0.01"),
    "convolutional, adam": (
        "--network",
        "convolutional",
        "--width",
        "4",
        "--optimizer",
        "adam",
        "--learning-rate",
        "0.01",
    ),
    "linearized, momentum": ("--dynamics", "linearized", "--optimizer", "momentum", "--learning-rate", "0.1"),
    # The kills come in both phases.
    "centered from step 300 on, sgd": ("--dynamics", "centered", "--switch-at", "300"),
}


def main() -> None:
    """Kills, compares and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="names of rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_resume.json")
    arguments = parser.parse_args()
    from ntk_robust._core import provenance, write_json_atomically

    rng = np.random.default_rng(arguments.seed)
    environment = provenance()
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    rows = {row["run"]: row for row in kept}
    for name in arguments.only:
        found = kill_and_compare(ROWS[name], arguments.kills, rng)
        rows[name] = {"run": name, **found, "git_commit": environment["git_commit"]}
        print(rows[name], flush=True)
        ordered = [rows[each] for each in ROWS if each in rows]
        write_json_atomically(arguments.out, {"environment": environment, "rows": ordered})
    print(f"written: {arguments.out}")
    if not all(rows[name]["same_bits"] and rows[name]["went_on"] for name in arguments.only):
        sys.exit(1)


def kill_and_compare(options: tuple[str, ...], num_kills: int, rng: np.random.Generator) -> dict[str, Any]:
    """One row: at which steps the process was killed, and whether the end is the same."""
    from ntk_robust.training import load_history

    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        _run(whole, options)
        steps = []
        for number in range(num_kills):
            if not _kill_after(float(rng.uniform(0.0, 1.0)), killed, options, resume=number > 0):
                break
            steps.append(load_history(killed).summary["num_steps"])
        _run(killed, options, resume=True)
        expected, found = load_history(whole), load_history(killed)
        same = all(_equal(getattr(expected, part), getattr(found, part)) for part in ("history", "probes")) and _equal(
            _arrays(whole), _arrays(killed)
        )
    return {"killed_after_steps": steps, "went_on": steps == sorted(set(steps)), "same_bits": same}


def _command(folder: Path, options: tuple[str, ...], *, resume: bool) -> list[str]:
    more = ["--resume"] if resume else []
    return [sys.executable, "-m", "ntk_robust.cli", "train", "--out", str(folder), *COMMON, *options, *more]


def _run(folder: Path, options: tuple[str, ...], *, resume: bool = False) -> None:
    command = _command(folder, options, resume=resume)
    completed = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if completed.returncode != 0:
        raise SystemExit(f"{options} ended with code {completed.returncode}")


def _kill_after(delay: float, folder: Path, options: tuple[str, ...], *, resume: bool) -> bool:
    """Whether the process was still at work so many seconds after it wrote a history, and is dead now."""
    before = _written(folder)
    command = _command(folder, options, resume=resume)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while _written(folder) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL


def _written(folder: Path) -> int:
    """When the summary of a history was written, 0 for never."""
    summary = folder / "summary.json"
    return summary.stat().st_mtime_ns if summary.exists() else 0


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "params.npz") as stored:
        return dict(stored)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


if __name__ == "__main__":
    main()
