"""The main job: studies and checks into one report, part by part."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ntk_robust.cli._arguments import Reproduce
from ntk_robust.cli._common import EXIT_CODES, named_key, run_record, run_study
from ntk_robust.cli._progress import Display, display
from ntk_robust.cli._terminal import say
from ntk_robust.data import load_dataset
from ntk_robust.report import overall_verdict, prepare_report_folder, write_report
from ntk_robust.studies import Study, kernel_convergence, training_displacement
from ntk_robust.theory import Check, CheckResult, run_check, select

_SUMMARY = (
    "How fast the empirical neural tangent kernel approaches the analytic one, how far adversarial training moves "
    "weights and kernel, and what experiments say of published statements."
)


class _Part(NamedTuple):
    """One entry of the report.

    Attributes:
        name: What it is called there.
        run: What makes it, and reports how far it is.
        finished: Where it goes.
    """

    name: str
    run: Callable[[Display], Any]
    finished: list[Any]


def reproduce(command: Reproduce) -> int:
    """Runs every part and writes the report after each; the code says how it came out."""
    started = time.monotonic()
    studies: list[Study] = []
    checks: list[CheckResult] = []
    parts = [*_study_parts(command, studies), *_check_parts(command, checks)]
    folder = prepare_report_folder(command.out)
    provenance = run_record(command)

    def write(pending: list[str]) -> None:
        run = {**provenance, "seconds": round(time.monotonic() - started, 1)}
        write_report(folder, studies=studies, checks=checks, run=run, pending=pending, summary=_SUMMARY)

    names = [part.name for part in parts]
    write(names)
    done = 0
    try:
        with display() as progress, progress.task("reproduce", len(parts)) as task:
            for part in parts:
                began = time.monotonic()
                result = part.run(progress)
                part.finished.append(result)
                done += 1
                write(names[done:])
                outcome = result.verdict.value if isinstance(result, CheckResult) else "done"
                progress.say(f"{outcome:<14} {part.name}  ({time.monotonic() - began:.1f} s)")
                task.advance()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} of {len(parts)} parts are in {folder / 'index.html'}") from None
    verdict = overall_verdict(checks)
    say(f"{verdict.value}: report of {len(parts)} parts in {folder / 'index.html'}")
    return EXIT_CODES[verdict]


def _study_parts(command: Reproduce, finished: list[Study]) -> list[_Part]:
    """The data set is read here, before anything that takes time."""
    dataset = load_dataset(command.data, data_dir=command.data_dir, train_batches=command.train_batches)

    def part(study: Callable[..., Study]) -> _Part:
        key = named_key(command.seed, study.__name__)

        def run(progress: Display) -> Study:
            settings = {"dataset": dataset, "size": command.profile, "key": key, "progress": progress}
            return run_study(study, study.__name__, command.out, **settings)

        return _Part(study.__name__, run, finished)

    return [part(kernel_convergence), part(training_displacement)]


def _check_parts(command: Reproduce, finished: list[CheckResult]) -> list[_Part]:
    def part(check: Check) -> _Part:
        key = named_key(command.seed, check.name)

        def run(progress: Display) -> CheckResult:
            with progress.task(check.name):
                return run_check(check, command.profile, key)

        return _Part(check.name, run, finished)

    return [part(check) for check in select(())]
