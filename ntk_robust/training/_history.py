"""What a run measured, as files: arrays in zarr, the rest in JSON."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ntk_robust._core import provenance, to_jsonable, write_json_atomically
from ntk_robust.training._description import described
from ntk_robust.training._fit import TrainingResult
from ntk_robust.training._os_error import os_error

_ARRAYS, _SUMMARY, _ATTRIBUTES = "history.zarr", "summary.json", ".zattrs"
_PART, _OLDER = ".part", ".older"


@dataclasses.dataclass(frozen=True)
class SavedHistory:
    """A history read back.

    Attributes:
        history: Records of the steps by name; trees that a `record` returned are flat, "params.hidden.0".
        probes: Results of the probes by their name, then by that of the measurement.
        probe_steps: How many steps the weights of each probing had taken.
        summary: What `save_history` wrote beside the arrays: "num_steps", "finite", "message", "run", "about", and
            "arguments" where it was given.
    """

    history: dict[str, np.ndarray]
    probes: dict[str, dict[str, np.ndarray]]
    probe_steps: np.ndarray
    summary: dict[str, Any]


def save_history(
    folder: str | os.PathLike[str],
    result: TrainingResult,
    *,
    arguments: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what a run measured to `folder`: `history.zarr`, one array per quantity, and `summary.json`.

    The summary holds versions, device, precision and commit, so that a figure made of the arrays can be traced back. It
    is also kept with the arrays, as the attributes of their group (`.zattrs`), where `load_history` reads it: both are
    of the same run at every moment.

    An older history in the folder is replaced once the new one is complete, by two renames. A kill between them leaves
    the older one under a hidden name, where `load_history` finds it and the next `save_history` clears it; a kill after
    them may leave the older `summary.json` beside the new arrays.

    Args:
        folder: Where to write; made if it is missing.
        result: The run, finished or from a callback of `fit`.
        arguments: Those of `fit`, by name. They are kept as descriptions: numbers as they are, arrays by shape and
            digest, keys by their words, strategy objects by their fields, functions by name and what they enclose.
        about: What else to keep, in JSON types: a seed, the command that made the run.

    Returns:
        The folder.

    Raises:
        ValueError: If `about` is not in JSON types; nothing was written then.
        OSError: If it could not be written; an older history is then intact.
    """
    folder = Path(folder).resolve()  # TensorStore takes no ".."
    summary = to_jsonable(
        {
            "num_steps": result.num_steps,
            "finite": result.finite,
            "message": result.message,
            "last": {name: float(values[-1]) for name, values in _flat(result.history).items() if _is_curve(values)},
            "run": provenance(),
            **({} if arguments is None else {"arguments": described(arguments)}),
            "about": _in_json(about or {}),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"history/{name}": values for name, values in _flat(result.history).items()}
    arrays |= {f"probes/{name}": values for name, values in _flat(result.probes, separator="/").items()}
    arrays["probe_steps"] = np.asarray(result.probe_steps)
    part = Path(tempfile.mkdtemp(dir=folder, prefix=f".{_ARRAYS}.", suffix=_PART))
    try:
        for name, values in arrays.items():
            _write_array(part / name, values)
        _mark_groups(part, arrays)
        (part / _ATTRIBUTES).write_text(json.dumps(summary, allow_nan=False))
        part.chmod(0o755)
        _take_the_place_of(folder / _ARRAYS, part)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        found = os_error(error, folder / _ARRAYS)
        if found is not None:
            raise found from error
        raise
    write_json_atomically(folder / _SUMMARY, summary)
    return folder


def load_history(folder: str | os.PathLike[str]) -> SavedHistory:
    """What `save_history` wrote.

    Raises:
        ValueError: If the folder holds no history.
    """
    folder = Path(folder).resolve()  # TensorStore takes no ".."
    # Where a kill came between two renames the older history is still the one.
    root = next((path for path in (folder / _ARRAYS, *_hidden(folder, _OLDER)) if (path / _ATTRIBUTES).is_file()), None)
    if root is None:
        raise ValueError(f"{folder} holds no {_ARRAYS} with a {_SUMMARY}; give a folder that save_history wrote")
    found = {str(path.parent.relative_to(root)): _read_array(path.parent) for path in sorted(root.rglob(".zarray"))}
    probes: dict[str, dict[str, np.ndarray]] = {}
    for name, values in found.items():
        if name.startswith("probes/"):
            _, probe, measurement = name.split("/", 2)
            probes.setdefault(probe, {})[measurement] = values
    return SavedHistory(
        history={name.removeprefix("history/"): a for name, a in found.items() if name.startswith("history/")},
        probes=probes,
        probe_steps=found["probe_steps"],
        summary=json.loads((root / _ATTRIBUTES).read_text()),
    )


def _take_the_place_of(target: Path, part: Path) -> None:
    """Renames `part` to `target`, which is put away first and removed afterwards."""
    folder, older = target.parent, part.with_suffix(_OLDER)
    if target.exists():
        _clear(set(_hidden(folder)) - {part})  # of kills long ago: with the target in its place nothing needs them
        target.replace(older)
    try:
        part.replace(target)
    except BaseException:
        if older.exists():
            older.replace(target)
        raise
    _clear(_hidden(folder))


def _hidden(folder: Path, suffix: str = "") -> list[Path]:
    return sorted(folder.glob(f".{_ARRAYS}.*{suffix}"))


def _clear(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _in_json(about: Mapping[str, Any]) -> Any:
    """`about` as JSON, before anything is replaced."""
    try:
        return to_jsonable(dict(about))
    except TypeError as error:
        raise ValueError(
            f"about cannot be written as JSON ({error}); give numbers, strings, lists and dicts"
        ) from error


def _flat(tree: PyTree[Array], separator: str = ".") -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=separator): np.asarray(leaf) for path, leaf in leaves}


def _is_curve(values: np.ndarray) -> bool:
    return values.ndim == 1 and len(values) > 0


def _write_array(path: Path, values: np.ndarray) -> None:
    import tensorstore  # noqa: PLC0415 - only files need it

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    store = tensorstore.open(spec, create=True, dtype=values.dtype, shape=values.shape).result()
    if values.size:
        store.write(values).result()


def _read_array(path: Path) -> np.ndarray:
    import tensorstore  # noqa: PLC0415 - only files need it

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


def _mark_groups(root: Path, names: Mapping[str, Any]) -> None:
    """Says to other readers of zarr that the folders above the arrays are groups."""
    groups = {root} | {folder for name in names for folder in (root / name).parents if root in folder.parents}
    for group in groups:
        (group / ".zgroup").write_text('{"zarr_format": 2}\n')
