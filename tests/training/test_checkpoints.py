import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.losses import Squared
from ntk_robust.training import Checkpoints, DisplacementProbe, LayerwiseFrobeniusBall, fit
from ntk_robust.training._fingerprint import fingerprint

pytest.importorskip("orbax.checkpoint")

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


SCRIPT = """
import sys, jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, jax.random as jr, numpy as np, optax
from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected
from ntk_robust import training as t

folder, variant, resume, out, largest_file = sys.argv[1:]
if int(largest_file):  # files may not grow: what a full disk does to a writer
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), int(largest_file)))
model = FullyConnected(input_dim=6, width=16, num_hidden_layers=1, num_outputs=3, b_std=0.1)
xs, ys = jr.normal(jr.key(0), (12, 6)), jnp.arange(12) % 3
method, optimizer = {
    "adversarial-sgd": (t.Adversarial(), optax.sgd(0.1, momentum=0.9)),
    "free-adam": (t.Free(num_replays=3), optax.adam(0.01)),
    "trades-schedule": (t.Trades(2.0), optax.sgd(optax.cosine_decay_schedule(0.2, 80))),
}[variant]
result = t.fit(
    model.apply, model.init(key=jr.key(1)), xs, ys, loss=CrossEntropy(), method=method, optimizer=optimizer,
    attack=PGD(num_steps=3, relative_step=0.5), perturbations=LinfBall(0.1), batch_size=4, num_steps=80,
    steps_per_chunk=2, key=jr.key(2), checkpoints=t.Checkpoints(folder, resume=resume == "resume"),
    callback=lambda result: print(result.num_steps, flush=True),
)
leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result))}
np.savez(out, **leaves)
"""


def start(folder, variant, resume, out, largest_file=0):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), variant, resume, str(out), str(largest_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*arguments):
    with start(*arguments) as process:
        output, errors = process.communicate()
    return process.returncode, output, errors


def kill_after(steps, delay, *arguments):
    """Whether the process was still at work `delay` seconds after its report of so many steps, and is dead now."""
    with start(*arguments) as process:
        for line in process.stdout:
            if int(line) >= steps:
                break
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["adversarial-sgd", "free-adam", "trades-schedule"])
def test_a_run_killed_with_signal_9_at_any_moment_resumes_to_the_same_bits(variant, tmp_path):
    code, _, errors = finish(tmp_path / "whole", variant, "new", tmp_path / "whole.npz")
    assert code == 0, errors
    folder, delays = tmp_path / "killed", np.random.default_rng(0).uniform(0, 0.15, size=3)
    # Each delay ends anywhere in the next chunks or in the writing of their checkpoints.
    for steps, delay in zip((4, 20, 40), delays, strict=True):
        assert kill_after(steps, delay, folder, variant, "resume", tmp_path / "killed.npz")
    code, output, errors = finish(folder, variant, "resume", tmp_path / "killed.npz")
    assert code == 0, errors
    assert int(output.split()[0]) > 40  # it went on, it did not start anew
    a, b = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert set(a.files) == set(b.files)
    for name in a.files:
        assert np.array_equal(a[name], b[name], equal_nan=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_last_good_checkpoint_survives(tmp_path):
    arguments = tmp_path / "run", "adversarial-sgd", "resume", tmp_path / "out.npz"
    assert kill_after(6, 0.0, *arguments)
    good = max(int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdigit())
    code, _, errors = finish(*arguments, 64)
    assert code != 0
    assert "could not be written" in errors
    assert f"step {good} is intact" in errors
    code, output, errors = finish(*arguments)
    assert code == 0, errors
    assert int(output.split()[0]) > good


def test_orbax_is_loaded_only_by_checkpoints():
    code = "import sys, ntk_robust.training; sys.exit('orbax' in sys.modules or 'orbax.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
