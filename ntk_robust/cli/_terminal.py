"""Where words go: results to stdout, everything about the run to stderr."""

import sys


def say(text: str = "") -> None:
    """A line of the result; flushed, so that a reader of a pipe sees it now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """A line about the run."""
    sys.stderr.write(f"ntk-robust: {text}\n")
