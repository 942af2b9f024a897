"""What `ntk-robust attack` attacks: a network that `train` saved, or a kernel regression fitted here."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ntk_robust.cli._arguments import Attack, Train
from ntk_robust.cli._common import activation, arrays_by_path, examples, network, trained_fn
from ntk_robust.data import Dataset
from ntk_robust.kernels import KernelPredictor, analytic_nngp, analytic_ntk, kernel_regression
from ntk_robust.models import AbstractModel, FullyConnected


class Victim(NamedTuple):
    """What is attacked: (apply_fn, params), how to certify it, and in which words to speak of it."""

    apply_fn: Any
    params: PyTree
    model: AbstractModel | None
    dataset: Dataset
    name: str
    trained: Train | None = None


def saved_network(command: Attack) -> Victim:
    """The network in a folder of `train`, with its test examples.

    Raises:
        ValueError: If the folder holds no such run, or another network's weights.
        OSError: If a file is missing.
    """
    folder = command.run
    assert folder is not None
    trained = _trained(folder / "run.json", command.data_dir)
    dataset = examples(trained)
    model = network(trained, dataset)
    like = model.init(key=jax.random.key(0), dtype=np.dtype(trained.dtype))
    params, tangent = _weights(folder / "params.npz", like), folder / "params_tangent.npz"
    if trained.dynamics == "network" or not tangent.exists():  # a run that was stopped before it switched
        return Victim(model.apply, params, model, dataset, f"the network in {folder}", trained)
    apply_fn = trained_fn(model, trained.dynamics, _weights(tangent, like))
    return Victim(apply_fn, params, None, dataset, f"the {trained.dynamics} network in {folder}", trained)


def _trained(path: Path, data_dir: Path | None) -> Train:
    """The command that trained a network, as its folder tells, with another data directory if one is given."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); name a folder of `train`") from error
    if not isinstance(record, dict) or record.get("command") != "train":
        what = record.get("command") if isinstance(record, dict) else record
        raise ValueError(f"{path} holds the results of {what!r}; name a folder of `train`")
    try:
        arguments = record["arguments"]
        paths = {name: None if arguments[name] is None else Path(arguments[name]) for name in ("out", "data_dir")}
        if data_dir is not None:
            paths["data_dir"] = data_dir
        return Train(**arguments | paths | {"train_batches": tuple(arguments["train_batches"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what this version of `train` writes ({error!r}); train again") from error


def _weights(path: Path, like: PyTree) -> PyTree:
    """Weights of the network that has weights `like` these."""
    stored = _arrays(path)
    shapes = {name: array.shape for name, array in arrays_by_path(like).items()}
    if shapes != {name: array.shape for name, array in stored.items()}:
        raise ValueError(f"{path} does not hold the weights of the network that run.json describes")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(stored[name]) for name in shapes])


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no weights: numpy cannot read it as an .npz file; train again") from error
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f"{path} holds weights that are not finite ({broken[0]}); the training has diverged")
    return arrays


def fitted_regression(command: Attack) -> Victim:
    """A regression with the kernel that the options describe, on one-hot targets."""
    dataset = examples(command)
    model = FullyConnected(
        dataset.input_dim,
        1,
        command.num_hidden_layers,
        "scalar",
        activation(command.activation),
        w_std=command.w_std,
        b_std=command.b_std,
    )
    kernel = analytic_ntk(model) if command.kernel == "analytic_ntk" else analytic_nngp(model)
    targets = np.eye(dataset.num_classes, dtype=dataset.x_train.dtype)[np.asarray(dataset.y_train)]
    gram = np.asarray(kernel.gram(dataset.x_train))
    # Centered targets: what is far from all examples then says nothing instead of "no class".
    fitted = kernel_regression(
        gram, targets - targets.mean(axis=0), ridge=command.ridge * float(np.mean(np.diag(gram)))
    )
    predictor = KernelPredictor(kernel, dataset.x_train, jnp.asarray(fitted.dual))
    name = f"{command.kernel} regression on {len(gram)} examples of {dataset.name}"
    return Victim(KernelPredictor.__call__, predictor, None, dataset, name)
