"""Evaluation of a network under an attack, with an audit of the attack."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ntk_robust.attacks._attack import AbstractAttack, count_zero
from ntk_robust.attacks._audit import Audit, draw_findings
from ntk_robust.attacks._batch import ApplyFn, LossObjective
from ntk_robust.attacks._checks import check_kind
from ntk_robust.attacks._controls import ControlRuns, Controls, run_controls
from ntk_robust.attacks._grading import Grades, Numbers, grade_one, in_batches
from ntk_robust.attacks._minimum_radius import MinimumRadius
from ntk_robust.attacks._problem import Problem, pose
from ntk_robust.attacks._replay import Visits, replay
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import AbstractLoss, Margin

_NUM_REPLAYED = 4


class Evaluation(eqx.Module):
    """How a network does on n examples with and without an attack.

    An example counts as right only if both x and the attack's point are classified strictly right: x is in B(x), so
    adversarial_accuracy ≤ natural_accuracy. A point outside B(x) is replaced by x. Where the network's output is not a
    number nothing is right, here and in `auto_attack`, `minimum_radius` and `transfer`.

    Attributes:
        natural_accuracy: Fraction of the inputs that are classified right.
        adversarial_accuracy: Fraction still right under this attack: an upper bound of the robust accuracy.
        natural_loss: Mean loss at the inputs.
        surrogate_loss: Mean loss at the attack's points, L_A: a lower bound of the robust loss.
        natural_margins: Attacker's `Margin` of each example at x; right means < 0.
        margins: The worse of that and of the margin at the attack's point.
        epsilon: Radius of each example.
        minimum_radii: Upper bound of the distance from each example to the nearest wrong point, in the set's norm and
            in input units: 0 for an input that is already wrong, `inf` where no wrong point is known. Of the attack's
            own point, at most ε, and of that of `nearest`.
        audit: What a look from outside says about the attack.
        x_adv: The attack's points as it returned them.
        controls: What the second runs gave, None without any.
    """

    natural_accuracy: float
    adversarial_accuracy: float
    natural_loss: float
    surrogate_loss: float
    natural_margins: Float[Array, " n"]
    margins: Float[Array, " n"]
    epsilon: Float[Array, " n"]
    minimum_radii: Float[Array, " n"]
    audit: Audit
    x_adv: Float[Array, "n *dims"]
    controls: ControlRuns | None = None


def evaluate(
    apply_fn: ApplyFn,
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    *,
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    loss: AbstractLoss,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    controls: Controls | None = None,
    nearest: MinimumRadius | None = None,
) -> Evaluation:
    """Natural and adversarial accuracy and loss, recomputed outside the attack, and an audit of the attack.

    The audit re-checks membership in the set and the reported values, compares with one FGSM step on the loss and on
    the margin, counts zero gradients, and repeats the attack on the four examples that it moved most, at their radius
    while recording where gradients are taken, and at radius 0. It costs about three more gradients per example and one
    more compilation of the attack.

    Args:
        apply_fn: (params, x) -> a scalar output or at least two logits, for one example.
        params: The network's parameters; new values do not recompile.
        xs: Inputs, inside the box.
        ys: Integer labels for logits; floats for a scalar output: the values to fit for a loss of regression, which
            margins and accuracies know by their signs only, else ±1 or other numbers whose sign is the class.
        attack: Attack to run with `loss` as its objective.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        loss: The loss that is attacked and averaged.
        key: Folded with the number of the example, so that `batch_size` does not change the result.
        batch_size: Examples attacked at a time, None for all at once.
        controls: Second runs for the audit, which cost as much as the attack each: growing radii, other attacks,
            another network's points. None is none.
        nearest: What `minimum_radius` found for the same network and examples, with a set of the same norm and any
            radius. Its points are graded again, enter `minimum_radii`, and are held against the attack.

    Returns:
        Accuracies, losses, margins, audit and the attack's points.

    Raises:
        ValueError: For an empty or misshapen batch, inputs that are not finite or outside the box, labels that are not
            integers, out of range, or 0 for a scalar output where they are classes (`Hinge`, `Logistic`, `Margin`), a
            loss that does not fit the output, names and classes in place of an attack, a loss or a set, or `nearest` of
            other inputs.
    """
    problem = pose((apply_fn, params), xs, ys, perturbations, batch_size, attack=attack, loss=loss)
    check_kind("nearest", nearest, (MinimumRadius, type(None)), "what minimum_radius returned, or None")
    check_kind("controls", controls, (Controls, type(None)), "Controls(), or None")
    if nearest is not None and nearest.x_adv.shape != xs.shape:
        raise ValueError(f"nearest holds points of shape {nearest.x_adv.shape} for inputs of shape {xs.shape}")
    inputs, targets, epsilons, num_examples = problem.inputs, problem.targets, problem.epsilons, len(problem.inputs)
    objective = LossObjective(apply_fn, params, loss)

    def run_steps(xs: Array, ys: Array, epsilons: Array) -> _SingleSteps:
        return _take_single_steps(objective, xs, ys, perturbations.with_epsilon(epsilons))

    steps: _SingleSteps = in_batches(run_steps, problem.batch_size, inputs, targets, epsilons)
    found = problem.attack(attack, objective, key=key)
    graded = problem.grade(objective, found.x_adv)

    def accuracy(margins: Numbers) -> float:
        return float(np.mean(margins < 0))

    natural_margins = steps.natural.margins
    margins = np.where(graded.inside, np.maximum(graded.margins, natural_margins), natural_margins)
    surrogate_loss = float(np.mean(np.where(graded.inside, graded.losses, steps.natural.losses)))
    adversarial_accuracy = accuracy(margins)
    minimum_radii = np.where(graded.fooled, graded.norms, np.inf)
    num_nearer = 0
    if nearest is not None:
        claimed = np.where(np.isfinite(nearest.radius), nearest.radius, 0).astype(epsilons.dtype)
        again = problem._replace(epsilons=claimed).grade(objective, np.asarray(nearest.x_adv))
        minimum_radii = np.where(again.fooled, np.minimum(minimum_radii, again.norms), minimum_radii)
        num_nearer = int(np.sum((margins < 0) & again.fooled & (again.norms <= epsilons)))
    minimum_radii = np.where(natural_margins < 0, minimum_radii, 0).astype(inputs.dtype)
    # Other batch shapes and fusions round differently, along all of the network's sums.
    relative = float(np.finfo(problem.output.dtype).eps) ** 0.5
    mismatch = np.abs(found.value - graded.losses) > relative * (1 + np.abs(graded.losses))
    finite = np.isfinite(found.x_adv.reshape(num_examples, -1)).all(axis=1) & np.isfinite(graded.losses)

    moved = np.abs(found.x_adv - inputs).reshape(num_examples, -1).sum(axis=1)
    chosen = np.argsort(-moved, kind="stable")[:_NUM_REPLAYED]

    def repeat(part: Problem) -> tuple[list[Visits], np.ndarray]:
        around = perturbations.with_epsilon(part.epsilons)
        examples = jnp.asarray(part.examples)
        xs, ys = jnp.asarray(part.inputs), jnp.asarray(part.targets)
        return replay(attack, objective, xs, ys, around, examples=examples, key=key)

    part = problem.of(chosen)
    at_zero = part._replace(epsilons=np.zeros_like(part.epsilons))
    visits, _ = repeat(part)
    stayed = at_zero.grade(objective, repeat(at_zero)[1]).inside
    audit = Audit(
        num_examples=num_examples,
        num_outside=int(np.sum(~graded.inside)),
        max_excess=float(np.max(np.where(graded.inside, 0, graded.excess))),
        num_value_mismatches=int(np.sum(mismatch)),
        num_not_monotone=int(np.sum((found.values[:, 1:] < found.values[:, :-1]).any(axis=1))),
        num_not_finite=int(np.sum(~(finite & np.isfinite(found.value)))),
        zero_gradient_fraction=float(np.mean(steps.zero_gradient)),
        flat_fraction=float(np.mean((graded.losses <= steps.natural.losses)[epsilons > 0])) if epsilons.any() else 0.0,
        fgsm_accuracy=accuracy(np.maximum(natural_margins, steps.on_loss.margins)),
        fgsm_margin_accuracy=accuracy(np.maximum(natural_margins, steps.on_margin.margins)),
        fgsm_loss=float(np.mean(np.maximum(steps.natural.losses, steps.on_loss.losses))),
        num_replayed=len(visits),
        gradients_taken=float(np.mean([visited.num_gradients for visited in visits])),
        gradient_points=float(np.mean([visited.num_gradient_points for visited in visits])),
        num_stale=sum(visited.are_stale for visited in visits),
        num_moved_at_zero=int(np.sum(~stayed)),
        num_nearer=num_nearer,
    )
    second = None
    if controls is not None:
        second = run_controls(controls, problem, attack, objective, is_right=natural_margins < 0, key=key)
    audit = draw_findings(
        audit,
        adversarial_accuracy=adversarial_accuracy,
        surrogate_loss=surrogate_loss,
        tolerance=relative * (1 + abs(surrogate_loss)),
        more=() if second is None else second.findings(adversarial_accuracy),
    )
    return Evaluation(
        natural_accuracy=accuracy(natural_margins),
        adversarial_accuracy=adversarial_accuracy,
        natural_loss=float(np.mean(steps.natural.losses)),
        surrogate_loss=surrogate_loss,
        natural_margins=jnp.asarray(natural_margins),
        margins=jnp.asarray(margins),
        epsilon=jnp.asarray(epsilons),
        minimum_radii=jnp.asarray(minimum_radii),
        audit=audit,
        x_adv=jnp.asarray(found.x_adv),
        controls=second,
    )


class _SingleSteps(NamedTuple):
    """The network at the inputs, and after one FGSM step on the loss and on the margin."""

    natural: Grades
    on_loss: Grades
    on_margin: Grades
    zero_gradient: Numbers


@eqx.filter_jit
def _take_single_steps(
    objective: LossObjective,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
) -> _SingleSteps:
    margin = LossObjective(objective.apply_fn, objective.params, Margin())

    def take(x: Array, y: Array, epsilon: Array) -> _SingleSteps:
        around = perturbations.with_epsilon(epsilon)
        slope = jax.grad(objective)(x, y)
        points = jnp.stack([x, around.argmax_linear(x, slope), around.argmax_linear(x, jax.grad(margin)(x, y))])
        graded = jax.vmap(grade_one, (None, 0, None, None, None))(objective, points, x, y, around)
        natural, on_loss, on_margin = (Grades(*fields) for fields in zip(*graded, strict=True))
        return _SingleSteps(natural, on_loss, on_margin, count_zero(slope))

    return jax.vmap(take)(xs, ys, perturbations.epsilon)
