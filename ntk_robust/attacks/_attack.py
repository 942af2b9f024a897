"""What an attack is, and what it returns."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ntk_robust.attacks._sets import AbstractPerturbationSet, is_concrete

Objective = Callable[[Float[Array, "..."]], Float[Array, ""]]


class AttackResult(eqx.Module):
    """What an attack found for one example (or, from `attack_batch`, for n examples along a leading axis).

    An attack does not grade itself: whether x_adv is in the set and fools the network is for `evaluate` to say.

    Attributes:
        x_adv: The best point seen, in input units.
        value: The objective there, as the attack computed it; -inf if it was `nan` at every point seen.
        values: Best value so far after each evaluation of the objective, never decreasing; the last is `value`.
        zero_gradients: How many of the gradients taken were exactly zero, so that the attack could not move.
    """

    x_adv: Float[Array, "..."]
    value: Float[Array, "..."]
    values: Float[Array, "..."]
    zero_gradients: Int[Array, "..."]


class AbstractAttack(eqx.Module):
    """A search for a large value of an objective in the perturbation set of one example."""

    @abc.abstractmethod
    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """Best point found.

        Args:
            objective: x' -> scalar, to be maximized; a loss of a network with its target closed over.
            x: Valid input, of any shape.
            perturbations: The set around x to stay in.
            key: Randomness of starts and directions; the same key gives the same bits.
        """


def count_zero(gradient: Float[Array, "*dims"]) -> Int[Array, ""]:
    """One if every coordinate is exactly zero, so that there is no direction to go, else zero."""
    return jnp.all(gradient == 0).astype(jnp.int32)


def check_positive(name: str, value: Float[Array, "..."]) -> None:
    """Refuses step sizes and the like that are not positive and finite; traced values pass.

    Raises:
        ValueError: Quoting name and value.
    """
    if is_concrete(value) and not (np.isfinite(np.asarray(value)).all() and (np.asarray(value) > 0).all()):
        raise ValueError(f"{name}={np.asarray(value)}; give a positive finite number")


class Identity(AbstractAttack):
    """The attack that does nothing: natural training and natural accuracy in the vocabulary of attacks."""

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """The input itself; see `AbstractAttack`."""
        del perturbations, key
        value = objective(x)
        return AttackResult(x_adv=x, value=value, values=value[None], zero_gradients=jnp.zeros((), jnp.int32))
