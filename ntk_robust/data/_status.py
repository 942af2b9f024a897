"""Which data sets can be read here."""

import dataclasses
import importlib.util
import os

from ntk_robust.data._cifar10 import CIFAR10, TEST_BATCH, TRAIN_BATCHES, present_batches
from ntk_robust.data._idx import FASHION_MNIST, FASHION_MNIST_FILES, MNIST, MNIST_FILES
from ntk_robust.data._official import ENVIRONMENT_VARIABLE, find_data_dir, read_official


@dataclasses.dataclass(frozen=True)
class DatasetStatus:
    """Whether a data set can be read.

    Attributes:
        name: As `load_dataset` takes it.
        available: Whether `load_dataset(name)` would succeed; for CIFAR-10 with the batches that `detail` names.
        detail: What was found, or the trouble and its remedy in one line.
    """

    name: str
    available: bool
    detail: str


def dataset_status(data_dir: str | os.PathLike[str] | None = None) -> list[DatasetStatus]:
    """The state of every data set, after comparing the sums of the files that are there.

    Args:
        data_dir: As for `load_dataset`.
    """
    embedded = importlib.util.find_spec("sklearn") is not None
    statuses = [DatasetStatus("digits", embedded, "embedded in scikit-learn" if embedded else "needs scikit-learn")]
    folder = find_data_dir(data_dir)
    if folder is None or not folder.is_dir():
        detail = f"no data directory: set {ENVIRONMENT_VARIABLE}" if folder is None else f"{folder} is not a folder"
        return statuses + [DatasetStatus(name, False, detail) for name in ("mnist", "fashion_mnist", "cifar10")]

    for name, source, files in (
        ("mnist", MNIST, MNIST_FILES),
        ("fashion_mnist", FASHION_MNIST, FASHION_MNIST_FILES),
    ):
        try:
            for alternatives in files.values():
                read_official(source, folder, alternatives)
        except (OSError, ValueError) as error:
            statuses.append(DatasetStatus(name, False, str(error)))
        else:
            statuses.append(DatasetStatus(name, True, f"official files below {folder}"))

    numbers = present_batches(folder)
    try:
        for official in (*(TRAIN_BATCHES[number] for number in numbers or TRAIN_BATCHES), TEST_BATCH):
            read_official(CIFAR10, folder, [official])
    except (OSError, ValueError) as error:
        statuses.append(DatasetStatus("cifar10", False, str(error)))
    else:
        what = "all training batches" if len(numbers) == len(TRAIN_BATCHES) else f"training batches {numbers} only"
        statuses.append(DatasetStatus("cifar10", True, f"{what}, official files below {folder}"))
    return statuses
