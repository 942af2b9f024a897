"""Evaluation of a network under an attack, with an audit of the attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ntk_robust.attacks._attack import AbstractAttack, AttackResult, check_count, count_zero
from ntk_robust.attacks._audit import Audit, draw_findings
from ntk_robust.attacks._batch import ApplyFn, LossObjective, run_batch
from ntk_robust.attacks._checks import check_batch, check_targets
from ntk_robust.attacks._fgsm import FGSM
from ntk_robust.attacks._replay import replay
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import AbstractLoss, Margin

_NUM_REPLAYED = 4

_Numbers = Array | np.ndarray  # results are moved to the host


class Evaluation(eqx.Module):
    """How a network does on n examples with and without an attack.

    An example counts as right only if both x and the attack's point are classified strictly right: x is in B(x), so
    adversarial_accuracy ≤ natural_accuracy. A point outside B(x) is replaced by x.

    Attributes:
        natural_accuracy: Fraction of the inputs that are classified right.
        adversarial_accuracy: Fraction still right under this attack: an upper bound of the robust accuracy.
        natural_loss: Mean loss at the inputs.
        surrogate_loss: Mean loss at the attack's points, L_A: a lower bound of the robust loss.
        margins: Attacker's `Margin` of each example, the worse of x and the attack's point; right means < 0.
        audit: What a look from outside says about the attack.
        x_adv: The attack's points as it returned them.
    """

    natural_accuracy: float
    adversarial_accuracy: float
    natural_loss: float
    surrogate_loss: float
    margins: Float[Array, " n"]
    audit: Audit
    x_adv: Float[Array, "n *dims"]


def evaluate(
    apply_fn: ApplyFn,
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, " n"],
    *,
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    loss: AbstractLoss,
    key: PRNGKeyArray,
    batch_size: int | None = None,
) -> Evaluation:
    """Natural and adversarial accuracy and loss, recomputed outside the attack, and an audit of the attack.

    The audit re-checks membership in the set and the reported values, compares with one FGSM step on the loss and on
    the margin, counts zero gradients, and repeats the attack on the four examples that it moved most while recording
    where gradients are taken. It costs about three more gradients per example and one more compilation of the attack.

    Args:
        apply_fn: (params, x) -> a scalar output or at least two logits, for one example.
        params: The network's parameters; new values do not recompile.
        xs: Inputs, inside the box.
        ys: Integer labels for logits; floats for a scalar output, of which the sign is the class.
        attack: Attack to run with `loss` as its objective.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        loss: The loss that is attacked and averaged.
        key: Folded with the number of the example, so that `batch_size` does not change the result.
        batch_size: Examples attacked at a time, None for all at once.

    Returns:
        Accuracies, losses, margins, audit and the attack's points.

    Raises:
        ValueError: For an empty or misshapen batch, inputs that are not finite or outside the box, labels that are not
            integers or out of range, or a loss that does not fit the output.
    """
    check_batch(xs, ys, perturbations)
    output = jax.eval_shape(apply_fn, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
    check_targets(ys, output.shape)
    num_examples = xs.shape[0]
    batch_size = num_examples if batch_size is None else batch_size
    check_count("batch_size", batch_size)
    objective = LossObjective(apply_fn, params, loss)

    # Everything between the compiled programs is NumPy: each small operation on a device would be compiled first.
    inputs = np.asarray(xs)
    targets = np.asarray(ys, output.dtype if output.shape == () else None)
    epsilons = np.broadcast_to(np.asarray(perturbations.epsilon), (num_examples,))
    examples = np.arange(num_examples)

    def attacked_by(attack: AbstractAttack, loss: AbstractLoss) -> AttackResult:
        def run(xs: Array, ys: Array, epsilons: Array, examples: Array) -> AttackResult:
            objective = LossObjective(apply_fn, params, loss)
            around = perturbations.with_epsilon(epsilons)
            return run_batch(attack, objective, xs, ys, around, examples=examples, key=key)

        return _in_batches(run, batch_size, inputs, targets, epsilons, examples)

    def graded_at(points: _Numbers) -> _Grades:
        def run(points: Array, xs: Array, ys: Array, epsilons: Array) -> _Grades:
            return _grade(objective, points, xs, ys, perturbations.with_epsilon(epsilons))

        return _in_batches(run, batch_size, points, inputs, targets, epsilons)

    def worst_margins(graded: _Grades) -> _Numbers:
        return np.where(graded.inside, np.maximum(graded.margins, natural.margins), natural.margins)

    def accuracy(margins: _Numbers) -> float:
        return float(np.mean(margins < 0))

    natural = graded_at(inputs)
    found = attacked_by(attack, loss)
    graded = graded_at(found.x_adv)
    fgsm = graded_at(attacked_by(FGSM(), loss).x_adv)
    fgsm_margin = graded_at(attacked_by(FGSM(), Margin()).x_adv)

    margins = worst_margins(graded)
    surrogate_loss = float(np.mean(np.where(graded.inside, graded.losses, natural.losses)))
    adversarial_accuracy = accuracy(margins)
    # Other batch shapes and fusions round differently, along all of the network's sums.
    relative = float(np.finfo(output.dtype).eps) ** 0.5
    mismatch = np.abs(found.value - graded.losses) > relative * (1 + np.abs(graded.losses))
    finite = np.isfinite(found.x_adv.reshape(num_examples, -1)).all(axis=1) & np.isfinite(graded.losses)

    moved = np.abs(found.x_adv - inputs).reshape(num_examples, -1).sum(axis=1)
    chosen = np.argsort(-moved, kind="stable")[:_NUM_REPLAYED]
    visits, ends = replay(
        attack,
        objective,
        jnp.asarray(inputs[chosen]),
        jnp.asarray(targets[chosen]),
        perturbations.with_epsilon(epsilons[chosen]),
        examples=jnp.asarray(chosen),
        key=key,
    )
    audit = Audit(
        num_examples=num_examples,
        num_outside=int(np.sum(~graded.inside)),
        max_excess=float(np.max(np.where(graded.inside, 0, graded.excess))),
        num_value_mismatches=int(np.sum(mismatch)),
        num_not_monotone=int(np.sum((np.diff(found.values, axis=1) < 0).any(axis=1))),
        num_not_finite=int(np.sum(~(finite & np.isfinite(found.value)))),
        zero_gradient_fraction=float(np.mean(natural.zero_gradient)),
        fgsm_accuracy=accuracy(worst_margins(fgsm)),
        fgsm_margin_accuracy=accuracy(worst_margins(fgsm_margin)),
        fgsm_loss=float(np.mean(fgsm.losses)),
        num_replayed=len(visits),
        gradients_taken=float(np.mean([visit.num_gradients for visit in visits])),
        gradient_points=float(np.mean([visit.num_gradient_points for visit in visits])),
        num_stale=sum(visit.are_stale(np.asarray(end)) for visit, end in zip(visits, ends, strict=True)),
    )
    audit = draw_findings(
        audit,
        adversarial_accuracy=adversarial_accuracy,
        surrogate_loss=surrogate_loss,
        tolerance=relative * (1 + abs(surrogate_loss)),
    )
    return Evaluation(
        natural_accuracy=accuracy(natural.margins),
        adversarial_accuracy=adversarial_accuracy,
        natural_loss=float(np.mean(natural.losses)),
        surrogate_loss=surrogate_loss,
        margins=jnp.asarray(margins),
        audit=audit,
        x_adv=jnp.asarray(found.x_adv),
    )


class _Grades(NamedTuple):
    """A fresh forward pass at given points, and whether they are where they should be; one entry per example."""

    losses: _Numbers
    margins: _Numbers
    inside: _Numbers
    excess: _Numbers
    zero_gradient: _Numbers


@eqx.filter_jit
def _grade(
    objective: LossObjective,
    points: Float[Array, "n *dims"],
    xs: Float[Array, "n *dims"],
    ys: Num[Array, " n"],
    perturbations: AbstractPerturbationSet,
) -> _Grades:
    def grade_one(point: Array, x: Array, y: Array, epsilon: Array) -> _Grades:
        around_x = perturbations.with_epsilon(epsilon)
        loss, gradient = jax.value_and_grad(objective)(point, y)
        return _Grades(
            losses=loss,
            margins=Margin()(objective.apply_fn(objective.params, point), y),
            inside=around_x.contains(x, point),
            excess=around_x.excess(x, point),
            zero_gradient=count_zero(gradient),
        )

    return jax.vmap(grade_one)(points, xs, ys, perturbations.epsilon)


def _in_batches(run: Callable[..., Any], batch_size: int, *arrays: _Numbers) -> Any:
    """`run` on consecutive batches, joined on the host; the last is filled up with copies, so one shape is compiled."""
    num_examples = len(arrays[0])
    batch_size = min(batch_size, num_examples)
    parts = []
    for start in range(0, num_examples, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), num_examples - 1)
        parts.append(jax.device_get(run(*(jnp.asarray(array[index]) for array in arrays))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_examples], *parts)
