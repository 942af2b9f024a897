"""What everything that attacks a network on many examples shares: checks, arrays on the host, batches, grades."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack, AttackResult
from ntk_robust.attacks._batch import ApplyFn, LossObjective, run_batch
from ntk_robust.attacks._checks import check_batch, check_kind, check_targets
from ntk_robust.attacks._grading import Grades, Numbers, grade, in_batches
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import AbstractLoss, Hinge, Logistic, Margin


class Problem(NamedTuple):
    """Examples to attack; between compiled programs all is NumPy, since each small operation would be compiled first.

    Attributes:
        perturbations: The set; its own radii do not count.
        inputs: Inputs.
        targets: Labels, or targets in the dtype of a scalar output.
        epsilons: One radius for each example, in the dtype of the inputs.
        examples: Numbers of the examples, which their randomness depends on.
        batch_size: Examples at a time.
        output: Shape and dtype of the network's output.
    """

    perturbations: AbstractPerturbationSet
    inputs: np.ndarray
    targets: np.ndarray
    epsilons: np.ndarray
    examples: np.ndarray
    batch_size: int
    output: jax.ShapeDtypeStruct

    def of(self, chosen: np.ndarray) -> "Problem":
        """The problem of some of the examples."""
        return self._replace(
            inputs=self.inputs[chosen],
            targets=self.targets[chosen],
            epsilons=self.epsilons[chosen],
            examples=self.examples[chosen],
        )

    def attack(self, attack: AbstractAttack, objective: LossObjective, *, key: PRNGKeyArray) -> AttackResult:
        """What the attack finds for each example, on the host."""

        def run(xs: Array, ys: Array, epsilons: Array, examples: Array) -> AttackResult:
            around = self.perturbations.with_epsilon(epsilons)
            return run_batch(attack, objective, xs, ys, around, examples=examples, key=key)

        return in_batches(run, self.batch_size, self.inputs, self.targets, self.epsilons, self.examples)

    def grade(self, objective: LossObjective, points: Numbers) -> Grades:
        """Grades of one point for each example, on the host."""

        def run(points: Array, xs: Array, ys: Array, epsilons: Array) -> Grades:
            return grade(objective, points, xs, ys, self.perturbations.with_epsilon(epsilons))

        return in_batches(run, self.batch_size, points, self.inputs, self.targets, self.epsilons)


def pose(
    network: tuple[ApplyFn, PyTree],
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
    batch_size: int | None,
    *,
    attack: AbstractAttack | None = None,
    loss: AbstractLoss | None = None,
) -> Problem:
    """The problem, if it makes sense; without a loss, or with one of classes, targets of a scalar output are classes.

    Raises:
        ValueError: For an empty or misshapen batch, inputs that are not finite or outside the box, targets that do not
            fit the output, radii for another number of examples, or a batch size that is not a whole number ≥ 1.
    """
    check_batch(xs, ys, perturbations)
    if attack is not None:
        check_kind("attack", attack, AbstractAttack, "an attack, such as PGD()")
    if loss is not None:
        check_kind("loss", loss, AbstractLoss, "a loss, such as CrossEntropy()")
    apply_fn, params = network
    try:
        output: Any = jax.eval_shape(apply_fn, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
    except TypeError as error:
        raise ValueError(
            f"the network does not take inputs of shape {xs.shape[1:]} and dtype {xs.dtype}, those of xs without its "
            f"first axis: {error}"
        ) from error
    check_targets(ys, output.shape, are_classes=loss is None or isinstance(loss, Hinge | Logistic | Margin))
    num_examples = xs.shape[0]
    if batch_size is None:
        batch_size = num_examples
    check_count("batch_size", batch_size)
    inputs = np.asarray(xs)
    return Problem(
        perturbations=perturbations,
        inputs=inputs,
        targets=np.asarray(ys, output.dtype if output.shape == () else None),
        epsilons=np.broadcast_to(np.asarray(perturbations.epsilon, inputs.dtype), (num_examples,)),
        examples=np.arange(num_examples),
        batch_size=batch_size,
        output=output,
    )
