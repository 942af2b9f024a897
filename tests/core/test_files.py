"""Files that are whole or not there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust._core import Series, to_jsonable, write_bytes_atomically, write_json_atomically, write_text_atomically


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = write_text_atomically(tmp_path / "new" / "a.txt", "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_failing_write_keeps_the_old_file_and_names_the_target(tmp_path, monkeypatch):
    path = write_bytes_atomically(tmp_path / "a.bin", b"old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*a\.bin"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = write_bytes_atomically(tmp_path / "a.bin", b"old")
    program = f"""
import os, signal
from ntk_robust._core import write_bytes_atomically
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
write_bytes_atomically({str(path)!r}, b"new" * 10**6)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_json_is_strict_and_says_what_is_not_finite(tmp_path):
    path = write_json_atomically(
        tmp_path / "a.json", {"x": jnp.asarray([1.0, jnp.inf]), "y": np.float32("nan"), "s": Series("s", [1.0], [2.0])}
    )
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["x"] == [1.0, "inf"]
    assert read["y"] == "nan"
    assert read["s"]["label"] == "s"


def test_what_is_no_record_is_refused_by_type():
    with pytest.raises(TypeError, match="cannot write a set as JSON"):
        to_jsonable({1, 2})
