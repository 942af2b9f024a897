"""Input checks on the host, before anything is traced."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from ntk_robust.attacks._sets import AbstractPerturbationSet, is_concrete


def check_batch(xs: Float[Array, "..."], ys: Num[Array, "..."], perturbations: AbstractPerturbationSet) -> None:
    """Refuses batches that no attack could make sense of; what is traced is not looked at.

    Raises:
        ValueError: Empty or misshapen batch, inputs that are not numbers or outside the box, radii that do not match.
    """
    if xs.ndim < 2:
        raise ValueError(f"xs has shape {xs.shape}; give a batch with examples along the first axis, such as xs[None]")
    num_examples = xs.shape[0]
    if num_examples == 0:
        raise ValueError("the batch is empty; give at least one example")
    if ys.ndim == 0 or ys.shape[0] != num_examples:
        raise ValueError(
            f"xs has {num_examples} examples and ys has shape {ys.shape}; give one target for each example"
        )
    if perturbations.epsilon.shape not in ((), (num_examples,)):
        raise ValueError(
            f"epsilon has shape {perturbations.epsilon.shape} for {num_examples} examples; "
            "give one radius, or one for each example"
        )
    if not is_concrete(xs):
        return
    values = np.asarray(xs)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values.reshape(num_examples, -1))).any(axis=1).sum())
        raise ValueError(f"{bad} of {num_examples} inputs hold nan or infinity; clean the data before attacking it")
    if perturbations.box is not None and is_concrete(perturbations.box.lower, perturbations.box.upper):
        _check_box(values, np.asarray(perturbations.box.lower), np.asarray(perturbations.box.upper))


def _check_box(values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    # A pixel of 255 / 255 in another precision may miss the bound by a rounding.
    slack = 4 * np.finfo(values.dtype).eps * max(np.abs(lower).max(), np.abs(upper).max())
    outside = ((values < lower - slack) | (values > upper + slack)).reshape(len(values), -1).any(axis=1)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {len(values)} inputs leave the valid box [{lower.min():g}, {upper.max():g}]: "
            f"they span [{values.min():g}, {values.max():g}]; rescale the inputs, or give the box that they live in"
        )


def check_targets(ys: Num[Array, "..."], output_shape: tuple[int, ...]) -> None:
    """Refuses targets that do not fit a network's output.

    Raises:
        ValueError: Non-integer or out-of-range labels for logits, non-floating targets for a scalar output, or an
            output that is neither a scalar nor a vector of at least two logits.
    """
    if output_shape == ():
        if not np.issubdtype(ys.dtype, np.floating) or ys.ndim != 1:
            raise ValueError(
                f"the network has one scalar output, whose targets are floats such as ±1, got dtype {ys.dtype} and "
                f"shape {ys.shape}; convert them with ys.astype(float)"
            )
        if is_concrete(ys) and not np.isfinite(np.asarray(ys)).all():
            raise ValueError("ys holds nan or infinity; clean the targets before attacking")
        return
    if len(output_shape) != 1 or output_shape[0] < 2:
        raise ValueError(
            f"the network's output has shape {output_shape}; give a scalar output (shape ()) or at least two logits"
        )
    if not np.issubdtype(ys.dtype, np.integer) or ys.ndim != 1:
        raise ValueError(
            f"the network has {output_shape[0]} logits, whose labels are integers 0..{output_shape[0] - 1}, got dtype "
            f"{ys.dtype} and shape {ys.shape}; convert them with ys.astype(int) or one-hot targets with argmax"
        )
    check_labels(ys, output_shape[0])


def check_labels(ys: ArrayLike, num_classes: int) -> None:
    """Refuses labels outside 0..num_classes - 1.

    Raises:
        ValueError: Quoting the labels' range.
    """
    if not is_concrete(ys):
        return
    labels = np.asarray(ys)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the network has {num_classes} logits: they must be "
            f"0..{num_classes - 1}"
        )
