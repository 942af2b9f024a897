"""What a run depends on, as short digests that two processes can compare."""

import dataclasses
import dis
import functools
import hashlib
import inspect
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_robust._core import package_version

# Whose sources decide the bits of a run.
_PACKAGES = {"_core", "attacks", "certify", "kernels", "losses", "models", "training"}


def fingerprint(settings: Any) -> dict[str, str]:
    """One digest per field of a record, and the versions and device that decide the bits of a run.

    Arrays count by their bytes, functions by their compiled code, defaults, closures and the global variables that they
    read, strategy objects by their class's methods and their fields. Of globals, functions and classes are followed as
    far as the caller's own code goes; numbers, text, arrays, containers and records of them count by value, the
    caller's own modules by their file, installed packages by their name and version. Globals that a function assigns
    itself, attributes of a global's other objects, and files that code reads are not seen.
    """
    fields = {field.name: _digest(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    device = jax.local_devices()[0]
    return fields | {
        "ntk_robust": _package_digest(),
        "jax": str(package_version("jax")),
        "jaxlib": str(package_version("jaxlib")),
        "optax": str(package_version("optax")),
        "device": f"{device.platform} {device.device_kind}",
        "default_float": str(jax.numpy.zeros(()).dtype),
    }


@functools.cache
def _package_digest() -> str:
    """Digest of the package's sources: other code may round differently."""
    root = Path(__file__).parents[1]
    state = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in _PACKAGES:
            state.update(str(path.relative_to(root)).encode())
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


def _digest(value: Any) -> str:
    return _Digester().digest(value).hex()[:16]


class _Digester:
    """Digests by content: what is shared in one process and copied in another comes out the same."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[Any, bytes]] = {}  # the objects too, so that no id is used twice
        self.open: set[int] = set()

    def digest(self, value: Any) -> bytes:
        if id(value) in self.done:
            return self.done[id(value)][1]
        if id(value) in self.open:
            return b"cycle"
        self.open.add(id(value))
        state = hashlib.sha256(f"{type(value).__module__}.{type(value).__qualname__}".encode())
        for part in self.parts(value):
            state.update(part if isinstance(part, bytes) else self.digest(part))
        self.open.remove(id(value))
        self.done[id(value)] = value, state.digest()
        return state.digest()

    def parts(self, value: Any) -> Iterable[Any]:
        """What a value consists of: bytes, or further values."""
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes():
                return [repr(value).encode()]
            case jax.Array() if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
                return [str(value.dtype).encode(), jax.random.key_data(value)]
            case jax.Array() | np.ndarray() | np.generic():
                array = np.ascontiguousarray(value)
                return [f"{array.dtype}{np.shape(value)}".encode(), array.tobytes()]
            case set() | frozenset():
                return [" ".join(sorted(map(repr, value))).encode()]  # their order differs between processes
            case dict():
                return [item for name in sorted(value, key=repr) for item in (name, value[name])]
            case list() | tuple():
                return value
            case jax.sharding.NamedSharding():
                return [str(value.spec).encode(), str(dict(value.mesh.shape)).encode()]
            case type() | types.ModuleType() | types.BuiltinFunctionType() | np.dtype() | np.ufunc():
                return _class_parts(value) if isinstance(value, type) else [repr(value).encode()]
            case _:
                return _object_parts(value)


def _object_parts(value: Any) -> Iterable[Any]:
    match value:
        case types.CodeType():
            return [value.co_code, value.co_names, value.co_varnames, value.co_consts]
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or () if is_filled(cell)]
            read = _globals_read(value) if _is_own(value.__code__.co_filename) else {}
            return [
                value.__module__,
                value.__qualname__,
                value.__code__,
                value.__defaults__,
                value.__kwdefaults__,
                cells,
                *((name, _as_global(read[name])) for name in sorted(read)),
            ]
        case types.MethodType():
            return [value.__func__, value.__self__]
        case functools.partial():
            return [value.func, value.args, value.keywords]
        case _ if dataclasses.is_dataclass(value):
            return [type(value), *(getattr(value, field.name) for field in dataclasses.fields(value))]
        case _ if hasattr(value, "__wrapped__"):
            return [value.__wrapped__]
        case _:
            return [type(value), getattr(value, "__dict__", None)]


def _class_parts(cls: type) -> Iterable[Any]:
    parts: list[Any] = []
    for base in cls.__mro__:
        parts.append(f"{base.__module__}.{base.__qualname__}")
        if base.__module__.partition(".")[0] in {"builtins", "typing", "abc", "equinox"}:
            continue
        for name, member in sorted(vars(base).items()):
            function = inspect.unwrap(getattr(member, "method", getattr(member, "fget", member)))
            if isinstance(function, types.FunctionType):
                parts += [name, function if _is_own(function.__code__.co_filename) else function.__code__]
    return parts


def _globals_read(function: types.FunctionType) -> dict[str, Any]:
    """The module's variables that a function, or one defined inside it, reads and does not assign."""
    read, assigned, codes = set[str](), set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(instruction.argval)
            elif instruction.opname == "STORE_GLOBAL":
                assigned.add(instruction.argval)
    return {name: function.__globals__[name] for name in read - assigned if name in function.__globals__}


def _as_global(value: Any) -> Any:
    """What of a global variable counts: of objects with a life of their own (loggers, caches, files) the type only."""
    match value:
        case types.ModuleType():
            file = getattr(value, "__file__", None)
            if file is not None and _is_own(file) and Path(file).is_file():
                return value.__name__, Path(file).read_bytes()
            return value.__name__, str(package_version(value.__name__.partition(".")[0]))
        case types.FunctionType() | types.MethodType() | functools.partial() | type() | jax.Array():
            return value
        case None | bool() | int() | float() | complex() | str() | bytes() | np.ndarray() | np.generic():
            return value
        case list() | tuple():
            return [_as_global(item) for item in value]
        case dict():
            return {repr(name): _as_global(item) for name, item in value.items()}
        case _ if hasattr(value, "__wrapped__") or dataclasses.is_dataclass(value):
            return value
        case _:
            return f"{type(value).__module__}.{type(value).__qualname__}"


@functools.cache
def _is_own(file: str) -> bool:
    """Whether code is the caller's: not of this package, the standard library or an installed package."""
    paths = sysconfig.get_paths()
    libraries = [
        str(Path(__file__).parents[1]),
        *(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    ]
    parts = Path(file).parts
    return not (file.startswith(("<frozen", *libraries)) or "site-packages" in parts or "dist-packages" in parts)


def is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
