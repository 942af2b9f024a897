"""Speed of adversarial training against the scale of the inputs, with radius and inputs scaled together."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ntk_robust._core import AbstractProgress, Figure, Series, SilentProgress, Table
from ntk_robust.attacks import PGD, L2Ball
from ntk_robust.data import Dataset
from ntk_robust.losses import Squared
from ntk_robust.models import AbstractActivation, Softplus, Tanh
from ntk_robust.studies._study import Study, history_folder, kept_in
from ntk_robust.studies._two_classes import network, two_classes
from ntk_robust.training import at_rate, sweep


class _Size(NamedTuple):
    scales: tuple[float, ...]
    rates: tuple[float, ...]
    num_seeds: int
    num_train: int
    width: int
    num_steps: int


_SIZES = {
    "quick": _Size(
        scales=(0.1, 0.3, 1.0, 3.0, 10.0),
        rates=tuple(2.0**power for power in range(-5, 4)),
        num_seeds=10,
        num_train=40,
        width=64,
        num_steps=60,
    ),
    "full": _Size(
        scales=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
        rates=tuple(2.0**power for power in range(-6, 6)),
        num_seeds=20,
        num_train=200,
        width=512,
        num_steps=300,
    ),
}
_RATIO = 0.1
_SAME_RATE = 0.5
_ACTIVATIONS: dict[str, AbstractActivation] = {"softplus": Softplus(), "tanh": Tanh()}
_ATTACK = PGD(num_steps=3, relative_step=1.0, random_start=False)
# One object for all runs, so that they share compiled programs.
_OPTIMIZER = optax.sgd(1.0)


def input_scale(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Adversarial loss along training against the input scale $s$ at a fixed ratio $τ = ε/\Vert x\Vert$.

    Images have norm $s\sqrt d$, so that pre-activations at initialization have standard deviation $s$. Four protocols:
    the same learning rate at every scale; the rate with the smallest last loss for each seed and scale; a rate
    proportional to $1/s^2$; and each of them by the loss over its first value.

    Args:
        dataset: Integer-labelled images with the classes 3 and 8.
        size: "quick" takes two minutes on small images.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks and of the choice of examples.

    Returns:
        The study: the regimes with intervals over seeds, the losses by protocol, figures against scale and step.

    Raises:
        ValueError: For an unknown size.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    sizes = _SIZES[size]
    data_key, run_key = jr.split(key)
    data = two_classes(dataset, sizes.num_train, key=data_key)
    with (progress or SilentProgress()).task("input scale", len(_ACTIVATIONS)) as task:
        losses = {}
        for name, activation in _ACTIVATIONS.items():
            losses[name] = _losses(data, sizes, activation, run_key, history_folder(histories, name))
            task.advance(1)
    return kept_in(histories, _write_up(data, sizes, losses))


class _Losses(NamedTuple):
    """Adversarial losses along training, by seed and scale, for each protocol of the learning rate."""

    same: Float[np.ndarray, "seeds scales steps"]
    tuned: Float[np.ndarray, "seeds scales steps"]
    proportional: Float[np.ndarray, "seeds scales steps"]


def _losses(
    data: Dataset, sizes: _Size, activation: AbstractActivation, key: Key[Array, ""], folder: Path | None
) -> _Losses:
    """All runs as one program, which a run that is not finite leaves alone."""
    model = network(data.input_dim, sizes.width, activation)
    dtype = data.x_train.dtype
    starts = [model.init(key=jr.fold_in(key, seed), dtype=dtype) for seed in range(sizes.num_seeds)]
    runs: list[dict[str, Any]] = [
        {
            "apply_fn": model.apply,
            "params": params,
            "xs": scale * data.x_train,
            "ys": data.y_train,
            "loss": Squared(),
            "attack": _ATTACK,
            "perturbations": L2Ball(jnp.asarray(_RATIO * scale * data.input_dim**0.5, dtype)),
            "optimizer": at_rate(_OPTIMIZER, jnp.asarray(rate, dtype)),
            "num_steps": sizes.num_steps,
            "trainable": model.trainable_mask(params),
            "key": key,
        }
        for params in starts
        for scale in sizes.scales
        for rate in (*(rate / scale**2 for rate in sizes.rates), _SAME_RATE)
    ]
    results = sweep(runs, vectorize=True, folder=folder)
    histories = [np.asarray(result.history["surrogate_loss"], np.float64) for result in results]
    # A run that met numbers that are not finite stopped early.
    padded = [np.pad(found, (0, sizes.num_steps - len(found)), constant_values=np.inf) for found in histories]
    by_rate = np.stack(padded).reshape(sizes.num_seeds, len(sizes.scales), len(sizes.rates) + 1, -1)
    by_rate = np.where(np.isfinite(by_rate), by_rate, np.inf)
    best = np.argmin(by_rate[:, :, :-1, -1], axis=2)
    tuned = np.take_along_axis(by_rate, best[:, :, None, None], axis=2)[:, :, 0]
    return _Losses(by_rate[:, :, -1], tuned, by_rate[:, :, sizes.rates.index(0.5)])


def _write_up(data: Dataset, sizes: _Size, losses: dict[str, _Losses]) -> Study:
    scales = [float(scale) for scale in sizes.scales]
    rows, regimes, figures, sentences = [], [], [], []
    series = []
    for name, found in losses.items():
        protocols = {
            f"the same rate {_SAME_RATE:g}": found.same,
            "tuned for each seed and scale": found.tuned,
            "0.5/s²": found.proportional,
        }
        for protocol, values in protocols.items():
            for i, scale in enumerate(scales):
                first, last = values[:, i, 0], values[:, i, -1]
                diverged = int(np.sum(~np.isfinite(last)))
                relative = float(np.median(last / first))
                rows.append(
                    (name, protocol, scale, float(np.median(first)), float(np.median(last)), relative, diverged)
                )
            finite = [bool(np.isfinite(values[:, i, -1]).all()) for i in range(len(scales))]
            for i in range(len(scales) - 1):
                if finite[i] and finite[i + 1]:
                    regimes.append((name, protocol, *_regime(values, scales, i)))
        names = [row for row in regimes if row[0] == name and row[1].startswith("tuned")]
        sentences.append(f"{name}: " + ", ".join(f"{row[6]} between {row[2]:g} and {row[3]:g}" for row in names))
        last = found.tuned[:, :, -1]
        for label, values in (("last loss", last), ("over the first", last / found.tuned[:, :, 0])):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            style = "line" if label == "last loss" else "dashed"
            series.append(Series(f"{name}, {label}", scales, middle.tolist(), low.tolist(), high.tolist(), style=style))
        steps = np.arange(float(sizes.num_steps)).tolist()
        figures.append(
            Figure(
                name=f"training_{name}",
                title=f"Adversarial training at tuned rates, {name}",
                x_label="step",
                y_label="adversarial loss",
                series=tuple(
                    Series(f"s = {scale:g}", steps, np.median(found.tuned[:, i], axis=0).tolist())
                    for i, scale in enumerate(scales)
                ),
                y_scale="log",
                caption=f"Medians over {sizes.num_seeds} networks; ε = {_RATIO:g}|x| at every scale.",
            )
        )
    overview = Figure(
        name="last_loss",
        title=f"Adversarial loss after {sizes.num_steps} steps at tuned rates",
        x_label="input scale s",
        y_label="loss",
        series=tuple(series),
        x_scale="log",
        y_scale="log",
        caption="Medians and quartiles over networks.",
    )
    return Study(
        name="input_scale",
        title="Does a smaller input scale make adversarial training faster?",
        text=(
            f"Two-layer networks of width {sizes.width} learn 3 against 8 adversarially on {sizes.num_train} images of "
            f"{data.name} at norm s√d, l2 radius {_RATIO:g} of it, full-batch gradient descent on the first layer, "
            f"{sizes.num_steps} steps, {sizes.num_seeds} networks. Which scale has the smaller last loss, tuned "
            f"(95 % intervals over networks): {'; '.join(sentences)}."
        ),
        figures=(overview, *figures),
        tables=(
            Table(
                "regimes",
                "Regimes",
                (
                    "activation",
                    "learning rate",
                    "s",
                    "next s",
                    "log ratio of the last losses",
                    "± (95 %)",
                    "smaller loss at",
                ),
                regimes,
                "The logarithm is positive where the larger scale has the larger loss.",
            ),
            Table(
                "protocols",
                "Losses by protocol, medians",
                ("activation", "learning rate", "s", "first loss", "last loss", "last over first", "diverged"),
                rows,
                "The loss over its first value is the fourth protocol.",
            ),
        ),
    )


def _regime(values: Float[np.ndarray, "seeds scales steps"], scales: list[float], i: int) -> tuple[Any, ...]:
    """Two neighboring scales compared."""
    import scipy.special  # noqa: PLC0415 - as in _core: loaded when it is used

    logs = np.log(values[:, i + 1, -1] / values[:, i, -1])
    half = scipy.special.stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / np.sqrt(len(logs))
    mean = float(logs.mean())
    verdict = "undecided" if abs(mean) <= half else "the smaller scale" if mean > 0 else "the larger scale"
    return scales[i], scales[i + 1], mean, float(half), verdict
