"""Training split over devices: in a process of its own, because the number of CPU devices is fixed at the start."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from ntk_robust.attacks import Identity, LinfBall
from ntk_robust.losses import Squared
from ntk_robust.training import fit

SCRIPT = """
import json
import jax, jax.numpy as jnp, jax.random as jr, numpy as np, optax
jax.config.update("jax_enable_x64", True)
from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected
from ntk_robust.training import LayerwiseFrobeniusBall, fit
from ntk_robust.training import _fit, _loop
from ntk_robust.training._static import split

net = FullyConnected(input_dim=6, width=16, num_hidden_layers=2, num_outputs=3)
xs, ys = jr.uniform(jr.key(0), (24, 6)), jr.randint(jr.key(1), (24,), 0, 3)
params = net.init(key=jr.key(2), dtype=jnp.float64)
common = dict(
    loss=CrossEntropy(), attack=PGD(num_steps=3, relative_step=0.5), perturbations=LinfBall(0.1),
    optimizer=optax.adam(1e-2), num_steps=6, constraint=LayerwiseFrobeniusBall(0.1), key=jr.key(3),
)

def run(**options):
    result = fit(net.apply, params, xs, ys, **common, **options)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result.params)])
    return flat, np.asarray(result.history["surrogate_loss"])

found = {"devices": len(jax.devices())}
for name, batch_size in (("full", None), ("batches", 8)):
    (one, loss), (many, losses) = run(batch_size=batch_size), run(batch_size=batch_size, devices=jax.devices())
    found[name] = [float(np.max(np.abs(one - many))), float(np.max(np.abs(loss / losses - 1)))]
    program, trained = _fit.prepare(net.apply, params, xs, ys, **common, batch_size=batch_size, devices=jax.devices())
    numbers, static = split(program)
    carry = _loop.start(program, trained)
    compiled = _loop._advance.lower(numbers, carry, jnp.int32(0), jnp.int32(6), static).compile()
    found[name + " sums over devices"] = compiled.as_text().count("all-reduce")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_run_split_over_four_devices_equals_one_on_one_device():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 4
    for name in ("full", "batches"):
        weights, losses = found[name]
        # Sums of 24 rows in another order: a few rounding units, grown by six steps of Adam at rate 0.01.
        assert weights < 1e-12
        assert losses < 1e-12
        assert found[f"{name} sums over devices"] > 0


def test_rows_that_do_not_divide_over_the_devices_are_refused():
    devices = [jax.devices()[0]] * 2
    with pytest.raises(ValueError, match="3 rows cannot be split evenly over 2 devices"):
        fit(
            lambda w, x: w @ x,
            jnp.ones(3),
            jnp.eye(3),
            jnp.ones(3),
            loss=Squared(),
            attack=Identity(),
            perturbations=LinfBall(0.1),
            optimizer=optax.sgd(0.1),
            num_steps=1,
            devices=devices,
            key=jax.random.key(0),
        )
