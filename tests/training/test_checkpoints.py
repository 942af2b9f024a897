import dataclasses
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.losses import Squared
from ntk_robust.training import Checkpoints, DisplacementProbe, LayerwiseFrobeniusBall, fit
from ntk_robust.training import _fingerprint as fingerprints
from ntk_robust.training._fingerprint import fingerprint

pytest.importorskip("orbax.checkpoint")

sys.path.insert(0, str(Path(__file__).parent))
from checkpointed_run import VARIANTS, train

XS = jr.normal(jr.key(0), (6, 4))
YS = jnp.sign(jr.normal(jr.key(1), (6,)))
PARAMS = {"hidden": jr.normal(jr.key(2), (5, 4)), "readout": jr.normal(jr.key(3), (5,))}
ADAM = optax.adam(0.02)


def network(params, x):
    return params["readout"] @ jnp.tanh(params["hidden"] @ x)


def run(**options):
    settings = {
        "loss": Squared(),
        "attack": PGD(num_steps=2, relative_step=0.6),
        "perturbations": LinfBall(0.1),
        "optimizer": ADAM,
        "constraint": LayerwiseFrobeniusBall(0.3),
        "batch_size": 4,
        "num_steps": 9,
        "steps_per_chunk": 2,
        "probes": {"moved": DisplacementProbe(PARAMS)},
        "probe_every": 2,
        "key": jr.key(4),
    } | options
    return fit(network, PARAMS, XS, YS, **settings)


class StopError(Exception):
    pass


def stop_after(step):
    def callback(result):
        if result.num_steps >= step:
            raise StopError

    return callback


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.array_equal(x, y)


@pytest.fixture(scope="module")
def whole():
    return run()


def test_a_run_interrupted_and_resumed_ends_with_the_same_bits(whole, tmp_path):
    for step in (2, 6):
        folder = tmp_path / str(step)
        with pytest.raises(StopError):
            run(checkpoints=Checkpoints(folder), callback=stop_after(step))
        assert_same_bits(run(checkpoints=Checkpoints(folder, resume=True), steps_per_chunk=3), whole)
    # A finished run resumes to its result at once, and a folder without a checkpoint starts from the beginning.
    assert_same_bits(run(checkpoints=Checkpoints(folder, resume=True)), whole)
    assert_same_bits(run(checkpoints=Checkpoints(tmp_path / "new", resume=True, num_kept=1)), whole)
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.isdigit()] == ["9"]


def test_a_checkpoint_is_not_overwritten_unless_asked(tmp_path):
    run(checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match=r"holds a checkpoint after step 9; resume it"):
        run(checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"optimizer": optax.adam(0.03)}, "optimizer"),
        ({"key": jr.key(5)}, "key"),
        ({"perturbations": LinfBall(0.2)}, "perturbations"),
        ({"num_steps": 10}, "num_steps, weights"),
        ({"probes": {}}, "probes, weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_other_settings_is_refused_and_what_differs_is_named(options, differing, checkpointed):
    with pytest.raises(ValueError, match=f"is of another run: {differing} differ"):
        run(checkpoints=Checkpoints(checkpointed, resume=True), **options)


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpointed")
    run(checkpoints=Checkpoints(folder))
    return folder


@pytest.mark.slow
def test_a_run_that_is_not_finite_names_its_last_checkpoint(tmp_path):
    def explodes(step):
        return jnp.where(step < 4, 0.02, 1e300)

    result = run(optimizer=optax.sgd(explodes), constraint=None, checkpoints=Checkpoints(tmp_path))
    assert not result.finite
    assert f"The last checkpoint is that after step 4 in {tmp_path}" in result.message


def test_fingerprints_see_closures_and_code_and_nothing_that_differs_between_processes():
    import dataclasses

    @dataclasses.dataclass
    class Settings:
        value: object

    def scaled(factor):
        return lambda x: factor * x

    def digest(value):
        return fingerprint(Settings(value))["value"]

    assert digest(scaled(2.0)) == digest(scaled(2.0))
    assert digest(scaled(2.0)) != digest(scaled(3.0))
    assert digest(lambda x: x + 1) != digest(lambda x: x + 2)
    assert digest(optax.adam(0.1)) == digest(optax.adam(0.1)) != digest(optax.adam(0.2))
    assert digest(PGD(num_steps=2, relative_step=0.5)) != digest(PGD(num_steps=3, relative_step=0.5))
    assert digest(XS) == digest(np.array(XS) + 0 * XS) != digest(XS.at[0, 0].add(1e-16 + 1e-9))


def module(source):
    """The namespace of a module of the caller's own."""
    found = {"__name__": "experiment", "jnp": jnp}
    exec(compile(source, "experiment.py", "exec"), found)
    return found


def digest(value):
    Settings = dataclasses.make_dataclass("Settings", ["value"])
    return fingerprint(Settings(value))["value"]


SOURCE = """
FACTOR, COUNT, LOG = 2.0, 0, open
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n > 0 and even(n - 1)
def act(x): return jnp.maximum(x, 0) * FACTOR
def net(w, x):
    global COUNT
    COUNT = COUNT + 1
    return sum(act(row) for row in w * x if even(2))
class Loss:
    def __call__(self, f, y): return act(f - y)
"""


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        ("maximum(x, 0)", "minimum(x, 0)", True),
        ("FACTOR, COUNT, LOG = 2.0", "FACTOR, COUNT, LOG = 3.0", True),
        ("n > 0 and", "n > 1 and", True),
        ("2.0, 0, open", "2.0, 7, print", False),  # what net itself assigns, and what it does not read
        ("", "", False),
    ],
)
def test_fingerprints_see_what_a_function_reads_from_its_module(before, after, seen):
    old, new = module(SOURCE), module(SOURCE.replace(before, after))
    assert (digest(old["net"]) != digest(new["net"])) is seen


