import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import Identity, LinfBall
from ntk_robust.losses import Squared
from ntk_robust.training import DisplacementProbe, fit, join_runs

XS, YS = jr.normal(jr.key(0), (6, 4)), jnp.sign(jr.normal(jr.key(1), (6,)))
START = jr.normal(jr.key(2), (4,))
SGD = optax.sgd(0.1)


def run(params, num_steps, **options):
    settings = {"loss": Squared(), "attack": Identity(), "perturbations": LinfBall(0.1), "optimizer": SGD}
    settings |= {"probes": {"moved": DisplacementProbe(START)}, "probe_every": 2, "key": jr.key(3)}
    return fit(lambda w, x: w @ x, params, XS, YS, num_steps=num_steps, **settings | options)


@pytest.fixture(scope="module")
def first():
    return run(START, 3)


def test_two_runs_joined_are_the_run_that_was_not_cut(first):
    joined, whole = join_runs(first, run(first.params, 4)), run(START, 7)
    assert (joined.num_steps, joined.finite, joined.message) == (7, True, "")
    for name, values in whole.history.items():
        np.testing.assert_allclose(joined.history[name], values, rtol=1e-12)
    assert np.array_equal(joined.params_0, START)
    np.testing.assert_allclose(joined.params, whole.params, rtol=1e-12)
    # Both phases probe the weights of the switch.
    assert joined.probe_steps.tolist() == [0, 2, 3, 3, 5, 7]
    moved, expected = (np.asarray(each.probes["moved"]["total"]) for each in (joined, whole))
    assert moved[2] == moved[3]
    np.testing.assert_allclose(moved[[0, 1, 5]], expected[[0, 1, 4]])
    np.testing.assert_allclose(joined.path_length, whole.path_length, rtol=1e-12)


def test_a_second_run_that_breaks_down_says_from_where_its_steps_are_counted(first):
    broken = join_runs(first, run(first.params, 4, optimizer=optax.sgd(1e300)))
    assert not broken.finite
    assert "after a switch at step 3, from which steps are counted: training stopped in step" in broken.message
    with pytest.raises(ValueError, match="the first run has nothing to go on from: training stopped"):
        join_runs(run(START, 4, optimizer=optax.sgd(1e300)), first)


def test_runs_that_do_not_follow_each_other_are_refused(first):
    with pytest.raises(ValueError, match="did not begin where the first ended"):
        join_runs(first, first)
    with pytest.raises(ValueError, match="give both the same probes and record"):
        join_runs(first, run(first.params, 1, probes={}))
