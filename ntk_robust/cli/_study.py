"""Studies on the terminal and as a report."""

import time
from collections.abc import Callable

import numpy as np

from ntk_robust import studies
from ntk_robust.cli._arguments import Study
from ntk_robust.cli._common import named_key, run_record, run_study
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say
from ntk_robust.data import load_dataset
from ntk_robust.report import prepare_report_folder, write_report

STUDIES: dict[str, Callable[..., studies.Study]] = {
    function.__name__: function
    for function in (
        studies.kernel_convergence,
        studies.training_displacement,
        studies.lazy_training,
        studies.perturbation_radius,
        studies.projection_radius,
        studies.robust_overfitting,
        studies.ascent_convergence,
        studies.input_scale,
        studies.landscape_slices,
    )
}


def study(command: Study) -> int:
    """Runs what the patterns select, with the report written after each.

    Raises:
        ValueError: If a pattern selects nothing.
    """
    chosen = [name for name in STUDIES if not command.patterns or name.startswith(command.patterns)]
    for pattern in command.patterns:
        if not any(name.startswith(pattern) for name in STUDIES):
            raise ValueError(f"no study begins with {pattern!r}; the studies are {', '.join(STUDIES)}")
    if command.list_names:
        for name in chosen:
            say(name)
        return 0
    started = time.monotonic()
    keys = [named_key(command.seed, name) for name in chosen]
    dataset = load_dataset(
        command.data, data_dir=command.data_dir, train_batches=command.train_batches, dtype=np.dtype(command.dtype)
    )
    folder = prepare_report_folder(command.out)
    provenance = run_record(command)
    finished: list[studies.Study] = []
    try:
        with display() as progress, progress.task("studies", len(chosen)) as task:
            for done, (name, key) in enumerate(zip(chosen, keys, strict=True), start=1):
                settings = {"dataset": dataset, "size": command.profile, "key": key, "progress": progress}
                finished.append(run_study(STUDIES[name], name, folder, **settings))
                run = {**provenance, "seconds": round(time.monotonic() - started, 1)}
                write_report(
                    folder, studies=finished, run=run, pending=chosen[done:], title=f"Studies on {command.data}"
                )
                progress.say(f"{name}: {finished[-1].text}")
                task.advance()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(finished)} of {len(chosen)} studies are in {folder / 'index.html'}") from None
    say(f"report of {len(finished)} studies in {folder / 'index.html'}")
    return 0
