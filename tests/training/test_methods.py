import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.special

from ntk_robust.attacks import PGD, Identity, LinfBall
from ntk_robust.losses import CrossEntropy, Squared
from ntk_robust.training import (
    Adversarial,
    Centered,
    Free,
    Linearized,
    Mart,
    Trades,
    WeightPerturbed,
    fit,
)

EPSILON, RATE = 0.2, 0.1
XS = jr.normal(jr.key(0), (6, 4))
YS = jnp.asarray([0, 1, 2, 0, 1, 2])
PARAMS = {"hidden": jr.normal(jr.key(2), (5, 4)), "readout": jr.normal(jr.key(3), (3, 5))}
SGD = optax.sgd(RATE)
ATTACK = PGD(num_steps=2, relative_step=0.6)


def network(params, x):
    return params["readout"] @ jnp.tanh(params["hidden"] @ x)


def numpy_logits(params, xs):
    return np.tanh(np.asarray(xs) @ np.asarray(params["hidden"]).T) @ np.asarray(params["readout"]).T


def everything(step):
    return {
        "params": step.params,
        "gradient": step.gradient,
        "xs": step.xs,
        "xs_adv": step.xs_adv,
        "ys": step.ys,
    }


def run(method, **options):
    settings = {
        "loss": CrossEntropy(),
        "attack": ATTACK,
        "perturbations": LinfBall(EPSILON),
        "optimizer": SGD,
        "num_steps": 3,
        "key": jr.key(4),
        "record": everything,
    } | options
    return fit(network, PARAMS, XS, YS, method=method, **settings)


def slice_of(history, name, t):
    return jax.tree.map(lambda leaf: np.asarray(leaf[t]), history[name])


def numeric_gradient(function, params):
    """Central differences of a NumPy function of the weights."""
    out = {}
    for name, value in params.items():
        out[name] = np.zeros_like(value)
        for index in np.ndindex(*value.shape):
            shifted = [dict(params, **{name: value.copy()}) for _ in range(2)]
            shifted[0][name][index] += 1e-6
            shifted[1][name][index] -= 1e-6
            out[name][index] = (function(shifted[0]) - function(shifted[1])) / 2e-6
    return out


def trades_by_hand(params, xs, xs_adv, ys, beta):
    p = scipy.special.softmax(numpy_logits(params, xs), axis=1)
    q = scipy.special.softmax(numpy_logits(params, xs_adv), axis=1)
    return np.mean(-np.log(p[np.arange(len(ys)), ys])) + beta * np.mean(np.sum(scipy.special.rel_entr(p, q), axis=1))


def mart_by_hand(params, xs, xs_adv, ys, weight):
    p = scipy.special.softmax(numpy_logits(params, xs), axis=1)
    q = scipy.special.softmax(numpy_logits(params, xs_adv), axis=1)
    total = 0.0
    for i, y in enumerate(ys):
        rival = max(q[i, k] for k in range(3) if k != y)
        total += -np.log(q[i, y]) - np.log(1 - rival)
        total += weight * np.sum(scipy.special.rel_entr(p[i], q[i])) * (1 - p[i, y])
    return total / len(ys)


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        pytest.param(Trades(3.0), trades_by_hand, id="trades"),
        pytest.param(Mart(3.0), mart_by_hand, id="mart", marks=pytest.mark.slow),
    ],
)
def test_objective_and_gradient_are_those_of_the_paper_written_in_numpy(method, by_hand):
    history = run(method).history
    for t in (0, 2):
        params, xs_adv = slice_of(history, "params", t), slice_of(history, "xs_adv", t)

        def objective(params, xs_adv=xs_adv):
            return by_hand(params, XS, xs_adv, np.asarray(YS), 3.0)

        assert float(history["objective"][t]) == pytest.approx(objective(params), rel=1e-12)
        logits = numpy_logits(params, xs_adv)
        surrogate = np.mean(scipy.special.logsumexp(logits, axis=1) - logits[np.arange(6), YS])
        assert float(history["surrogate_loss"][t]) == pytest.approx(surrogate, rel=1e-12)
        numeric, found = numeric_gradient(objective, params), slice_of(history, "gradient", t)
        for name in PARAMS:
            np.testing.assert_allclose(found[name], numeric[name], atol=1e-8)
        assert np.abs(xs_adv - XS).max() == pytest.approx(EPSILON)


