"""Robust overfitting: adversarial training past its best test accuracy, with early stopping and weight averaging."""

import itertools
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from ntk_robust._core import AbstractProgress, Figure, Series, SilentProgress, Table
from ntk_robust.attacks import PGD, Box, LinfBall
from ntk_robust.data import Dataset, subset
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected
from ntk_robust.studies._study import Study, history_folder, kept_in
from ntk_robust.training import AdversarialProbe, AttackedPoints, NaturalProbe, TrainingResult, fit, save_history


class _Size(NamedTuple):
    width: int
    num_seeds: int
    num_train: int
    num_test: int
    num_steps: int
    num_probings: int


_SIZES = {
    "quick": _Size(width=256, num_seeds=2, num_train=300, num_test=300, num_steps=800, num_probings=20),
    "full": _Size(width=1024, num_seeds=6, num_train=1000, num_test=1000, num_steps=6000, num_probings=60),
}
_RADII = {"cifar10": 8 / 255}
_EPSILON = 0.1  # of all other data
_NOISE = (0.0, 0.2)  # fractions of training labels that are replaced by another class
_BATCH = 64
_LEARNING_RATE = 2e-3
_AVERAGE_FROM = 0.2  # fraction of the run after which weights are averaged
_TRAINING_ATTACK = PGD(num_steps=4, relative_step=0.5)
_TEST_ATTACK = PGD(num_steps=10, relative_step=0.25)
_RULES = ("last", "early stopping", "averaged weights")


class _Curves(NamedTuple):
    """One run, at its probings; accuracies and losses are those under the test attack.

    Attributes:
        steps: Steps taken.
        train: Adversarial accuracy on the training examples.
        validation: On the examples that early stopping looks at.
        test: On the others.
        test_loss: Loss on the others.
        natural: Natural accuracy on the others.
        averaged: Adversarial accuracy on the others of the weights' average.
        averaged_natural: Their natural accuracy.
    """

    steps: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_loss: np.ndarray
    natural: np.ndarray
    averaged: np.ndarray
    averaged_natural: np.ndarray


def robust_overfitting(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Adversarial accuracy on training and test examples against steps, and what early stopping and averaging save.

    A ReLU network in standard parameterization with far more weights than examples, trained adversarially with Adam on
    mini-batches far beyond the best test accuracy (Rice, Wong, Kolter 2020). The radius is 0.1 in the l∞ norm, 8/255 on
    CIFAR-10. Early stopping chooses the step on half of the held-out examples, and all test numbers are those of the
    other half. The average is that of the weights at all probings after a fifth of the run. Everything is done with the
    labels as they are, and with a fifth of the training labels replaced: in theory it is noise that robust overfitting
    pays for.

    Args:
        dataset: Integer-labelled images.
        size: "quick" takes two to four minutes.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks, attacks, batches and the choice of examples.

    Returns:
        The study: accuracies and losses against steps, and last, early-stopped and averaged weights compared.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If a run meets numbers that are not finite.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    sizes = _SIZES[size]
    data_key, run_key = jr.split(key)
    data = subset(dataset, sizes.num_train, 2 * sizes.num_test, key=data_key)
    epsilon = _RADII.get(dataset.name, _EPSILON)
    runs: dict[float, list[_Curves]] = {noise: [] for noise in _NOISE}
    total = len(_NOISE) * sizes.num_seeds * sizes.num_probings
    with (progress or SilentProgress()).task("robust overfitting", total) as task:
        for noise, rows in runs.items():
            noisy = _with_noise(data, noise, jr.fold_in(data_key, 1))
            for seed in range(sizes.num_seeds):
                history = history_folder(histories, f"noise{noise:g}", f"seed{seed}")
                rows.append(_curves(noisy, sizes, epsilon, key=jr.fold_in(run_key, seed), task=task, history=history))
    return kept_in(histories, _write_up(data, sizes, epsilon, runs))


def _with_noise(data: Dataset, noise: float, key: Key[Array, ""]) -> Dataset:
    """The data with this fraction of the training labels moved to another class; test labels stay."""
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))
    labels = np.array(data.y_train)
    chosen = rng.permutation(len(labels))[: round(noise * len(labels))]
    labels[chosen] = (labels[chosen] + rng.integers(1, data.num_classes, len(chosen))) % data.num_classes
    return eqx.tree_at(lambda d: d.y_train, data, jnp.asarray(labels, data.y_train.dtype))


