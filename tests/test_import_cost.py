"""Importing the package costs little more than importing JAX, and pulls in nothing heavy."""

import json
import os
import subprocess
import sys

import pytest

import ntk_robust

PACKAGES = [name for name in ntk_robust.__all__ if name != "__version__"]
EVERYTHING = "import ntk_robust; " + "; ".join(f"import ntk_robust.{name}" for name in PACKAGES)
HEAVY = ("tensorflow", "tf2jax", "matplotlib", "sklearn", "orbax", "tyro", "rich", "torch")


def in_a_fresh_process(statements: str) -> dict:
    """CPU seconds that the statements took there, and the heavy packages that they imported."""
    script = (
        "import json, sys, time\nstart = time.process_time()\n"
        f"{statements}\n"
        "seconds = time.process_time() - start\n"
        f"print(json.dumps({{'seconds': seconds, 'heavy': [name for name in {HEAVY!r} if name in sys.modules]}}))"
    )
    # Bytecode is kept, as for users: where it must not be written every import compiles the sources again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    return json.loads(done.stdout)


def fewest_seconds(*alternatives: str, repetitions: int = 5) -> list[float]:
    """Fewest CPU seconds of each of the statements, measured in turn: what else runs can only add to them."""
    rounds = [[in_a_fresh_process(statements)["seconds"] for statements in alternatives] for _ in range(repetitions)]
    return [min(column) for column in zip(*rounds, strict=True)]


@pytest.mark.slow
def test_importing_the_package_and_all_of_its_parts_costs_less_than_two_and_a_half_imports_of_jax() -> None:
    in_a_fresh_process(EVERYTHING)  # writes the bytecode
    jax_alone, package, everything = fewest_seconds("import jax", "import ntk_robust", EVERYTHING)
    print(f"CPU seconds: jax {jax_alone:.2f}, ntk_robust {package:.3f}, all of its parts {everything:.2f}")
    assert package < 0.25 * jax_alone
    assert everything < 2.5 * jax_alone


def test_a_measurement_notices_an_expensive_import() -> None:
    cheap, expensive = fewest_seconds("pass", "while time.process_time() - start < 0.5: pass", repetitions=1)
    assert cheap < 0.1
    assert expensive >= 0.5


def test_importing_all_parts_imports_nothing_heavy() -> None:
    assert in_a_fresh_process(EVERYTHING)["heavy"] == []


def test_a_heavy_import_would_be_noticed() -> None:
    assert in_a_fresh_process("import rich")["heavy"] == ["rich"]


def help_of(*arguments: str) -> str:
    return (
        "import contextlib, io\nfrom ntk_robust.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):\n"
        f"    main({[*arguments, '--help']})\n"
        "assert 'usage: ntk-robust' in text.getvalue()\n"
        "assert not {'jax', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )


def test_help_takes_less_than_half_a_second() -> None:
    in_a_fresh_process(help_of())
    assert fewest_seconds(help_of())[0] < 0.5


@pytest.mark.parametrize("command", ["reproduce", "check", "train", "kernel", "doctor"])
def test_the_help_of_a_command_imports_neither_jax_nor_numpy(command: str) -> None:
    in_a_fresh_process(help_of(command))
