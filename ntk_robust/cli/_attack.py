"""A saved network or a kernel regression under attack, with certificates from the other side."""

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_robust._core import write_json_atomically, write_text_atomically
from ntk_robust.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    AbstractAttack,
    AbstractPerturbationSet,
    AutoAttackResult,
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
# What --run takes from the run instead, so that giving it would mean nothing.
_OF_REGRESSION = (
    "kernel", "data", "train_batches", "num_train", "num_test", "num_hidden_layers", "activation", "w_std", "b_std",
    "ridge", "dtype",
)  # fmt: skip
_METHODS = {"crown": Crown, "alpha-crown": AlphaCrown, "interval": IntervalBounds}


class _Victim(NamedTuple):
    """What is attacked: (apply_fn, params), how to certify it, and in which words to speak of it."""

    apply_fn: Any
    params: PyTree
    model: AbstractModel | None
    dataset: Dataset
    name: str
    trained: Train | None = None


def attack(command: Attack) -> int:
    """Evaluates at every radius, writes after each; code 1 if the audit finds the attack at fault."""
    _check(command)
    victim = _kernel_regression(command) if command.run is None else _saved_network(command)
    dataset = victim.dataset
    count = min(command.num_examples, len(dataset.x_test))
    xs, ys = dataset.x_test[:count], dataset.y_test[:count]
    folder = prepare_report_folder(command.out)
    run = run_record(command)
    if victim.trained is not None:
        run["arguments"] = {name: given for name, given in run["arguments"].items() if name not in _OF_REGRESSION}
        run["trained"] = dataclasses.asdict(victim.trained)
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
                evaluation, ensemble = _evaluate(command, victim, xs, ys, perturbations)
                bracket = None
                if certifies:
                    certificate = _certify(command, victim, xs, ys, perturbations)
                    bracket = bracket_accuracy(evaluation, certificate)
                    if ensemble is not None:
                        _check_order(certificate, ensemble)
                found.append(AtRadius(radius, evaluation, ensemble, bracket))
                figures = {"adversarial_accuracy": found[-1].adversarial_accuracy}
                task.advance(1, **figures | ({} if bracket is None else {"certified": bracket.certified_accuracy}))
                write(tuple(f"radius {later:g}" for later in command.radii[number + 1 :]))
        with progress.task("examples"):
            grid = examples_svg(found, victim.apply_fn, victim.params, dataset)
            if grid:
                (folder / "examples.svg").write_text(grid)
    page = write(())
    if grid:
        _show_examples(page)
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
    named_key(command.seed, "attack")
    if command.num_examples < 1 or (command.num_steps is not None and command.num_steps < 1):
        raise ValueError(
            f"--num-examples is {command.num_examples} and --num-steps {command.num_steps}; both must be at least 1"
        )
    if command.run is not None:
        usual = Attack()
        idle = [name for name in _OF_REGRESSION if getattr(command, name) != getattr(usual, name)]
        if idle:
            option = "--" + idle[0].replace("_", "-")
            raise ValueError(
                f"{option} describes a kernel regression, and --run {command.run} a network; drop one of the two"
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
    trained = _trained(folder / "run.json", command.data_dir)
    stored = _weights(folder / "params.npz")
    dataset = examples(trained)
    model = network(trained, dataset)
    like = model.init(key=jax.random.key(0), dtype=np.dtype(trained.dtype))
    shapes = {name: array.shape for name, array in arrays_by_path(like).items()}
    if shapes != {name: array.shape for name, array in stored.items()}:
        raise ValueError(f"{folder / 'params.npz'} does not hold the weights of the network that run.json describes")
    params = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(stored[name]) for name in shapes])
    return _Victim(model.apply, params, model, dataset, f"the network in {folder}", trained)


def _trained(path: Path, data_dir: Path | None) -> Train:
    """The command that trained a network, as its folder tells, with another data directory if one is given."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); name a folder of `train`") from error
    if not isinstance(record, dict) or record.get("command") != "train":
        what = record.get("command") if isinstance(record, dict) else record
        raise ValueError(f"{path} holds the results of {what!r}; name a folder of `train`")
    try:
        arguments = record["arguments"]
        paths = {name: None if arguments[name] is None else Path(arguments[name]) for name in ("out", "data_dir")}
        if data_dir is not None:
            paths["data_dir"] = data_dir
        return Train(**arguments | paths | {"train_batches": tuple(arguments["train_batches"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what this version of `train` writes ({error!r}); train again") from error


def _weights(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no weights: numpy cannot read it as an .npz file; train again") from error
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f"{path} holds weights that are not finite ({broken[0]}); the training has diverged")
    return arrays


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
) -> tuple[Evaluation, AutoAttackResult | None]:
    """The audited evaluation, for "auto" of the ensemble's first attack, and what the ensemble found."""
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
        return evaluation, None
    ensemble = auto_attack(
        victim.apply_fn,
        victim.params,
        xs,
        ys,
        perturbations=perturbations,
        key=key,
        image_shape=victim.dataset.image_shape,
        batch_size=batch_size,
        **_budget(command, "num_steps"),
    )
    return evaluation, ensemble


def _budget(command: Attack, name: str) -> dict[str, Any]:
    """The number of steps as an option called `name`; none means the attack's own default."""
    return {} if command.num_steps is None else {name: command.num_steps}


def _strategy(command: Attack, dataset: Dataset) -> AbstractAttack:
    budget = _budget(command, "num_steps")
    match command.attack:
        case "fgsm":
            return FGSM()
        case "pgd":
            # Steps that add up to 2.5 radii can cross the set and come back, however many there are.
            return PGD(**budget, relative_step=2.5 / PGD(**budget).num_steps)
        case "apgd" | "auto":
            return APGD(**budget)
        case "square":
            return Square(**_budget(command, "num_queries"), image_shape=dataset.image_shape)
        case "fab":
            return FAB(**budget)
        case "deep-fool":
            return DeepFool(**budget)
        case "carlini-wagner":
            return CarliniWagner(**budget)


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


def _check_order(certificate: Certificate, ensemble: AutoAttackResult) -> None:
    """Every example that is certified must have withstood; accuracies in order could hide two that are not."""
    refuted = np.flatnonzero(np.asarray(certificate.certified) & ~np.asarray(ensemble.is_right))
    if refuted.size:
        raise ArithmeticError(
            f"AutoAttack fooled the network on {refuted.size} examples that are certified (the first is example "
            f"{refuted[0]}): one of the two is wrong; report it"
        )


def _show_examples(page: Path) -> None:
    """Puts the grid on the page, as a picture beside it."""
    figure = (
        '<figure><img src="examples.svg" alt="Examples that the attack turned" style="max-width:100%;background:#fff">'
        '<figcaption>Examples that the attack turned: <a href="examples.svg">examples.svg</a></figcaption></figure>'
    )
    before, end, after = page.read_text(encoding="utf-8").rpartition("</main>")
    write_text_atomically(page, f"{before}{figure}\n{end}{after}")
