"""Grades given outside the attack: a fresh forward pass, and whether a point is where it should be."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ntk_robust.attacks._batch import LossObjective
from ntk_robust.attacks._sets import AbstractPerturbationSet
from ntk_robust.losses import Margin

Numbers = Array | np.ndarray  # results are moved to the host


class Grades(NamedTuple):
    """A fresh forward pass at given points, and whether they are where they should be; one entry per example."""

    losses: Numbers
    margins: Numbers
    inside: Numbers
    excess: Numbers
    norms: Numbers

    @property
    def fooled(self) -> Numbers:
        """Whether the point is not classified right and counts, because it is in the set; nan is not right."""
        return self.inside & ~(self.margins < 0)


def grade_one(
    objective: LossObjective, point: Array, x: Array, y: Array, perturbations: AbstractPerturbationSet
) -> Grades:
    """Grades of one point; the losses are the objective's."""
    output = objective.apply_fn(objective.params, point)
    return Grades(
        losses=objective.loss(output, y),
        margins=Margin()(output, y),
        inside=perturbations.contains(x, point),
        excess=perturbations.excess(x, point),
        norms=perturbations.norm(point - x),
    )


@eqx.filter_jit
def grade(
    objective: LossObjective,
    points: Float[Array, "n *dims"],
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
) -> Grades:
    """`grade_one` for n points, with one radius for each."""

    def grade_point(point: Array, x: Array, y: Array, epsilon: Array) -> Grades:
        return grade_one(objective, point, x, y, perturbations.with_epsilon(epsilon))

    return jax.vmap(grade_point)(points, xs, ys, perturbations.epsilon)


def in_batches(run: Callable[..., Any], batch_size: int, *arrays: Numbers) -> Any:
    """`run` on consecutive batches, joined on the host; the last is filled up with copies, so one shape is compiled."""
    num_examples = len(arrays[0])
    parts = []
    for start in range(0, num_examples, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), num_examples - 1)
        parts.append(jax.device_get(run(*(jnp.asarray(array[index]) for array in arrays))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_examples], *parts)
