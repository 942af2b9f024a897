"""Data sets and synthetic families: what the kernels, the training and the checks run on."""

from ntk_robust.data._dataset import Dataset, binary_task, subset
from ntk_robust.data._load import DATASET_NAMES, load_dataset
from ntk_robust.data._status import DatasetStatus, dataset_status
from ntk_robust.data._synthetic import circle_points, gaussian_points, sphere_points, to_sphere_slice

__all__ = [
    "DATASET_NAMES",
    "Dataset",
    "DatasetStatus",
    "binary_task",
    "circle_points",
    "dataset_status",
    "gaussian_points",
    "load_dataset",
    "sphere_points",
    "subset",
    "to_sphere_slice",
]
