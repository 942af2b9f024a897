"""Arrays as files, atomically."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def save_array(path: Path, array: Any) -> None:
    """Writes a `.npy` file: to a temporary one beside it first, which then takes its name. The folder must exist."""
    _save(path, lambda stream: np.save(stream, np.asarray(array)))


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz` file in the same way."""
    _save(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def _save(path: Path, write: Any) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
