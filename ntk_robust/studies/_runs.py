"""One run of training and what is measured of it, for the studies that compare many."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from ntk_robust._core import Series
from ntk_robust.attacks import PGD, AbstractAttack, Box, Identity, LinfBall, evaluate
from ntk_robust.data import Dataset
from ntk_robust.kernels import empirical_ntk
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected
from ntk_robust.training import (
    Centered,
    DisplacementProbe,
    KernelDriftProbe,
    LayerwiseFrobeniusBall,
    LinearizationProbe,
    at_rate,
    fit,
    save_history,
)

LEARNING_RATE = 0.3
MOMENTUM = 0.9
DEPTH = 2
EPSILON = 0.1
ATTACK = PGD(num_steps=4, relative_step=0.5)
MODES = {"natural": Identity(), "adversarial": ATTACK}
PROCEDURE = (
    f"Full-batch gradient descent at learning rate {LEARNING_RATE} with momentum {MOMENTUM} on the cross-entropy of "
    f"ReLU networks with {DEPTH} hidden layers in NTK parameterization"
)

# One object for all runs, so that they share compiled programs.
_OPTIMIZER = optax.sgd(1.0, momentum=MOMENTUM)


class Measured(NamedTuple):
    """What a run came to.

    Attributes:
        numbers: At the end of the run, by name.
        steps: Steps after which the kernel was measured.
        kernel_drift: Its relative change since initialization, then.
    """

    numbers: dict[str, float]
    steps: np.ndarray
    kernel_drift: np.ndarray


class Run(NamedTuple):
    """One training run.

    Attributes:
        data: Examples to train and to evaluate on.
        width: Neurons per hidden layer.
        num_steps: Steps.
        num_kernel: Training examples on which the kernel is measured.
        training_attack: Inner maximization.
        epsilon: Radius of the perturbations, l∞, in units of the pixels.
        output_scale: α of `Centered`, with the learning rate over α²; None trains the network as it is.
        weight_radius: Radius of the ball of each layer to which weights are projected, None for no projection.
        num_probings: How often the kernel is measured after the start.
        tangent: Whether the distance from the tangent at the start is measured.
    """

    data: Dataset
    width: int
    num_steps: int
    num_kernel: int
    training_attack: AbstractAttack
    epsilon: float = EPSILON
    output_scale: float | None = None
    weight_radius: float | None = None
    num_probings: int = 1
    tangent: bool = True

    def measure(self, key: Key[Array, ""], history: Path | None = None) -> Measured:
        """Trains a network from the initialization that the key gives, and evaluates it on the test examples.

        Its history goes to the folder `history`, None for nowhere.

        Raises:
            FloatingPointError: If the run meets numbers that are not finite.
        """
        init_key, fit_key, evaluation_key = jr.split(key, 3)
        data, perturbations = self.data, LinfBall(self.epsilon, box=Box(*self.data.box))
        network = FullyConnected(
            input_dim=data.input_dim, width=self.width, num_hidden_layers=DEPTH, num_outputs=data.num_classes
        )
        kernel_fn = _TangentKernel(network, data.x_train[: self.num_kernel])
        params_0, gram_0 = _initialize(kernel_fn, init_key)
        scale = 1.0 if self.output_scale is None else self.output_scale
        # The scale is an array, so that another one compiles nothing.
        trained = network.apply if self.output_scale is None else Centered(network.apply, params_0, jnp.asarray(scale))
        probes: dict[str, Callable[[PyTree], dict[str, Array]]] = {
            "movement": DisplacementProbe(params_0),
            "kernel": KernelDriftProbe(kernel_fn, gram_0),
        }
        if self.tangent:
            probes["tangent"] = LinearizationProbe(network.apply, params_0, data.x_test)
        arguments = {
            "apply_fn": trained,
            "params": params_0,
            "xs": data.x_train,
            "ys": data.y_train,
            "loss": CrossEntropy(),
            "attack": self.training_attack,
            "perturbations": perturbations,
            "optimizer": at_rate(_OPTIMIZER, LEARNING_RATE / scale**2),
            "num_steps": self.num_steps,
            "constraint": None if self.weight_radius is None else LayerwiseFrobeniusBall(self.weight_radius),
            "probes": probes,
            "probe_every": max(1, self.num_steps // self.num_probings),
            "key": fit_key,
        }
        result = fit(**arguments, throw=True)
        evaluation = evaluate(
            trained,
            result.params,
            data.x_test,
            data.y_test,
            attack=ATTACK,
            perturbations=perturbations,
            loss=CrossEntropy(),
            key=evaluation_key,
        )
        numbers = {
            "displacement": result.probes["movement"]["total"][-1],
            "relative_displacement": result.probes["movement"]["total_relative"][-1],
            "path_length": result.path_length[-1],
            "kernel_drift": result.probes["kernel"]["kernel_drift"][-1],
            "projected": jnp.mean(result.history["projected"]),
            "surrogate_loss": result.history["surrogate_loss"][-1],
            "natural_accuracy": evaluation.natural_accuracy,
            "adversarial_accuracy": evaluation.adversarial_accuracy,
        }
        if self.tangent:
            numbers["linearization_error"] = result.probes["tangent"]["relative_linearization_error"][-1]
        numbers = {name: float(value) for name, value in numbers.items()}
        if history is not None:
            about = {"data": data.name, "width": self.width, "num_hidden_layers": DEPTH, "numbers": numbers}
            save_history(history, result, arguments=arguments, about=about)
        return Measured(
            numbers,
            np.asarray(result.probe_steps),
            np.asarray(result.probes["kernel"]["kernel_drift"]),
        )


def by_name(rows: list[Measured]) -> dict[str, np.ndarray]:
    """The numbers of several runs, one array per name."""
    return {name: np.array([row.numbers[name] for row in rows]) for name in rows[0].numbers}


def banded(label: str, x: list[float], by_seed: np.ndarray) -> Series:
    """The mean over seeds (rows) with a band from the smallest to the largest."""
    return Series(label, x, by_seed.mean(axis=0).tolist(), by_seed.min(axis=0).tolist(), by_seed.max(axis=0).tolist())


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
