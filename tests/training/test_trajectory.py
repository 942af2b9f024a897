import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import PGD, Identity, LinfBall
from ntk_robust.losses import Absolute, Squared
from ntk_robust.models import DeepReluNet
from ntk_robust.training import FrobeniusBall, LayerwiseFrobeniusBall, Trajectory, fit, record_trajectory

MODEL = DeepReluNet(input_dim=3, width=8, num_hidden_layers=2)
XS = jr.normal(jr.key(0), (5, 3))
YS = jnp.sign(jr.normal(jr.key(1), (5,)))
PARAMS = MODEL.init(key=jr.key(2))
RATE, STEPS = 0.01, 6
OPTIMIZER = optax.sgd(RATE)


def settings(radius):
    return {
        "loss": Absolute(),
        "attack": PGD(num_steps=2, relative_step=0.6),
        "perturbations": LinfBall(0.1),
        "optimizer": OPTIMIZER,
        "trainable": MODEL.trainable_mask(PARAMS),
        "constraint": LayerwiseFrobeniusBall(radius),
        "num_steps": STEPS,
        "key": jr.key(3),
    }


@pytest.fixture(scope="module", params=[0.02, 100.0], ids=["projected", "free"])
def run(request):
    result = fit(MODEL.apply, PARAMS, XS, YS, **settings(request.param), record=record_trajectory)
    return request.param, Trajectory.of(result)


def flat(hidden, t):
    return np.concatenate([np.ravel(layer[t]) for layer in hidden])


def test_a_trajectory_ends_where_fit_ends_and_starts_at_the_given_weights(run):
    radius, trajectory = run
    result = fit(MODEL.apply, PARAMS, XS, YS, **settings(radius))
    for stacked, last, first in zip(trajectory.params.hidden, result.params.hidden, PARAMS.hidden, strict=True):
        assert stacked.shape == (STEPS + 1, 8, 8)
        np.testing.assert_allclose(stacked[-1], last, rtol=1e-12)
        assert np.array_equal(stacked[0], first)
    np.testing.assert_allclose(trajectory.surrogate_loss, result.history["surrogate_loss"], rtol=1e-12)
    assert np.array_equal(trajectory.projected, result.history["projected"])


def test_frozen_layers_stay_bit_for_bit_and_have_no_gradient(run):
    _, trajectory = run
    assert all(np.array_equal(weights, PARAMS.embedding) for weights in trajectory.params.embedding)
    assert all(np.array_equal(weights, PARAMS.readout) for weights in trajectory.params.readout)
    assert trajectory.gradients.embedding is None
    assert trajectory.gradients.readout is None


def test_the_regret_identity_holds_in_every_step(run):
    # ‖W_{t+1} - U‖² ≤ ‖W_t - U‖² - 2α<g_t, W_t - U> + α²‖g_t‖² for U in the set, with equality without projection.
    radius, trajectory = run
    center = flat(trajectory.params.hidden, 0)
    rng = np.random.default_rng(0)
    U = center + np.concatenate([d * min(radius, 1.0) / np.linalg.norm(d) for d in rng.normal(size=(2, 64))])
    for t in range(STEPS):
        W, V = flat(trajectory.params.hidden, t), flat(trajectory.params.hidden, t + 1)
        g = flat(trajectory.gradients.hidden, t)
        right = np.sum((W - U) ** 2) - 2 * RATE * g @ (W - U) + RATE**2 * g @ g
        left = np.sum((V - U) ** 2)
        scale = np.sum(W**2) + np.sum(U**2)
        assert left <= right + 1e-13 * scale
        if not trajectory.projected[t]:
            assert left == pytest.approx(right, abs=1e-13 * scale)
    assert trajectory.projected.any() == (radius < 1)


def test_recorded_gradients_and_losses_are_those_at_the_recorded_weights_and_inputs(run):
    _, trajectory = run
    for t in range(STEPS):
        params = jax.tree.map(lambda leaf, t=t: leaf[t], trajectory.params)

        def loss(hidden, params=params, t=t):
            outputs = [
                MODEL.apply(type(params)(params.embedding, hidden, params.readout), x) for x in trajectory.xs_adv[t]
            ]
            return jnp.mean(jnp.abs(jnp.stack(outputs) - YS))

        value, gradient = jax.value_and_grad(loss)(params.hidden)
        assert trajectory.surrogate_loss[t] == pytest.approx(float(value))
        for a, b in zip(gradient, trajectory.gradients.hidden, strict=True):
            np.testing.assert_allclose(a, b[t], atol=1e-13)
        assert np.max(np.abs(trajectory.xs_adv[t] - XS)) <= 0.1 * (1 + 1e-12)


@pytest.mark.slow
def test_projected_descent_on_a_quadratic_has_the_regret_that_online_gradient_descent_promises():
    # min_t L(W_t) - L(U) ≤ ‖W_0 - U‖²/(2αT) + (α/2T) Σ‖g_t‖² for every U of the ball: the loss is convex here.
    w_0, steps = jnp.zeros(3), 40
    result = fit(
        lambda w, x: w @ x,
        w_0,
        XS,
        YS,
        loss=Squared(),
        attack=Identity(),
        perturbations=LinfBall(0.1),
        optimizer=OPTIMIZER,
        constraint=FrobeniusBall(0.2),
        num_steps=steps,
        record=record_trajectory,
        key=jr.key(0),
    )
    trajectory = Trajectory.of(result)
    loss = lambda w: np.mean((np.asarray(XS) @ w - np.asarray(YS)) ** 2) / 2  # noqa: E731
    step_term = RATE / 2 * np.mean(np.sum(np.asarray(trajectory.gradients) ** 2, axis=1))
    for direction in np.random.default_rng(1).normal(size=(50, 3)):
        U = 0.2 * direction / np.linalg.norm(direction)
        certificate = loss(U) + 0.2**2 / (2 * RATE * steps) + step_term
        assert trajectory.surrogate_loss.min() <= certificate


def test_a_run_that_recorded_something_else_has_no_trajectory():
    result = fit(MODEL.apply, PARAMS, XS, YS, **settings(1.0))
    with pytest.raises(ValueError, match="give fit record=record_trajectory"):
        Trajectory.of(result)


@pytest.mark.slow
def test_a_run_that_is_not_finite_has_no_trajectory():
    options = settings(1.0) | {"optimizer": optax.sgd(1e300), "constraint": None, "record": record_trajectory}
    with pytest.raises(ValueError, match="training stopped in step"):
        Trajectory.of(fit(MODEL.apply, PARAMS, XS, YS, **options))