def _curves(
    data: Dataset, sizes: _Size, epsilon: float, *, key: Key[Array, ""], task: Any, history: Path | None
) -> _Curves:
    init_key, fit_key, attack_key = jr.split(key, 3)
    network = FullyConnected(data.input_dim, sizes.width, 2, data.num_classes, parameterization="standard", b_std=0.1)
    ball, loss = LinfBall(epsilon, box=Box(*data.box)), CrossEntropy()
    # Early stopping must not look at what it is graded on.
    parts = {
        "train": (data.x_train, data.y_train),
        "validation": (data.x_test[::2], data.y_test[::2]),
        "test": (data.x_test[1::2], data.y_test[1::2]),
    }
    attacked = {
        name: AdversarialProbe(AttackedPoints(network.apply, loss, _TEST_ATTACK, ball, xs, ys, attack_key))
        for name, (xs, ys) in parts.items()
    }
    natural = NaturalProbe(network.apply, loss, *parts["test"])
    rows: list[dict[str, float]] = []
    average: PyTree = None
    count = 0

    def watch(result: TrainingResult) -> None:
        nonlocal average, count
        found = {
            f"{name}_{key}": value
            for name, probe in attacked.items()
            for key, value in _measure(probe, result.params).items()
        }
        found |= _measure(natural, result.params)
        if average is None or result.num_steps <= _AVERAGE_FROM * sizes.num_steps:
            average, count = result.params, 1
        else:
            count += 1
            average = jax.tree.map(lambda old, new: old + (new - old) / count, average, result.params)
        found |= {f"averaged_{key}": value for key, value in _measure(attacked["test"], average).items()}
        found |= {f"averaged_{key}": value for key, value in _measure(natural, average).items()}
        rows.append({name: float(value) for name, value in found.items()} | {"steps": float(result.num_steps)})
        task.advance(1, adversarial_accuracy=rows[-1]["test_adversarial_accuracy"])

    arguments = {
        "apply_fn": network.apply,
        "params": network.init(key=init_key, dtype=data.x_train.dtype),
        "xs": data.x_train,
        "ys": data.y_train,
        "loss": loss,
        "attack": _TRAINING_ATTACK,
        "perturbations": ball,
        "optimizer": _OPTIMIZER,
        "num_steps": sizes.num_steps,
        "batch_size": min(_BATCH, sizes.num_train),
        "key": fit_key,
    }
    every = max(1, sizes.num_steps // sizes.num_probings)
    result = fit(**arguments, steps_per_chunk=every, callback=watch, throw=True)
    if history is not None:
        # What the callback measured, weights' averages too, stands beside what the program recorded.
        save_history(history, result, arguments=arguments, about={"data": data.name, "measured": rows})
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return _Curves(
        columns["steps"],
        columns["train_adversarial_accuracy"],
        columns["validation_adversarial_accuracy"],
        columns["test_adversarial_accuracy"],
        columns["test_surrogate_loss"],
        columns["natural_accuracy"],
        columns["averaged_adversarial_accuracy"],
        columns["averaged_natural_accuracy"],
    )


# One object for all runs, so that they share compiled programs.
_OPTIMIZER = optax.adam(_LEARNING_RATE)


@eqx.filter_jit
def _measure(probe: Any, params: PyTree) -> dict[str, Array]:
    return probe(params)


def _write_up(data: Dataset, sizes: _Size, epsilon: float, runs: dict[float, list[_Curves]]) -> Study:
    rows, sentences = [], []
    for noise, curves in runs.items():
        gaps = []
        for seed, run in enumerate(curves):
            chosen = int(np.argmax(run.validation))
            stopped = tuple(part[chosen] for part in (run.steps, run.train, run.test, run.test_loss, run.natural))
            ends = {
                "last": (run.steps[-1], run.train[-1], run.test[-1], run.test_loss[-1], run.natural[-1]),
                "early stopping": stopped,
                "averaged weights": (run.steps[-1], None, run.averaged[-1], None, run.averaged_natural[-1]),
            }
            gaps.append(float(np.max(run.test) - run.test[-1]))
            rows += [
                (noise, seed, rule, *(None if value is None else float(value) for value in ends[rule]))
                for rule in _RULES
            ]
        fitted, ended = (float(np.mean([getattr(run, part)[-1] for run in curves])) for part in ("train", "test"))
        grown = float(np.mean([run.test_loss[-1] / np.min(run.test_loss) for run in curves]))
        sentences.append(
            f"With {100 * noise:.0f} % of the training labels wrong, {100 * fitted:.0f} % of the training examples "
            f"resist the attack at the end and {100 * ended:.1f} % of the test examples; the best test accuracy on the "
            f"way was {100 * np.mean(gaps):.1f} points higher [{100 * min(gaps):.1f}, {100 * max(gaps):.1f}], and the "
            f"test loss at the end is {grown:.1f} times its smallest."
        )
    means = []
    for noise in runs:
        for rule in _RULES:
            found = [row for row in rows if row[0] == noise and row[2] == rule]
            means.append((noise, rule, *(_mean([row[column] for row in found]) for column in range(3, 8))))
    widths = (data.input_dim, sizes.width, sizes.width, data.num_classes)
    parameters = sum(a * b + b for a, b in itertools.pairwise(widths))
    band = "Mean over seeds; the band reaches from the smallest to the largest. Accuracies are those of one attack."
    return Study(
        name="robust_overfitting",
        title="Robust overfitting",
        text=(
            f"Adversarial training of ReLU networks with two hidden layers of {sizes.width} ({parameters} weights) on "
            f"{sizes.num_train} examples of {data.name}, l∞ radius {epsilon:.3g}, {sizes.num_steps} steps of Adam, "
            f"{sizes.num_seeds} networks. {' '.join(sentences)} The best of many noisy numbers is biased upwards: the "
            "gap to early stopping, which chooses on other examples, is the one to trust."
        ),
        figures=(
            Figure(
                "adversarial_accuracy",
                "Adversarial accuracy against steps",
                "steps",
                "fraction classified right under attack",
                tuple(
                    _series(f"{label}, {100 * noise:.0f} % wrong labels", curves, name, style)
                    for noise, curves in runs.items()
                    for label, name, style in (
                        ("training", "train", "line"),
                        ("test", "test", "line"),
                        ("test, averaged weights", "averaged", "dashed"),
                    )
                ),
                caption=band,
            ),
            Figure(
                "test_loss",
                "Test loss under attack against steps",
                "steps",
                "cross-entropy under attack",
                tuple(
                    _series(f"{100 * noise:.0f} % wrong labels", curves, "test_loss") for noise, curves in runs.items()
                ),
                y_scale="log",
                caption=band,
            ),
        ),
        tables=(
            Table("rules", "Means over seeds", _COLUMNS, means, "Test numbers are on examples that no rule looked at."),
            Table("runs", "Every run", (_COLUMNS[0], "seed", *_COLUMNS[1:]), rows),
        ),
    )


def _series(label: str, curves: list[_Curves], name: str, style: Any = "line") -> Series:
    values = np.stack([getattr(run, name) for run in curves])
    band = (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return Series(label, curves[0].steps.tolist(), *(part.tolist() for part in band), style=style)


_COLUMNS = (
    "wrong labels",
    "weights",
    "steps",
    "training adversarial accuracy",
    "test adversarial accuracy",
    "test loss under attack",
    "test natural accuracy",
)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
