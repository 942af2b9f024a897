"""What several commands do: seeds into keys, data into arrays, verdicts into exit codes."""

import dataclasses
import inspect
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from ntk_robust._core import provenance
from ntk_robust.cli._arguments import Train
from ntk_robust.data import Dataset, load_dataset, subset
from ntk_robust.models import (
    AbstractActivation,
    AbstractModel,
    Convolutional,
    Erf,
    FullyConnected,
    Gelu,
    Relu,
    Softplus,
    Tanh,
)
from ntk_robust.studies import Study
from ntk_robust.theory import Verdict
from ntk_robust.training import Centered, Linearized

EXIT_CODES = {Verdict.SUPPORTED: 0, Verdict.VIOLATED: 1, Verdict.INCONCLUSIVE: 3, Verdict.NOT_APPLICABLE: 3}
_ACTIVATIONS = {"relu": Relu, "erf": Erf, "gelu": Gelu, "softplus": Softplus, "tanh": Tanh}


def named_key(seed: int, name: str) -> Key[Array, ""]:
    """A key for the part called `name`: what else runs, and in which order, does not change it.

    Raises:
        ValueError: If the seed is negative or does not fit 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed is {seed}; give a number from 0 to 4294967295")
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def run_record(command: Any, **more: Any) -> dict[str, Any]:
    """What made a result: versions, device, precision, commit, time, the command, its seed and its arguments."""
    name = type(command).__name__.lower()
    return {**provenance(), "command": name, "seed": command.seed, "arguments": dataclasses.asdict(command), **more}


def examples(command: Any) -> Dataset:
    """The balanced part of the data set that a command with `num_train` and `num_test` asks for.

    Raises:
        ValueError: If the data set is unknown, not official, or too small.
        OSError: If a file is missing.
    """
    dataset = load_dataset(
        command.data,
        data_dir=command.data_dir,
        train_batches=command.train_batches,
        dtype=np.dtype(command.dtype),
    )
    return subset(dataset, command.num_train, command.num_test, key=named_key(command.seed, "examples"))


def run_study(study: Callable[..., Study], name: str, folder: Path, **arguments: Any) -> Study:
    """What a study found; one that trains keeps the histories of its runs beside the report in `folder`."""
    if "histories" not in inspect.signature(study).parameters:
        return study(**arguments)
    place = Path("histories") / name
    return dataclasses.replace(study(**arguments, histories=folder / place), histories=place.as_posix())


def activation(name: str) -> AbstractActivation:
    """The activation called `name`."""
    return _ACTIVATIONS[name]()


def network(command: Train, dataset: Dataset) -> FullyConnected | Convolutional:
    """The network that a training command describes, for these examples.

    Raises:
        ValueError: If sizes are not positive, or layers of a convolutional network shall be frozen.
    """
    if command.network == "convolutional":
        if command.trainable != "all":
            raise ValueError(f"--trainable is {command.trainable}; a convolutional network takes all")
        return Convolutional(  # pyright: ignore[reportCallIssue] - its input_dim is a property
            dataset.image_shape,
            command.width,
            command.num_hidden_layers,
            dataset.num_classes,
            activation=activation(command.activation),
            parameterization=command.parameterization,
        )
    return FullyConnected(
        dataset.input_dim,
        command.width,
        command.num_hidden_layers,
        dataset.num_classes,
        activation(command.activation),
        parameterization=command.parameterization,
        trainable=command.trainable,
    )


def trained_fn(model: AbstractModel, dynamics: str, anchor: PyTree) -> Callable[..., Any]:
    """What a training command trains: the network, or its tangent at the weights `anchor`."""
    match dynamics:
        case "linearized":
            return Linearized(model.apply, anchor)
        case "centered":
            return Linearized(Centered(model.apply, anchor), anchor)
        case _:
            return model.apply


def arrays_by_path(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree, keyed by their place in it."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf) for path, leaf in leaves}