@pytest.mark.slow
def test_trades_attacks_the_divergence_and_not_the_loss():
    history = run(Trades(3.0)).history
    params, xs_adv = slice_of(history, "params", 0), slice_of(history, "xs_adv", 0)

    def divergence(points):
        p = scipy.special.softmax(numpy_logits(params, XS), axis=1)
        return np.sum(scipy.special.rel_entr(p, scipy.special.softmax(numpy_logits(params, points), axis=1)), axis=1)

    rng = np.random.default_rng(0)
    random = [divergence(np.asarray(XS) + EPSILON * rng.choice([-1, 1], XS.shape)) for _ in range(200)]
    assert (divergence(xs_adv) > np.median(random, axis=0)).all()


@pytest.mark.slow
def test_mart_stays_finite_where_probabilities_round_to_one():
    mart = Mart()
    logits = jnp.asarray([60.0, 0.0, -60.0])
    value, gradient = jax.value_and_grad(lambda z: mart._one(z, z, jnp.asarray(1)))(logits)
    # -log p_1 = 60 + …, and 1 - p_0 = e^{-60} exactly to double precision.
    assert float(value) == pytest.approx(120.0, rel=1e-12)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_perturbed_weights_move_by_gamma_uphill_and_give_the_gradient():
    gamma = 0.05
    history = run(WeightPerturbed(Adversarial(), gamma)).history
    ys = np.asarray(YS)
    for t in (0, 2):
        params, xs_adv = slice_of(history, "params", t), slice_of(history, "xs_adv", t)

        def loss(params, xs_adv=xs_adv):
            logits = numpy_logits(params, xs_adv)
            return np.mean(scipy.special.logsumexp(logits, axis=1) - logits[np.arange(6), ys])

        uphill = numeric_gradient(loss, params)
        moved = {
            name: value + gamma * np.linalg.norm(value) / np.linalg.norm(uphill[name]) * uphill[name]
            for name, value in params.items()
        }
        assert float(history["objective"][t]) == pytest.approx(loss(moved), rel=1e-7)
        assert loss(moved) > loss(params)
        numeric, found = numeric_gradient(loss, moved), slice_of(history, "gradient", t)
        for name in PARAMS:
            np.testing.assert_allclose(found[name], numeric[name], atol=1e-7)


def test_free_training_replays_batches_and_carries_its_perturbation():
    history = run(Free(num_replays=2), num_steps=8, batch_size=3).history
    xs, xs_adv = np.asarray(history["xs"]), np.asarray(history["xs_adv"])
    for t in range(0, 8, 2):
        assert np.array_equal(xs[t], xs[t + 1])
    assert not np.array_equal(xs[1], xs[2])
    first_epoch = {tuple(row) for t in (0, 2) for row in xs[t]}
    assert first_epoch == {tuple(row) for row in np.asarray(XS)}
    assert np.array_equal(xs_adv[0], xs[0])
    delta = np.zeros((3, 4))
    for t in range(7):
        params = slice_of(history, "params", t)
        np.testing.assert_allclose(xs_adv[t] - xs[t], delta, atol=1e-14)
        h = np.tanh(xs_adv[t] @ params["hidden"].T)
        p = scipy.special.softmax(h @ params["readout"].T, axis=1)
        p[np.arange(3), history["ys"][t]] -= 1
        slopes = ((p @ params["readout"]) * (1 - h**2)) @ params["hidden"]
        delta = np.clip(delta + EPSILON * np.sign(slopes), -EPSILON, EPSILON)


