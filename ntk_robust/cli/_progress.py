"""Progress on stderr: bars where someone watches, a line now and then where no one does."""

import abc
import contextlib
import sys
import time
from collections.abc import Iterator

from ntk_robust._core import ProgressTask

_SECONDS_BETWEEN_LINES = 15.0


class Display(abc.ABC):
    """Progress, as the library's functions take it, that can also say a sentence."""

    @abc.abstractmethod
    def task(self, description: str, total: int | None = None) -> contextlib.AbstractContextManager[ProgressTask]:
        """A context in which one task of `total` steps (None: unknown) runs."""

    @abc.abstractmethod
    def say(self, text: str) -> None:
        """Prints a line above whatever is moving."""


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """Live bars if stderr is a terminal, lines otherwise; stdout stays free for results."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Bars(Display):
    """Rich bars; finished ones disappear."""

    def __init__(self, bars) -> None:
        self._bars = bars

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[ProgressTask]:
        number = self._bars.add_task(description, total=total, figures="")
        try:
            yield _BarTask(self._bars, number)
        finally:
            self._bars.remove_task(number)


class _BarTask:
    def __init__(self, bars, number: int) -> None:
        self._bars, self._number = bars, number

    def advance(self, steps: int = 1, **fields: float) -> None:
        figures = {"figures": _figures(fields)} if fields else {}
        self._bars.update(self._number, advance=steps, **figures)


class _Lines(Display):
    """Plain lines: the outermost tasks when they begin, the others only if they take long."""

    def __init__(self) -> None:
        self._depth = 0

    def say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[ProgressTask]:
        if self._depth == 0:
            self.say(f"{description} ...")
        self._depth += 1
        try:
            yield _LineTask(self, description, total)
        finally:
            self._depth -= 1


class _LineTask:
    def __init__(self, lines: _Lines, description: str, total: int | None) -> None:
        self._lines, self._description, self._total = lines, description, total
        self._done = 0
        self._spoke = time.monotonic()

    def advance(self, steps: int = 1, **fields: float) -> None:
        self._done += steps
        if time.monotonic() - self._spoke < _SECONDS_BETWEEN_LINES:
            return
        self._spoke = time.monotonic()
        of = f" of {self._total}" if self._total is not None else ""
        self._lines.say(f"  {self._description}: {self._done}{of}  {_figures(fields)}".rstrip())


def _figures(fields: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in fields.items())
