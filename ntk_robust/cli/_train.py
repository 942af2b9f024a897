"""One adversarial training run, measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_robust._core import to_jsonable
from ntk_robust.attacks import PGD, evaluate
from ntk_robust.cli._arguments import Train
from ntk_robust.cli._common import arrays_by_path, named_key, run_record, trained_fn
from ntk_robust.cli._files import save_arrays
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say, warn
from ntk_robust.cli._train_report import training_study
from ntk_robust.cli._train_setup import Setup, check_options, optimizer_of, set_up
from ntk_robust.report import prepare_report_folder, write_report
from ntk_robust.training import (
    Checkpoints,
    DisplacementProbe,
    KernelDriftProbe,
    LinearizationProbe,
    NaturalProbe,
    TrainingResult,
    fit,
    join_runs,
    load_history,
    parameter_displacement,
    save_history,
)

_CHECKPOINTS = "checkpoints"
# Options that do not change what is trained.
_FREE_ON_RESUME = {"out", "resume", "data_dir", "evaluation_steps"}


class _Phase(NamedTuple):
    """A part of the run that trains one function of the weights, from one step to another."""

    dynamics: str
    begin: int
    end: int


class _Reached(NamedTuple):
    """Where a run is.

    Attributes:
        result: Everything so far, all phases as one.
        apply_fn: What is trained.
        tangent_at: The weights at which that is the tangent of the network, None where it is the network itself.
    """

    result: TrainingResult
    apply_fn: Callable[..., Any]
    tangent_at: PyTree | None

    @property
    def kernel_params(self) -> PyTree:
        """The weights whose kernel what is trained has."""
        return self.result.params if self.tangent_at is None else self.tangent_at


class _KernelOfTangent(eqx.Module):
    """A kernel that does not depend on the weights."""

    gram: Float[Array, "n n"]

    def __call__(self, params: PyTree) -> Float[Array, "n n"]:
        del params
        return self.gram


def train(command: Train) -> int:
    """Trains, writes after every measurement, and ends with an evaluation; code 1 if numbers overflowed."""
    check_options(command)
    setup = set_up(command)
    folder = prepare_report_folder(command.out)
    if (folder / _CHECKPOINTS).exists() and not command.resume:
        raise ValueError(f"--out {folder} holds a run; go on with it by --resume, or name another folder")
    run, already = run_record(command), 0
    if (folder / _CHECKPOINTS).exists():
        # The report there stays until this run is known to be the one that goes on.
        _check_same_options(folder, run["arguments"])
        already = _steps_written(folder)
    else:
        write_report(folder, run=run, pending=["training"], title=_TITLE)
    latest: list[_Reached] = []
    mask = setup.model.trainable_mask(setup.params_0)
    layers = eqx.filter_eval_shape(parameter_displacement, setup.params_0, setup.params_0, trainable=mask).layers

    def write(evaluation: dict[str, Any], pending: tuple[str, ...]) -> Path:
        grams = None
        if setup.kernel_fn is not None:
            grams = setup.kernel_fn(setup.params_0), setup.kernel_fn(latest[-1].kernel_params)
        study = training_study(
            latest[-1].result,
            layers=layers,
            dataset=setup.dataset,
            dynamics=_in_words(command),
            grams=grams,
            evaluation=evaluation,
        )
        return write_report(folder, studies=[study], run=run, pending=pending, title=_TITLE, summary=_SUMMARY)

    try:
        with display() as progress:
            with progress.task(f"training on {setup.dataset.name}", command.num_steps) as task:

                def keep(reached: _Reached) -> None:
                    result = reached.result
                    task.advance(result.num_steps - (latest[-1].result.num_steps if latest else 0), **_figures(result))
                    if reached.tangent_at is not None and (not latest or latest[-1].tangent_at is None):
                        save_arrays(folder / "params_tangent.npz", arrays_by_path(reached.tangent_at))
                    latest.append(reached)
                    del latest[:-1]
                    if 0 < result.num_steps <= already:  # a run that goes on comes through here again
                        return
                    save_arrays(folder / "params.npz", arrays_by_path(result.params))
                    save_history(folder, result, about={"command": "train", "arguments": run["arguments"]})

                _fit(command, setup, folder, keep)
            with progress.task("evaluation"):
                evaluation = _evaluate(command, setup, latest[-1])
    except KeyboardInterrupt:
        if not latest:
            raise
        write({}, ("rest of the training and its evaluation",))
        finished = f"{latest[-1].result.num_steps} of {command.num_steps} steps are in {folder}"
        raise KeyboardInterrupt(f"{finished}; the same command with --resume goes on") from None
    page = write(evaluation, ())
    for part, numbers in evaluation.items():
        say(f"{part}: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()))
    say(f"report: {page}")
    if not latest[-1].result.finite:
        warn(latest[-1].result.message)
        return 1
    return 0


_TITLE = "Adversarial training"
_SUMMARY = "One run: how far the weights and the kernel moved, and what it bought."


def _check_same_options(folder: Path, arguments: dict[str, Any]) -> None:
    """Refuses to go on with a run that was started with other options, in the words of the options."""
    record = folder / "run.json"
    before = json.loads(record.read_text())["arguments"] if record.exists() else {}
    now = to_jsonable(arguments)
    differing = [
        f"--{name.replace('_', '-')} was {before[name]} and is {now[name]}"
        for name in sorted(before.keys() & now.keys() - _FREE_ON_RESUME)
        if before[name] != now[name]
    ]
    if differing:
        raise ValueError(
            f"--out {folder} holds a run with other options: {'; '.join(differing)}. Resume it with its own, or name "
            "another folder"
        )


def _steps_written(folder: Path) -> int:
    """Steps of the history that is in the folder, 0 where there is none."""
    try:
        return int(load_history(folder).summary["num_steps"])
    except ValueError:
        return 0


def _phases(command: Train) -> list[_Phase]:
    if command.switch_at is None:
        return [_Phase(command.dynamics, 0, command.num_steps)]
    return [_Phase("network", 0, command.switch_at), _Phase(command.dynamics, command.switch_at, command.num_steps)]


def _in_words(command: Train) -> str:
    """What was trained, as a sentence for the report; empty where it was the network."""
    if command.dynamics == "network":
        return ""
    where = "at initialization" if command.switch_at is None else f"at the weights after step {command.switch_at}"
    output = " without its output there" if command.dynamics == "centered" else ""
    zero = " Where it begins its output is zero up to rounding, so that its accuracy says nothing." if output else ""
    since = "" if command.switch_at is None else f" from step {command.switch_at} on"
    return (
        f" What was trained{since} is the tangent of the network {where}{output}: its kernel does not move. Losses, "
        f"accuracies and the kernel are those of what is trained.{zero}"
    )


def _fit(command: Train, setup: Setup, folder: Path, keep: Callable[[_Reached], None]) -> None:
    """Trains phase after phase, and keeps what was reached after every measurement."""
    done: TrainingResult | None = None
    for phase in _phases(command):
        done = _fit_phase(command, setup, phase, done, folder=folder, keep=keep)
        if not done.finite:
            break


def _fit_phase(
    command: Train,
    setup: Setup,
    phase: _Phase,
    before: TrainingResult | None,
    *,
    folder: Path,
    keep: Callable[[_Reached], None],
) -> TrainingResult:
    """All of the run up to the end of a phase, of which `before` is what came before it."""
    model, dataset, params_0 = setup.model, setup.dataset, setup.params_0
    start = params_0 if before is None else before.params
    apply_fn, is_tangent = trained_fn(model, phase.dynamics, start), phase.dynamics != "network"
    mask = model.trainable_mask(params_0)
    probes: dict[str, Any] = {
        "displacement": DisplacementProbe(params_0, mask, command.width),
        "train": NaturalProbe(apply_fn, setup.loss, dataset.x_train, dataset.y_train),
        "test": NaturalProbe(apply_fn, setup.loss, dataset.x_test, dataset.y_test),
        "linearization": LinearizationProbe(model.apply, params_0, dataset.x_test),
    }
    if setup.kernel_fn is not None:
        kernel_fn = _KernelOfTangent(setup.kernel_fn(start)) if is_tangent else setup.kernel_fn
        probes["kernel"] = KernelDriftProbe(kernel_fn, setup.kernel_fn(params_0))

    def so_far(result: TrainingResult) -> _Reached:
        joined = result if before is None else join_runs(before, result)
        return _Reached(joined, apply_fn, start if is_tangent else None)

    reached = so_far(
        fit(
            apply_fn,
            start,
            dataset.x_train,
            dataset.y_train,
            loss=setup.loss,
            attack=setup.attack,
            perturbations=setup.perturbations,
            optimizer=optimizer_of(command, phase.begin),
            num_steps=phase.end - phase.begin,
            method=setup.method,
            trainable=mask,
            constraint=setup.constraint,
            anchor=params_0,
            batch_size=command.batch_size,
            probes=probes,
            probe_every=command.probe_every,
            steps_per_chunk=command.probe_every,
            checkpoints=Checkpoints(folder / _CHECKPOINTS / phase.dynamics, resume=command.resume),
            callback=lambda result: keep(so_far(result)),
            key=named_key(command.seed, "training" if phase.begin == 0 else "training after the switch"),
        )
    )
    keep(reached)
    return reached.result


def _figures(result: TrainingResult) -> dict[str, float]:
    """What the progress display shows beside the bar."""
    last = max(result.num_steps - 1, 0)
    figures = {"surrogate_loss": float(result.history["surrogate_loss"][last])}
    if len(result.probe_steps):
        figures["test_accuracy"] = float(result.probes["test"]["natural_accuracy"][-1])
        figures["displacement"] = float(result.probes["displacement"]["total"][-1])
    projected = np.asarray(result.history["projected"])
    if projected.any():
        figures["projected"] = float(projected.mean())
    return figures


def _evaluate(command: Train, setup: Setup, reached: _Reached) -> dict[str, Any]:
    """Accuracies and losses on both parts, under the training attack (if there is one) and under a stronger one."""
    dataset = setup.dataset
    parts = {"train": (dataset.x_train, dataset.y_train), "test": (dataset.x_test, dataset.y_test)}
    attacks = {"adversarial_accuracy": setup.attack}
    if command.evaluation_steps:
        attacks["stronger_attack_accuracy"] = PGD(
            num_steps=command.evaluation_steps, relative_step=2.5 / command.evaluation_steps
        )
    found = {}
    for name, (xs, ys) in parts.items():
        results = {
            label: evaluate(
                reached.apply_fn,
                reached.result.params,
                xs,
                ys,
                attack=attack,
                perturbations=setup.perturbations,
                loss=setup.loss,
                key=named_key(command.seed, f"evaluation {name}"),
                batch_size=min(command.num_train, command.num_test, 500),
            )
            for label, attack in attacks.items()
        }
        trained = results["adversarial_accuracy"]
        numbers = {
            "natural_accuracy": trained.natural_accuracy,
            **{label: result.adversarial_accuracy for label, result in results.items()},
            "natural_loss": trained.natural_loss,
            "surrogate_loss": trained.surrogate_loss,
        }
        if command.attack == "none":  # there is no attack behind these two
            del numbers["adversarial_accuracy"], numbers["surrogate_loss"]
        found[name] = {label: float(value) for label, value in numbers.items()}
    return found
