"""Examples as an attack leaves them, at whatever weights training has reached."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Key, Num, PyTree

from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet
from ntk_robust.training._methods import Problem


class AttackedPoints(eqx.Module):
    """Examples under an attack on the current weights: a function of the weights, for probes.

    The attack may be another one than that of training, and stronger: more steps, restarts, another loss.

    Attributes:
        apply_fn: (weights, one example) -> output.
        loss: (output, target) -> scalar, what the attack maximizes.
        attack: The attack.
        perturbations: The set that it searches; its `epsilon` may hold one radius for each example.
        xs: Unperturbed examples.
        ys: Their targets.
        key: Randomness of the attack, the same at all weights.
    """

    apply_fn: Callable[..., Any]
    loss: Callable[..., Any]
    attack: AbstractAttack
    perturbations: AbstractPerturbationSet
    xs: Float[Array, "n *dims"]
    ys: Num[Array, "n ..."]
    key: Key[Array, ""]

    def __call__(self, params: PyTree) -> Float[Array, "n *dims"]:
        """The examples as the attack on `params` leaves them; a constant of gradients."""
        problem = Problem(self.apply_fn, self.loss, self.attack, self.perturbations)
        return problem.attacked(params, self.xs, self.ys, self.key)
