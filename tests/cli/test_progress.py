"""Progress goes to stderr: bars for a terminal, sober lines otherwise."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from ntk_robust.cli import _progress
from ntk_robust.cli._progress import _Bars, _Lines


def test_lines_name_the_outermost_task_and_speak_again_only_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    lines = _Lines()
    with lines.task("all", 2) as outer, lines.task("training", 10) as inner:
        inner.advance(1, surrogate_loss=2.0)
        now[0] = 20.0
        inner.advance(2, surrogate_loss=0.123456)
        now[0] = 21.0
        inner.advance(1)
        outer.advance()
    lines.say("done")
    assert capsys.readouterr().err.splitlines() == [
        "all ...",
        "  training: 3 of 10  surrogate loss 0.1235",
        "  all: 1 of 2",
        "done",
    ]


def test_bars_show_description_count_and_figures_and_leave() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    columns = (TextColumn("{task.description} {task.completed}/{task.total} {task.fields[figures]}"),)
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bars = _Bars(progress)
        with bars.task("training [not markup]", 10) as task:
            task.advance(4, surrogate_loss=0.5)
            progress.refresh()
            bars.say("a line [above]")
        assert progress.task_ids == []
    shown = stream.getvalue()
    assert "4/10 surrogate loss 0.5" in shown
    assert "a line [above]" in shown


def test_without_a_terminal_there_are_lines_on_stderr_and_nothing_on_stdout(capsys) -> None:
    with _progress.display() as progress, progress.task("work"):
        pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "work ...\n"
