"""Second runs that tell a robust network from a weak attack: other radii, other attacks, another network's points."""

import dataclasses
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntk_robust.attacks._attack import AbstractAttack
from ntk_robust.attacks._audit import Finding
from ntk_robust.attacks._batch import ApplyFn, LossObjective
from ntk_robust.attacks._grading import Numbers
from ntk_robust.attacks._problem import Problem
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.attacks._square import Square
from ntk_robust.losses import Margin


class Controls(eqx.Module):
    """Which second runs `evaluate` adds to its audit.

    Where a radius is positive the attack runs again at radii that double until nothing is right any more, until the set
    holds the whole box, or `num_doublings` times. Examples that stay right to the end do so because the attack is weak.

    Attributes:
        rivals: Attacks on the margin that should not beat the one under audit. `Square`, the default, needs no
            gradients and so is not fooled by a network that hides them; it takes `LinfBall` and `L2Ball` only.
        source: (apply_fn, params) of another network. Points that the attack finds for that network should not fool
            this one more often than points found with its own gradients. None leaves this out.
        num_doublings: Most often that the radius doubles; 0 leaves this out.
    """

    rivals: tuple[AbstractAttack, ...] = (Square(1000),)
    source: tuple[ApplyFn, PyTree] | None = None
    num_doublings: int = eqx.field(default=10, static=True)

    def __check_init__(self) -> None:
        if self.num_doublings < 0:
            raise ValueError(f"num_doublings={self.num_doublings}; give a whole number of at least 0")


@dataclasses.dataclass(frozen=True)
class ControlRuns:
    """What the second runs gave.

    Attributes:
        radii: The largest radius of each growing run, in input units.
        accuracies: Adversarial accuracies of these runs.
        rival_accuracies: Adversarial accuracy under each rival, by its class.
        transfer_accuracy: Fraction right at points found for the source network, None without one.
    """

    radii: tuple[float, ...]
    accuracies: tuple[float, ...]
    rival_accuracies: tuple[tuple[str, float], ...]
    transfer_accuracy: float | None

    def findings(self, adversarial_accuracy: float) -> Iterator[Finding]:
        """What follows, given the accuracy under the attack that is audited."""
        better = [("rival-better", name, accuracy) for name, accuracy in self.rival_accuracies]
        if self.transfer_accuracy is not None:
            better.append(("transfer-better", "The same attack on the source network", self.transfer_accuracy))
        for finding, name, accuracy in better:
            if accuracy < adversarial_accuracy:
                yield Finding(
                    finding,
                    "weakness",
                    f"{name} leaves {accuracy:.2%} of the examples right, the attack {adversarial_accuracy:.2%}: its "
                    "gradients are masked, or it is weak. Attack the margin, with more steps or restarts, and count "
                    "both attacks.",
                )
        if self.accuracies and self.accuracies[-1] > 0:
            yield Finding(
                "never-broken",
                "weakness",
                f"At radius {self.radii[-1]:.3g} the attack still leaves {self.accuracies[-1]:.2%} right. With so much "
                "room only a network that always answers the same resists; its gradients lead nowhere.",
            )


def run_controls(
    controls: Controls,
    problem: Problem,
    attack: AbstractAttack,
    objective: LossObjective,
    *,
    is_right: Numbers,
    key: PRNGKeyArray,
) -> ControlRuns:
    """The second runs of an attack on an objective; `is_right` tells which inputs are classified right."""

    def accuracy(problem: Problem, attack: AbstractAttack, attacked: LossObjective) -> float:
        points = problem.attack(attack, attacked, key=key).x_adv
        return float(np.mean(is_right & ~problem.grade(objective, points).fooled))

    radii, accuracies = [], []
    for doubling in range(1, controls.num_doublings + 1 if problem.epsilons.any() else 1):
        grown = problem._replace(epsilons=problem.epsilons * 2**doubling)
        radii.append(float(np.max(grown.epsilons)))
        accuracies.append(accuracy(grown, attack, objective))
        if accuracies[-1] == 0 or _is_whole_box(grown):
            break
    margin = LossObjective(objective.apply_fn, objective.params, Margin())
    transferred = None
    if controls.source is not None:
        transferred = accuracy(problem, attack, LossObjective(*controls.source, objective.loss))
    return ControlRuns(
        radii=tuple(radii),
        accuracies=tuple(accuracies),
        rival_accuracies=tuple((type(rival).__name__, accuracy(problem, rival, margin)) for rival in controls.rivals),
        transfer_accuracy=transferred,
    )


def _is_whole_box(problem: Problem) -> bool:
    """Whether every valid input is in the set around every example."""
    box = problem.perturbations.box
    if box is None:
        return False
    return bool(np.all(_reaches(problem.perturbations, jnp.asarray(problem.inputs)) <= problem.epsilons))


@eqx.filter_jit
def _reaches(perturbations: AbstractPerturbationSet, xs: Float[Array, "n *dims"]) -> Float[Array, " n"]:
    """The distance from each example to the valid input farthest from it, in the norm of the set."""
    assert perturbations.box is not None
    down, up = jax.vmap(perturbations.box.room)(xs)
    return jax.vmap(perturbations.norm)(jnp.maximum(-down, up))
