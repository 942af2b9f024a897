"""One adversarial training run, measured."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ntk_robust._core import Figure, Series, Table, write_json_atomically
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
from ntk_robust.cli._common import activation, arrays_by_path, examples, named_key, run_record
from ntk_robust.cli._files import save_arrays
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say, warn
from ntk_robust.data import Dataset
from ntk_robust.kernels import empirical_ntk
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected
from ntk_robust.report import prepare_report_folder, write_report
from ntk_robust.studies import Study
from ntk_robust.training import (
    DisplacementProbe,
    KernelDriftProbe,
    LayerwiseFrobeniusBall,
    NaturalProbe,
    TrainingResult,
    fit,
    parameter_displacement,
)


class _Setup(NamedTuple):
    model: FullyConnected
    params_0: PyTree
    dataset: Dataset
    attack: AbstractAttack
    perturbations: AbstractPerturbationSet
    loss: CrossEntropy
    constraint: LayerwiseFrobeniusBall | None


def train(command: Train) -> int:
    """Trains in pieces between measurements, writes after each, and ends with an evaluation; code 1 on overflow."""
    if not 0 < command.learning_rate < math.inf:
        raise ValueError(f"--learning-rate is {command.learning_rate}; give a positive number")
    if not 0 <= command.kernel_points <= command.num_train:
        raise ValueError(f"--kernel-points is {command.kernel_points}; give 0 to {command.num_train} (--num-train)")
    if command.num_steps < 1 or command.probe_every < 1:
        raise ValueError(
            f"--num-steps is {command.num_steps} and --probe-every {command.probe_every}; both must be at least 1"
        )
    if command.batch_size is not None and not 1 <= command.batch_size <= command.num_train:
        raise ValueError(f"--batch-size is {command.batch_size}; give 1 to {command.num_train} (--num-train)")
    setup = _set_up(command)
    folder = prepare_report_folder(command.out)
    run = run_record(command)
    write_report(folder, run=run, pending=["training"], title="Adversarial training")

    pieces: list[TrainingResult] = []
    evaluation: dict[str, Any] = {}
    try:
        with display() as progress:
            with progress.task(f"training on {setup.dataset.name}", command.num_steps) as task:
                for piece in _pieces(command, setup):
                    pieces.append(piece)
                    save_arrays(folder / "params.npz", arrays_by_path(piece.params))
                    write_json_atomically(folder / "history.json", _history(pieces))
                    task.advance(piece.num_steps, surrogate_loss=float(piece.history["surrogate_loss"][-1]))
            with progress.task("evaluation"):
                evaluation = _evaluate(command, setup, pieces[-1].params)
    except KeyboardInterrupt:
        if not pieces:
            raise
        _report(folder, setup, pieces, evaluation, run, pending=["rest of the training and its evaluation"])
        finished = sum(piece.num_steps for piece in pieces)
        raise KeyboardInterrupt(f"{finished} of {command.num_steps} steps are in {folder}") from None
    page = _report(folder, setup, pieces, evaluation, run, pending=())
    for part, numbers in evaluation.items():
        say(f"{part}: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()))
    say(f"report: {page}")
    if not pieces[-1].finite:
        warn(pieces[-1].message)
        return 1
    return 0


def _set_up(command: Train) -> _Setup:
    dataset = examples(command)
    model = FullyConnected(
        dataset.input_dim,
        command.width,
        command.num_hidden_layers,
        dataset.num_classes,
        activation(command.activation),
        parameterization=command.parameterization,
        trainable=command.trainable,
    )
    ball = {"linf": LinfBall, "l2": L2Ball}[command.norm]
    return _Setup(
        model=model,
        params_0=model.init(key=named_key(command.seed, "network"), dtype=np.dtype(command.dtype)),
        dataset=dataset,
        attack=_attack(command),
        perturbations=ball(command.epsilon, box=Box(*dataset.box)),
        loss=CrossEntropy(),
        constraint=None if command.weight_radius is None else LayerwiseFrobeniusBall(command.weight_radius),
    )


def _attack(command: Train) -> AbstractAttack:
    match command.attack:
        case "none":
            return Identity()
        case "fgsm":
            return FGSM()
        case "pgd":
            # Steps that add up to 2.5 radii can cross the set and come back, however many there are.
            return PGD(num_steps=command.attack_steps, relative_step=2.5 / max(command.attack_steps, 1))


def _pieces(command: Train, setup: _Setup) -> Iterator[TrainingResult]:
    """The results of consecutive runs of `probe_every` steps, each from where the last one ended.

    Gradient descent without momentum has no state, so the pieces are one run; only the keys start anew.
    """
    model, dataset, params_0 = setup.model, setup.dataset, setup.params_0
    mask = model.trainable_mask(params_0)
    probes = {
        "displacement": DisplacementProbe(params_0, mask),
        "train": NaturalProbe(model.apply, setup.loss, dataset.x_train, dataset.y_train),
        "test": NaturalProbe(model.apply, setup.loss, dataset.x_test, dataset.y_test),
    }
    if command.kernel_points:
        points = dataset.x_train[: command.kernel_points]

        def kernel_fn(params: PyTree) -> Array:
            return empirical_ntk(model.apply, params, points, trainable=mask)

        probes["kernel"] = KernelDriftProbe(kernel_fn, jax.jit(kernel_fn)(params_0))
    optimizer = optax.sgd(command.learning_rate)
    key = named_key(command.seed, "training")
    params = params_0
    for begin in range(0, command.num_steps, command.probe_every):
        num_steps = min(command.probe_every, command.num_steps - begin)
        result = fit(
            model.apply,
            params,
            dataset.x_train,
            dataset.y_train,
            loss=setup.loss,
            attack=setup.attack,
            perturbations=setup.perturbations,
            optimizer=optimizer,
            num_steps=num_steps,
            trainable=mask,
            constraint=setup.constraint,
            anchor=params_0,
            batch_size=command.batch_size,
            probes=probes,
            probe_every=num_steps,
            steps_per_chunk=num_steps,
            key=jax.random.fold_in(key, begin),
        )
        yield result
        if not result.finite:
            return
        params = result.params


def _history(pieces: list[TrainingResult]) -> dict[str, Any]:
    """Everything measured: per step, and per probing at the steps in "probe_steps"."""
    begins = np.cumsum([0, *(piece.num_steps for piece in pieces)])
    kept = [slice(0 if number == 0 else 1, None) for number in range(len(pieces))]
    probes = {
        probe: {
            name: np.concatenate(
                [np.asarray(piece.probes[probe][name])[rows] for piece, rows in zip(pieces, kept, strict=True)]
            )
            for name in pieces[0].probes[probe]
        }
        for probe in pieces[0].probes
    }
    return {
        "num_steps": int(begins[-1]),
        "finite": pieces[-1].finite,
        "message": pieces[-1].message,
        "history": {
            name: np.concatenate([np.asarray(piece.history[name]) for piece in pieces]) for name in pieces[0].history
        },
        "probe_steps": np.concatenate(
            [
                np.asarray(piece.probe_steps)[rows] + begin
                for piece, rows, begin in zip(pieces, kept, begins, strict=False)
            ]
        ),
        "probes": probes,
    }


def _evaluate(command: Train, setup: _Setup, params: PyTree) -> dict[str, Any]:
    """Accuracies and losses on both parts under the training attack."""
    dataset = setup.dataset
    parts = {"train": (dataset.x_train, dataset.y_train), "test": (dataset.x_test, dataset.y_test)}
    found = {}
    for name, (xs, ys) in parts.items():
        result = evaluate(
            setup.model.apply,
            params,
            xs,
            ys,
            attack=setup.attack,
            perturbations=setup.perturbations,
            loss=setup.loss,
            key=named_key(command.seed, f"evaluation {name}"),
            batch_size=min(command.num_train, command.num_test, 500),
        )
        found[name] = {
            "natural_accuracy": float(result.natural_accuracy),
            "adversarial_accuracy": float(result.adversarial_accuracy),
            "natural_loss": float(result.natural_loss),
            "surrogate_loss": float(result.surrogate_loss),
        }
    return found


def _report(
    folder: Path,
    setup: _Setup,
    pieces: list[TrainingResult],
    evaluation: dict[str, Any],
    run: dict[str, Any],
    *,
    pending: Sequence[str],
) -> Path:
    """The page written from what was measured so far."""
    history = _history(pieces)
    steps = [float(step) for step in history["probe_steps"]]
    probes = history["probes"]
    layers = parameter_displacement(
        setup.params_0, setup.params_0, trainable=setup.model.trainable_mask(setup.params_0)
    ).layers

    def curve(label: str, values: np.ndarray) -> Series:
        return Series(label, steps, [float(value) for value in values])

    losses = history["history"]["surrogate_loss"]
    figures = [
        Figure(
            "loss",
            "Surrogate loss",
            "step",
            "cross-entropy under the attack",
            (Series("batch", [float(step) for step in range(len(losses))], [float(loss) for loss in losses]),),
            y_scale="log",
            caption="Mean loss of each batch at the points that the attack found: a lower bound of the robust loss.",
        ),
        Figure(
            "accuracy",
            "Natural accuracy",
            "step",
            "fraction classified right",
            tuple(curve(part, probes[part]["natural_accuracy"]) for part in ("train", "test")),
        ),
        Figure(
            "displacement",
            "Relative displacement from initialization",
            "step",
            "‖W − W₀‖ / ‖W₀‖ (Frobenius)",
            tuple(curve(f"layer {name}", probes["displacement"]["relative"][:, i]) for i, name in enumerate(layers)),
        ),
    ]
    if "kernel" in probes:
        figures.append(
            Figure(
                "drift",
                "Change of the empirical NTK",
                "step",
                "‖Θ − Θ₀‖ / ‖Θ₀‖ (Frobenius)",
                (curve("drift", probes["kernel"]["kernel_drift"]),),
            )
        )
    columns = ("part", "natural accuracy", "adversarial accuracy", "natural loss", "surrogate loss")
    tables = [
        Table(
            "evaluation",
            "Evaluation at the last weights",
            columns,
            [(part, *numbers.values()) for part, numbers in evaluation.items()],
            caption="Adversarial accuracy under the training attack is an upper bound of the robust accuracy.",
        )
    ]
    text = f"{history['num_steps']} steps on {len(setup.dataset.x_train)} examples of {setup.dataset.name}."
    if history["message"]:
        text += f"\n\n{history['message']}"
    study = Study(name="training", title="Training run", text=text, figures=figures, tables=tables)
    return write_report(
        folder,
        studies=[study],
        run=run,
        pending=pending,
        title="Adversarial training",
        summary="One run: how far the weights and the kernel moved, and what it bought.",
    )
