"""Arguments of a run in JSON types, for people who look for what made a figure."""

import dataclasses
import functools
import hashlib
import os
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ntk_robust.training._fingerprint import is_filled

_DEEPEST = 12  # closures may hold each other


def described(value: Any, depth: int = 0) -> Any:
    """A value in JSON types: numbers and text as they are, all else by what distinguishes it.

    Arrays come out as dtype, shape and digest, keys as their words, records as their class and fields, functions as
    their name and what they enclose, so that learning rates inside an optax transformation are found.
    """
    if depth > _DEEPEST:
        return f"a {type(value).__qualname__}"

    def inner(part: Any) -> Any:
        return described(part, depth + 1)

    match value:
        case None | bool() | int() | float() | str():
            return value
        case os.PathLike():
            return os.fspath(value)
        case jax.Array() | np.ndarray() | np.generic():
            return _array(value)
        case Mapping():
            return {str(name): inner(item) for name, item in value.items()}
        case tuple() if hasattr(value, "_fields"):
            names = value._fields  # pyright: ignore[reportAttributeAccessIssue]
            return {"class": _name(type(value)), **{name: inner(getattr(value, name)) for name in names}}
        case list() | tuple():
            return [inner(item) for item in value]
        case functools.partial():
            return {"function": inner(value.func), "arguments": [*map(inner, value.args), *_given(value, inner)]}
        case types.FunctionType():
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            encloses = {name: inner(cell.cell_contents) for name, cell in cells if is_filled(cell)}
            return {"function": _name(value), "encloses": encloses} if encloses else _name(value)
        case _ if hasattr(value, "__func__") and hasattr(value, "__self__"):
            return {"method": _name(value.__func__), "of": inner(value.__self__)}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: inner(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
            return {"class": _name(type(value)), **fields}
        case _ if getattr(value, "__dict__", None) and not isinstance(value, type):
            return {"class": _name(type(value)), **{name: inner(item) for name, item in vars(value).items()}}
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _given(value: functools.partial, inner: Any) -> list[dict[str, Any]]:
    return [{name: inner(item)} for name, item in value.keywords.items()]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": str(value.dtype), "words": np.asarray(jax.random.key_data(value)).tolist()}
    array = np.ascontiguousarray(value)
    if np.ndim(value) == 0:
        return array.item()
    return f"{array.dtype}{list(array.shape)} sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
