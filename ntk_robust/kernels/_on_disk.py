"""Gram matrices on disk that survive a kill."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ntk_robust._core import write_json_atomically
from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._forecast import needs, plan_gram, refuse_what_cannot_fit
from ntk_robust.kernels._tiles import KernelLike, TilePlan, tile_values

if TYPE_CHECKING:
    import tensorstore

_IDENTITY, _DONE = "identity.json", "tiles_done.txt"
_ROWS_HASHED_AT_ONCE = 1024


def on_disk(
    kernel: KernelLike, x1: Any, x2: Any, *, tile: int | None, out: Any, kernel_name: str | None, progress: Any
) -> "tensorstore.TensorStore":
    """`gram` for a folder.

    While a tile travels to the disk the next one is computed; a tile is noted as done after the writer says that its
    data are on disk, never before.
    """
    path = Path(out)
    there = json.loads((path / _IDENTITY).read_text()) if (path / _IDENTITY).exists() else None
    if there is None and path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} is a folder with other things in it; give a new or empty folder")
    chosen = tuple(there["tile"]) if there is not None and tile is None else tile
    plan = plan_gram(kernel, x1, x2, chosen, out)
    identity = {
        "format": 2,
        "shape": list(plan.shape),
        "dtype": plan.dtype.name,
        "tile": list(plan.tile),
        "symmetric": plan.symmetric,
        "kernel": _kernel_fingerprint(kernel, kernel_name),
        "x1": _array_fingerprint(x1),
        "x2": None if x2 is None else _array_fingerprint(x2),
    }
    if there is not None:
        _refuse_another(path, there, identity)
    done = _finished(path / _DONE) & set(plan.pairs)
    missing = [start for start in plan.pairs if start not in done]
    if missing:
        memory, device, disk = needs(kernel, x1, plan, out)
        refuse_what_cannot_fit(plan, (memory, device, disk * len(missing) // len(plan.pairs)), out)
    if there is None:
        write_json_atomically(path / _IDENTITY, identity)
    store = _open(path, plan)
    with progress.task("kernel matrix", total=len(plan.pairs)) as task:
        task.advance(len(done))
        if missing:
            with (path / _DONE).open("ab", buffering=0) as log:
                log.write(b"\n")  # ends an entry that a kill has cut short
                on_the_way = None
                for start in missing:
                    block = tile_values(kernel, x1, x2, plan, start)
                    if on_the_way is not None:
                        _note(log, *on_the_way)
                        task.advance()
                    on_the_way = start, _write(store, plan, start, block)
                if on_the_way is not None:
                    _note(log, *on_the_way)
                    task.advance()
    return store


def _write(store: Any, plan: TilePlan, start: tuple[int, int], block: np.ndarray) -> list[Any]:
    """Starts to write a tile and its mirror image; the futures end when the data are on disk."""
    rows, columns = plan.cut(start)
    futures = [store[rows, columns].write(block)]
    if plan.symmetric and rows != columns:
        futures.append(store[columns, rows].write(block.T))
    return futures


def _note(log: Any, start: tuple[int, int], written: list[Any]) -> None:
    """Adds a tile to the list of finished ones as soon as it is on disk."""
    for future in written:
        future.result()
    log.write(b"%d %d;\n" % start)
    os.fsync(log.fileno())


def _finished(path: Path) -> set[tuple[int, ...]]:
    """The tiles listed; an entry counts once its semicolon is there."""
    if not path.exists():
        return set()
    entries = (line[:-1].split() for line in path.read_text().split("\n") if line.endswith(";"))
    return {tuple(map(int, entry)) for entry in entries}


def _open(path: Path, plan: TilePlan) -> "tensorstore.TensorStore":
    import tensorstore  # noqa: PLC0415 - only matrices on disk need it

    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path / "gram.zarr")},
        "metadata": {
            "shape": list(plan.shape),
            "chunks": list(plan.tile),
            "dtype": plan.dtype.str,
            "compressor": None,
        },
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


def _array_fingerprint(x: np.ndarray) -> str:
    """Of dtype, shape and bytes, without a copy of the whole."""
    digest = hashlib.sha256()
    for start in range(0, len(x), _ROWS_HASHED_AT_ONCE):
        digest.update(np.ascontiguousarray(x[start : start + _ROWS_HASHED_AT_ONCE]).tobytes())
    return f"{x.dtype.name}{list(x.shape)}:{digest.hexdigest()}"
