"""Transfer attacks: points made for one function, graded on another."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ntk_robust.attacks._attack import AbstractAttack
from ntk_robust.attacks._batch import ApplyFn, LossObjective
from ntk_robust.attacks._problem import Problem, pose
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import AbstractLoss


class Transfer(eqx.Module):
    """How a target network does on points that were made for a source network.

    An example counts as right only if the target classifies both x and the point right; points outside the set do not
    count, as in `Evaluation`.

    Attributes:
        source_accuracy: Adversarial accuracy of the source itself.
        target_natural_accuracy: Fraction of the inputs that the target classifies right.
        target_accuracy: Fraction still right under the transferred points: an upper bound of its robust accuracy. If
            it is below the accuracy under an attack with the target's own gradients, those are masked.
        x_adv: The points.
    """

    source_accuracy: float
    target_natural_accuracy: float
    target_accuracy: float
    x_adv: Float[Array, "n *dims"]


def transfer(
    source: tuple[ApplyFn, PyTree],
    target: tuple[ApplyFn, PyTree],
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    *,
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    loss: AbstractLoss,
    key: PRNGKeyArray,
    batch_size: int | None = None,
) -> Transfer:
    """Attack a source and grade the points on a target, such as an NTK predictor and a finite network.

    Args:
        source: (apply_fn, params) that the attack sees.
        target: (apply_fn, params) that is graded; its output takes the same targets.
        xs: Inputs, inside the box.
        ys: Integer labels for logits; floats for scalar outputs, of which the sign is the class.
        attack: Attack to run on the source.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        loss: Objective of the attack on the source.
        key: Folded with the number of the example.
        batch_size: Examples attacked at a time, None for all at once.

    Returns:
        Accuracies of both and the points.

    Raises:
        ValueError: As `evaluate`, for either network.
    """
    to_fool = pose(source, xs, ys, perturbations, batch_size, attack=attack, loss=loss)
    to_grade = pose(target, xs, ys, perturbations, batch_size, attack=attack, loss=loss)
    points = to_fool.attack(attack, LossObjective(*source, loss), key=key).x_adv

    def accuracies(problem: Problem, network: tuple[ApplyFn, PyTree]) -> tuple[float, float]:
        objective = LossObjective(*network, loss)
        is_right = problem.grade(objective, problem.inputs).margins < 0
        still_right = is_right & ~problem.grade(objective, points).fooled
        return float(is_right.mean()), float(still_right.mean())

    _, source_accuracy = accuracies(to_fool, source)
    natural_accuracy, target_accuracy = accuracies(to_grade, target)
    return Transfer(
        source_accuracy=source_accuracy,
        target_natural_accuracy=natural_accuracy,
        target_accuracy=target_accuracy,
        x_adv=jnp.asarray(points),
    )
