"""What a Gram matrix will cost, before it is computed, and the tile that fits."""

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._checks import check_examples, check_points, whole_number
from ntk_robust.kernels._room import Device, device_available, disk_available, existing, memory_available
from ntk_robust.kernels._tiles import KernelLike, TilePlan, balanced, program_bytes, tile_values

Destination = Any  # None, numpy.ndarray, tensorstore.TensorStore, jax.Device, str or os.PathLike

_GIB = 2.0**30
# Larger tiles gain nothing on a processor; an accelerator wants longer work between two transfers.
_LARGEST_TILE, _LARGEST_TILE_OF_ACCELERATORS, _SMALLEST_TILE = 2048, 8192, 128
# On the way to a file a tile exists as the result, its copy for the writer, the mirrored copy, and once more while
# the next one is computed.
_COPIES_IN_MEMORY, _COPIES_ON_THE_WAY = 1, 5
_PLACES = ("memory", "memory of the device", "disk")
# Growth of the process that belongs to no array: the compiler and its program.
_COMPILER = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class GramForecast:
    """The price of one Gram matrix.

    Attributes:
        tile: Rows and columns of a tile.
        num_tiles: Tiles to compute, half of them where the matrix is symmetric.
        memory_bytes: Peak of host memory beside the examples and what the process holds already: tiles at work (as the
            compiler plans them) and the matrix where it stays in memory.
        device_bytes: The same of an accelerator's memory; 0 where the device is the host.
        disk_bytes: Size on disk, without compression; 0 in memory.
        seconds: By the clock of two tiles (and, for a matrix on disk, of writing one) on this machine now; an estimate
            of the order, not a bound.
        memory_available: Bytes that the system and the limits of the process's control group can give, None where
            they do not say.
        device_available: Free bytes of the accelerator, None where the device is the host or does not say.
        disk_available: Free bytes where the matrix would go, None in memory.
    """

    tile: tuple[int, int]
    num_tiles: int
    memory_bytes: int
    device_bytes: int
    disk_bytes: int
    seconds: float
    memory_available: int | None
    device_available: int | None
    disk_available: int | None

    @property
    def fits(self) -> bool:
        """Whether memory, device and disk suffice."""
        return _fit(
            (self.memory_bytes, self.device_bytes, self.disk_bytes),
            (self.memory_available, self.device_available, self.disk_available),
        )


def forecast_gram(
    kernel: KernelLike, x1: Any, x2: Any = None, *, tile: int | None = None, out: Destination = None
) -> GramForecast:
    """Memory, disk and time of `gram` with the same arguments.

    Computes one tile twice, the first time to compile it; for a matrix on disk it also writes and deletes one file of
    the size of a tile.

    Args:
        kernel: A kernel or a function of two sets of examples.
        x1: Examples.
        x2: Examples; None for `x1`.
        tile: Rows and columns of a tile; None chooses from the memory that is there.
        out: Where the matrix would go, as for `gram`; of a matrix on disk that exists in part, the whole is meant.

    Returns:
        The forecast; a matrix that does not fit is not refused here.

    Raises:
        ValueError: For arguments that `gram` takes for no matrix.
    """
    x1, x2 = checked(kernel, x1, x2)
    plan = plan_gram(kernel, x1, x2, tile, out)
    # an off-diagonal tile where there is one: most of them are
    example = plan.pairs[min(1, len(plan.pairs) - 1)]
    tile_values(kernel, x1, x2, plan, example)
    start = time.perf_counter()
    block = tile_values(kernel, x1, x2, plan, example)
    # into fresh memory, which costs more than the copy itself, and mirrored
    block.copy()
    if plan.symmetric:
        block.T.copy()
    seconds = (time.perf_counter() - start) * len(plan.pairs)
    folder = folder_of(out)
    if folder is not None:  # the writer works beside the device
        seconds = max(seconds, _seconds_to_write(folder, plan.tile_bytes) * plan.num_bytes / plan.tile_bytes)
    return GramForecast(plan.tile, len(plan.pairs), *needs(kernel, x1, plan, out), seconds, *available(out))


