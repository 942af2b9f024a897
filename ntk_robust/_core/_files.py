"""Files that are either the old one or the new one, never half of one."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ntk_robust._core._jsonable import to_jsonable

_SUFFIX = ".part"


def write_bytes_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """The path written: `data` goes to a temporary file beside it, is flushed to disk, and takes its name.

    A reader, a kill or a full disk at any moment sees the old file or the new one. Missing parent folders are made.

    Raises:
        OSError: With the target's name, where the folder cannot be written or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    return target


def leftovers_of(path: str | os.PathLike[str]) -> list[Path]:
    """Temporary files that kills inside of writes of `path` have left beside it."""
    target = Path(path)
    if not target.parent.is_dir():
        return []
    start = f".{target.name}."
    return [file for file in target.parent.iterdir() if file.name.startswith(start) and file.suffix == _SUFFIX]


def write_text_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """The path written with `text` in UTF-8, as in `write_bytes_atomically`."""
    return write_bytes_atomically(path, text.encode())


def write_json_atomically(path: str | os.PathLike[str], value: Any) -> Path:
    """The path written with `to_jsonable(value)` as strict JSON, as in `write_bytes_atomically`."""
    return write_text_atomically(path, json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n")
