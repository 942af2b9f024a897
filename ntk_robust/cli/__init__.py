"""The command line: `ntk-robust reproduce | check | train | kernel | doctor`."""

from ntk_robust.cli._main import main

__all__ = ["main"]
