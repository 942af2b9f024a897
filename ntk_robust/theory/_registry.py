"""The folder `theory/checks` is the registry: one file, one check, the file's stem is its name."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Sequence

import ntk_robust.theory.checks as folder
from ntk_robust.theory._check import Check


def check_names() -> tuple[str, ...]:
    """The names of all checks, sorted; imports none of them."""
    found = (module.name for module in pkgutil.iter_modules(folder.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def checks() -> tuple[Check, ...]:
    """All checks, by name."""
    return tuple(_load(name) for name in check_names())


def select(patterns: Sequence[str]) -> tuple[Check, ...]:
    """The checks whose names start with any of `patterns`, by name; all of them without patterns.

    Raises:
        ValueError: If a pattern fits no check; the message lists the names.
    """
    names = check_names()
    for pattern in patterns:
        if not any(name.startswith(pattern) for name in names):
            raise ValueError(f"no check starts with {pattern!r}; the checks are: {', '.join(names)}")
    chosen = (name for name in names if not patterns or name.startswith(tuple(patterns)))
    return tuple(_load(name) for name in chosen)


def _load(name: str) -> Check:
    module = importlib.import_module(f"{folder.__name__}.{name}")
    check = getattr(module, "CHECK", None)
    if not isinstance(check, Check):
        raise TypeError(f"{module.__name__} must end in CHECK = Check(...); found {check!r}")
    return dataclasses.replace(check, name=name)
