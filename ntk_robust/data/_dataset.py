"""The record of a data set, and tasks made from one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray


class Dataset(eqx.Module):
    """Labelled images, flattened, in their official training and test parts.

    Attributes:
        x_train: Training inputs, one row each, pixels in `box`.
        y_train: Their labels: integers below `num_classes`, or ±1 as floats after `binary_task`.
        x_test: Test inputs.
        y_test: Their labels.
        name: What the set is called.
        num_classes: How many classes there are.
        class_names: One name per class, in the order of the integer labels.
        image_shape: `(height, width, channels)`; `x.reshape(image_shape)` is the image of a row.
        box: Lower and upper end of the valid inputs, per pixel.
    """

    x_train: Float[Array, "n_train d"]
    y_train: Num[Array, " n_train"]
    x_test: Float[Array, "n_test d"]
    y_test: Num[Array, " n_test"]
    name: str = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    class_names: tuple[str, ...] = eqx.field(static=True)
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    box: tuple[float, float] = eqx.field(static=True, default=(0.0, 1.0))

    @property
    def input_dim(self) -> int:
        """$d$, the number of pixels times channels."""
        return self.x_train.shape[1]


def binary_task(dataset: Dataset, classes: tuple[int, int] = (0, 1)) -> Dataset:
    """The examples of two classes, labelled +1 (the first) and -1 (the second) in the dtype of the inputs.

    Args:
        dataset: A data set with integer labels.
        classes: The two integer labels.

    Raises:
        ValueError: If the classes coincide or are not among those of `dataset`.
    """
    first, second = classes
    known = range(dataset.num_classes)
    if first == second or first not in known or second not in known:
        raise ValueError(
            f"classes is {classes}; give two different labels of {dataset.name} in 0..{dataset.num_classes - 1}"
        )
    if not jnp.issubdtype(dataset.y_train.dtype, jnp.integer):
        raise ValueError(f"{dataset.name} has {dataset.y_train.dtype} labels; binary_task needs integer labels")

    def select(x: Array, y: Array) -> tuple[Array, Array]:
        labels = np.asarray(y)
        kept = np.flatnonzero((labels == first) | (labels == second))
        return jnp.asarray(np.asarray(x)[kept]), jnp.asarray(np.where(labels[kept] == first, 1, -1), x.dtype)

    x_train, y_train = select(dataset.x_train, dataset.y_train)
    x_test, y_test = select(dataset.x_test, dataset.y_test)
    names = (dataset.class_names[first], dataset.class_names[second])
    return Dataset(
        x_train,
        y_train,
        x_test,
        y_test,
        name=f"{dataset.name}:{names[0]}-{names[1]}",
        num_classes=2,
        class_names=names,
        image_shape=dataset.image_shape,
        box=dataset.box,
    )


def subset(dataset: Dataset, num_train: int, num_test: int, *, key: PRNGKeyArray) -> Dataset:
    """A class-balanced random part of a data set.

    Class sizes differ by one at most, and classes alternate in the rows. With the same key a larger subset begins with
    the smaller one, and the draw does not depend on the version of JAX.

    Args:
        dataset: With integer or ±1 labels.
        num_train: Training rows to keep.
        num_test: Test rows to keep.
        key: Decides which.

    Raises:
        ValueError: If a number is not positive or a class has too few examples for it.
    """
    train_key, test_key = jax.random.split(key)
    train = _balanced_rows(dataset, "num_train", np.asarray(dataset.y_train), num_train, train_key)
    test = _balanced_rows(dataset, "num_test", np.asarray(dataset.y_test), num_test, test_key)
    return eqx.tree_at(
        lambda whole: (whole.x_train, whole.y_train, whole.x_test, whole.y_test),
        dataset,
        (
            jnp.asarray(np.asarray(dataset.x_train)[train]),
            jnp.asarray(np.asarray(dataset.y_train)[train]),
            jnp.asarray(np.asarray(dataset.x_test)[test]),
            jnp.asarray(np.asarray(dataset.y_test)[test]),
        ),
    )


def _balanced_rows(dataset: Dataset, what: str, labels: np.ndarray, count: int, key: PRNGKeyArray) -> np.ndarray:
    values, sizes = np.unique(labels, return_counts=True)
    most = int(sizes.min()) * len(values)
    if not 1 <= count <= most:
        raise ValueError(
            f"{what} is {count}, but class-balanced parts of {dataset.name} have 1 to {most} rows "
            f"(its smallest class has {sizes.min()} of {len(labels)}); give a number in that range"
        )
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    columns = [generator.permutation(np.flatnonzero(labels == value))[: sizes.min()] for value in values]
    return np.stack(columns, axis=1).reshape(-1)[:count]
