"""One adversarial training run, measured."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ntk_robust._core import to_jsonable
from ntk_robust.attacks import (
    FGSM,
    PGD,
    AbstractAttack,
    AbstractPerturbationSet,
    Box,
    Identity,
    L2Ball,
    LinfBall,
    evaluate,
)
from ntk_robust.cli._arguments import Train
from ntk_robust.cli._common import arrays_by_path, examples, named_key, network, run_record
from ntk_robust.cli._files import save_arrays
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say, warn
from ntk_robust.cli._train_report import training_study
from ntk_robust.data import Dataset
from ntk_robust.kernels import empirical_ntk
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import AbstractModel
from ntk_robust.report import prepare_report_folder, write_report
from ntk_robust.training import (
    AbstractMethod,
    AbstractWeightSet,
    Adversarial,
    Checkpoints,
    DisplacementProbe,
    Free,
    FrobeniusBall,
    KernelDriftProbe,
    LayerwiseFrobeniusBall,
    LinearizationProbe,
    Mart,
    NaturalProbe,
    NeuronBall,
    Trades,
    TrainingResult,
    WeightPerturbed,
    fit,
    save_history,
)

_CHECKPOINTS = "checkpoints"
# Options that do not change what is trained.
_FREE_ON_RESUME = {"out", "resume", "data_dir", "evaluation_steps"}
_WEIGHT_SETS: dict[str, Callable[[float], AbstractWeightSet]] = {
    "layers": LayerwiseFrobeniusBall,
    "all": FrobeniusBall,
    "neurons": NeuronBall,
}


class _Setup(NamedTuple):
    model: AbstractModel
    params_0: PyTree
    dataset: Dataset
    attack: AbstractAttack
    perturbations: AbstractPerturbationSet
    loss: CrossEntropy
    method: AbstractMethod
    constraint: AbstractWeightSet | None
    kernel_fn: Callable[[PyTree], Float[Array, "n n"]] | None


def train(command: Train) -> int:
    """Trains, writes after every measurement, and ends with an evaluation; code 1 if numbers overflowed."""
    _check(command)
    setup = _set_up(command)
    folder = prepare_report_folder(command.out)
    if (folder / _CHECKPOINTS).exists() and not command.resume:
        raise ValueError(f"--out {folder} holds a run; go on with it by --resume, or name another folder")
    run = run_record(command)
    if (folder / _CHECKPOINTS).exists():
        # The report there stays until this run is known to be the one that goes on.
        _check_same_options(folder, run["arguments"])
    else:
        write_report(folder, run=run, pending=["training"], title=_TITLE)
    latest: list[TrainingResult] = []

    def write(evaluation: dict[str, Any], pending: tuple[str, ...]) -> Path:
        study = training_study(
            latest[-1],
            model=setup.model,
            params_0=setup.params_0,
            dataset=setup.dataset,
            kernel_fn=setup.kernel_fn,
            evaluation=evaluation,
        )
        return write_report(folder, studies=[study], run=run, pending=pending, title=_TITLE, summary=_SUMMARY)

    try:
        with display() as progress:
            with progress.task(f"training on {setup.dataset.name}", command.num_steps) as task:

                def keep(result: TrainingResult) -> None:
                    task.advance(result.num_steps - (latest[-1].num_steps if latest else 0), **_figures(result))
                    latest.append(result)
                    del latest[:-1]
                    save_arrays(folder / "params.npz", arrays_by_path(result.params))
                    save_history(folder, result, about={"command": "train", "arguments": run["arguments"]})

                keep(_fit(command, setup, folder, keep))
            with progress.task("evaluation"):
                evaluation = _evaluate(command, setup, latest[-1].params)
    except KeyboardInterrupt:
        if not latest:
            raise
        write({}, ("rest of the training and its evaluation",))
        finished = f"{latest[-1].num_steps} of {command.num_steps} steps are in {folder}"
        raise KeyboardInterrupt(f"{finished}; the same command with --resume goes on") from None
    page = write(evaluation, ())
    for part, numbers in evaluation.items():
        say(f"{part}: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()))
    say(f"report: {page}")
    if not latest[-1].finite:
        warn(latest[-1].message)
        return 1
    return 0


_TITLE = "Adversarial training"
_SUMMARY = "One run: how far the weights and the kernel moved, and what it bought."


def _check(command: Train) -> None:
    """Refuses what the library would refuse later, in the words of the options."""
    if not 0 < command.learning_rate < math.inf:
        raise ValueError(f"--learning-rate is {command.learning_rate}; give a positive number")
    if not 0 <= command.momentum < 1:
        raise ValueError(f"--momentum is {command.momentum}; give a number from 0 to below 1")
    if not 0 <= command.kernel_points <= command.num_train:
        raise ValueError(f"--kernel-points is {command.kernel_points}; give 0 to {command.num_train} (--num-train)")
    if command.num_steps < 1 or command.probe_every < 1:
        raise ValueError(
            f"--num-steps is {command.num_steps} and --probe-every {command.probe_every}; both must be at least 1"
        )
    if command.batch_size is not None and not 1 <= command.batch_size <= command.num_train:
        raise ValueError(f"--batch-size is {command.batch_size}; give 1 to {command.num_train} (--num-train)")
    if command.evaluation_steps < 0:
        raise ValueError(f"--evaluation-steps is {command.evaluation_steps}; give 0 or more")
    if command.method == "adversarial" and command.method_parameter is not None:
        raise ValueError(
            f"--method-parameter is {command.method_parameter} and --method adversarial has none; leave it out, or "
            "give trades, mart, awp or free"
        )
    if command.method == "trades" and command.attack in ("none", "fgsm"):
        raise ValueError(
            f"--attack is {command.attack} and --method trades attacks a divergence that is flat at the example, which "
            "needs a random start; give pgd or fgsm-rs"
        )
    if command.method == "free" and command.attack == "none":
        raise ValueError(
            "--attack is none and --method free always perturbs the examples; leave --method out for natural training"
        )


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


def _set_up(command: Train) -> _Setup:
    dataset = examples(command)
    model = network(command, dataset)
    ball = {"linf": LinfBall, "l2": L2Ball}[command.norm]
    params_0 = model.init(key=named_key(command.seed, "network"), dtype=np.dtype(command.dtype))
    kernel_fn = None
    if command.kernel_points:
        points = dataset.x_train[: command.kernel_points]
        kernel_fn = jax.jit(functools.partial(_kernel, model, points))
    return _Setup(
        model=model,
        params_0=params_0,
        dataset=dataset,
        attack=_attack(command, command.attack_steps),
        perturbations=ball(command.epsilon, box=Box(*dataset.box)),
        loss=CrossEntropy(),
        method=_method(command),
        constraint=None if command.weight_radius is None else _WEIGHT_SETS[command.weight_set](command.weight_radius),
        kernel_fn=kernel_fn,
    )


def _kernel(model: AbstractModel, points: Float[Array, "n d"], params: PyTree) -> Float[Array, "n n"]:
    return empirical_ntk(model.apply, params, points, trainable=model.trainable_mask(params))


def _attack(command: Train, num_steps: int) -> AbstractAttack:
    match command.attack:
        case "none":
            return Identity()
        case "fgsm":
            return FGSM()
        case "fgsm-rs":
            return PGD(num_steps=1, relative_step=1.25, random_start=True)
        case "pgd":
            # Steps that add up to 2.5 radii can cross the set and come back, however many there are.
            return PGD(num_steps=num_steps, relative_step=2.5 / max(num_steps, 1))


def _method(command: Train) -> AbstractMethod:
    parameter = command.method_parameter
    match command.method:
        case "adversarial":
            return Adversarial()
        case "trades":
            return Trades() if parameter is None else Trades(parameter)
        case "mart":
            return Mart() if parameter is None else Mart(parameter)
        case "awp":
            return WeightPerturbed(Adversarial()) if parameter is None else WeightPerturbed(Adversarial(), parameter)
        case "free":
            if parameter is not None and parameter != int(parameter):
                raise ValueError(f"--method-parameter is {parameter}; free takes a whole number of replays")
            return Free() if parameter is None else Free(int(parameter))


def _optimizer(command: Train) -> optax.GradientTransformation:
    rate = command.learning_rate
    schedule = optax.cosine_decay_schedule(rate, command.num_steps) if command.schedule == "cosine" else rate
    match command.optimizer:
        case "sgd":
            return optax.sgd(schedule)
        case "momentum":
            return optax.sgd(schedule, momentum=command.momentum)
        case "adam":
            return optax.adam(schedule, b1=command.momentum)


def _fit(command: Train, setup: _Setup, folder: Path, keep: Callable[[TrainingResult], None]) -> TrainingResult:
    model, dataset, params_0 = setup.model, setup.dataset, setup.params_0
    mask = model.trainable_mask(params_0)
    probes: dict[str, Any] = {
        "displacement": DisplacementProbe(params_0, mask, command.width),
        "train": NaturalProbe(model.apply, setup.loss, dataset.x_train, dataset.y_train),
        "test": NaturalProbe(model.apply, setup.loss, dataset.x_test, dataset.y_test),
        "linearization": LinearizationProbe(model.apply, params_0, dataset.x_test),
    }
    if setup.kernel_fn is not None:
        probes["kernel"] = KernelDriftProbe(setup.kernel_fn, setup.kernel_fn(params_0))
    return fit(
        model.apply,
        params_0,
        dataset.x_train,
        dataset.y_train,
        loss=setup.loss,
        attack=setup.attack,
        perturbations=setup.perturbations,
        optimizer=_optimizer(command),
        num_steps=command.num_steps,
        method=setup.method,
        trainable=mask,
        constraint=setup.constraint,
        batch_size=command.batch_size,
        probes=probes,
        probe_every=command.probe_every,
        steps_per_chunk=command.probe_every,
        checkpoints=Checkpoints(folder / _CHECKPOINTS, resume=command.resume),
        callback=keep,
        key=named_key(command.seed, "training"),
    )


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


def _evaluate(command: Train, setup: _Setup, params: PyTree) -> dict[str, Any]:
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
                setup.model.apply,
                params,
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
