"""AutoAttack: an ensemble of parameter-free attacks, each on the examples that the ones before have left."""

import dataclasses
from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ntk_robust._core import check_count
from ntk_robust.attacks._apgd import APGD
from ntk_robust.attacks._attack import AbstractAttack
from ntk_robust.attacks._batch import ApplyFn, LossObjective
from ntk_robust.attacks._fab import FAB
from ntk_robust.attacks._grading import in_batches
from ntk_robust.attacks._l2 import L2Ball
from ntk_robust.attacks._problem import Problem, pose
from ntk_robust.attacks._sets import AbstractPerturbationSet, LinfBall
from ntk_robust.attacks._sphere import SphereSlice
from ntk_robust.attacks._square import Square
from ntk_robust.losses import AbstractLoss, CrossEntropy, Logistic, Margin, TargetedDLR


class AutoAttackResult(eqx.Module):
    """What is left of n examples after AutoAttack.

    Attributes:
        natural_accuracy: Fraction of the inputs that are classified right.
        adversarial_accuracy: Fraction that is still right: an upper bound of the robust accuracy.
        accuracy_after: The attacks in the order in which they ran, each with the fraction right after it.
        is_right: Which examples are still right.
        x_adv: A point of B(x) that is classified wrongly where there is one, else x.
        minimum_radii: Its distance from x, in the set's norm and in input units: 0 for an input that is already wrong,
            `inf` where nothing was found. An upper bound of the distance to the nearest wrong point.
    """

    natural_accuracy: float
    adversarial_accuracy: float
    accuracy_after: dict[str, float]
    is_right: np.ndarray
    x_adv: Float[Array, "n *dims"]
    minimum_radii: Float[Array, " n"]


