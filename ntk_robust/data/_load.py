"""Data sets by name."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_robust.data._cifar10 import CIFAR10, TRAIN_BATCHES, read_cifar10_rows
from ntk_robust.data._dataset import Dataset
from ntk_robust.data._idx import FASHION_MNIST, FASHION_MNIST_FILES, MNIST, MNIST_FILES, PARTS, read_idx_arrays
from ntk_robust.data._official import OfficialFile, Source, require_data_dir

DATASET_NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_batches: Sequence[int] = tuple(TRAIN_BATCHES),
    dtype: Any = None,
) -> Dataset:
    """A data set with pixels in [0, 1] and integer labels (int32).

    `"digits"` is embedded in scikit-learn (1797 images of 8x8 pixels with 17 grey levels, from the test part of the UCI
    set): the last fifth of each class, in the stored order, is the test part, because neighbours in that order tend to
    come from one writer. The others are read from official files below the data directory, whose sha256 sums must be
    the official ones: `"mnist"` and `"fashion_mnist"` from `mnist/` and `fashion_mnist/` (idx files, gzipped or not),
    and `"cifar10"` from `cifar10/cifar-10-batches-bin/` (binary version; rows come as height, width, channel).

    Args:
        name: One of `DATASET_NAMES`.
        data_dir: Folder that holds the official files; the environment's `NTK_ROBUST_DATA` where None.
        train_batches: Which of the five training batches of CIFAR-10 to read, in this order; the others ignore it.
        dtype: Of the pixels; JAX's default float where None.

    Raises:
        ValueError: If the name is unknown, no data directory is named, or a file is not the official one.
        OSError: If a file is missing or unreadable; the message says which, and where to get it.

    Examples:
        >>> digits = load_dataset("digits")
        >>> digits.x_train.shape, digits.x_test.shape
        ((1433, 64), (364, 64))
    """
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}; pixels in [0, 1] need a floating dtype")
    match name:
        case "digits":
            return _digits(dtype)
        case "mnist":
            return _idx(name, _DIGIT_NAMES, source=MNIST, files=MNIST_FILES, data_dir=data_dir, dtype=dtype)
        case "fashion_mnist":
            files = FASHION_MNIST_FILES
            return _idx(name, _FASHION_NAMES, source=FASHION_MNIST, files=files, data_dir=data_dir, dtype=dtype)
        case "cifar10":
            return _cifar10(data_dir, train_batches, dtype)
    raise ValueError(f"data set {name!r} is unknown; give one of {', '.join(DATASET_NAMES)}")


def _digits(dtype: np.dtype) -> Dataset:
    from sklearn.datasets import load_digits  # noqa: PLC0415  (seconds of import that nothing else here needs)

    bunch: Any = load_digits()
    levels, labels = bunch.data, bunch.target
    train, test = [], []
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        num_train = len(rows) * 4 // 5
        train.append(rows[:num_train])
        test.append(rows[num_train:])
    parts = [np.sort(np.concatenate(rows)) for rows in (train, test)]
    arrays = [(_pixels(levels[rows], 16, dtype), _labels(labels[rows])) for rows in parts]
    return _dataset("digits", arrays, _DIGIT_NAMES, (8, 8, 1))


def _idx(
    name: str,
    class_names: tuple[str, ...],
    *,
    source: Source,
    files: dict[str, tuple[OfficialFile, OfficialFile]],
    data_dir: str | os.PathLike[str] | None,
    dtype: np.dtype,
) -> Dataset:
    arrays = read_idx_arrays(source, files, require_data_dir(source, data_dir))
    x_train, y_train, x_test, y_test = (arrays[part] for part in PARTS)
    parts = [
        (_pixels(images.reshape(len(images), -1), 255, dtype), _labels(labels))
        for images, labels in ((x_train, y_train), (x_test, y_test))
    ]
    return _dataset(name, parts, class_names, (28, 28, 1))


def _cifar10(data_dir: str | os.PathLike[str] | None, train_batches: Sequence[int], dtype: np.dtype) -> Dataset:
    parts = []
    for rows in read_cifar10_rows(require_data_dir(CIFAR10, data_dir), train_batches):
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).reshape(len(rows), -1)
        parts.append((_pixels(images, 255, dtype), _labels(rows[:, 0])))
    return _dataset("cifar10", parts, _CIFAR10_NAMES, (32, 32, 3))


def _pixels(levels: np.ndarray, largest: int, dtype: np.dtype) -> jax.Array:
    # Bytes travel to the device, floats do not: copying the floats of MNIST takes longer than everything else. The
    # table holds correctly rounded quotients; XLA divides by a constant through its reciprocal, one rounding worse.
    table = (np.arange(largest + 1) / largest).astype(dtype)
    return _look_up(table, levels.astype(np.uint8, copy=False))


@jax.jit
def _look_up(table: jax.Array, levels: jax.Array) -> jax.Array:
    return table[levels]


def _labels(labels: np.ndarray) -> jax.Array:
    return jnp.asarray(labels, jnp.int32)


def _dataset(
    name: str,
    parts: Sequence[tuple[jax.Array, jax.Array]],
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
) -> Dataset:
    (x_train, y_train), (x_test, y_test) = parts
    return Dataset(
        x_train,
        y_train,
        x_test,
        y_test,
        name=name,
        num_classes=len(class_names),
        class_names=class_names,
        image_shape=image_shape,
    )
