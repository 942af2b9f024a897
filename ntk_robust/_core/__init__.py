"""What every package stands on: files, progress, provenance, records, tiles."""

from ntk_robust._core._files import write_bytes_atomically, write_json_atomically, write_text_atomically
from ntk_robust._core._jsonable import to_jsonable
from ntk_robust._core._progress import AbstractProgress, ProgressTask, SilentProgress
from ntk_robust._core._provenance import package_version, provenance
from ntk_robust._core._records import Figure, Scalar, Series, Table
from ntk_robust._core._tiling import tiles

__all__ = [
    "AbstractProgress",
    "Figure",
    "ProgressTask",
    "Scalar",
    "Series",
    "SilentProgress",
    "Table",
    "package_version",
    "provenance",
    "tiles",
    "to_jsonable",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_text_atomically",
]