@pytest.mark.slow
def test_centered_lazy_training_is_gradient_descent_in_the_tangent_kernel():
    # Outputs of a linear model under least squares: f_{t+1} = f_t - (α/n) Θ (f_t - y), Θ over (example, output) pairs.
    targets = jnp.stack([jnp.cos(XS[:, 0]), XS[:, 1], XS[:, 2]], axis=1)
    lazy = Linearized(Centered(network, PARAMS), PARAMS)
    steps = 4
    result = fit(
        lazy,
        PARAMS,
        XS,
        targets,
        loss=Squared(),
        attack=Identity(),
        perturbations=LinfBall(EPSILON),
        optimizer=SGD,
        num_steps=steps,
        key=jr.key(0),
    )
    jacobian = jax.vmap(jax.jacobian(network), (None, 0))(PARAMS, XS)
    rows = np.concatenate([np.reshape(leaf, (18, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    theta, y, f = rows @ rows.T, np.asarray(targets).ravel(), np.zeros(18)
    for t in range(steps):
        assert float(result.history["surrogate_loss"][t]) == pytest.approx(np.sum((f - y) ** 2) / 12, rel=1e-11)
        f = f - RATE / 6 * theta @ (f - y)
    outputs = jax.vmap(lazy, (None, 0))(result.params, XS)
    np.testing.assert_allclose(np.ravel(outputs), f, rtol=1e-10)


def test_a_linearized_network_touches_the_network_and_a_centered_one_starts_at_zero():
    lazy, x = Linearized(network, PARAMS), XS[0]
    np.testing.assert_allclose(lazy(PARAMS, x), network(PARAMS, x))
    direction = {name: jr.normal(jr.key(9), value.shape) for name, value in PARAMS.items()}
    gaps = []
    for size in (1e-2, 1e-3):
        moved = {name: value + size * direction[name] for name, value in PARAMS.items()}
        gaps.append(float(jnp.linalg.norm(lazy(moved, x) - network(moved, x))))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)  # second order
    centered = Centered(network, PARAMS, 3.0)
    assert not centered(PARAMS, x).any()
    np.testing.assert_allclose(centered(moved, x), 3 * (network(moved, x) - network(PARAMS, x)), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Trades(-1.0), "beta -1.0"),
        (lambda: Mart(-1.0), "weight -1.0"),
        (lambda: WeightPerturbed(Adversarial(), 0.0), "gamma 0.0"),
        (lambda: Free(0), "num_replays 0"),
    ],
)
def test_impossible_settings_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_divergence_of_scalar_outputs_is_refused_in_words():
    with pytest.raises(ValueError, match="needs logits"):
        fit(
            lambda w, x: w @ x,
            jnp.ones(4),
            XS,
            XS[:, 0],
            loss=Squared(),
            attack=Identity(),
            perturbations=LinfBall(EPSILON),
            optimizer=SGD,
            method=Trades(),
            num_steps=1,
            key=jr.key(0),
        )


@pytest.mark.parametrize("method", [Adversarial(), Free(num_replays=2)])
def test_every_example_is_attacked_within_its_own_radius(method):
    radii = jnp.asarray([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    found = run(method, perturbations=LinfBall(radii), num_steps=4, batch_size=3).history
    xs, moved = np.asarray(found["xs"]), np.abs(found["xs_adv"] - found["xs"]).max(axis=-1)
    rows = np.all(xs[:, :, None] == np.asarray(XS)[None, None], axis=-1).argmax(axis=-1)
    assert sorted(set(rows.ravel())) == list(range(6))
    assert sorted(rows[0]) != [0, 1, 2]  # a batch is not the first rows, whose radii would fit by accident
    assert (moved <= np.asarray(radii)[rows] * (1 + 1e-12)).all()
    if isinstance(method, Adversarial):
        np.testing.assert_allclose(moved, np.asarray(radii)[rows], rtol=1e-12)  # sign steps of 1.2 radii reach it


def test_radii_that_do_not_fit_the_inputs_are_refused():
    with pytest.raises(ValueError, match=r"radii of shape \(2,\) for 6 inputs; give one radius, or one for each"):
        run(Adversarial(), perturbations=LinfBall(jnp.asarray([0.1, 0.2])))
