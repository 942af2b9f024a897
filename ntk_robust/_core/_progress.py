"""Progress as the library reports it; how it is drawn is the caller's business."""

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class ProgressTask(Protocol):
    """One running piece of work."""

    def advance(self, steps: int = 1, **fields: float) -> None:
        """Moves the task on by `steps`; `fields` are figures to show beside it (loss, accuracy, ...)."""


@runtime_checkable
class AbstractProgress(Protocol):
    """Where long computations report how far they are."""

    def task(self, description: str, total: int | None = None) -> contextlib.AbstractContextManager[ProgressTask]:
        """A context in which one task of `total` steps (None: unknown) runs."""
        ...


class _SilentTask:
    def advance(self, steps: int = 1, **fields: float) -> None:
        del steps, fields


class SilentProgress:
    """Reports nothing: the default of every function that takes `progress`."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[ProgressTask]:
        """A context that shows nothing."""
        del description, total
        yield _SilentTask()
