"""Watches an attack from outside: at which points, and in which order, does it take values and gradients?

The objective is wrapped so that the host hears of every point at which it, or its derivative, is evaluated. The attack
cannot tell, and need not cooperate. Published code has computed the gradient at the starting point in every step; here
that shows as gradients taken at a point that the attack has left.

What it does with a gradient cannot be seen: an attack that takes the gradient at its iterate and follows another one
looks honest. So does one that evaluates nothing but gradients, each of the iterate before.
"""

import functools
import itertools
from typing import NamedTuple

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

_NUM_FREE_STEPS = 2  # along one gradient, such as a step and an overshoot


class Visit(NamedTuple):
    """One evaluation of the objective, with or without its derivative."""

    point: np.ndarray
    value: float
    is_gradient: bool

    @property
    def place(self) -> bytes:
        """The point as something to look up."""
        return self.point.tobytes()


class Visits:
    """The points that one attack on one example has visited, in order."""

    def __init__(self) -> None:
        self.visits: list[Visit] = []

    @property
    def num_gradients(self) -> int:
        """Number of gradients taken."""
        return sum(visit.is_gradient for visit in self.visits)

    @property
    def num_gradient_points(self) -> int:
        """Number of different points at which gradients were taken."""
        return len({visit.place for visit in self.visits if visit.is_gradient})

    @property
    def are_stale(self) -> bool:
        """Whether steps keep being made with gradients of points that the attack has left.

        One such step is no proof: the next restart begins where the last one did, and a method that starts over from
        the same point has ended elsewhere. So two are asked for, and one for every four gradients.
        """
        num_stale = self._num_backward() + self._num_idle() + self._num_without_gradient()
        return num_stale >= max(2, self.num_gradients / 4)

    def _num_backward(self) -> int:
        """Gradients at an old point although a new one with a larger value has just been found.

        A step that is refused leaves an honest attack where it was, but its value is smaller.
        """
        seen: dict[bytes, float] = {}
        found: dict[bytes, float] = {}  # since the last gradient
        count = 0
        for visit in self.visits:
            place = visit.place
            if visit.is_gradient:
                left = place in seen and place not in found
                count += left and any(value > visit.value for value in found.values())
                found = {}
            elif place not in seen:
                found[place] = visit.value
            seen[place] = visit.value
        return count

    def _num_idle(self) -> int:
        """Gradients in a row at one point from which the attack then goes away without taking the new point's.

        At a corner or where the gradient is zero an honest attack takes the same gradient again, but then it stays; or
        it has come from elsewhere, and momentum may carry it on.
        """
        count = 0
        stretches = [list(group) for _, group in itertools.groupby(self.visits, lambda visit: visit.is_gradient)]
        seen: set[bytes] = set()
        for number, stretch in enumerate(stretches):
            places = {visit.place for visit in stretch}
            seen |= places
            if stretch[0].is_gradient and len(places) == 1 and len(stretch) > 2 and number + 1 < len(stretches):
                after = {visit.place for visit in stretches[number + 1]} - seen
                following = stretches[number + 2][0].place if number + 2 < len(stretches) else None
                if after and following not in after:
                    count += len(stretch) - 1
        return count

    def _num_without_gradient(self) -> int:
        """Steps after a gradient, but for the first two, that lead farther and farther away and gain without another.

        They must follow one another: the search at the end of a minimum-norm attack goes back and forth.
        """
        count, num_steps = 0, 0
        origin, best, farthest = None, -np.inf, 0.0
        for visit in self.visits:
            if visit.is_gradient:
                origin, best, farthest, num_steps = visit.point, visit.value, 0.0, 0
            elif origin is not None:
                distance = float(np.linalg.norm(visit.point - origin))
                if visit.value > best and distance > farthest:
                    best, farthest, num_steps = visit.value, distance, num_steps + 1
                    count += num_steps > _NUM_FREE_STEPS
                else:
                    origin = None
        return count


# The compiled program must not depend on the list it writes to, or each replay would compile again: it gets a number.
_RECORDING: dict[int, list[Visits]] = {}
_run_numbers = itertools.count()


def _record(is_gradient: bool, run: Array, example: Array, point: Array, value: Array) -> None:
    _RECORDING[int(run)][int(example)].visits.append(Visit(np.array(point), float(value), is_gradient))


def _watched(objective: Objective, run: Int[Array, ""], example: Int[Array, ""]) -> Objective:
    # Ordered: what an attack does next is judged by what it did before.
    @jax.custom_jvp
    def watched(point: Float[Array, "*dims"]) -> Float[Array, ""]:
        value = objective(point)
        jax.debug.callback(functools.partial(_record, False), run, example, point, value, ordered=True)
        return value

    @watched.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        value, tangent = jax.jvp(objective, primals, tangents)
        jax.debug.callback(functools.partial(_record, True), run, example, *primals, value, ordered=True)
        return value, tangent

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
) -> tuple[list[Visits], np.ndarray]:
    """The points visited by the attack on each example, and the points returned."""
    run = next(_run_numbers)
    _RECORDING[run] = visits = [Visits() for _ in range(xs.shape[0])]
    try:
        found = _run_watched(
            attack, objective_fn, xs, ys, perturbations, examples=examples, key=key, run=jnp.asarray(run)
        )
        points = np.asarray(found.x_adv)
        jax.effects_barrier()
    finally:
        del _RECORDING[run]
    return visits, points


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