def test_fingerprints_follow_methods_and_name_installed_packages_by_version(monkeypatch):
    old, new = module(SOURCE), module(SOURCE.replace("maximum", "minimum"))
    assert digest(old["Loss"]()) != digest(new["Loss"]())
    before = digest(old["net"])
    monkeypatch.setattr(fingerprints, "package_version", lambda name: f"another {name}")
    assert digest(module(SOURCE)["net"]) != before


def test_a_damaged_checkpoint_is_named_with_the_good_one_before_it(tmp_path):
    run(checkpoints=Checkpoints(tmp_path))
    for file in (tmp_path / "9").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(OSError, match=rf"{tmp_path}/9 cannot be read .*resume from the one after step 8"):
        run(checkpoints=Checkpoints(tmp_path, resume=True))


def test_a_file_is_no_folder_of_checkpoints(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        run(checkpoints=Checkpoints(tmp_path / "file"))


# A server that has imported everything and compiled nothing forks them: Python and JAX start once for all processes.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["orbax.checkpoint", "ntk_robust.training", "ntk_robust.models"])


def start(folder, variant, out, largest_file=None):
    reader, writer = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=train, args=(folder, variant, out, writer, largest_file))
    process.start()
    writer.close()
    return process, reader


def reports_of(reader):
    try:
        while True:
            yield reader.recv()
    except EOFError:
        return


def finish(*arguments):
    process, reader = start(*arguments)
    received = list(reports_of(reader))
    process.join()
    return process.exitcode, received


def kill_after(steps, delay, *arguments):
    """Whether the process was still at work `delay` seconds after its report of so many steps, and is dead now."""
    process, reader = start(*arguments)
    for report in reports_of(reader):
        if report >= steps:
            break
    process.join(timeout=delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_with_signal_9_at_any_moment_resumes_to_the_same_bits(variant, tmp_path):
    code, reports = finish(tmp_path / "whole", variant, tmp_path / "whole.npz")
    assert code == 0, reports[-1]
    folder, delays = tmp_path / "killed", np.random.default_rng(0).uniform(0, 0.15, size=3)
    # Each delay ends anywhere in the next chunks or in the writing of their checkpoints.
    for steps, delay in zip((4, 10, 16), delays, strict=True):
        assert kill_after(steps, delay, folder, variant, tmp_path / "killed.npz")
    code, reports = finish(folder, variant, tmp_path / "killed.npz")
    assert code == 0, reports[-1]
    assert reports[0] > 16  # it went on, it did not start anew
    a, b = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert set(a.files) == set(b.files)
    for name in a.files:
        assert np.array_equal(a[name], b[name], equal_nan=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_last_good_checkpoint_survives(tmp_path):
    arguments = tmp_path / "run", "adversarial-sgd", tmp_path / "out.npz"
    assert kill_after(6, 0.0, *arguments)
    good = max(int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdigit())
    code, reports = finish(*arguments, 64)
    assert code != 0
    assert "could not be written" in reports[-1]
    assert f"step {good} is intact" in reports[-1]
    code, reports = finish(*arguments)
    assert code == 0, reports[-1]
    assert reports[0] > good


def test_orbax_is_loaded_only_by_checkpoints():
    code = "import sys, ntk_robust.training; sys.exit('orbax' in sys.modules or 'orbax.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
