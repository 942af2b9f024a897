"""Theorem checks on the terminal or as JSON."""

import json

from ntk_robust._core import to_jsonable
from ntk_robust.cli._arguments import Check
from ntk_robust.cli._common import EXIT_CODES, named_key
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say
from ntk_robust.report import overall_verdict
from ntk_robust.theory import CheckResult, Claim, run_check, select

_SIGNS = {"<=": "≤", ">=": "≥", "==": "=", "in": "in"}


def check(command: Check) -> int:
    """Runs what the patterns select; the code says how it came out."""
    chosen = select(command.patterns)
    if command.list_names:
        for entry in chosen:
            say(entry.name)
        return 0
    keys = [named_key(command.seed, entry.name) for entry in chosen]
    results: list[CheckResult] = []
    try:
        with display() as progress, progress.task("checks", len(chosen)) as task:
            for entry, key in zip(chosen, keys, strict=True):
                with progress.task(entry.name):
                    result = run_check(entry, command.profile, key)
                results.append(result)
                if not command.json:
                    _print(result)
                task.advance()
    except KeyboardInterrupt:
        if command.json:
            _print_json(results)
        raise KeyboardInterrupt(f"the {len(results)} of {len(chosen)} checks that finished are printed above") from None
    if command.json:
        _print_json(results)
    return EXIT_CODES[overall_verdict(results)]


def _print_json(results: list[CheckResult]) -> None:
    say(json.dumps(to_jsonable([result.record() for result in results]), indent=1, allow_nan=False))


def _print(result: CheckResult) -> None:
    say(f"{result.verdict.value:<14} {result.name}  (control {result.control_verdict.value}, {result.seconds:.1f} s)")
    say(f"    {result.statement}")
    for claim in (*result.report.hypotheses, *result.report.conclusions):
        say(f"    {claim.verdict.value:<14} {_sentence(claim)}")
    for note in result.report.notes:
        say(f"    note: {note}")
    say()


def _sentence(claim: Claim) -> str:
    predicted = (
        f"[{claim.predicted[0]:.6g}, {claim.predicted[1]:.6g}]"
        if isinstance(claim.predicted, tuple)
        else f"{claim.predicted:.6g}"
    )
    text = f"{claim.name}: {claim.measured:.6g} ± {claim.uncertainty:.2g} {_SIGNS[claim.relation]} {predicted}"
    if claim.tightness is not None:
        text += f"  (uses {claim.tightness:.2g} of the bound)"
    return text
