"""A run with checkpoints in a process of its own, which the tests of checkpoints kill."""

import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from ntk_robust import training as t
from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import FullyConnected

NUM_STEPS = 48
VARIANTS = {
    "adversarial-sgd": lambda: (t.Adversarial(), optax.sgd(0.1, momentum=0.9)),
    "free-adam": lambda: (t.Free(num_replays=3), optax.adam(0.01)),
    "trades-schedule": lambda: (t.Trades(2.0), optax.sgd(optax.cosine_decay_schedule(0.2, NUM_STEPS))),
}


def train(folder: Path, variant: str, out: Path, reports: Connection, largest_file: int | None = None) -> None:
    """Goes on from the last checkpoint, reports the number of steps after each one or the error, and saves the end."""
    jax.config.update("jax_enable_x64", True)
    if largest_file is not None:  # files may not grow: what a full disk does to a writer
        import resource  # not on every system

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    model = FullyConnected(input_dim=6, width=16, num_hidden_layers=1, num_outputs=3, b_std=0.1)
    method, optimizer = VARIANTS[variant]()
    try:
        result = t.fit(
            model.apply,
            model.init(key=jr.key(1)),
            jr.normal(jr.key(0), (12, 6)),
            jnp.arange(12) % 3,
            loss=CrossEntropy(),
            method=method,
            optimizer=optimizer,
            attack=PGD(num_steps=3, relative_step=0.5),
            perturbations=LinfBall(0.1),
            batch_size=4,
            num_steps=NUM_STEPS,
            steps_per_chunk=2,
            key=jr.key(2),
            checkpoints=t.Checkpoints(folder, resume=True),
            callback=lambda result: reports.send(result.num_steps),
        )
    except Exception:
        reports.send(traceback.format_exc())
        raise SystemExit(1) from None
    np.savez(out, *map(np.asarray, jax.tree.leaves(result)))
