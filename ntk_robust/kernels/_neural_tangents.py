"""The one door to neural-tangents: its last release, unmodified, on current JAX.

neural-tangents 0.6.5 imports names that JAX has moved or dropped, and its `__init__.py` imports tensorflow and tf2jax
for an experimental sub-package. Here a finder on `sys.meta_path` runs the files as they are installed, each with
builtins of its own whose `__import__` shows it facades of a few jax modules: the real module plus the names that it
lacks. `_neural_tangents_fixes` then replaces the private functions for which a name is not enough. No jax module is
written to, and code outside neural-tangents sees nothing of this.
"""

import builtins
import importlib
import importlib.util
import math
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import jax

from ntk_robust.kernels._neural_tangents_fixes import FIXES, facade

_PACKAGE = "neural_tangents"
_ADAPTED = (0, 6, 5)
_TESTED_JAX = "it is tested with JAX 0.10.2 to 0.12"
_INSTALL = (
    "Install ntk_robust with uv, which leaves out tensorflow, or use "
    "`pip install --no-deps neural-tangents==0.6.5 && pip install frozendict`."
)

# What neural-tangents and its fixes take from the parts of JAX that move, and where it is now.
_NAMES_IN_CORE = {
    "jax.core": ("AbstractValue", "ShapedArray", "Tracer", "Value", "eval_context"),
    "jax.extend.core": ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var", "get_opaque_trace_state"),
}
_NAMES_IN_AD = {
    "jax.interpreters.ad": ("UndefinedPrimal", "Zero", "add_jaxvals_p", "add_tangents", "is_undefined_primal"),
    "jax.extend": ("source_info_util",),
}

_LOCK = threading.Lock()


def load_neural_tangents() -> types.ModuleType:
    """The module `neural_tangents` (release 0.6.5), running on the installed JAX.

    The first call imports it; later calls, and a plain `import neural_tangents` anywhere in the process, give the same
    module. Safe to call from several threads, and after a bare `import neural_tangents` has failed. tensorflow and
    tf2jax are not imported: `neural_tangents.experimental` is empty.

    The whole public API works, `NtkImplementation.STRUCTURED_DERIVATIVES` and `AUTO` included (the costs that AUTO
    measures go to the logger "neural_tangents" at level DEBUG), `nt.batch` on several devices, and `nt.predict` inside
    `jax.jit`, `jax.grad` and `jax.vmap`. Pooling and others rely on implicit promotion: where strict dtype promotion or
    rank promotion "raise" is on, call them inside `jax.numpy_dtype_promotion("standard")` and
    `jax.numpy_rank_promotion("allow")`.

    Returns:
        The module. Warns once if neural-tangents is newer than 0.6.5 or JAX is outside of the tested range.

    Raises:
        ImportError: If neural-tangents is missing or too old, if something else has imported it before, or if this JAX
            has lost a name that it needs; the message says what is missing and what works.

    Examples:
        >>> stax = load_neural_tangents().stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
        >>> kernel_fn(jax.numpy.eye(3), None, "ntk").shape
        (3, 3)

    References:
        Novak et al., "Neural Tangents: Fast and Easy Infinite Neural Networks in Python", ICLR 2020; Novak,
        Sohl-Dickstein, Schoenholz, "Fast Finite Width Neural Tangent Kernel", ICML 2022.
    """
    with _LOCK:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            _install()
    return importlib.import_module(_PACKAGE)


def _install() -> None:
    """Put the finder first on `sys.meta_path` and import the package once, or leave everything as it was."""
    if _PACKAGE in sys.modules:
        raise ImportError(
            "neural_tangents was imported by something else, and is not known to work on JAX "
            f"{jax.__version__}. Call ntk_robust.kernels.load_neural_tangents() before anything imports it."
        )
    version = _installed_version()
    finder = _Finder(_facades(version))
    _forget()  # what an earlier, failed import has left behind
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(_PACKAGE)
    except (ImportError, AttributeError, TypeError) as error:
        sys.meta_path.remove(finder)
        _forget()
        raise ImportError(
            f"neural-tangents {version} cannot be imported with JAX {jax.__version__} ({error}); {_TESTED_JAX}."
        ) from error
    if _release(version) > _ADAPTED or not (0, 10, 2) <= _release(jax.__version__) < (0, 13):
        warnings.warn(
            f"neural-tangents {version} with JAX {jax.__version__} is untested: ntk_robust adapts neural-tangents "
            f"0.6.5, and {_TESTED_JAX}. Compare a kernel with a value that you know before you rely on it.",
            stacklevel=3,
        )


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]


