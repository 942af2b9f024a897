"""Matrices on disk: interruption, resumption, refusal, forecast."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ntk_robust.kernels import _forecast, _on_disk, _room, analytic_ntk, forecast_gram, gram
from ntk_robust.models import FullyConnected

KERNEL = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))


class _StopAfter:
    """Progress that interrupts the run after some tiles."""

    def __init__(self, tiles):
        self.tiles = tiles

    def task(self, description, total=None):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, steps=1, **_):
        self.tiles -= steps
        if self.tiles == 0:
            raise KeyboardInterrupt


def _points(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3))


def _listed(folder):
    return [line for line in (folder / "tiles_done.txt").read_text().split("\n") if line]


def test_an_interrupted_matrix_continues_and_ends_with_the_same_bits(tmp_path):
    x = _points(10)
    whole = gram(KERNEL, x, tile=4)
    with pytest.raises(KeyboardInterrupt):
        gram(KERNEL, x, tile=4, out=tmp_path / "k", progress=_StopAfter(2))
    assert _listed(tmp_path / "k") == ["0 0;", "0 4;"]
    store = gram(KERNEL, x, tile=4, out=tmp_path / "k")
    np.testing.assert_array_equal(store.read().result(), whole)
    assert len(_listed(tmp_path / "k")) == 6
    # without a tile size that of the matrix on disk counts; a finished one is opened and nothing computed
    again = gram(KERNEL, x, out=tmp_path / "k", progress=_StopAfter(7))
    np.testing.assert_array_equal(again[2:5].read().result(), whole[2:5])
    assert len(_listed(tmp_path / "k")) == 6


def test_a_list_of_finished_tiles_cut_at_any_byte_costs_time_and_no_bits(tmp_path):
    x, linear = _points(7), lambda a, b: a @ (a if b is None else b).T
    write = lambda folder: gram(linear, x, tile=3, out=folder, kernel_name="linear")  # noqa: E731
    whole = write(tmp_path / "whole").read().result()
    listed = (tmp_path / "whole" / "tiles_done.txt").read_bytes()
    for length in range(len(listed) + 1):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "tiles_done.txt").write_bytes(listed[:length])
        finished = {entry for entry in listed[:length].decode().split("\n") if entry.endswith(";")}
        for chunk in (folder / "gram.zarr").glob("[0-9]*"):
            i, j = sorted(3 * int(index) for index in chunk.name.split("."))
            if f"{i} {j};" not in finished:
                chunk.write_bytes(b"\x7f" * chunk.stat().st_size)
        np.testing.assert_array_equal(write(folder).read().result(), whole)
        np.testing.assert_array_equal(write(folder).read().result(), whole)
        shutil.rmtree(folder)


def _linear(a, b):
    return a @ (a if b is None else b).T


def test_a_write_of_the_identity_cut_short_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / ".identity.json.x3k9.part").write_text('{"format": 2, "sha')
    x = _points(4)
    store = gram(_linear, x, tile=3, out=tmp_path / "k", kernel_name="linear")
    np.testing.assert_array_equal(store.read().result(), gram(_linear, x, tile=3))
    assert {path.name for path in (tmp_path / "k").iterdir()} == {"identity.json", "tiles_done.txt", "gram.zarr"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "identity.json.part").write_text("of somebody else")
    with pytest.raises(ValueError, match="other things in it"):
        gram(_linear, x, out=tmp_path / "mine", kernel_name="linear")


@pytest.mark.parametrize("lost", ["a tile", "a mirror image", "the end of a tile", "all tiles"])
def test_tiles_that_are_listed_but_no_longer_there_are_computed_again(lost, tmp_path):
    x = _points(7)
    x[3:6] = 0.0  # a tile of zeros is a file too
    make = lambda **progress: gram(_linear, x, tile=3, out=tmp_path, kernel_name="linear", **progress)  # noqa: E731
    make()
    chunks = tmp_path / "gram.zarr"
    assert len(list(chunks.glob("[0-9]*"))) == 9
    if lost == "all tiles":
        shutil.rmtree(chunks)
    elif lost == "the end of a tile":
        os.truncate(chunks / "0.2", 40)
    else:
        (chunks / ("0.2" if lost == "a tile" else "2.0")).unlink()
    with pytest.raises(KeyboardInterrupt):  # five are still there: one is to be computed
        make(progress=_StopAfter(1 if lost == "all tiles" else 6))
    np.testing.assert_array_equal(make().read().result(), gram(_linear, x, tile=3))


def test_damaged_folders_are_refused_with_the_path_and_the_remedy(tmp_path):
    x = _points(4)
    make = lambda folder: gram(_linear, x, tile=3, out=folder, kernel_name="linear")  # noqa: E731
    (tmp_path / "k").mkdir()
    for content in ("", "{}", '{"tile": [0, 3]}', "[1]"):
        (tmp_path / "k" / "identity.json").write_text(content)
        with pytest.raises(ValueError, match=r"k/identity.json is damaged .* delete the folder or give another"):
            make(tmp_path / "k")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, which is a file; give a folder"):
        make(tmp_path / "file")
    make(tmp_path / "m")
    (tmp_path / "m" / "gram.zarr" / ".zarray").write_text("{")
    with pytest.raises(ValueError, match=r"m/gram.zarr cannot be opened .* or give another folder"):
        make(tmp_path / "m")


def test_a_name_does_not_hide_that_a_kernel_is_another(tmp_path):
    x = _points(4)
    gram(KERNEL, x, tile=4, out=tmp_path / "k", kernel_name="ntk")
    gram(KERNEL, x, tile=4, out=tmp_path / "k", kernel_name="ntk")
    for other, name in ((3.0 * KERNEL, "ntk"), (KERNEL, "nngp"), (KERNEL, None)):
        with pytest.raises(ValueError, match="holds another matrix \\(kernel "):
            gram(other, x, tile=4, out=tmp_path / "k", kernel_name=name)


def test_another_matrix_is_refused_with_what_differs(tmp_path):
    x = _points(6)
    gram(KERNEL, x, tile=4, out=tmp_path / "k")
    with pytest.raises(ValueError, match="holds another matrix \\(x1 "):
        gram(KERNEL, _points(6, seed=1), tile=4, out=tmp_path / "k")
    with pytest.raises(ValueError, match="kernel"):
        gram(2.0 * KERNEL, x, tile=4, out=tmp_path / "k")
    with pytest.raises(ValueError, match=r"tile \[4, 4\] there, \[3, 3\] here"):
        gram(KERNEL, x, tile=3, out=tmp_path / "k")
    with pytest.raises(ValueError, match="dtype float64 there, float32 here"):
        gram(KERNEL, x.astype(np.float32), tile=4, out=tmp_path / "k")
    with pytest.raises(ValueError, match=r"shape \[6, 6\] there, \[6, 5\] here"):
        gram(KERNEL, x, x[:5], tile=4, out=tmp_path / "k")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other things in it"):
        gram(KERNEL, x, out=tmp_path / "other")
    with pytest.raises(ValueError, match="give kernel_name"):
        gram(lambda a, b: a @ (a if b is None else b).T, x, out=tmp_path / "f")


def test_cross_matrices_and_functions_go_to_disk_too(tmp_path):
    x, z = _points(5), _points(7, seed=1)
    store = gram(lambda a, b: a @ b.T, x, z, tile=3, out=tmp_path / "k", kernel_name="linear")
    np.testing.assert_allclose(store.read().result(), x @ z.T, rtol=1e-14)


def test_the_forecast_counts_and_what_cannot_fit_is_refused(tmp_path, monkeypatch):
    x = _points(10)
    forecast = forecast_gram(KERNEL, x, tile=4, out=tmp_path)
    assert (forecast.num_tiles, forecast.tile, forecast.disk_bytes) == (6, (4, 4), 800)
    assert forecast.fits
    assert 0.0 < forecast.seconds < 60.0
    assert forecast_gram(KERNEL, x).memory_bytes >= 800
    work = forecast_gram(KERNEL, x, tile=4).memory_bytes - 800
    monkeypatch.setattr(_forecast, "memory_available", lambda: work + 700)
    with pytest.raises(ValueError, match="about 9 rows would fit; out=FOLDER"):
        gram(KERNEL, x, tile=4)
    assert not forecast_gram(KERNEL, x, tile=4).fits
    monkeypatch.setattr(_forecast, "memory_available", lambda: 1000)
    with pytest.raises(ValueError, match="give a smaller tile"):
        gram(KERNEL, x, tile=4)
    monkeypatch.setattr(_forecast, "memory_available", lambda: None)
    monkeypatch.setattr(_forecast, "disk_available", lambda _: 500)
    with pytest.raises(ValueError, match="about 7 rows would fit"):
        gram(KERNEL, x, tile=4, out=tmp_path / "k")
    assert not (tmp_path / "k").exists()


def test_the_tile_is_the_largest_that_fits_and_leaves_little_padding(monkeypatch):
    linear = lambda a, b: a @ (a if b is None else b).T  # noqa: E731
    x = np.ones((5000, 2), np.float32)
    roomy = forecast_gram(linear, x, out="nowhere")
    assert roomy.tile == (1680, 1680)  # three of these, not two of 2048 and a narrow one
    room = roomy.memory_bytes - 1
    monkeypatch.setattr(_forecast, "memory_available", lambda: room)
    tight = forecast_gram(linear, x, out="nowhere")
    assert tight.tile == (1008, 1008)
    assert tight.fits
    assert forecast_gram(linear, x, x[:40], out="nowhere").tile[1] == 40


def test_limits_of_control_groups_count_as_memory(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    for group, limit, used, cache in (("", "max", 9, 0), ("job", "5000", 3000, 500), ("job/step", "4000", 3000, 0)):
        folder = tmp_path / "root" / group
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nslab 7\n")
    assert _room._control_groups(tmp_path / "root", own) == [1000, 2500]
    assert _room._control_groups(tmp_path / "root", tmp_path / "none") == []


# Runs that kill themselves without notice at a chosen moment of their third tile: one process that loads everything,
# and a fork of it for each moment.
_RUN = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from ntk_robust.kernels import _on_disk, analytic_ntk, gram
from ntk_robust.models import FullyConnected

x = np.random.default_rng(0).normal(size=(1200, 8)).astype(np.float32)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
note, write = _on_disk._note, _on_disk._write
noted = 0

class Cut:
    def __init__(self, log): self.log = log
    def write(self, data):
        self.log.write(data[: len(data) // 2])
        die()

def run(folder, moment):
    def watch():
        chunks = folder / "gram.zarr"
        while True:
            if noted and chunks.exists() and any("lock" in name for name in os.listdir(chunks)):
                die()

    def note_and_die(log, start, written):
        global noted
        if noted == 3:
            if moment == "before the note":
                [future.result() for future in written]
                die()
            if moment == "in the middle of the note":
                note(Cut(log), start, written)
            if moment == "between tiles":
                note(log, start, written)
                die()
        note(log, start, written)
        noted += 1

    def write_after_noting(store, plan, start, block):
        if noted == 3:  # the planted fault: noted first, killed before the data are there
            note(open(folder / "tiles_done.txt", "ab", buffering=0), start, [])
            die()
        return write(store, plan, start, block)

    if moment == "in the middle of the identity":
        Path.replace = lambda *_: die()  # written beside it, not yet under its name
    elif moment == "in the middle of a tile":
        threading.Thread(target=watch, daemon=True).start()
    elif moment == "planted fault":
        _on_disk._write = write_after_noting
    _on_disk._note = note_and_die
    gram(analytic_ntk(FullyConnected(8, 1, 3, "scalar")), x, tile=300, out=folder)

for moment in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        try:
            run(Path(sys.argv[1]) / moment, moment)
        finally:
            os._exit(1)  # never the rest of this program
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, moment
"""

