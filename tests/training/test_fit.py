import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import FGSM, PGD, Identity, LinfBall
from ntk_robust.losses import CrossEntropy, Squared
from ntk_robust.training import (
    AbstractMethod,
    Centered,
    DisplacementProbe,
    Free,
    Gradient,
    LayerwiseFrobeniusBall,
    Linearized,
    fit,
    running_minimum,
)
from ntk_robust.training import _fit as fit_module

EPSILON, RATE = 0.1, 0.05
XS = jr.normal(jr.key(0), (6, 4))
YS = jnp.sign(jr.normal(jr.key(1), (6,)))
PARAMS = {"hidden": jr.normal(jr.key(2), (5, 4)), "readout": jr.normal(jr.key(3), (5,))}
SGD = optax.sgd(RATE)


def network(params, x):
    return params["readout"] @ jnp.tanh(params["hidden"] @ x) / jnp.sqrt(5.0)


def linear(params, x):
    return params @ x


def run(params=PARAMS, *, apply_fn=network, num_steps=7, seed=4, **options):
    settings = {
        "loss": Squared(),
        "attack": FGSM(),
        "perturbations": LinfBall(EPSILON),
        "optimizer": SGD,
        "key": jr.key(seed),
    } | options
    return fit(apply_fn, params, XS, YS, num_steps=num_steps, **settings)


def everything(step):
    """One recorder for most tests, so that they share a compiled program."""
    return {"xs": step.xs, "xs_adv": step.xs_adv, "ys": step.ys} | {
        "params": step.params,
        "gradient": step.gradient,
        "next_params": step.next_params,
    }


def numpy_fgsm_training(params, xs, ys, batches, *, radius=None, frozen=()):
    """The same loop by hand: derivatives written out, no JAX."""
    initial = {name: np.asarray(value) for name, value in params.items()}
    weights = dict(initial)
    losses = []
    for rows in batches:
        W, a = weights["hidden"], weights["readout"]
        xs_adv = np.array(xs)[rows]
        ys_now = np.array(ys)[rows]

        def forward(x, W=W, a=a):
            h = np.tanh(W @ x)
            return h, a @ h / np.sqrt(5.0)

        def value(x, y, forward=forward):
            return (forward(x)[1] - y) ** 2 / 2

        for i, (x, y) in enumerate(zip(xs_adv.copy(), ys_now, strict=True)):
            h, f = forward(x)
            moved = x + EPSILON * np.sign((f - y) * (W.T @ (a * (1 - h**2))) / np.sqrt(5.0))
            xs_adv[i] = moved if value(moved, y) > value(x, y) else x
        g_W, g_a, total = np.zeros_like(W), np.zeros_like(a), 0.0
        for x, y in zip(xs_adv, ys_now, strict=True):
            h, f = forward(x)
            total += (f - y) ** 2 / 2 / len(rows)
            g_a += (f - y) * h / np.sqrt(5.0) / len(rows)
            g_W += (f - y) * np.outer(a * (1 - h**2), x) / np.sqrt(5.0) / len(rows)
        losses.append(total)
        for name, gradient in (("hidden", g_W), ("readout", g_a)):
            if name in frozen:
                continue
            moved = weights[name] - RATE * gradient
            if radius is not None and np.linalg.norm(moved - initial[name]) > radius:
                delta = moved - initial[name]
                moved = initial[name] + radius * delta / np.linalg.norm(delta)
            weights[name] = moved
    return weights, np.array(losses)


def test_full_batch_training_equals_a_loop_written_out_by_hand():
    weights, losses = numpy_fgsm_training(PARAMS, XS, YS, [range(6)] * 7)
    result = run(record=everything)
    np.testing.assert_allclose(result.history["surrogate_loss"], losses, rtol=1e-12)
    for name in PARAMS:
        np.testing.assert_allclose(result.params[name], weights[name], rtol=1e-11, atol=1e-13)
    assert result.finite
    assert result.num_steps == 7
    assert result.message == ""
    assert not result.history["projected"].any()


def test_projected_mini_batch_training_with_a_frozen_readout_equals_a_loop_written_out_by_hand():
    result = run(
        batch_size=2,
        constraint=LayerwiseFrobeniusBall(0.05),
        trainable={"hidden": True, "readout": False},
        record=lambda step: {"xs": step.xs},
    )
    batches = np.asarray(result.history["xs"])
    seen = [[int(np.flatnonzero((np.asarray(XS) == x).all(axis=1))[0]) for x in batch] for batch in batches]
    for first in (0, 3):  # every row once in an epoch of three batches
        assert sorted(seen[first] + seen[first + 1] + seen[first + 2]) == list(range(6))
    assert seen[:3] != seen[3:6]
    weights, losses = numpy_fgsm_training(PARAMS, XS, YS, seen, radius=0.05, frozen=("readout",))
    np.testing.assert_allclose(result.history["surrogate_loss"], losses, rtol=1e-12)
    np.testing.assert_allclose(result.params["hidden"], weights["hidden"], rtol=1e-11)
    assert np.array_equal(result.params["readout"], PARAMS["readout"])
    assert result.history["projected"][-1]


