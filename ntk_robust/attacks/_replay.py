"""Watches an attack from outside: at which points does it take values and gradients?

The objective is wrapped so that the host hears of every point at which it, or its derivative, is evaluated. The attack
cannot tell, and need not cooperate. Published code has computed the gradient at the starting point in every step; here
that shows as many gradients at one point.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from ntk_robust._core import with_fast_convolutions
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective
from ntk_robust.attacks._batch import ObjectiveFn, radii
from ntk_robust.attacks._sets import AbstractPerturbationSet


class Visits:
    """The points that one attack on one example has visited, in no particular order."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    @property
    def num_gradients(self) -> int:
        """Number of gradients taken."""
        return len(self.gradients)

    @property
    def num_gradient_points(self) -> int:
        """Number of different points at which gradients were taken."""
        return _num_distinct(self.gradients)

    def are_stale(self, x_adv: np.ndarray) -> bool:
        """Whether all gradients belong to one point although the attack has made steps away from it.

        A single-step attack visits its start and its end and takes one gradient: that is not stale.
        """
        if self.num_gradient_points != 1:
            return False
        moved_on = self.num_gradients > 1 and not np.array_equal(x_adv, self.gradients[0])
        return moved_on or _num_distinct(self.values + self.gradients) > 2


def _num_distinct(points: list[np.ndarray]) -> int:
    return len({point.tobytes() for point in points})


# The compiled program must not depend on the list it writes to, or each replay would compile again: it gets a number.
_RECORDING: dict[int, list[Visits]] = {}
_run_numbers = itertools.count()


def _record(is_gradient: bool, run: Array, example: Array, point: Array) -> None:
    visits = _RECORDING[int(run)][int(example)]
    (visits.gradients if is_gradient else visits.values).append(np.array(point))


def _watched(objective: Objective, run: Int[Array, ""], example: Int[Array, ""]) -> Objective:
    @jax.custom_jvp
    def watched(point: Float[Array, "*dims"]) -> Float[Array, ""]:
        jax.debug.callback(functools.partial(_record, False), run, example, point)
        return objective(point)

    @watched.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        jax.debug.callback(functools.partial(_record, True), run, example, *primals)
        return jax.jvp(objective, primals, tangents)

    return watched


def replay(
    attack: AbstractAttack,
    objective_fn: ObjectiveFn,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, " n ..."],
    perturbations: AbstractPerturbationSet,
    *,
    examples: Int[Array, " n"],
    key: PRNGKeyArray,
) -> tuple[list[Visits], Float[Array, "n *dims"]]:
    """The points visited by the attack on each example, and where it ended."""
    run = next(_run_numbers)
    _RECORDING[run] = visits = [Visits() for _ in range(xs.shape[0])]
    try:
        found = _run_watched(
            attack, objective_fn, xs, ys, perturbations, examples=examples, key=key, run=jnp.asarray(run)
        )
        x_adv = jax.block_until_ready(found.x_adv)
        jax.effects_barrier()
    finally:
        del _RECORDING[run]
    return visits, x_adv


@eqx.filter_jit
def _run_watched(
    attack: AbstractAttack,
    objective_fn: ObjectiveFn,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, " n ..."],
    perturbations: AbstractPerturbationSet,
    *,
    examples: Int[Array, " n"],
    key: PRNGKeyArray,
    run: Int[Array, ""],
) -> AttackResult:
    def attack_one(inputs: tuple[Array, Array, Array, Array, Array]) -> AttackResult:
        example, x, y, epsilon, key = inputs
        objective = _watched(lambda x_adv: objective_fn(x_adv, y), run, example)
        return attack(objective, x, perturbations.with_epsilon(epsilon), key=key)

    def attack_all(*inputs: Array) -> AttackResult:
        return lax.map(attack_one, inputs)

    num_examples = xs.shape[0]
    keys = jax.vmap(jr.fold_in, (None, 0))(key, examples)
    inputs = (jnp.arange(num_examples), xs, ys, radii(perturbations, num_examples), keys)
    return with_fast_convolutions(attack_all)(*inputs)
