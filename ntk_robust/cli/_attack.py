"""A saved network or a kernel regression under attack, with certificates from the other side."""

import dataclasses
import math
from pathlib import Path
from typing import Any

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
    MinimumRadius,
    Square,
    auto_attack,
    evaluate,
    minimum_radius,
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
from ntk_robust.cli._arguments import Attack
from ntk_robust.cli._attack_report import (
    AtRadius,
    attack_record,
    attack_study,
    certified_radii,
    distances_sentence,
    examples_svg,
    minimum_radii,
)
from ntk_robust.cli._common import named_key, run_record
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say, warn
from ntk_robust.cli._victim import Victim, fitted_regression, saved_network
from ntk_robust.data import Dataset
from ntk_robust.kernels import KernelPredictor, ZonalKernel
from ntk_robust.losses import AbstractLoss, CrossEntropy, Margin
from ntk_robust.report import prepare_report_folder, write_report

_TITLE = "Attack"
_SUMMARY = "Accuracy under attack, an upper bound of the robust accuracy, beside what is certified, a lower one."
_BATCH_SIZE = 100
_LOSS_ATTACKS = ("fgsm", "pgd", "apgd")
_MARGIN_ATTACKS = ("fab", "deep-fool", "carlini-wagner", "square")
# What --run takes from the run instead, so that giving it would mean nothing.
_OF_REGRESSION = (
    "kernel", "data", "train_batches", "num_train", "num_test", "num_hidden_layers", "activation", "w_std", "b_std",
    "ridge", "dtype",
)  # fmt: skip
_METHODS = {"crown": Crown, "alpha-crown": AlphaCrown, "interval": IntervalBounds}


def attack(command: Attack) -> int:
    """Evaluates at every radius, writes after each; code 1 if the audit finds the attack at fault."""
    _check(command)
    victim = fitted_regression(command) if command.run is None else saved_network(command)
    folder = prepare_report_folder(command.out)
    run = run_record(command)
    if victim.trained is not None:
        run["arguments"] = {name: given for name, given in run["arguments"].items() if name not in _OF_REGRESSION}
        run["trained"] = dataclasses.asdict(victim.trained)
    certifies = command.certificate != "none" and (victim.model is not None or _is_certifiable(victim.params))
    found: list[AtRadius] = []

    def write(pending: tuple[str, ...]) -> Path:
        study = attack_study(found, name=victim.name, norm=command.norm, attack=command.attack, certifies=certifies)
        record = attack_record(found, norm=command.norm, attack=command.attack, labels=_examples(command, victim)[1])
        write_json_atomically(folder / "attack.json", record)
        return write_report(folder, studies=[study], run=run, pending=pending, title=_TITLE, summary=_SUMMARY)

    with display() as progress:
        nearest = None
        if command.minimum_radii:
            with progress.task("nearest wrong points"):
                nearest = _nearest(command, victim)
        with progress.task(f"{command.attack} on {victim.name}", len(command.radii)) as task:
            for number, radius in enumerate(command.radii):
                later = command.radii[number + 1 :]
                found.append(_at_radius(command, victim, radius, nearest, certifies=certifies, grows=not later))
                _check_radii(minimum_radii(found), certified_radii(found))
                bracket = found[-1].bracket
                figures = {"adversarial_accuracy": found[-1].adversarial_accuracy}
                task.advance(1, **figures | ({} if bracket is None else {"certified": bracket.certified_accuracy}))
                write(tuple(f"radius {radius:g}" for radius in later))
        with progress.task("examples"):
            grid = examples_svg(found, victim.apply_fn, victim.params, victim.dataset)
            if grid:
                (folder / "examples.svg").write_text(grid)
    page = write(())
    if grid:
        _show_examples(page)
    for result in found:
        say(result.sentence())
    say(distances_sentence(found, command.norm))
    say(f"report: {page}")
    if not certifies and command.certificate != "none":
        if isinstance(victim.params, KernelPredictor):
            warn("no certificate is known for this kernel; certificates exist for relu without biases")
        else:
            warn("no certificate is known for the tangent of a network; certificates exist for the network itself")
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
    if command.loss is not None and command.attack not in _LOSS_ATTACKS:
        raise ValueError(f"--attack {command.attack} has an objective of its own; drop --loss {command.loss}")
    if command.attack == "carlini-wagner" and command.norm != "l2":
        raise ValueError("--attack carlini-wagner measures in l2; add --norm l2, or choose fab")
    if not 0 <= command.ridge < math.inf:
        raise ValueError(f"--ridge is {command.ridge}; give a number of at least 0")


def _examples(command: Attack, victim: Victim) -> tuple[Array, Array]:
    """The test examples that are attacked."""
    dataset = victim.dataset
    return dataset.x_test[: command.num_examples], dataset.y_test[: command.num_examples]


