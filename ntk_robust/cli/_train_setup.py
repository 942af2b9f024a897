"""The options of `ntk-robust train` as objects of the library, after every check that needs no data."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ntk_robust.attacks import FGSM, PGD, AbstractAttack, AbstractPerturbationSet, Box, Identity, L2Ball, LinfBall
from ntk_robust.cli._arguments import Train
from ntk_robust.cli._common import examples, named_key, network
from ntk_robust.data import Dataset
from ntk_robust.kernels import empirical_ntk
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import AbstractModel
from ntk_robust.training import (
    AbstractMethod,
    AbstractWeightSet,
    Adversarial,
    Free,
    FrobeniusBall,
    LayerwiseFrobeniusBall,
    Mart,
    NeuronBall,
    Trades,
    WeightPerturbed,
)

_WEIGHT_SETS: dict[str, Callable[[float], AbstractWeightSet]] = {
    "layers": LayerwiseFrobeniusBall,
    "all": FrobeniusBall,
    "neurons": NeuronBall,
}


class Setup(NamedTuple):
    model: AbstractModel
    params_0: PyTree
    dataset: Dataset
    attack: AbstractAttack
    perturbations: AbstractPerturbationSet
    loss: CrossEntropy
    method: AbstractMethod
    constraint: AbstractWeightSet | None
    kernel_fn: Callable[[PyTree], Float[Array, "n n"]] | None


def check_options(command: Train) -> None:
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
    if command.dynamics == "network" and command.switch_at is not None:
        raise ValueError(
            f"--switch-at is {command.switch_at} and --dynamics network has nothing to switch to; give linearized or "
            "centered"
        )
    if command.switch_at is not None and not 1 <= command.switch_at < command.num_steps:
        raise ValueError(
            f"--switch-at is {command.switch_at}; give 1 to {command.num_steps - 1}, below --num-steps, or leave it "
            "out for the start"
        )
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


def set_up(command: Train) -> Setup:
    dataset = examples(command)
    model = network(command, dataset)
    ball = {"linf": LinfBall, "l2": L2Ball}[command.norm]
    params_0 = model.init(key=named_key(command.seed, "network"), dtype=np.dtype(command.dtype))
    kernel_fn = None
    if command.kernel_points:
        points = dataset.x_train[: command.kernel_points]
        kernel_fn = jax.jit(functools.partial(_kernel, model, points))
    return Setup(
        model=model,
        params_0=params_0,
        dataset=dataset,
        attack=attack_of(command, command.attack_steps),
        perturbations=ball(command.epsilon, box=Box(*dataset.box)),
        loss=CrossEntropy(),
        method=_method(command),
        constraint=None if command.weight_radius is None else _WEIGHT_SETS[command.weight_set](command.weight_radius),
        kernel_fn=kernel_fn,
    )


def _kernel(model: AbstractModel, points: Float[Array, "n d"], params: PyTree) -> Float[Array, "n n"]:
    return empirical_ntk(model.apply, params, points, trainable=model.trainable_mask(params))


def attack_of(command: Train, num_steps: int) -> AbstractAttack:
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


def optimizer_of(command: Train, begin: int) -> optax.GradientTransformation:
    """The optimizer with the schedule of the whole run from step `begin` on."""
    rate = command.learning_rate
    if command.schedule == "cosine":
        whole = optax.cosine_decay_schedule(command.learning_rate, command.num_steps)
        rate = whole if begin == 0 else lambda count: whole(count + begin)
    match command.optimizer:
        case "sgd":
            return optax.sgd(rate)
        case "momentum":
            return optax.sgd(rate, momentum=command.momentum)
        case "adam":
            return optax.adam(rate, b1=command.momentum)
