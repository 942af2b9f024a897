"""The smallest radius at which an attack succeeds, for each example."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack
from ntk_robust.attacks._batch import ApplyFn, LossObjective
from ntk_robust.attacks._checks import check_kind
from ntk_robust.attacks._problem import pose
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import AbstractLoss


class MinimumRadius(eqx.Module):
    """Upper bounds of the distance from each example to the nearest point that is classified wrongly.

    Attributes:
        radius: Size of the smallest perturbation found, in the set's norm and in input units: 0 for an input that is
            already wrong, `inf` where nothing was found within the largest radius. An upper bound of the true minimum.
        x_adv: The point found, x where there is none.
    """

    radius: Float[Array, " n"]
    x_adv: Float[Array, "n *dims"]


def minimum_radius(
    apply_fn: ApplyFn,
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    *,
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    loss: AbstractLoss,
    key: PRNGKeyArray,
    num_halvings: int = 10,
    batch_size: int | None = None,
) -> MinimumRadius:
    """Smallest radius at which the attack fools the network, by bisection with one radius for each example.

    Every radius reported belongs to a point that a fresh forward pass found wrong and inside the set. That smaller
    radii failed certifies nothing. One program is compiled for all radii. An attack of least norm (`FAB`, `DeepFool`,
    `CarliniWagner`, with `Margin`) needs no bisection: one run in a set that is large enough, `num_halvings=0`.

    Args:
        apply_fn: (params, x) -> a scalar output or at least two logits, for one example.
        params: The network's parameters.
        xs: Inputs, inside the box.
        ys: Integer labels for logits; floats for a scalar output, of which the sign is the class.
        attack: Attack to run at each radius.
        perturbations: The set with the largest radius to try.
        loss: Objective of the attack.
        key: Folded with the round and the number of the example.
        num_halvings: Rounds after the first at the largest radius; each halves the interval.
        batch_size: Examples attacked at a time, None for all at once.

    Returns:
        One radius and point for each example.

    Raises:
        ValueError: As `evaluate`, and if `num_halvings` is not a whole number ≥ 0.
    """
    if num_halvings != 0:
        check_count("num_halvings", num_halvings)
    check_kind("loss", loss, AbstractLoss, "a loss, such as CrossEntropy()")
    problem = pose((apply_fn, params), xs, ys, perturbations, batch_size, attack=attack)
    inputs, largest = problem.inputs, problem.epsilons
    objective = LossObjective(apply_fn, params, loss)

    radius = np.where(problem.grade(objective, inputs).margins < 0, np.inf, 0).astype(inputs.dtype)
    x_adv = inputs.copy()
    low, tried = np.zeros_like(largest), largest.copy()
    for number in range(1 + num_halvings):
        within = problem._replace(epsilons=tried)
        points = np.asarray(within.attack(attack, objective, key=jr.fold_in(key, number)).x_adv)
        graded = within.grade(objective, points)
        better = graded.fooled & (graded.norms < radius)
        radius = np.where(better, graded.norms, radius)
        x_adv[better] = points[better]
        low = np.where(better, low, np.maximum(low, tried))
        high = np.minimum(radius, largest)
        tried = np.where(low < high, (low + high) / 2, high).astype(inputs.dtype)
    return MinimumRadius(radius=jnp.asarray(radius), x_adv=jnp.asarray(x_adv))
