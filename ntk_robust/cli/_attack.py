"""A saved network or a kernel regression under attack, with certificates from the other side."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_robust._core import write_json_atomically
from ntk_robust.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    AbstractAttack,
    AbstractPerturbationSet,
    Box,
    CarliniWagner,
    Controls,
    DeepFool,
    Evaluation,
    L2Ball,
    LinfBall,
    Square,
    auto_attack,
    evaluate,
)
from ntk_robust.certify import (
    AccuracyBracket,
    AlphaCrown,
    Certificate,
    Crown,
    IntervalBounds,
    RkhsFunction,
    bracket_accuracy,
    certify_batch,
    local_kernel_bounds,
    margin_specification,
    network_of,
    rkhs_bounds,
)
from ntk_robust.cli._arguments import Attack, Train
from ntk_robust.cli._attack_report import AtRadius, attack_study, examples_svg
from ntk_robust.cli._common import activation, arrays_by_path, examples, named_key, network, run_record
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say, warn
from ntk_robust.data import Dataset
from ntk_robust.kernels import KernelPredictor, ZonalKernel, analytic_nngp, analytic_ntk, kernel_regression
from ntk_robust.losses import CrossEntropy, Margin
from ntk_robust.models import AbstractModel, FullyConnected
from ntk_robust.report import prepare_report_folder, write_report

_TITLE = "Attack"
_SUMMARY = "Accuracy under attack, an upper bound of the robust accuracy, beside what is certified, a lower one."
_BATCH_SIZE = 100
_MARGIN_ATTACKS = ("fab", "deep-fool", "carlini-wagner")
_METHODS = {"crown": Crown, "alpha-crown": AlphaCrown, "interval": IntervalBounds}


class _Victim(NamedTuple):
    """What is attacked: (apply_fn, params), how to certify it, and in which words to speak of it."""

    apply_fn: Any
    params: PyTree
    model: AbstractModel | None
    dataset: Dataset
    name: str


def attack(command: Attack) -> int:
    """Evaluates at every radius, writes after each; code 1 if the audit finds the attack at fault."""
    _check(command)
    victim = _kernel_regression(command) if command.run is None else _saved_network(command)
    dataset = victim.dataset
    count = min(command.num_examples, len(dataset.x_test))
    xs, ys = dataset.x_test[:count], dataset.y_test[:count]
    folder = prepare_report_folder(command.out)
    run = run_record(command)
    ball = {"linf": LinfBall, "l2": L2Ball}[command.norm]
    box = Box(*dataset.box)
    certifies = command.certificate != "none" and (victim.model is not None or _is_certifiable(victim.params))
    found: list[AtRadius] = []

    def write(pending: tuple[str, ...]) -> Path:
        study = attack_study(
            found, name=victim.name, norm=command.norm, attack=command.attack, num_examples=count, certifies=certifies
        )
        records = [result.record() for result in found]
        write_json_atomically(
            folder / "attack.json", {"attack": command.attack, "norm": command.norm, "radii": records}
        )
        return write_report(folder, studies=[study], run=run, pending=pending, title=_TITLE, summary=_SUMMARY)

    with display() as progress:
        with progress.task(f"{command.attack} on {victim.name}", len(command.radii)) as task:
            for number, radius in enumerate(command.radii):
                perturbations = ball(jnp.asarray(radius, xs.dtype), box=box)
                evaluation, accuracy = _evaluate(command, victim, xs, ys, perturbations)
                bracket = None
                if certifies:
                    certificate = _certify(command, victim, xs, ys, perturbations)
                    bracket = bracket_accuracy(evaluation, certificate)
                    _check_order(bracket, accuracy)
                found.append(AtRadius(radius, evaluation, accuracy, bracket))
                figures = {"adversarial_accuracy": accuracy}
                task.advance(1, **figures | ({} if bracket is None else {"certified": bracket.certified_accuracy}))
                write(tuple(f"radius {later:g}" for later in command.radii[number + 1 :]))
        with progress.task("examples"):
            grid = examples_svg(found, victim.apply_fn, victim.params, dataset)
            if grid:
                (folder / "examples.svg").write_text(grid)
    page = write(())
    for result in found:
        say(result.sentence())
    say(f"report: {page}")
    if not certifies and command.certificate != "none":
        warn("no certificate is known for this kernel; certificates exist for relu without biases")
    if not all(result.evaluation.audit.is_sound for result in found):
        warn("the audit found the attack at fault; see the findings in the report")
        return 1
    return 0


def _check(command: Attack) -> None:
    """Refuses what the library would refuse later, in the words of the options."""
    if not command.radii or not all(0 <= radius < math.inf for radius in command.radii):
        raise ValueError(f"--radii are {list(command.radii)}; give one or more finite numbers of at least 0")
    if list(command.radii) != sorted(set(command.radii)):
        raise ValueError(f"--radii are {list(command.radii)}; give them in increasing order")
    if command.num_examples < 1 or command.num_steps < 1:
        raise ValueError(
            f"--num-examples is {command.num_examples} and --num-steps {command.num_steps}; both must be at least 1"
        )
    if command.attack == "carlini-wagner" and command.norm != "l2":
        raise ValueError("--attack carlini-wagner measures in l2; add --norm l2, or choose fab")
    if not 0 <= command.ridge < math.inf:
        raise ValueError(f"--ridge is {command.ridge}; give a number of at least 0")


def _saved_network(command: Attack) -> _Victim:
    """The network in a folder of `train`, with its test examples.

    Raises:
        ValueError: If the folder holds no such run, or another network's weights.
        OSError: If a file is missing.
    """
    folder = command.run
    assert folder is not None
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if record.get("command") != "train":
        raise ValueError(f"--run {folder} holds the results of {record.get('command')!r}; name a folder of `train`")
    arguments = record["arguments"]
    paths = {name: None if arguments[name] is None else Path(arguments[name]) for name in ("out", "data_dir")}
    if command.data_dir is not None:
        paths["data_dir"] = command.data_dir
    trained = Train(**arguments | paths | {"train_batches": tuple(arguments["train_batches"])})
    dataset = examples(trained)
    model = network(trained, dataset)
    like = model.init(key=jax.random.key(0), dtype=np.dtype(trained.dtype))
    with np.load(folder / "params.npz") as stored:
        shapes = {name: array.shape for name, array in arrays_by_path(like).items()}
        if shapes != {name: stored[name].shape for name in stored}:
            raise ValueError(
                f"{folder / 'params.npz'} does not hold the weights of the network that run.json describes"
            )
        params = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(stored[name]) for name in shapes])
    return _Victim(model.apply, params, model, dataset, f"the network in {folder}")


def _kernel_regression(command: Attack) -> _Victim:
    dataset = examples(command)
    model = FullyConnected(
        dataset.input_dim,
        1,
        command.num_hidden_layers,
        "scalar",
        activation(command.activation),
        w_std=command.w_std,
        b_std=command.b_std,
    )
    kernel = analytic_ntk(model) if command.kernel == "analytic_ntk" else analytic_nngp(model)
    targets = np.eye(dataset.num_classes, dtype=dataset.x_train.dtype)[np.asarray(dataset.y_train)]
    gram = np.asarray(kernel.gram(dataset.x_train))
    # Centered targets: what is far from all examples then says nothing instead of "no class".
    fitted = kernel_regression(
        gram, targets - targets.mean(axis=0), ridge=command.ridge * float(np.mean(np.diag(gram)))
    )
    predictor = KernelPredictor(kernel, dataset.x_train, jnp.asarray(fitted.dual))
    name = f"{command.kernel} regression on {len(gram)} examples of {dataset.name}"
    return _Victim(KernelPredictor.__call__, predictor, None, dataset, name)


def _evaluate(
    command: Attack, victim: _Victim, xs: Array, ys: Array, perturbations: AbstractPerturbationSet
) -> tuple[Evaluation, float]:
    """The audited evaluation, and the adversarial accuracy, which AutoAttack may lower further."""
    key = named_key(command.seed, "attack")
    batch_size = min(_BATCH_SIZE, len(xs))
    evaluation = evaluate(
        victim.apply_fn,
        victim.params,
        xs,
        ys,
        attack=_strategy(command, victim.dataset),
        perturbations=perturbations,
        loss=Margin() if command.attack in _MARGIN_ATTACKS or command.attack == "square" else CrossEntropy(),
        key=key,
        batch_size=batch_size,
        controls=Controls(rivals=(Square(1000, image_shape=victim.dataset.image_shape),)) if command.controls else None,
    )
    if command.attack != "auto":
        return evaluation, evaluation.adversarial_accuracy
    ensemble = auto_attack(
        victim.apply_fn,
        victim.params,
        xs,
        ys,
        perturbations=perturbations,
        key=key,
        num_steps=command.num_steps,
        image_shape=victim.dataset.image_shape,
        batch_size=batch_size,
    )
    return evaluation, float(np.mean(ensemble.is_right & (np.asarray(evaluation.margins) < 0)))


def _strategy(command: Attack, dataset: Dataset) -> AbstractAttack:
    steps = command.num_steps
    match command.attack:
        case "fgsm":
            return FGSM()
        case "pgd":
            # Steps that add up to 2.5 radii can cross the set and come back, however many there are.
            return PGD(num_steps=steps, relative_step=2.5 / steps)
        case "apgd" | "auto":
            return APGD(num_steps=steps)
        case "square":
            return Square(num_queries=steps, image_shape=dataset.image_shape)
        case "fab":
            return FAB(num_steps=steps)
        case "deep-fool":
            return DeepFool(num_steps=steps)
        case "carlini-wagner":
            return CarliniWagner(num_steps=steps)


def _is_certifiable(predictor: KernelPredictor) -> bool:
    return isinstance(predictor.kernel, ZonalKernel)


def _certify(
    command: Attack, victim: _Victim, xs: Array, ys: Array, perturbations: AbstractPerturbationSet
) -> Certificate:
    if victim.model is not None:
        method = _METHODS[command.certificate]()
        network = network_of(victim.model, victim.params)
        return certify_batch(method, network, xs, ys, perturbations, batch_size=min(20, len(xs)))
    predictor = victim.params
    function = RkhsFunction(predictor.kernel, predictor.x_train, predictor.dual)
    margins = _kernel_margins(function, xs, ys, perturbations)
    return Certificate(margins, margins > 0)


@eqx.filter_jit
def _kernel_margins(
    function: RkhsFunction, xs: Float[Array, "n d"], ys: Array, perturbations: AbstractPerturbationSet
) -> Float[Array, " n"]:
    """The better of both certificates of kernel predictors."""
    num_classes = function.dual.shape[1]

    def margin(example: tuple[Array, Array]) -> Array:
        x, y = example
        rows = margin_specification(y, num_classes, xs.dtype)
        bounds = [method(function, x, perturbations, rows).lower for method in (rkhs_bounds, local_kernel_bounds)]
        return jnp.min(jnp.maximum(*bounds))

    return jax.lax.map(margin, (xs, ys))


def _check_order(bracket: AccuracyBracket, adversarial_accuracy: float) -> None:
    if bracket.certified_accuracy > adversarial_accuracy:
        raise ArithmeticError(
            f"an attack left {adversarial_accuracy:.4f} right where {bracket.certified_accuracy:.4f} are certified: "
            "one of the two is wrong; report it"
        )