def _installed_version() -> str:
    """The version that an import would load, read without running it; an older one than 0.6.5 is refused."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(f"neural-tangents is not installed. {_INSTALL}")
    # From the source: a checkout on PYTHONPATH has no metadata, or another installation's.
    found = re.search(r"^__version__ = ['\"](.+?)['\"]", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None or _release(found[1]) < _ADAPTED:
        raise ImportError(
            f"neural-tangents {found[1] if found else 'of unknown version'} is installed ({spec.origin}), but 0.6.5 is "
            "needed. pip falls back to an old release where tensorflow, which 0.6.5 declares and ntk_robust never "
            f"imports, has no wheel for this Python or platform. {_INSTALL}"
        )
    return found[1]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _facades(version: str) -> dict[str, types.ModuleType]:
    """The modules that neural-tangents sees in place of jax's own, by name; one error for all names that are lost."""
    found: dict[str, Any] = {}
    lost = []
    for home, names in (_NAMES_IN_CORE | _NAMES_IN_AD).items():
        for name in names:
            try:
                found[name] = getattr(importlib.import_module(home), name)
            except (ImportError, AttributeError):
                lost.append(f"{home}.{name}")
    if lost:
        raise ImportError(
            f"JAX {jax.__version__} has no {', '.join(lost)}, which neural-tangents {version} needs; {_TESTED_JAX}."
        )

    core = facade(
        importlib.import_module("jax.core"),
        **{name: found[name] for names in _NAMES_IN_CORE.values() for name in names},
        DShapedArray=type("DShapedArray", (), {}),  # dynamic shapes are gone: nothing is one
    )
    ad = facade(
        importlib.import_module("jax.interpreters.ad"),
        **{name: found[name] for names in _NAMES_IN_AD.values() for name in names},
        zeros_like_p=found["Primitive"]("zeros_like"),  # a key in a table of rules: no program of today contains it
    )
    interpreters = facade(importlib.import_module("jax.interpreters"), ad=ad)
    numpy = facade(jax.numpy, size=_size)
    util = types.ModuleType("jax.util")
    vars(util).update(safe_map=_safe_map, safe_zip=_safe_zip)
    top = facade(jax, core=core, interpreters=interpreters, numpy=numpy, util=util)
    return {module.__name__: module for module in (top, core, interpreters, ad, numpy, util)}


def _size(array: Any, axis: int | None = None) -> int:
    """`jnp.size`, of arrays without values too."""
    return math.prod(array.shape) if axis is None else array.shape[axis]


def _safe_zip(*sequences: Any) -> list[tuple[Any, ...]]:
    return list(zip(*sequences, strict=True))


def _safe_map(function: Callable[..., Any], *sequences: Any) -> list[Any]:
    return [function(*arguments) for arguments in zip(*sequences, strict=True)]


class _Finder(MetaPathFinder):
    """Finds the files of neural-tangents where they are installed, and gives them to our loader."""

    def __init__(self, facades: dict[str, types.ModuleType]):
        self._facades = facades

    def find_spec(self, fullname: str, path: Any, target: types.ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _PACKAGE:
            return None
        if fullname == f"{_PACKAGE}.experimental":
            return ModuleSpec(fullname, _ExperimentalStub())
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _AdaptedSource(spec.loader.name, spec.loader.path, self._facades)
        return spec


class _AdaptedSource(SourceFileLoader):
    """Runs a source file with builtins of its own, whose `__import__` hands out facades of jax."""

    def __init__(self, fullname: str, path: str, facades: dict[str, types.ModuleType]):
        super().__init__(fullname, path)
        self._facades = facades

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)
        if fix := FIXES.get(module.__name__):
            fix(module)

    def _import(self, name: str, namespace: Any = None, scope: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and name in self._facades:
            return self._facades[name if fromlist else "jax"]
        imported = builtins.__import__(name, namespace, scope, fromlist, level)
        return self._facades["jax"] if imported is jax else imported


class _ExperimentalStub(Loader):
    """An empty `neural_tangents.experimental`: the real one is for tensorflow models."""

    def exec_module(self, module: types.ModuleType) -> None:
        def missing(name: str) -> Any:
            raise AttributeError(
                f"neural_tangents.experimental.{name} is left out: it is for tensorflow models, and needs tensorflow "
                "and tf2jax, which ntk_robust never imports."
            )

        vars(module)["__getattr__"] = missing
