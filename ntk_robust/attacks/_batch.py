"""Attacks on many examples: the place where attacks are compiled."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray, PyTree

from ntk_robust._core import with_fast_convolutions
from ntk_robust.attacks._attack import AbstractAttack, AttackResult
from ntk_robust.attacks._checks import check_batch, check_kind
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import AbstractLoss

ObjectiveFn = Callable[[Float[Array, "..."], Num[Array, "..."]], Float[Array, ""]]
ApplyFn = Callable[[Any, Float[Array, "..."]], Float[Array, "..."]]


class LossObjective(eqx.Module):
    """The loss of a network as a function of input and target; new weights do not recompile what uses it."""

    apply_fn: ApplyFn
    params: PyTree
    loss: AbstractLoss

    def __call__(self, x: Float[Array, "..."], y: Num[Array, "..."]) -> Float[Array, ""]:
        return self.loss(self.apply_fn(self.params, x), y)


def attack_batch(
    attack: AbstractAttack,
    objective_fn: ObjectiveFn,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
    *,
    key: PRNGKeyArray,
) -> AttackResult:
    """What an attack finds for each of n examples, in one compiled program.

    It compiles once for each `objective_fn` object, attack and shape: pass the same function again, or an equinox
    module whose arrays may change, rather than a new lambda.

    Args:
        attack: The attack.
        objective_fn: (x', y) -> scalar, to be maximized over x'.
        xs: Inputs, inside the box.
        ys: One target for each input, handed to `objective_fn` unchanged.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        key: Folded with the number of the example.

    Returns:
        The result with a leading axis n on every field.

    Raises:
        ValueError: If the batch is empty or misshapen, or inputs are not finite or outside the box.
    """
    check_batch(xs, ys, perturbations)
    check_kind("attack", attack, AbstractAttack, "an attack, such as PGD()")
    # One program for one radius and for many, Python's floats or arrays.
    around = perturbations.with_epsilon(radii(perturbations, xs.shape[0]).astype(xs.dtype))
    return run_batch(attack, objective_fn, xs, ys, around, examples=jnp.asarray(np.arange(xs.shape[0])), key=key)


@eqx.filter_jit
def run_batch(
    attack: AbstractAttack,
    objective_fn: ObjectiveFn,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
    *,
    examples: Int[Array, " n"],
    key: PRNGKeyArray,
) -> AttackResult:
    """`attack_batch` after its checks; an example's randomness depends on `key` and its number in `examples` only."""

    def attack_one(
        x: Float[Array, "*dims"], y: Num[Array, "..."], epsilon: Float[Array, ""], key: PRNGKeyArray
    ) -> AttackResult:
        return attack(lambda x_adv: objective_fn(x_adv, y), x, perturbations.with_epsilon(epsilon), key=key)

    keys = jax.vmap(jr.fold_in, (None, 0))(key, examples)
    return with_fast_convolutions(jax.vmap(attack_one))(xs, ys, radii(perturbations, xs.shape[0]), keys)


def radii(perturbations: AbstractPerturbationSet, num_examples: int) -> Float[Array, " n"]:
    """One radius for each example."""
    return jnp.broadcast_to(perturbations.epsilon, (num_examples,))
