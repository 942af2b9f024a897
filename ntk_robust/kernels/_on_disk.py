"""Gram matrices on disk that survive a kill."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ntk_robust._core import SilentProgress, write_json_atomically
from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._forecast import refuse_what_cannot_fit
from ntk_robust.kernels._tiles import KernelLike, TilePlan, tile_values

if TYPE_CHECKING:
    import tensorstore

_IDENTITY, _DONE = "identity.json", "tiles_done.json"


def gram_on_disk(
    path: str | os.PathLike[str],
    kernel: KernelLike,
    x1: Any,
    x2: Any = None,
    *,
    tile: int | None = None,
    kernel_name: str | None = None,
    progress: Any = None,
) -> "tensorstore.TensorStore":
    """Kernel matrix as a zarr array in the folder `path`, tile by tile; a run that was killed continues.

    Beside the array lie a fingerprint of data, kernel, dtype, shape and tile, and the list of finished tiles, which
    grows after a tile is on disk. Killed at any moment and called again, it computes what is missing and ends with the
    same bits; a finished matrix is opened. Memory is that of a few tiles and the examples.

    Args:
        path: Folder; made where missing.
        kernel: A kernel, or a function (x1, x2 or None) → matrix, then with `kernel_name`.
        x1: Examples, one per row.
        x2: Examples; None for `x1`.
        tile: Rows and columns of a tile, which is also the chunk of the array; None for 2048.
        kernel_name: What identifies a function's values (weights included); a kernel is identified by its fields.
        progress: Where to report, an `AbstractProgress`; None is silence.

    Returns:
        The array, open for reading: `store[i:j].read().result()` is a NumPy array.

    Raises:
        ValueError: If `path` holds a matrix of other data, kernel, dtype, shape or tile (with what differs), if a
            function
            comes without `kernel_name`, or if memory or disk do not suffice (with what would fit).
    """
    path = Path(path)
    plan = TilePlan.of(kernel, x1, x2, tile)
    identity = {
        "format": 1,
        "shape": list(plan.shape),
        "dtype": plan.dtype.name,
        "tile": plan.tile,
        "symmetric": plan.symmetric,
        "kernel": _kernel_fingerprint(kernel, kernel_name),
        "x1": _array_fingerprint(x1),
        "x2": None if x2 is None else _array_fingerprint(x2),
    }
    if (path / _IDENTITY).exists():
        _refuse_another(path, json.loads((path / _IDENTITY).read_text()), identity)
    else:
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is a folder with other things in it; give a new or empty folder")
        refuse_what_cannot_fit(plan, path)
        write_json_atomically(path / _IDENTITY, identity)
    done = set(map(tuple, json.loads((path / _DONE).read_text()))) if (path / _DONE).exists() else set()
    store = _open(path, plan)
    with (progress or SilentProgress()).task("kernel matrix", total=len(plan.pairs)) as task:
        for i, j in plan.pairs:
            if (i, j) not in done:
                block = tile_values(kernel, x1, x2, plan, (i, j))
                rows, columns = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
                store[rows, columns].write(block).result()
                if plan.symmetric and i != j:
                    store[columns, rows].write(block.T).result()
                done.add((i, j))
                write_json_atomically(path / _DONE, sorted(done))
            task.advance()
    return store


def _open(path: Path, plan: TilePlan) -> "tensorstore.TensorStore":
    import tensorstore  # noqa: PLC0415 - only matrices on disk need it

    chunk = [min(plan.tile, size) for size in plan.shape]
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path / "gram.zarr")},
        "metadata": {"shape": list(plan.shape), "chunks": chunk, "dtype": plan.dtype.str, "compressor": None},
    }
    return tensorstore.open(spec, open=True, create=True).result()


def _refuse_another(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differences = [
        f"{name} {found.get(name)} there, {value} here" for name, value in wanted.items() if found.get(name) != value
    ]
    if differences:
        raise ValueError(f"{path} holds another matrix ({'; '.join(differences)}); give another folder or delete it")


def _kernel_fingerprint(kernel: KernelLike, name: str | None) -> str:
    if name is not None:
        return name
    if not isinstance(kernel, AbstractKernel):
        raise ValueError(
            "a function has no fingerprint of its own; give kernel_name, which must change with its values"
        )
    digest = hashlib.sha256(str(jax.tree.structure(kernel)).encode())
    for leaf in jax.tree.leaves(kernel):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _array_fingerprint(x: Any) -> str:
    x = np.ascontiguousarray(x)
    return f"{x.dtype.name}{list(x.shape)}:{hashlib.sha256(x.tobytes()).hexdigest()}"
