"""The common beginning of everything that attacks a network on many examples: checks, and arrays on the host."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Num, PyTree

from ntk_robust.attacks._attack import check_count
from ntk_robust.attacks._batch import ApplyFn
from ntk_robust.attacks._checks import check_batch, check_targets
from ntk_robust.attacks._sets import AbstractPerturbationSet


class Problem(NamedTuple):
    """Examples to attack; between compiled programs all is NumPy, since each small operation would be compiled first.

    Attributes:
        inputs: Inputs.
        targets: Labels, or targets in the dtype of a scalar output.
        epsilons: One radius for each example, in the dtype of the inputs.
        examples: Numbers of the examples, which their randomness depends on.
        batch_size: Examples at a time.
        output: Shape and dtype of the network's output.
    """

    inputs: np.ndarray
    targets: np.ndarray
    epsilons: np.ndarray
    examples: np.ndarray
    batch_size: int
    output: jax.ShapeDtypeStruct


def pose(
    network: tuple[ApplyFn, PyTree],
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
    batch_size: int | None,
) -> Problem:
    """The problem, if it makes sense.

    Raises:
        ValueError: For an empty or misshapen batch, inputs that are not finite or outside the box, targets that do not
            fit the output, radii for another number of examples, or a batch size that is not a whole number ≥ 1.
    """
    check_batch(xs, ys, perturbations)
    apply_fn, params = network
    output: Any = jax.eval_shape(apply_fn, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
    check_targets(ys, output.shape)
    num_examples = xs.shape[0]
    if batch_size is None:
        batch_size = num_examples
    check_count("batch_size", batch_size)
    inputs = np.asarray(xs)
    return Problem(
        inputs=inputs,
        targets=np.asarray(ys, output.dtype if output.shape == () else None),
        epsilons=np.broadcast_to(np.asarray(perturbations.epsilon, inputs.dtype), (num_examples,)),
        examples=np.arange(num_examples),
        batch_size=batch_size,
        output=output,
    )