class _Lead(AbstractLoss):
    """z_t - z_y for a target (y, t): the margin towards one class."""

    @property
    def lipschitz(self) -> float:
        """√2."""
        return 2.0**0.5

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Lead of the class aimed at."""
        return output[target[1]] - output[target[0]]


@dataclasses.dataclass(frozen=True)
class _Stage:
    """One attack on one objective; `rank` r aims at the wrong class with the r-th largest logit at x."""

    name: str
    attack: AbstractAttack
    loss: AbstractLoss
    rank: int | None = None


@dataclasses.dataclass(frozen=True)
class _Budget:
    num_steps: int
    num_queries: int
    num_targets: int
    image_shape: tuple[int, int, int] | None


def _stages(num_outputs: int | None, perturbations: AbstractPerturbationSet, budget: _Budget) -> Iterator[_Stage]:
    """The standard ensemble for four or more logits, and what corresponds to it for fewer and for a scalar output."""
    apgd, fab = APGD(budget.num_steps), FAB(budget.num_steps)
    has_hyperplanes = not isinstance(perturbations, SphereSlice)
    yield _Stage("apgd-ce", apgd, Logistic() if num_outputs is None else CrossEntropy())
    if num_outputs is None or num_outputs == 2:
        # One other class: every targeted attack is the untargeted one.
        yield _Stage("apgd-margin", apgd, Margin())
        if has_hyperplanes:
            yield _Stage("fab", fab, Margin())
    else:
        targeted = TargetedDLR() if num_outputs >= 4 else _Lead()
        ranks = range(1, min(budget.num_targets, num_outputs - 1) + 1)
        yield from (_Stage("apgd-t", apgd, targeted, rank) for rank in ranks)
        if has_hyperplanes:
            yield from (_Stage("fab-t", fab, _Lead(), rank) for rank in ranks)
    if isinstance(perturbations, LinfBall | L2Ball):
        yield _Stage("square", Square(budget.num_queries, budget.image_shape), Margin())


def auto_attack(
    apply_fn: ApplyFn,
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    *,
    perturbations: AbstractPerturbationSet,
    key: PRNGKeyArray,
    num_steps: int = 100,
    num_queries: int = 5000,
    num_targets: int = 9,
    image_shape: tuple[int, int, int] | None = None,
    only: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> AutoAttackResult:
    """Robustness of a network under the AutoAttack ensemble; examples are dropped as they fall.

    Four or more logits: APGD on the cross-entropy, APGD on the targeted DLR loss and FAB towards the `num_targets`
    likeliest wrong classes, Square. With three logits the targeted loss is the lead z_t - z_y. With two logits or a
    scalar output, where the published ensemble is not defined: APGD on the cross-entropy (logistic loss), APGD and FAB
    on the margin, Square. Square runs for `LinfBall` and `L2Ball`, FAB not on the sphere slice.
    `accuracy_after` names what ran.

    An example falls when a fresh forward pass outside the attack finds its point inside the set and classified wrongly.

    Args:
        apply_fn: (params, x) -> a scalar output or at least two logits, for one example.
        params: The network's parameters.
        xs: Inputs, inside the box.
        ys: Integer labels for logits; floats for a scalar output, of which the sign is the class.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        key: Folded with the stage and the number of the example.
        num_steps: Steps of APGD and FAB.
        num_queries: Queries of Square.
        num_targets: Classes aimed at.
        image_shape: (height, width, channels) for Square; None for vectors.
        only: Names of the attacks to run, such as ("apgd-t",), in the order of the ensemble; None for all.
        batch_size: Examples attacked at a time, always filled up to this size; None means all. With a smaller batch
            the examples that have fallen cost nothing.

    Returns:
        Accuracies after each attack and the points found.

    Raises:
        ValueError: As `evaluate`, for budgets that are not whole numbers ≥ 1, and for an attack in `only` that is none
            of the ensemble's.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks, 2020.
    """
    check_count("num_targets", num_targets)
    problem = pose((apply_fn, params), xs, ys, perturbations, batch_size)
    num_outputs = problem.output.shape[0] if problem.output.shape else None
    budget = _Budget(num_steps, num_queries, num_targets, image_shape)
    stages = list(enumerate(_stages(num_outputs, perturbations, budget)))
    if only is not None:
        names = {stage.name for _, stage in stages}
        if not only or set(only) - names:
            raise ValueError(f"only={list(only)}; the attacks for this network and set are {sorted(names)}")
        stages = [(number, stage) for number, stage in stages if stage.name in only]

    margin = LossObjective(apply_fn, params, Margin())

    is_right = np.asarray(problem.grade(margin, problem.inputs).margins) < 0
    natural_accuracy = float(is_right.mean())
    order = _classes_by_logit(margin, problem) if any(stage.rank for _, stage in stages) else None
    x_adv = problem.inputs.copy()
    minimum_radii = np.where(is_right, np.inf, 0).astype(x_adv.dtype)
    accuracy_after: dict[str, float] = {}
    for number, stage in stages:
        chosen = np.flatnonzero(is_right)
        if len(chosen) > 0:
            standing = problem.of(chosen)
            aims = standing.targets
            if stage.rank is not None and order is not None:
                aims = np.stack([aims, order[chosen, stage.rank - 1].astype(aims.dtype)], axis=1)
            objective = LossObjective(apply_fn, params, stage.loss)
            found = standing._replace(targets=aims).attack(stage.attack, objective, key=jr.fold_in(key, number))
            points = np.asarray(found.x_adv)
            graded = standing.grade(margin, points)
            fell = np.asarray(graded.fooled)
            x_adv[chosen[fell]] = points[fell]
            minimum_radii[chosen[fell]] = np.asarray(graded.norms)[fell]
            is_right[chosen[fell]] = False
        accuracy_after[stage.name] = float(is_right.mean())
    return AutoAttackResult(
        natural_accuracy=natural_accuracy,
        adversarial_accuracy=float(is_right.mean()),
        accuracy_after=accuracy_after,
        is_right=is_right,
        x_adv=jnp.asarray(x_adv),
        minimum_radii=jnp.asarray(minimum_radii),
    )


def _classes_by_logit(objective: LossObjective, problem: Problem) -> np.ndarray:
    """For each example the wrong classes, the likeliest first."""
    logits = np.array(in_batches(lambda batch: _outputs(objective, batch), problem.batch_size, problem.inputs))
    np.put_along_axis(logits, problem.targets[:, None], -np.inf, axis=1)
    return np.argsort(-logits, axis=1, kind="stable")[:, :-1]


@eqx.filter_jit
def _outputs(objective: LossObjective, xs: Float[Array, "n *dims"]) -> Float[Array, "n k"]:
    return jax.vmap(objective.apply_fn, (None, 0))(objective.params, xs)