def _set(command: Attack, victim: Victim, radius: float) -> AbstractPerturbationSet:
    ball = {"linf": LinfBall, "l2": L2Ball}[command.norm]
    return ball(jnp.asarray(radius, victim.dataset.x_test.dtype), box=Box(*victim.dataset.box))


def _at_radius(
    command: Attack, victim: Victim, radius: float, nearest: MinimumRadius | None, *, certifies: bool, grows: bool
) -> AtRadius:
    """Both bounds at one radius; the control with growing radii only where it is asked for."""
    perturbations = _set(command, victim, radius)
    evaluation = _evaluate(command, victim, perturbations, nearest, grows=grows)
    ensemble = _ensemble(command, victim, perturbations) if command.attack == "auto" else None
    if not certifies:
        return AtRadius(radius, evaluation, ensemble, None)
    certificate = _certify(command, victim, *_examples(command, victim), perturbations)
    bracket = bracket_accuracy(evaluation, certificate)
    if ensemble is not None:
        _check_order(certificate, ensemble)
    return AtRadius(radius, evaluation, ensemble, bracket)


def _nearest(command: Attack, victim: Victim) -> MinimumRadius:
    """The nearest wrong points that FAB finds among all valid inputs."""
    xs, ys = _examples(command, victim)
    low, high = victim.dataset.box
    across = (high - low) * (xs[0].size ** 0.5 if command.norm == "l2" else 1.0)
    return minimum_radius(
        victim.apply_fn,
        victim.params,
        xs,
        ys,
        attack=FAB(),
        perturbations=_set(command, victim, across),
        loss=Margin(),
        key=named_key(command.seed, "nearest"),
        num_halvings=0,
        batch_size=min(_BATCH_SIZE, len(xs)),
    )


def _controls(command: Attack, dataset: Dataset, *, grows: bool) -> Controls | None:
    """Square where it is not among the attacks, and growing radii where asked for."""
    if not command.controls:
        return None
    rivals = () if command.attack in ("square", "auto") else (Square(1000, image_shape=dataset.image_shape),)
    return Controls(rivals=rivals, num_doublings=Controls().num_doublings if grows else 0)


def _evaluate(
    command: Attack,
    victim: Victim,
    perturbations: AbstractPerturbationSet,
    nearest: MinimumRadius | None,
    *,
    grows: bool,
) -> Evaluation:
    """The audited evaluation, for "auto" of the ensemble's first attack."""
    xs, ys = _examples(command, victim)
    return evaluate(
        victim.apply_fn,
        victim.params,
        xs,
        ys,
        attack=_strategy(command, victim.dataset),
        perturbations=perturbations,
        loss=_loss(command, victim),
        key=named_key(command.seed, "attack"),
        batch_size=min(_BATCH_SIZE, len(xs)),
        controls=_controls(command, victim.dataset, grows=grows),
        nearest=nearest,
    )


def _loss(command: Attack, victim: Victim) -> AbstractLoss:
    """What is asked for, else the margin for attacks that need it, and for regressions, whose outputs are no logits."""
    usual = "margin" if command.attack in _MARGIN_ATTACKS or victim.model is None else "cross-entropy"
    return {"margin": Margin(), "cross-entropy": CrossEntropy()}[command.loss or usual]


def _ensemble(command: Attack, victim: Victim, perturbations: AbstractPerturbationSet) -> AutoAttackResult:
    xs, ys = _examples(command, victim)
    return auto_attack(
        victim.apply_fn,
        victim.params,
        xs,
        ys,
        perturbations=perturbations,
        key=named_key(command.seed, "attack"),
        image_shape=victim.dataset.image_shape,
        batch_size=min(_BATCH_SIZE, len(xs)),
        **_budget(command, "num_steps"),
    )


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


def _is_certifiable(predictor: PyTree) -> bool:
    return isinstance(predictor, KernelPredictor) and isinstance(predictor.kernel, ZonalKernel)


def _certify(
    command: Attack, victim: Victim, xs: Array, ys: Array, perturbations: AbstractPerturbationSet
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


def _check_radii(upper: np.ndarray, lower: np.ndarray | None) -> None:
    """No example may have a wrong point, found at whatever radius, within what is certified at another one."""
    refuted = np.zeros(0, int) if lower is None else np.flatnonzero((lower > 0) & (upper <= lower))
    if refuted.size:
        first = refuted[0]
        raise ArithmeticError(
            f"{refuted.size} examples have a wrong point within their certified radius (example {first}: at distance "
            f"{upper[first]:.6g}): one of the two is wrong; report it"
        )


def _show_examples(page: Path) -> None:
    """Puts the grid on the page, as a picture beside it."""
    figure = (
        '<figure><img src="examples.svg" alt="Examples that the attack turned" style="max-width:100%;background:#fff">'
        '<figcaption>Examples that the attack turned: <a href="examples.svg">examples.svg</a></figcaption></figure>'
    )
    before, end, after = page.read_text(encoding="utf-8").rpartition("</main>")
    write_text_atomically(page, f"{before}{figure}\n{end}{after}")
