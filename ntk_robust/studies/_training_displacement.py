"""How far training moves weights and kernel, naturally and adversarially, against width."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from ntk_robust._core import AbstractProgress, Figure, Series, SilentProgress, SlopeFit, Table, slope_fit
from ntk_robust.attacks import PGD, AbstractAttack, Box, Identity, LinfBall, evaluate
from ntk_robust.data import Dataset, subset
from ntk_robust.kernels import empirical_ntk
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected
from ntk_robust.studies._study import SLOPE_COLUMNS, Study, slope_row
from ntk_robust.training import DisplacementProbe, KernelDriftProbe, fit


class _Size(NamedTuple):
    widths: tuple[int, ...]
    num_seeds: int
    num_train: int
    num_test: int
    num_kernel: int
    num_steps: int


_SIZES = {
    "quick": _Size(widths=(64, 128, 256, 512), num_seeds=3, num_train=100, num_test=100, num_kernel=20, num_steps=200),
    "full": _Size(
        widths=(64, 128, 256, 512, 1024, 2048), num_seeds=6, num_train=500, num_test=300, num_kernel=50, num_steps=400
    ),
}

_EPSILON = 0.1
_LEARNING_RATE = 0.3
_MOMENTUM = 0.9
_DEPTH = 2

# What is known about the exponents in NTK parameterization with two hidden layers: the weights move by a width-free
# distance, of weights whose norm grows like the width; the kernel's change is at most of order -1/2 (Jacot et al. 2018,
# Lee et al. 2019), and -1 to leading order of a smooth network (Dyer and Gur-Ari 2020).
_QUANTITIES = {
    "displacement": ("displacement ‖W − W₀‖ (weight units)", "0"),
    "relative_displacement": ("relative displacement ‖W − W₀‖ / ‖W₀‖", "-1"),
    "kernel_drift": ("kernel drift ‖Θ − Θ₀‖ / ‖Θ₀‖", "-1/2 or steeper"),
}
_RESULTS = ("surrogate_loss", "natural_accuracy", "adversarial_accuracy")


def training_displacement(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Displacement of weights and drift of the empirical NTK in natural and adversarial training, against width.

    Full-batch gradient descent with momentum on the cross-entropy of fully connected ReLU networks in NTK
    parameterization, the same number of steps at every width; the attack is PGD in the l∞ ball of radius 0.1 within
    the valid pixels.

    Args:
        dataset: Integer-labelled images.
        size: "quick" ends within two minutes on two cores.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks, attacks and the choice of examples.

    Returns:
        The study: one figure per quantity and one of accuracies, the numbers, and the fitted slopes.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If a run meets numbers that are not finite.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    sizes = _SIZES[size]
    data_key, run_key = jr.split(key)
    data = subset(dataset, sizes.num_train, sizes.num_test, key=data_key)
    attack = PGD(num_steps=4, relative_step=0.5)
    modes = {"natural": Identity(), "adversarial": attack}
    optimizer = optax.sgd(_LEARNING_RATE, momentum=_MOMENTUM)
    measured = {mode: {name: [] for name in (*_QUANTITIES, *_RESULTS)} for mode in modes}
    runs = len(sizes.widths) * sizes.num_seeds * len(modes)
    with (progress or SilentProgress()).task("training displacement", runs) as task:
        for width in sizes.widths:
            for mode, training_attack in modes.items():
                rows = []
                for seed in range(sizes.num_seeds):
                    # Both kinds of training start from the same networks.
                    key = jr.fold_in(jr.fold_in(run_key, width), seed)
                    run = _Run(data, sizes, width, training_attack, attack, optimizer)
                    rows.append(run.measure(key))
                    task.advance(1, width=float(width), adversarial_accuracy=rows[-1]["adversarial_accuracy"])
                for name, columns in measured[mode].items():
                    columns.append([row[name] for row in rows])
    arrays = {mode: {name: np.array(c).T for name, c in columns.items()} for mode, columns in measured.items()}
    return _write_up(data, sizes, arrays)


class _Run(NamedTuple):
    """What one run trains and how it is attacked."""

    data: Dataset
    sizes: _Size
    width: int
    training_attack: AbstractAttack
    attack: AbstractAttack
    optimizer: optax.GradientTransformation

    def measure(self, key: Key[Array, ""]) -> dict[str, float]:
        """Trains one network and evaluates it on the test examples."""
        init_key, fit_key, evaluation_key = jr.split(key, 3)
        data, perturbations = self.data, LinfBall(_EPSILON, box=Box(*self.data.box))
        network = FullyConnected(
            input_dim=data.input_dim, width=self.width, num_hidden_layers=_DEPTH, num_outputs=data.num_classes
        )
        kernel_fn = _TangentKernel(network, data.x_train[: self.sizes.num_kernel])
        params_0, gram_0 = _initialize(kernel_fn, init_key)
        result = fit(
            network.apply,
            params_0,
            data.x_train,
            data.y_train,
            loss=CrossEntropy(),
            attack=self.training_attack,
            perturbations=perturbations,
            optimizer=self.optimizer,
            num_steps=self.sizes.num_steps,
            probes={
                "movement": DisplacementProbe(params_0),
                "kernel": KernelDriftProbe(kernel_fn, gram_0),
            },
            probe_every=self.sizes.num_steps,
            throw=True,
            key=fit_key,
        )
        evaluation = evaluate(
            network.apply,
            result.params,
            data.x_test,
            data.y_test,
            attack=self.attack,
            perturbations=perturbations,
            loss=CrossEntropy(),
            key=evaluation_key,
        )
        return {
            "displacement": float(result.probes["movement"]["total"][-1]),
            "relative_displacement": float(result.probes["movement"]["total_relative"][-1]),
            "kernel_drift": float(result.probes["kernel"]["kernel_drift"][-1]),
            "surrogate_loss": float(result.history["surrogate_loss"][-1]),
            "natural_accuracy": float(evaluation.natural_accuracy),
            "adversarial_accuracy": float(evaluation.adversarial_accuracy),
        }


class _TangentKernel(eqx.Module):
    """The empirical NTK on fixed points: an object of numbers, so that seeds share compiled programs."""

    network: FullyConnected
    points: Float[Array, "n d"]

    def __call__(self, params: PyTree) -> Float[Array, "n n"]:
        return empirical_ntk(self.network.apply, params, self.points)


@eqx.filter_jit
def _initialize(kernel_fn: _TangentKernel, key: Key[Array, ""]) -> tuple[PyTree, Float[Array, "n n"]]:
    params = kernel_fn.network.init(key=key, dtype=kernel_fn.points.dtype)
    return params, kernel_fn(params)


def _write_up(data: Dataset, sizes: _Size, measured: dict[str, dict[str, np.ndarray]]) -> Study:
    widths = [float(width) for width in sizes.widths]
    figures, slopes, sentences = [], [], []
    for name, (label, expected) in _QUANTITIES.items():
        series = []
        for mode, arrays in measured.items():
            fitted = slope_fit(np.array(widths), arrays[name])
            slopes.append(slope_row(label, mode, fitted, expected))
            sentences.append(f"{name.replace('_', ' ')}, {mode}: {_interval(fitted)}")
            series.append(_banded(mode, widths, arrays[name]))
            series.append(Series(f"{mode}, fit", widths, fitted.predict(np.array(widths)).tolist(), style="dashed"))
        figures.append(
            Figure(
                name=name,
                title=f"{name.replace('_', ' ').capitalize()} against width",
                x_label="width",
                y_label=label,
                series=series,
                x_scale="log",
                y_scale="log",
                caption="Mean over seeds; the band reaches from the smallest to the largest seed.",
            )
        )
    figures.append(
        Figure(
            name="accuracy",
            title="Test accuracy against width",
            x_label="width",
            y_label="fraction classified right",
            series=[
                _banded(f"{mode} training, {name.replace('_', ' ')}", widths, arrays[name])
                for mode, arrays in measured.items()
                for name in ("natural_accuracy", "adversarial_accuracy")
            ],
            x_scale="log",
            caption="Adversarial accuracy is an upper bound of the robust accuracy: it is that of one attack.",
        )
    )
    names = (*_QUANTITIES, *_RESULTS)
    rows = [
        (mode, width, *(float(np.mean(arrays[name][:, column])) for name in names))
        for mode, arrays in measured.items()
        for column, width in enumerate(sizes.widths)
    ]
    return Study(
        name="training_displacement",
        title="How far training moves weights and kernel, against width",
        text=(
            f"Full-batch gradient descent, {sizes.num_steps} steps at learning rate {_LEARNING_RATE} with "
            f"momentum {_MOMENTUM}, on the cross-entropy of ReLU networks with {_DEPTH} hidden layers in NTK "
            f"parameterization, on {sizes.num_train} examples of {data.name}: natural, and adversarial with PGD "
            f"in the l∞ ball of radius {_EPSILON}; {sizes.num_seeds} networks per width. Fitted exponents of "
            f"the width, with 95 % intervals over seeds: {'; '.join(sentences)}. Near the kernel regime the "
            "weights move by a distance free of width, so that the relative displacement falls like the "
            "inverse norm of the weights, and the kernel's change vanishes."
        ),
        figures=tuple(figures),
        tables=(
            Table("slopes", "Fitted exponents of the width", SLOPE_COLUMNS, slopes, "95 % intervals over seeds."),
            Table(
                "runs",
                "Means over seeds",
                ("training", "width", *(name.replace("_", " ") for name in names)),
                rows,
                "Accuracies on test examples; the surrogate loss is that of the last step under the training attack.",
            ),
        ),
    )


def _banded(label: str, widths: list[float], by_seed: np.ndarray) -> Series:
    return Series(
        label, widths, by_seed.mean(axis=0).tolist(), by_seed.min(axis=0).tolist(), by_seed.max(axis=0).tolist()
    )


def _interval(fitted: SlopeFit) -> str:
    return f"{fitted.slope:.3f} [{fitted.lower:.3f}, {fitted.upper:.3f}]"
