"""Kernel matrices of a data set as files."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_robust._core import Figure, Series, Table, to_jsonable, write_json_atomically
from ntk_robust.cli._arguments import Kernel
from ntk_robust.cli._common import activation, examples, named_key, run_record
from ntk_robust.cli._files import save_array
from ntk_robust.cli._progress import display
from ntk_robust.cli._terminal import say
from ntk_robust.data import Dataset
from ntk_robust.kernels import (
    AbstractKernel,
    analytic_nngp,
    analytic_ntk,
    cross_validation_residuals,
    effective_dimension,
    effective_rank,
    empirical_nngp,
    empirical_ntk,
    forecast_gram,
    gram,
    kernel_regression,
)
from ntk_robust.models import FullyConnected
from ntk_robust.report import prepare_report_folder, write_report
from ntk_robust.studies import Study


def kernel(command: Kernel) -> int:
    """Writes the matrices and what they are like."""
    if not 0 <= command.ridge < math.inf:
        raise ValueError(f"--ridge is {command.ridge}; give a number of at least 0")
    dataset = examples(command)
    compute = _kernel_fn(command, dataset)
    folder = prepare_report_folder(command.out)
    run = run_record(command)
    write_report(folder, run=run, pending=[command.kernel], title="Kernel matrices")
    forecast = forecast_gram(compute, dataset.x_train)
    say(
        f"{forecast.num_tiles} tiles of {forecast.tile[0]} rows, {forecast.memory_bytes / 2**30:.2f} GiB of memory, "
        f"about {forecast.seconds:.1f} s"
    )
    with display() as progress:
        with progress.task(f"{command.kernel} of {dataset.name}, training part"):
            k_train_train = gram(compute, dataset.x_train, progress=progress)
            save_array(folder / "k_train_train.npy", k_train_train)
        with progress.task("test part"):
            k_test_train = gram(compute, dataset.x_test, dataset.x_train, progress=progress)
            save_array(folder / "k_test_train.npy", k_test_train)
        with progress.task("spectrum and regression"):
            eigenvalues = np.linalg.eigvalsh(k_train_train)[::-1]
            summary = _summary(command, dataset, k_train_train, k_test_train, eigenvalues)
    write_json_atomically(folder / "summary.json", summary)
    page = write_report(
        folder,
        studies=[_study(command, eigenvalues, summary)],
        run=run,
        title="Kernel matrices",
        summary=f"{command.kernel} of {dataset.name}.",
    )
    for name, value in summary.items():
        say(f"{name.replace('_', ' ')}: {value}")
    say(f"report: {page}")
    return 0


def _kernel_fn(command: Kernel, dataset: Dataset) -> AbstractKernel | Callable[[Array, Array | None], Array]:
    model = FullyConnected(
        dataset.input_dim,
        command.width,
        command.num_hidden_layers,
        # The empirical NNGP kernel is an average over independent outputs, and one output makes a poor average.
        command.width if command.kernel == "empirical_nngp" else "scalar",
        activation(command.activation),
        w_std=command.w_std,
        b_std=command.b_std,
        trainable=command.trainable,
    )
    match command.kernel:
        case "analytic_ntk":
            return analytic_ntk(model)
        case "analytic_nngp":
            return analytic_nngp(model)
    params = model.init(key=named_key(command.seed, "network"), dtype=np.dtype(command.dtype))
    empirical = empirical_ntk if command.kernel == "empirical_ntk" else empirical_nngp
    return lambda x1, x2: empirical(model.apply, params, x1, x2)


def _summary(
    command: Kernel, dataset: Dataset, k_train_train: np.ndarray, k_test_train: np.ndarray, eigenvalues: np.ndarray
) -> dict[str, Any]:
    smallest = float(eigenvalues[-1])
    return to_jsonable(
        {
            "kernel": command.kernel,
            "num_train": len(k_train_train),
            "num_test": len(k_test_train),
            "dtype": str(k_train_train.dtype),
            "mean_diagonal": float(np.mean(np.diag(k_train_train))),
            "largest_eigenvalue": float(eigenvalues[0]),
            "smallest_eigenvalue": smallest,
            "condition_number": float(eigenvalues[0] / smallest) if smallest > 0 else math.inf,
            "effective_rank": float(effective_rank(jnp.asarray(k_train_train))),
            "ridge": command.ridge,
        }
        | ({"effective_dimension": effective_dimension(eigenvalues, ridge=command.ridge)} if command.ridge else {})
        | _regression(command, dataset, k_train_train, k_test_train)
    )


def _regression(
    command: Kernel, dataset: Dataset, k_train_train: np.ndarray, k_test_train: np.ndarray
) -> dict[str, float | str]:
    labels = np.asarray(dataset.y_train)
    targets = np.eye(dataset.num_classes)[labels]
    k = k_train_train.astype(np.float64)
    try:
        fit = kernel_regression(k, targets, ridge=command.ridge)
        left_out = targets - cross_validation_residuals(k, targets, ridge=command.ridge)
    except ValueError as error:  # the matrices are what was asked for, and they are written
        return {"regression": str(error)}
    predicted = fit(k_test_train.astype(np.float64))
    return {
        "regression_test_accuracy": float(np.mean(predicted.argmax(axis=1) == np.asarray(dataset.y_test))),
        "regression_leave_one_out_accuracy": float(np.mean(left_out.argmax(axis=1) == labels)),
        "regression_condition_number": fit.condition_number,
        "regression_residual": fit.residual,
    }


def _study(command: Kernel, eigenvalues: np.ndarray, summary: dict[str, Any]) -> Study:
    ranks = [float(rank) for rank in range(1, len(eigenvalues) + 1)]
    figure = Figure(
        "spectrum",
        "Eigenvalues of the training matrix",
        "rank",
        "eigenvalue",
        (Series(command.kernel, ranks, [float(value) for value in eigenvalues]),),
        x_scale="log",
        y_scale="log",
        caption="Eigenvalues that are not positive, which rounding can cause, are left out.",
    )
    rows = [(name.replace("_", " "), value) for name, value in summary.items()]
    table = Table("summary", "Summary", ("quantity", "value"), rows)
    text = "Matrices are beside this page: k_train_train.npy and k_test_train.npy, rows first."
    return Study(name="kernel", title=command.kernel, text=text, figures=[figure], tables=[table])
