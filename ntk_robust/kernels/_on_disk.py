"""Gram matrices on disk that survive a kill."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ntk_robust._core import leftovers_of, write_json_atomically
from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._forecast import needs, plan_gram, refuse_what_cannot_fit
from ntk_robust.kernels._tiles import KernelLike, TilePlan, tile_values

if TYPE_CHECKING:
    import tensorstore

_IDENTITY, _DONE, _CHUNKS = "identity.json", "tiles_done.txt", "gram.zarr"
_ROWS_HASHED_AT_ONCE = 1024


def on_disk(
    kernel: KernelLike, x1: Any, x2: Any, *, tile: int | None, out: Any, kernel_name: str | None, progress: Any
) -> "tensorstore.TensorStore":
    """`gram` for a folder.

    While a tile travels to the disk the next one is computed; a tile is noted as done after the writer says that its
    data are on disk, never before.
    """
    path = Path(out)
    there = _found(path)
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
    # listed, and still there: somebody may have cleaned up, and what is missing would be read as zeros
    done = {start for start in _finished(path / _DONE) & set(plan.pairs) if _is_there(path / _CHUNKS, plan, start)}
    missing = [start for start in plan.pairs if start not in done]
    if missing:
        memory, device, disk = needs(kernel, x1, plan, out)
        refuse_what_cannot_fit(plan, (memory, device, disk * len(missing) // len(plan.pairs)), out)
    if there is None:
        write_json_atomically(path / _IDENTITY, identity)
    for leftover in leftovers_of(path / _IDENTITY):
        leftover.unlink(missing_ok=True)
    for start in missing:
        _remove_torn(path / _CHUNKS, plan, start)
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


def _found(path: Path) -> dict[str, Any] | None:
    """The identity of the matrix in this folder; None for a folder that is new, or empty but for our own leftovers."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"out is {path}, which is a file; give a folder")
    file = path / _IDENTITY
    if not file.exists():
        if path.exists() and set(path.iterdir()) - set(leftovers_of(file)):
            raise ValueError(f"{path} is a folder with other things in it; give a new or empty folder")
        return None
    try:
        found = json.loads(file.read_text())
        height, width = found["tile"]
        if min(height, width) < 1:
            raise ValueError(f"tile {found['tile']}")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}), so that nothing says which matrix is there; delete "
            "the folder or give another"
        ) from error
    return found


def _is_there(chunks: Path, plan: TilePlan, start: tuple[int, ...]) -> bool:
    """Whether the files of a tile and its mirror image are there in full."""
    return all(_size(file) == plan.tile_bytes for file in _files_of(chunks, plan, start))


def _remove_torn(chunks: Path, plan: TilePlan, start: tuple[int, ...]) -> None:
    """Deletes files of another length: one at the edge is read before it is written, and could not be."""
    for file in _files_of(chunks, plan, start):
        if _size(file) not in (None, plan.tile_bytes):
            file.unlink()


def _files_of(chunks: Path, plan: TilePlan, start: tuple[int, ...]) -> list[Path]:
    row, column = (position // size for position, size in zip(start, plan.tile, strict=True))
    places = {(row, column), (column, row)} if plan.symmetric else {(row, column)}
    return [chunks / f"{i}.{j}" for i, j in places]


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None


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
    entries = re.findall(rb"^(\d+) (\d+);$", path.read_bytes(), flags=re.MULTILINE)
    return {(int(row), int(column)) for row, column in entries}


def _open(path: Path, plan: TilePlan) -> "tensorstore.TensorStore":
    import tensorstore  # noqa: PLC0415 - only matrices on disk need it

    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path / _CHUNKS)},
        "store_data_equal_to_fill_value": True,  # a tile of zeros is a file too, so that a missing one is missing
        "metadata": {
            "shape": list(plan.shape),
            "chunks": list(plan.tile),
            "dtype": plan.dtype.str,
            "compressor": None,
        },
    }
    try:
        return tensorstore.open(spec, open=True, create=True).result()
    except ValueError as error:
        raise ValueError(
            f"{path / _CHUNKS} cannot be opened ({error}); delete {path} or give another folder"
        ) from error


def _refuse_another(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differences = [
        f"{name} {found.get(name)} there, {value} here" for name, value in wanted.items() if found.get(name) != value
    ]
    if differences:
        raise ValueError(f"{path} holds another matrix ({'; '.join(differences)}); give another folder or delete it")


def _kernel_fingerprint(kernel: KernelLike, name: str | None) -> str:
    if not isinstance(kernel, AbstractKernel):
        if name is None:
            raise ValueError(
                "a function has no fingerprint of its own; give kernel_name, which must change with its values"
            )
        return name
    digest = hashlib.sha256(str(jax.tree.structure(kernel)).encode())
    for leaf in jax.tree.leaves(kernel):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest() if name is None else f"{name} {digest.hexdigest()}"


def _array_fingerprint(x: np.ndarray) -> str:
    """Of dtype, shape and bytes, without a copy of the whole."""
    digest = hashlib.sha256()
    for start in range(0, len(x), _ROWS_HASHED_AT_ONCE):
        digest.update(np.ascontiguousarray(x[start : start + _ROWS_HASHED_AT_ONCE]).tobytes())
    return f"{x.dtype.name}{list(x.shape)}:{digest.hexdigest()}"