def test_history_and_weights_do_not_depend_on_the_chunk_size_by_one_bit():
    options = {
        "attack": PGD(num_steps=2, relative_step=0.6),
        "batch_size": 4,
        "optimizer": optax.adam(0.01),
        "probes": {"moved": DisplacementProbe(PARAMS)},
        "probe_every": 3,
        "num_steps": 11,
    }
    whole, *pieces = (run(steps_per_chunk=chunk, **options) for chunk in (11, 1, 4, 5, 100))
    for piece in pieces:
        assert jax.tree.structure(piece) == jax.tree.structure(whole)
        for a, b in zip(jax.tree.leaves(piece), jax.tree.leaves(whole), strict=True):
            assert np.array_equal(a, b)


def test_a_second_run_of_the_same_shapes_traces_nothing_again():
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return network(params, x)

    first = run(apply_fn=counted)
    after_one = traces
    # Another radius, key, anchor, weights and chunk size are numbers; only eval_shape looks at the network again.
    second = run(
        {name: 2 * value for name, value in PARAMS.items()},
        apply_fn=counted,
        perturbations=LinfBall(2 * EPSILON),
        seed=5,
        steps_per_chunk=3,
    )
    assert traces - after_one <= 1
    assert after_one > 2
    assert not np.array_equal(first.history["surrogate_loss"], second.history["surrogate_loss"])


def test_the_callers_weights_survive_a_run():
    before = {name: np.array(value) for name, value in PARAMS.items()}
    result = run(record=everything)
    assert all(np.array_equal(PARAMS[name], before[name]) for name in PARAMS)
    assert all(np.array_equal(result.params_0[name], before[name]) for name in PARAMS)


@pytest.mark.slow
def test_the_centered_second_phase_is_gradient_descent_on_the_kernel_that_the_first_reached():
    first = run(record=everything).params
    tangent = Linearized(Centered(network, first), first)
    second = run(first, apply_fn=tangent, attack=Identity(), num_steps=5)
    gradients = jax.vmap(jax.grad(network), (None, 0))(first, XS)
    features = np.concatenate([np.reshape(gradients[name], (6, -1)) for name in PARAMS], axis=1)
    # f_t = (I - (I - α K / n)^t) y from f_0 = 0.
    decay = np.linalg.matrix_power(np.eye(6) - RATE * features @ features.T / 6, 5)
    expected = (np.eye(6) - decay) @ np.asarray(YS)
    np.testing.assert_allclose([tangent(second.params, x) for x in XS], expected, rtol=1e-10)
    assert second.history["surrogate_loss"][0] == pytest.approx(np.mean(np.asarray(YS) ** 2) / 2)


@pytest.mark.slow
def test_a_linear_model_moves_as_its_closed_form_says():
    # Natural gradient flow of least squares in discrete time: w_t = w_* + (I - α C)^t (w_0 - w_*), C = XᵀX/n.
    w_0, steps = jr.normal(jr.key(5), (4,)), 30
    result = run(w_0, apply_fn=linear, attack=Identity(), num_steps=steps)
    X, y = np.asarray(XS), np.asarray(YS)
    C = X.T @ X / len(X)
    w_star = np.linalg.solve(C, X.T @ y / len(X))
    expected = w_star + np.linalg.matrix_power(np.eye(4) - RATE * C, steps) @ (np.asarray(w_0) - w_star)
    np.testing.assert_allclose(result.params, expected, rtol=1e-11)


class AttackedInside(AbstractMethod):
    """The fault: the attack is differentiated together with the loss."""

    def gradient(self, problem, params, batch, state):
        def attacked_loss(params):
            def one(x, y):
                slope = jax.grad(lambda x_adv: problem.loss(problem.predict(params, x_adv), y))(x)
                x_adv = x + EPSILON * slope / jnp.linalg.norm(slope)
                return problem.loss(problem.predict(params, x_adv), y), x_adv

            losses, xs_adv = jax.vmap(one)(batch.xs, batch.ys)
            return jnp.mean(losses), xs_adv

        (value, xs_adv), gradient = jax.value_and_grad(attacked_loss, has_aux=True)(params)
        return Gradient(value, value, gradient, xs_adv, state)


