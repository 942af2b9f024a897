"""Two runs as one: training that changes what it trains at a chosen step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_robust.training._fit import TrainingResult


def join_runs(first: TrainingResult, second: TrainingResult) -> TrainingResult:
    """One result of two runs of `fit`, the second from the weights where the first ended.

    Steps count on: at the switch, after as many steps as the first run took, there are two probings, the last of the
    first run and the first of the second, at the same weights and perhaps of different functions of them.

    Args:
        first: A run that met no number that is not finite.
        second: A run from `first.params`, with the same probes and the same `record`.

    Returns:
        Histories and probings one behind the other, from the first weights to the last.

    Raises:
        ValueError: If the first run stopped early, or the second began elsewhere or measured other things.

    References:
        Loo et al., Evolution of neural tangent kernels under benign and adversarial training, NeurIPS 2022, section 4.
    """
    if not first.finite:
        raise ValueError(f"the first run has nothing to go on from: {first.message}")
    ended, began = (eqx.filter(params, eqx.is_array) for params in (first.params, second.params_0))
    if not eqx.tree_equal(ended, began):
        raise ValueError("the second run did not begin where the first ended; give it first.params")
    measured = [jax.tree.structure((run.history, run.probes)) for run in (first, second)]
    if measured[0] != measured[1]:
        raise ValueError(f"the runs measured {measured[0]} and {measured[1]}; give both the same probes and record")

    def behind(one: Array, other: Array) -> Array:
        # On the host: a callback joins runs of other lengths each time, and a device compiles for each.
        return jnp.asarray(np.concatenate([np.asarray(one), np.asarray(other)]))

    message = second.message and f"after a switch at step {first.num_steps}, from which steps are counted: "
    return TrainingResult(
        params=second.params,
        params_0=first.params_0,
        history=jax.tree.map(behind, first.history, second.history),
        probes=jax.tree.map(behind, first.probes, second.probes),
        probe_steps=behind(first.probe_steps, second.probe_steps + first.num_steps),
        num_steps=first.num_steps + second.num_steps,
        finite=second.finite,
        message=message + second.message,
    )
