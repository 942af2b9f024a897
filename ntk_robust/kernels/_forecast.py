"""What a Gram matrix will cost, before it is computed."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np

from ntk_robust.kernels._tiles import KernelLike, TilePlan, tile_values

_GIB = 2.0**30
# A tile needs about this many arrays of its size while it is computed: cosines, their complements, the result, copies.
_ARRAYS_PER_TILE = 8


@dataclasses.dataclass(frozen=True)
class GramForecast:
    """The price of one Gram matrix.

    Attributes:
        tile: Rows and columns of a tile.
        num_tiles: Tiles to compute, half of them where the matrix is symmetric.
        memory_bytes: Peak of host memory beside the examples: tiles at work, and the matrix unless it goes to disk.
        disk_bytes: Size on disk without compression; 0 in memory.
        seconds: Computing time by the clock of two tiles on this machine now; an estimate of the order, not a bound.
        memory_available: Bytes that the system can give, None where it does not say.
        disk_available: Free bytes where the matrix would go, None in memory.
    """

    tile: int
    num_tiles: int
    memory_bytes: int
    disk_bytes: int
    seconds: float
    memory_available: int | None
    disk_available: int | None

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        memory = self.memory_available is None or self.memory_bytes <= self.memory_available
        return memory and (self.disk_available is None or self.disk_bytes <= self.disk_available)


def forecast_gram(
    kernel: KernelLike,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    *,
    tile: int | None = None,
    out: str | os.PathLike[str] | None = None,
) -> GramForecast:
    """Memory, disk and time of `gram` (with `out`: of `gram_on_disk`) for the same arguments.

    Computes one tile twice, the first time to compile it.

    Args:
        kernel: A kernel or a function of two sets of examples.
        x1: Examples.
        x2: Examples; None for `x1`.
        tile: Rows of a tile; None chooses from the memory that is there.
        out: Folder of a matrix on disk; None for one in memory.

    Returns:
        The forecast; nothing is refused here.
    """
    plan = TilePlan.of(kernel, x1, x2, tile)
    first = plan.pairs[0]
    tile_values(kernel, x1, x2, plan, first)
    start = time.perf_counter()
    tile_values(kernel, x1, x2, plan, first)
    seconds = (time.perf_counter() - start) * len(plan.pairs)
    return GramForecast(
        tile=plan.tile,
        num_tiles=len(plan.pairs),
        memory_bytes=memory_needed(plan, in_memory=out is None),
        disk_bytes=0 if out is None else plan.num_bytes,
        seconds=seconds,
        memory_available=memory_available(),
        disk_available=None if out is None else disk_available(Path(out)),
    )


def memory_needed(plan: TilePlan, *, in_memory: bool) -> int:
    """Bytes of tiles at work, and of the whole matrix where it stays in memory."""
    return _ARRAYS_PER_TILE * plan.tile**2 * plan.dtype.itemsize + plan.num_bytes * in_memory


def memory_available() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def disk_available(path: Path) -> int:
    """Free bytes of the file system that holds `path` or its first existing parent."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def refuse_what_cannot_fit(plan: TilePlan, path: Path | None) -> None:
    """Refuses a matrix larger than memory or disk.

    Raises:
        ValueError: With what it needs, what there is, and what would fit.
    """
    needed, available = memory_needed(plan, in_memory=path is None), memory_available()
    if available is not None and needed > available:
        rows = int((available / plan.dtype.itemsize) ** 0.5)
        remedy = "give a smaller tile" if path else f"about {rows} rows would fit; gram_on_disk needs no such memory"
        raise ValueError(
            f"a matrix of {plan.shape[0]} x {plan.shape[1]} {plan.dtype} in tiles of {plan.tile} needs "
            f"{needed / _GIB:.2f} GiB of memory and {available / _GIB:.2f} GiB are available; {remedy}"
        )
    if path is not None and plan.num_bytes > disk_available(path):
        free = disk_available(path)
        raise ValueError(
            f"a matrix of {plan.shape[0]} x {plan.shape[1]} {plan.dtype} needs {plan.num_bytes / _GIB:.2f} GiB on disk "
            f"and {path} has {free / _GIB:.2f} GiB; about {int((free / plan.dtype.itemsize) ** 0.5)} rows would fit"
        )