@jax.jit
def gradient_at_fixed_inputs(params, xs, ys):
    return jax.grad(lambda p: jnp.mean((jax.vmap(network, (None, 0))(p, xs) - ys) ** 2 / 2))(params)


def test_the_gradient_is_that_at_fixed_perturbed_inputs_and_a_planted_leak_is_caught():
    def leak(method):
        history = run(record=everything, method=method).history
        params = {name: history["params"][name][3] for name in PARAMS}
        at_fixed = gradient_at_fixed_inputs(params, history["xs_adv"][3], history["ys"][3])
        differences = [np.linalg.norm(at_fixed[name] - history["gradient"][name][3]) for name in PARAMS]
        return np.linalg.norm(differences) / history["gradient_norm"][3]

    assert leak(None) < 1e-13
    assert leak(AttackedInside()) > 1e-3


def test_gradient_norms_and_step_lengths_are_those_of_the_recorded_step():
    history = run(record=everything).history
    for t in range(7):
        g = np.concatenate([np.ravel(history["gradient"][name][t]) for name in PARAMS])
        d = np.concatenate([np.ravel(history["next_params"][n][t] - history["params"][n][t]) for n in PARAMS])
        assert history["gradient_norm"][t] == pytest.approx(np.linalg.norm(g))
        assert history["step_length"][t] == pytest.approx(np.linalg.norm(d))
    np.testing.assert_allclose(history["step_length"], RATE * history["gradient_norm"], rtol=1e-10)


def test_the_running_minimum_is_the_smallest_value_so_far():
    values = jnp.asarray([3.0, 5.0, 2.0, 4.0])
    assert running_minimum(values).tolist() == [3.0, 3.0, 2.0, 2.0]
    result = run(record=everything)
    assert result.best_surrogate_loss == running_minimum(result.history["surrogate_loss"])[-1]


def test_a_diverging_run_stops_at_the_last_finite_weights_and_says_where():
    options = {"optimizer": optax.sgd(1e200), "probes": {"moved": DisplacementProbe(PARAMS)}, "probe_every": 1}
    result = run(**options)
    assert not result.finite
    assert result.num_steps < 7
    assert all(np.isfinite(value).all() for value in result.params.values())
    assert len(result.history["surrogate_loss"]) == result.num_steps + 1
    assert result.probe_steps.tolist() == list(range(result.num_steps + 1))
    assert result.probes["moved"]["total"].shape == result.probe_steps.shape
    assert f"step {result.num_steps}" in result.message
    assert "learning rate" in result.message
    with pytest.raises(FloatingPointError, match="learning rate"):
        run(**options, throw=True)


def test_what_overflows_before_any_step_is_not_blamed_on_the_learning_rate():
    result = run(PARAMS | {"readout": 1e200 * PARAMS["readout"]}, record=everything)
    assert result.num_steps == 0
    assert "the learning rate is not the reason: look for" in result.message


def test_weights_that_break_down_in_the_last_step_are_found():
    def product(params, x):
        return params["readout"] @ (params["hidden"] @ x)

    result = run(apply_fn=product, attack=Identity(), num_steps=1, optimizer=optax.sgd(1e150))
    assert max(float(jnp.max(jnp.abs(value))) for value in result.params.values()) > 1e140  # the step was taken
    assert (result.num_steps, result.finite) == (1, False)
    assert "in the trial after the last step, step 1: objective inf" in result.message
    assert result.history["objective"].shape == (2,)


def test_slow_callbacks_do_not_shorten_the_pieces_of_a_run(monkeypatch):
    now, calls = [0.0], []

    def slow(result):
        calls.append(result.num_steps)
        now[0] += 10.0

    monkeypatch.setattr(fit_module.time, "perf_counter", lambda: now[0])
    run(record=everything, callback=slow)
    assert calls == [1, 7]


@pytest.mark.slow
def test_a_line_search_sees_the_objective_at_fixed_perturbed_inputs():
    result = run(jr.normal(jr.key(5), (4,)), apply_fn=linear, attack=Identity(), num_steps=25, optimizer=optax.lbfgs())
    np.testing.assert_allclose(result.params, np.linalg.lstsq(np.asarray(XS), np.asarray(YS))[0], rtol=1e-6)
    attacked = run(optimizer=optax.lbfgs(), num_steps=3, record=everything)
    assert attacked.finite
    fixed = [
        objective_at_fixed_inputs(
            jax.tree.map(lambda leaf, t=t: leaf[t], attacked.history["next_params"]),
            attacked.history["xs_adv"][t],
            YS,
        )
        for t in range(3)
    ]
    assert all(after < before for after, before in zip(fixed, attacked.history["objective"], strict=True))


