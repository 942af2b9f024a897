import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_robust.attacks import PGD, LinfBall
from ntk_robust.losses import Squared
from ntk_robust.training import DisplacementProbe, at_rate, fit, load_history, sweep
from ntk_robust.training._fit import prepare
from ntk_robust.training._sweep import faster_together

XS = jr.normal(jr.key(0), (6, 4))
YS = jnp.sign(jr.normal(jr.key(1), (6,)))
MOMENTUM = optax.sgd(1.0, momentum=0.5)
ATTACK = PGD(num_steps=2, relative_step=0.6)


class Counted:
    traces = 0

    def __call__(self, params, x):
        Counted.traces += 1
        return params["readout"] @ jnp.tanh(params["hidden"] @ x)


NETWORK = Counted()


def weights(seed, width=5):
    hidden, readout = jr.split(jr.key(seed))
    return {"hidden": jr.normal(hidden, (width, 4)), "readout": jr.normal(readout, (width,))}


def a_run(seed=2, epsilon=0.1, rate=0.05, width=5):
    params = weights(seed, width)
    return {
        "apply_fn": NETWORK,
        "params": params,
        "xs": XS,
        "ys": YS,
        "loss": Squared(),
        "attack": ATTACK,
        "perturbations": LinfBall(epsilon),
        "optimizer": at_rate(MOMENTUM, rate),
        "num_steps": 5,
        "batch_size": 3,
        "probes": {"moved": DisplacementProbe(params)},
        "probe_every": 2,
        "key": jr.key(seed),
    }


def assert_close(a, b, rtol):
    assert (a.num_steps, a.finite) == (b.num_steps, b.finite)
    assert jax.tree.structure((a.history, a.probes)) == jax.tree.structure((b.history, b.probes))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


RUNS = [a_run(), a_run(seed=3), a_run(epsilon=0.3), a_run(rate=0.2), a_run(rate=1e200), a_run(width=7)]


@pytest.fixture(scope="module")
def alone():
    return [fit(**run) for run in RUNS]


def test_runs_in_turn_have_the_bits_of_fit_and_compile_once_per_shape(alone, tmp_path):
    before = Counted.traces
    for i, (single, swept) in enumerate(zip(alone, sweep(RUNS, vectorize=False, folder=tmp_path), strict=True)):
        assert_close(swept, single, rtol=0)
        # Every run is on disk with what made it.
        saved = load_history(tmp_path / f"run_{i}")
        assert all(np.array_equal(saved.history[name], values) for name, values in single.history.items())
        assert saved.summary["finite"] == single.finite
        assert saved.summary["arguments"]["key"]["words"] == jr.key_data(RUNS[i]["key"]).tolist()
        assert saved.summary["arguments"]["perturbations"]["epsilon"] == (0.3 if i == 2 else 0.1)
    # The programs are those that fit compiled; the checks of the arguments look at each network once.
    assert Counted.traces - before <= len(RUNS)


@pytest.mark.parametrize(("seconds", "together"), [((1.0, 1.9), True), ((1.0, 2.1), False)])
def test_a_measured_sweep_takes_the_faster_way(seconds, together):
    programs, trained = zip(*(prepare(**run) for run in RUNS[:2]), strict=True)
    ticks = iter((0.0, seconds[0], 10.0, 10.0 + seconds[1]))
    assert faster_together(programs, trained, lambda: next(ticks)) is together


@pytest.mark.slow
def test_a_measured_sweep_agrees_with_runs_alone(alone):
    for single, swept in zip(alone, sweep(RUNS, vectorize="measured"), strict=True):
        if single.finite:
            assert_close(swept, single, rtol=1e-9)


@pytest.mark.slow
def test_runs_vectorized_agree_with_runs_alone_and_one_that_diverges_stops_alone(alone):
    swept = sweep(RUNS, vectorize=True)
    assert [result.finite for result in swept] == [True, True, True, True, False, True]
    for i in (0, 1, 2, 3, 5):
        assert_close(swept[i], alone[i], rtol=1e-12)
    assert swept[4].num_steps == alone[4].num_steps
    assert "training stopped in step" in swept[4].message


@pytest.mark.slow
def test_a_rate_as_a_number_equals_the_rate_inside_the_transformation(alone):
    inside = fit(**(RUNS[0] | {"optimizer": optax.sgd(0.05, momentum=0.5)}))
    assert_close(inside, alone[0], rtol=1e-12)


def test_names_that_fit_does_not_take_and_unknown_ways_are_refused():
    # the hook of the tests checks annotations before the function sees its arguments
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="'fastest'"):
        sweep(RUNS, vectorize="fastest")

    def mistaken(params, x):
        return params["hidden"] + "text"

    with pytest.raises(TypeError, match="str"):  # the caller's own error, as it is
        sweep([a_run() | {"apply_fn": mistaken}])
    with pytest.raises(ValueError, match="learning_rate"):
        sweep([a_run() | {"learning_rate": 0.1}])
