"""Records as plain JSON values."""

import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def to_jsonable(value: Any) -> Any:
    """A value of strict JSON for records, arrays and numbers.

    Dataclasses (so also equinox modules) and mappings become objects, arrays nested lists, enums their values, paths
    strings. JSON has no infinities: non-finite floats become the strings "nan", "inf" and "-inf".

    Raises:
        TypeError: For anything else, with its type.
    """
    match value:
        case enum.Enum():
            return to_jsonable(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case np.generic():
            return to_jsonable(value.item())
        case np.ndarray() | jax.Array():
            return to_jsonable(np.asarray(value).tolist())
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return {str(name): to_jsonable(item) for name, item in value.items()}
        case list() | tuple():
            return [to_jsonable(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"cannot write a {type(value).__name__} as JSON; convert it to numbers, strings, lists or records")