AT_THE_START = "in the middle of the identity"
MOMENTS = ["in the middle of a tile", "before the note", "in the middle of the note", "between tiles"]


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    """A folder with what a killed run left at each moment."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", _RUN, str(folder), AT_THE_START, *MOMENTS, "planted fault"]
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def whole_matrix():
    x = np.random.default_rng(0).normal(size=(1200, 8)).astype(np.float32)
    kernel = analytic_ntk(FullyConnected(8, 1, 3, "scalar"))
    return kernel, x, gram(kernel, x, tile=300)


def _assert_that_the_continued_run_has_the_same_bits(folder, whole_matrix):
    kernel, x, expected = whole_matrix
    assert 1 <= len(_on_disk._finished(folder / "tiles_done.txt")) < 10
    store = gram(kernel, x, tile=300, out=folder)
    np.testing.assert_array_equal(store.read().result(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_continues_and_ends_with_the_same_bits(moment, killed_runs, whole_matrix):
    if moment == "in the middle of a tile":
        assert any("lock" in path.name for path in (killed_runs / moment / "gram.zarr").iterdir())
    _assert_that_the_continued_run_has_the_same_bits(killed_runs / moment, whole_matrix)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_what_the_matrix_is_continues(killed_runs, whole_matrix):
    kernel, x, expected = whole_matrix
    folder = killed_runs / AT_THE_START
    assert [path.suffix for path in folder.iterdir()] == [".part"]
    np.testing.assert_array_equal(gram(kernel, x, tile=300, out=folder).read().result(), expected)


@pytest.mark.slow
def test_a_tile_noted_before_it_is_written_is_noticed_by_its_missing_file(
    killed_runs, whole_matrix, tmp_path, monkeypatch
):
    folder = killed_runs / "planted fault"
    shutil.copytree(folder, tmp_path / "copy")
    _assert_that_the_continued_run_has_the_same_bits(folder, whole_matrix)
    monkeypatch.setattr(_on_disk, "_is_there", lambda *_: True)  # who believes the list reads zeros
    with pytest.raises(AssertionError, match="not equal"):
        _assert_that_the_continued_run_has_the_same_bits(tmp_path / "copy", whole_matrix)
