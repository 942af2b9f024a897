"""What every package stands on: files, progress, provenance, records, statistics, tiles."""

from ntk_robust._core._checks import check_count
from ntk_robust._core._convolutions import with_fast_convolutions
from ntk_robust._core._files import (
    leftovers_of,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)
from ntk_robust._core._jsonable import to_jsonable
from ntk_robust._core._progress import AbstractProgress, ProgressTask, SilentProgress
from ntk_robust._core._provenance import package_version, provenance
from ntk_robust._core._records import Contours, Figure, Scalar, Series, Table
from ntk_robust._core._statistics import SlopeFit, slope_fit
from ntk_robust._core._tiling import tiles

__all__ = [
    "AbstractProgress",
    "Contours",
    "Figure",
    "ProgressTask",
    "Scalar",
    "Series",
    "SilentProgress",
    "SlopeFit",
    "Table",
    "check_count",
    "leftovers_of",
    "package_version",
    "provenance",
    "slope_fit",
    "tiles",
    "to_jsonable",
    "with_fast_convolutions",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_text_atomically",
]