def checked(kernel: KernelLike, x1: Any, x2: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The examples as arrays on the host; refuses what is none, and no kernel."""
    if not callable(kernel):
        raise ValueError(f"kernel is {kernel!r}; give a kernel, or a function (x1, x2 or None) → matrix")
    x1, x2 = np.asarray(x1), None if x2 is None else np.asarray(x2)
    (check_points if isinstance(kernel, AbstractKernel) else check_examples)(x1, x2)
    return x1, x2


def folder_of(out: Destination) -> Path | None:
    """The folder of a matrix on disk, None for other destinations."""
    return Path(out) if isinstance(out, str | os.PathLike) else None


def plan_gram(kernel: KernelLike, x1: Any, x2: Any, tile: int | tuple[int, int] | None, out: Destination) -> TilePlan:
    """The tiles, of the size asked for or the largest that fits (where nothing does, one that will be refused)."""
    _refuse_other_destinations(out)
    if tile is not None:
        if not isinstance(tile, tuple):
            rows = whole_number("tile", tile, "a whole number of rows")
            tile = (rows, rows)
        return TilePlan.of(kernel, x1, x2, tile)
    room, columns = available(out), x1 if x2 is None else x2
    largest = _LARGEST_TILE if _device(out).platform == "cpu" else _LARGEST_TILE_OF_ACCELERATORS
    while True:
        size = (balanced(max(1, x1.shape[0]), largest), balanced(max(1, columns.shape[0]), largest))
        plan = TilePlan.of(kernel, x1, x2, size)
        matrix = tuple(_matrix_bytes(plan, out, where) for where in _PLACES)
        if largest <= _SMALLEST_TILE or not _fit(matrix, room) or _fit(needs(kernel, x1, plan, out), room):
            return plan
        largest //= 2


def refuse_another_shape(out: Destination, plan: TilePlan) -> None:
    """Refuses an array to fill that is not one for this matrix.

    Raises:
        ValueError: With both shapes and dtypes, or if `out` cannot be written.
    """
    if not (isinstance(out, np.ndarray) or _is_store(out)):
        return
    dtype = out.dtype if isinstance(out, np.ndarray) else out.dtype.numpy_dtype
    if (tuple(out.shape), dtype) != (plan.shape, plan.dtype):
        raise ValueError(f"out is {dtype}{tuple(out.shape)} and the matrix {plan.dtype}{plan.shape}; make them agree")
    if not (out.flags.writeable if isinstance(out, np.ndarray) else out.writable):
        raise ValueError("out is read-only; give an array that can be written, or None for a new one")


def needs(kernel: KernelLike, x1: Any, plan: TilePlan, out: Destination) -> tuple[int, int, int]:
    """Bytes of memory, of the accelerator and of the disk."""
    program = program_bytes(kernel, x1, plan)
    copies = _COPIES_IN_MEMORY if folder_of(out) is None else _COPIES_ON_THE_WAY
    host = copies * plan.tile_bytes + _COMPILER + _matrix_bytes(plan, out, "memory")
    device = program + _matrix_bytes(plan, out, "memory of the device")
    disk = _matrix_bytes(plan, out, "disk")
    return (host + device, 0, disk) if _device(out).platform == "cpu" else (host, device, disk)


def refuse_what_cannot_fit(plan: TilePlan, needed: tuple[int, int, int], out: Destination) -> None:
    """Refuses a matrix larger than memory, device or disk.

    Raises:
        ValueError: With what it needs, what there is, and what would fit.
    """
    for name, needs, free in zip(_PLACES, needed, available(out), strict=True):
        if free is None or needs <= free:
            continue
        room = free - (needs - _matrix_bytes(plan, out, name))
        if room <= 0:
            remedy = "give a smaller tile"
        else:
            rows = int((room / plan.dtype.itemsize) ** 0.5)
            fit = f"{rows} rows" if plan.symmetric else f"{room // (plan.dtype.itemsize * plan.shape[1])} rows of x1"
            remedy = f"about {fit} would fit" + ("" if name == "disk" else "; out=FOLDER needs no such memory")
        raise ValueError(
            f"a matrix of {plan.shape[0]} x {plan.shape[1]} {plan.dtype} in tiles of {plan.tile[0]} x {plan.tile[1]} "
            f"needs {needs / _GIB:.2f} GiB of {name} and {free / _GIB:.2f} GiB are available; {remedy}"
        )


def available(out: Destination) -> tuple[int | None, int | None, int | None]:
    """Free bytes of memory, of the accelerator, and of the disk where `out` is a folder."""
    folder = folder_of(out)
    return (
        memory_available(),
        device_available(_device(out)),
        None if folder is None else disk_available(folder),
    )


def _fit(needs: tuple[int, ...], room: tuple[int | None, ...]) -> bool:
    return all(free is None or needed <= free for needed, free in zip(needs, room, strict=True))


def _matrix_bytes(plan: TilePlan, out: Destination, where: str) -> int:
    """Size of the whole matrix if this is where it goes and it is not there yet."""
    if folder_of(out) is not None:
        place = "disk"
    elif isinstance(out, jax.Device):
        place = "memory" if out.platform == "cpu" else "memory of the device"
    else:
        place = "memory" if out is None else "there already"
    return plan.num_bytes if place == where else 0


def _refuse_other_destinations(out: Destination) -> None:
    if out is None or isinstance(out, np.ndarray | jax.Device | str | os.PathLike) or _is_store(out):
        return
    what = f"a JAX array of shape {out.shape}, which cannot be filled" if isinstance(out, jax.Array) else f"{out!r}"
    raise ValueError(
        f"out is {what}; give a device for a JAX array there, the path of a folder for a matrix on disk, a NumPy array "
        "to fill, or None for a new one"
    )


def _is_store(out: Destination) -> bool:
    """Whether this is a TensorStore; without an import, which takes its time."""
    library = sys.modules.get("tensorstore")
    return library is not None and isinstance(out, library.TensorStore)


def _device(out: Destination) -> Device:
    """Where tiles are computed."""
    if isinstance(out, jax.Device):
        return out
    return next(iter(jnp.zeros(()).devices()))


def _seconds_to_write(folder: Path, num_bytes: int) -> float:
    start = time.perf_counter()
    with tempfile.TemporaryFile(dir=existing(folder)) as file:
        file.write(os.urandom(4096) * (num_bytes // 4096 + 1))
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start
