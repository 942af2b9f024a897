"""Matrices on disk: interruption, resumption, refusal, forecast."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ntk_robust.kernels import _forecast, analytic_ntk, gram
from ntk_robust.kernels._forecast import forecast_gram
from ntk_robust.kernels._on_disk import gram_on_disk
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


def test_an_interrupted_matrix_continues_and_ends_with_the_same_bits(tmp_path):
    x = _points(10)
    whole = gram(KERNEL, x, tile=4)
    with pytest.raises(KeyboardInterrupt):
        gram_on_disk(tmp_path / "k", KERNEL, x, tile=4, progress=_StopAfter(2))
    done = json.loads((tmp_path / "k" / "tiles_done.json").read_text())
    assert len(done) == 2
    store = gram_on_disk(tmp_path / "k", KERNEL, x, tile=4)
    np.testing.assert_array_equal(store.read().result(), whole)
    # a finished one is opened: nothing is computed, so a kernel that cannot be computed does no harm
    again = gram_on_disk(tmp_path / "k", KERNEL, x, tile=4)
    np.testing.assert_array_equal(again[2:5].read().result(), whole[2:5])


def test_a_tile_that_was_written_but_not_noted_is_written_again(tmp_path):
    x = _points(10)
    store = gram_on_disk(tmp_path / "k", KERNEL, x, tile=4)
    whole = store.read().result()
    done = tmp_path / "k" / "tiles_done.json"
    done.write_text(json.dumps(json.loads(done.read_text())[:-2]))
    broken = next(path for path in (tmp_path / "k" / "gram.zarr").iterdir() if path.name == "2.2")
    broken.unlink()  # as if the kill came before the file had its name
    np.testing.assert_array_equal(gram_on_disk(tmp_path / "k", KERNEL, x, tile=4).read().result(), whole)


def test_another_matrix_is_refused_with_what_differs(tmp_path):
    x = _points(6)
    gram_on_disk(tmp_path / "k", KERNEL, x, tile=4)
    with pytest.raises(ValueError, match="holds another matrix \\(x1 "):
        gram_on_disk(tmp_path / "k", KERNEL, _points(6, seed=1), tile=4)
    with pytest.raises(ValueError, match="kernel"):
        gram_on_disk(tmp_path / "k", 2.0 * KERNEL, x, tile=4)
    with pytest.raises(ValueError, match="tile 4 there, 3 here"):
        gram_on_disk(tmp_path / "k", KERNEL, x, tile=3)
    with pytest.raises(ValueError, match="dtype float64 there, float32 here"):
        gram_on_disk(tmp_path / "k", KERNEL, x.astype(np.float32), tile=4)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other things in it"):
        gram_on_disk(tmp_path / "other", KERNEL, x)
    with pytest.raises(ValueError, match="give kernel_name"):
        gram_on_disk(tmp_path / "f", lambda a, b: a @ (a if b is None else b).T, x)


def test_cross_matrices_and_functions_go_to_disk_too(tmp_path):
    x, z = _points(5), _points(7, seed=1)
    store = gram_on_disk(tmp_path / "k", lambda a, b: a @ b.T, x, z, tile=3, kernel_name="linear")
    np.testing.assert_allclose(store.read().result(), x @ z.T, rtol=1e-14)


def test_the_forecast_counts_and_what_cannot_fit_is_refused(tmp_path, monkeypatch):
    x = _points(10)
    forecast = forecast_gram(KERNEL, x, tile=4, out=tmp_path)
    assert (forecast.num_tiles, forecast.disk_bytes) == (6, 800)
    assert forecast.fits
    assert 0.0 < forecast.seconds < 60.0
    assert forecast_gram(KERNEL, x).memory_bytes >= 800
    monkeypatch.setattr(_forecast, "memory_available", lambda: 1500)
    with pytest.raises(ValueError, match="about 13 rows would fit; gram_on_disk"):
        gram(KERNEL, x, tile=4)
    assert not forecast_gram(KERNEL, x, tile=4).fits
    monkeypatch.setattr(_forecast, "disk_available", lambda _: 500)
    with pytest.raises(ValueError, match="about 7 rows would fit"):
        gram_on_disk(tmp_path / "k", KERNEL, x, tile=4)
    assert not (tmp_path / "k").exists()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_continues_and_ends_with_the_same_bits(tmp_path):
    program = (
        "import sys, numpy as np; from ntk_robust.kernels import analytic_ntk;"
        "from ntk_robust.kernels._on_disk import gram_on_disk;"
        "from ntk_robust.models import FullyConnected;"
        "x = np.random.default_rng(0).normal(size=(600, 50)).astype(np.float32);"
        "print('ready', flush=True);"
        "gram_on_disk(sys.argv[1], analytic_ntk(FullyConnected(50, 1, 3, 'scalar')), x, tile=20); "
        "print('end', flush=True)"
    )
    kills, target = 0, tmp_path / "k"
    rng = np.random.default_rng(0)
    for _ in range(40):
        command = [sys.executable, "-c", program, str(target)]
        environment = os.environ | {"JAX_ENABLE_X64": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            time.sleep(0.5 + rng.uniform(0.0, 1.0))
            if run.poll() is None and kills < 3:
                os.kill(run.pid, signal.SIGKILL)
                kills += 1
            last = run.stdout.read()
        if last == "end\n":
            break
    assert kills > 0
    x = np.random.default_rng(0).normal(size=(600, 50)).astype(np.float32)
    kernel = analytic_ntk(FullyConnected(50, 1, 3, "scalar"))
    np.testing.assert_array_equal(gram_on_disk(target, kernel, x, tile=20).read().result(), gram(kernel, x, tile=20))
