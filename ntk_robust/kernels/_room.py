"""What room there is for arrays: in memory, on an accelerator, on a disk."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.core

if TYPE_CHECKING:

    class Device(Protocol):
        """`jax.Device`, which type checkers do not take for a type."""

        @property
        def platform(self) -> str: ...
        @property
        def device_kind(self) -> str: ...
        def memory_stats(self) -> Any: ...
else:
    Device = Any

_GIB = 2.0**30
_ALWAYS_FITS = 2**26  # bytes, not worth asking the system


def check_room(num_bytes: int, what: str, remedy: str, near: Any = None) -> None:
    """Refuses an array larger than the memory that is there, before a system that promises too much kills the process.

    Arguments of a traced function are not looked at: nothing is computed yet.

    Args:
        num_bytes: Its size; what else will be needed is not known, so that a refusal is never mistaken.
        what: What it is, in words.
        remedy: What to do instead.
        near: An array on the device where it would be, None for the host.

    Raises:
        ValueError: With what it needs and what there is.
    """
    if num_bytes <= _ALWAYS_FITS or isinstance(near, jax.core.Tracer):
        return
    devices = near.devices() if isinstance(near, jax.Array) else set()
    if len(devices) > 1:  # a part on each of them
        return
    device = next(iter(devices), None)
    on_device = None if device is None or device.platform == "cpu" else device
    free = memory_available() if on_device is None else device_available(on_device)
    if free is not None and num_bytes > free:
        where = "memory" if on_device is None else "memory of the device"
        raise ValueError(
            f"{what} needs {num_bytes / _GIB:.2f} GiB of {where} and {free / _GIB:.2f} GiB are available; {remedy}"
        )


def check_matrix_room(x1: Any, x2: Any = None, numbers_of_pair: int = 1) -> None:
    """As `check_room`, for the kernel matrix of these examples.

    Args:
        x1: Examples of the rows.
        x2: Examples of the columns, None for `x1`.
        numbers_of_pair: Numbers that must exist for each pair at the same time.
    """
    rows, columns = len(x1), len(x1 if x2 is None else x2)
    each = "" if numbers_of_pair == 1 else f" with {numbers_of_pair} numbers for each pair"
    check_room(
        rows * columns * numbers_of_pair * max(x1.dtype.itemsize, 4),
        f"a kernel matrix of {rows} x {columns}{each}",
        "take ntk_robust.kernels.gram, which works in tiles (out=FOLDER for one on disk), or kernel_matvec, which "
        "stores none",
        x1,
    )


def memory_available() -> int | None:
    """Bytes that can be had without swapping, within the limits of control groups; None where nothing says."""
    known = [_meminfo(), *_control_groups()]
    return min((size for size in known if size is not None), default=None)


def device_available(device: Device) -> int | None:
    """Free bytes of an accelerator; None for the host, and where the device does not say."""
    stats = None if device.platform == "cpu" else device.memory_stats()
    return None if stats is None or "bytes_limit" not in stats else stats["bytes_limit"] - stats["bytes_in_use"]


def disk_available(path: Path) -> int:
    """Free bytes of the file system that holds `path` or its first existing parent."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path or its first parent that is a folder."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Free bytes under the limits of this process's control group (version 2) and the groups around it."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group, found = root / name.strip("/"), []
    while group.is_relative_to(root):
        try:
            limit, used = ((group / f"memory.{what}").read_text().strip() for what in ("max", "current"))
            cache = (group / "memory.stat").read_text().partition("inactive_file ")[2].split()
            if limit != "max":  # the cache of files is given back when memory is short
                found.append(int(limit) - int(used) + int(cache[0] if cache else 0))
        except (OSError, ValueError):
            pass
        group = group.parent
    return found