def objective_at_fixed_inputs(params, xs, ys):
    return float(jnp.mean((jax.vmap(network, (None, 0))(params, xs) - ys) ** 2 / 2))


def test_a_line_search_without_an_objective_to_search_is_refused():
    with pytest.raises(ValueError, match="line search\\), which Free does not have"):
        run(optimizer=optax.lbfgs(), method=Free(2))


@pytest.mark.slow
def test_the_layer_whose_gradient_breaks_is_named():
    def broken(params, x):
        # The square root has no finite slope at zero.
        return network(params, x) + jnp.sum(jnp.sqrt(params["extra"]))

    result = run(PARAMS | {"extra": jnp.zeros((2,))}, apply_fn=broken)
    assert result.num_steps == 0
    assert "gradient of extra is not finite" in result.message


@pytest.mark.slow
def test_float32_runs_stay_float32():
    params = jax.tree.map(lambda value: value.astype(jnp.float32), PARAMS)
    result = fit(
        lambda p, x: p["readout"] @ jnp.tanh(p["hidden"] @ x),
        params,
        XS.astype(jnp.float32),
        YS.astype(jnp.float32),
        loss=Squared(),
        attack=PGD(num_steps=2, relative_step=0.5),
        perturbations=LinfBall(0.1),
        optimizer=optax.adam(1e-2),
        constraint=LayerwiseFrobeniusBall(0.1),
        num_steps=2,
        key=jr.key(0),
    )
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(result.params)} == {"float32"}
    assert result.history["surrogate_loss"].dtype == jnp.float32


def test_progress_is_told_every_step_once():
    class Spy:
        steps = 0

        def task(self, description, total=None):
            del description
            self.total = total
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, steps=1, **fields):
            self.steps += steps
            self.fields = fields

    spy = Spy()
    result = run(record=everything, progress=spy, steps_per_chunk=2)
    assert spy.steps == spy.total == 7
    assert spy.fields["surrogate_loss"] == result.history["surrogate_loss"][-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps=0; give a whole number"),
        ({"batch_size": 7}, "batch_size is 7"),
        ({"probe_every": 0}, "probe_every=0; give a whole number"),
        ({"steps_per_chunk": 0}, "steps_per_chunk=0; give a whole number"),
        ({"trainable": {"hidden": True}}, "trainable has the structure"),
        ({"trainable": {"hidden": False, "readout": False}}, "selects no weights"),
        ({"anchor": {"hidden": XS}}, "anchor has the structure"),
        (
            {"params": {"hidden": PARAMS["hidden"].astype(jnp.float32), "readout": PARAMS["readout"]}},
            "float32, float64",
        ),
        ({"loss": lambda f, y: jnp.stack([f, y])}, "must return a scalar"),
        ({"apply_fn": lambda p, x: (x, x)}, "apply_fn returned"),
    ],
)
def test_wrong_calls_are_refused_before_tracing_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": {"a/b": DisplacementProbe(PARAMS)}}, "a probe is called 'a/b'"),
        ({"probes": {"..": DisplacementProbe(PARAMS)}}, r"a probe is called '\.\.'"),
        ({"probes": {"norm": lambda params: params["hidden"].sum()}}, "'norm' returned .* must return a dict"),
        ({"probes": {"norm": lambda params: {"a/b": params["readout"]}}}, "probe 'norm' is called 'a/b'"),
        ({"record": lambda step: {"objective": step.objective}}, "record returned objective"),
    ],
)
def test_probes_and_records_that_cannot_be_kept_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)


def test_arguments_of_another_kind_are_refused_where_no_hook_checks_them():
    with pytest.raises(ValueError, match="ys is a list; give an array"):
        fit_module._check_array("ys", [1.0])
    with pytest.raises(ValueError, match="targets are float32 and inputs float64"):
        fit(linear, PARAMS["readout"][:4], XS, YS.astype(jnp.float32), **FEW)


FEW = {
    "loss": Squared(),
    "attack": Identity(),
    "perturbations": LinfBall(0.1),
    "optimizer": SGD,
    "num_steps": 1,
    "key": jr.key(0),
}


def test_labels_outside_the_outputs_are_refused():
    with pytest.raises(ValueError, match="labels run from 0 to 5 and there are 5 outputs"):
        fit(
            lambda p, x: p @ x,
            PARAMS["hidden"],
            XS,
            jnp.arange(6),
            loss=CrossEntropy(),
            attack=Identity(),
            perturbations=LinfBall(0.1),
            optimizer=SGD,
            num_steps=1,
            key=jr.key(0),
        )
