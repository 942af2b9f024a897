"""From arguments to exit code: what users see when something goes wrong."""

import os
import sys
from typing import TYPE_CHECKING

from ntk_robust.cli._terminal import warn

if TYPE_CHECKING:
    from ntk_robust.cli._arguments import Attack, Check, Doctor, Kernel, Reproduce, Study, Train

MISUSE = 2
CONTRADICTION = 4
INTERRUPTED = 130
CLOSED_PIPE = 141


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command that `arguments` (those of the process where None) ask for.

    Wrong values, missing files and full disks end in one line on stderr and code 2; NTK_ROBUST_TRACEBACK=1 shows the
    traceback instead. A certificate that an attack refutes ends in one line and code 4, Ctrl-C in code 130, a reader
    that closed the pipe in code 141 and silence.
    """
    try:
        from ntk_robust.cli._arguments import parse

        code = _run(parse(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whatever is still buffered must not be written at exit: that would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt as interrupt:
        warn(f"interrupted; {str(interrupt) or 'nothing was finished'}")
        return INTERRUPTED
    except (ValueError, OSError, MemoryError, ArithmeticError, RuntimeError) as error:
        if os.environ.get("NTK_ROBUST_TRACEBACK") == "1" or not _is_for_users(error):
            raise
        warn(f"error: {_one_line(error)}")
        if isinstance(error, OSError) and error.filename is None:
            _discard_unwritten()
        return CONTRADICTION if type(error) is ArithmeticError else MISUSE
    return code


def _run(command: "Reproduce | Check | Study | Train | Kernel | Attack | Doctor") -> int:
    """Commands import what they need, so that none waits for another's packages."""
    import jax

    from ntk_robust.cli._arguments import Attack, Check, Doctor, Kernel, Reproduce, Study, Train

    jax.config.update("jax_enable_x64", True)
    match command:
        case Reproduce():
            from ntk_robust.cli._reproduce import reproduce

            return reproduce(command)
        case Check():
            from ntk_robust.cli._check import check

            return check(command)
        case Study():
            from ntk_robust.cli._study import study

            return study(command)
        case Train():
            from ntk_robust.cli._train import train

            return train(command)
        case Kernel():
            from ntk_robust.cli._kernel import kernel

            return kernel(command)
        case Attack():
            from ntk_robust.cli._attack import attack

            return attack(command)
        case Doctor():
            from ntk_robust.cli._doctor import doctor

            return doctor(command)


def _is_for_users(error: Exception) -> bool:
    if isinstance(error, ArithmeticError):
        return type(error) in (ArithmeticError, FloatingPointError)  # a division by zero is a mistake of ours
    if not isinstance(error, RuntimeError):
        return True
    return any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Unable to initialize backend"))


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'standard output'}: {error.strerror}"
    if isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and not isinstance(error, OSError)):
        text = f"out of memory ({text or type(error).__name__}); ask for fewer examples or a smaller width"
    return " ".join(text.split())


def _discard_unwritten() -> None:
    """Forgets what stdout still holds if stdout is what failed, so that the interpreter does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
