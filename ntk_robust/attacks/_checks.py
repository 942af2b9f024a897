"""Input checks on the host, before anything is traced."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from ntk_robust.attacks._sets import AbstractPerturbationSet, is_concrete


def check_kind(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Refuses an argument of another kind, such as a name or a class in place of an object.

    Raises:
        ValueError: Quoting the argument and what is wanted.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; give {wanted}")


def check_batch(xs: Float[Array, "..."], ys: Num[Array, "..."], perturbations: AbstractPerturbationSet) -> None:
    """Refuses batches that no attack could make sense of; what is traced is not looked at.

    Raises:
        ValueError: No arrays or no set, an empty or misshapen batch, inputs that are not floats, not finite or outside
            the box, radii that do not match.
    """
    for name, array in {"xs": xs, "ys": ys}.items():
        check_kind(name, array, (Array, np.ndarray), "an array, such as jnp.asarray(...)")
    check_kind("perturbations", perturbations, AbstractPerturbationSet, "a set, such as LinfBall(8 / 255)")
    if xs.ndim < 2:
        raise ValueError(f"xs has shape {xs.shape}; give a batch with examples along the first axis, such as xs[None]")
    num_examples = xs.shape[0]
    if num_examples == 0:
        raise ValueError("the batch is empty; give at least one example")
    if not np.issubdtype(xs.dtype, np.floating):
        raise ValueError(f"xs has dtype {xs.dtype}; give floats, such as xs / 255 for images in the box [0, 1]")
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
    if perturbations.box is not None:
        perturbations.box.check(xs)


def check_targets(ys: Num[Array, "..."], output_shape: tuple[int, ...], *, are_classes: bool) -> None:
    """Refuses targets that do not fit a network's output.

    Where the target of a scalar output means a class, its sign is the class, and 0 is none.

    Raises:
        ValueError: Non-integer or out-of-range labels for logits, non-floating targets for a scalar output or
            zeros among them where they are classes, or an output that is neither a scalar nor a vector of at least two
            logits.
    """
    if output_shape == ():
        if not np.issubdtype(ys.dtype, np.floating) or ys.ndim != 1:
            raise ValueError(
                f"the network has one scalar output, whose targets are floats such as ±1, got dtype {ys.dtype} and "
                f"shape {ys.shape}; convert them with ys.astype(float)"
            )
        if is_concrete(ys) and not np.isfinite(np.asarray(ys)).all():
            raise ValueError("ys holds nan or infinity; clean the targets before attacking")
        num_zeros = int((np.asarray(ys) == 0).sum()) if are_classes and is_concrete(ys) else 0
        if num_zeros:
            raise ValueError(
                f"{num_zeros} of {len(ys)} targets of the scalar output are 0, where the sign is "
                "the class; give ±1, such as 2 * ys - 1 for labels 0 and 1"
            )
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
