import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import FGSM, LinfBall
from ntk_robust.losses import Absolute
from ntk_robust.training import LayerwiseFrobeniusBall, RegretCertificate, RegretRecord, fit

XS = jr.normal(jr.key(0), (5, 3))
YS = jnp.sign(jr.normal(jr.key(1), (5,)))
PARAMS = {"hidden": jr.normal(jr.key(2), (6, 3)), "readout": jr.normal(jr.key(3), (6,))}
TRAINED = {"hidden": True, "readout": False}
RATE, STEPS = 0.05, 8


def network(params, x):
    return params["readout"] @ jnp.tanh(params["hidden"] @ x)


def comparator(distance):
    direction = jr.normal(jr.key(4), (6, 3))
    return PARAMS | {"hidden": PARAMS["hidden"] + distance * direction / jnp.linalg.norm(direction)}


def run(optimizer, record):
    return fit(
        network,
        PARAMS,
        XS,
        YS,
        loss=Absolute(),
        attack=FGSM(),
        perturbations=LinfBall(0.1),
        optimizer=optimizer,
        trainable=TRAINED,
        constraint=LayerwiseFrobeniusBall(0.15),
        num_steps=STEPS,
        record=record,
        key=jr.key(5),
    )


@pytest.fixture(scope="module")
def result():
    goal = comparator(0.1)
    regret = RegretRecord(network, Absolute(), goal)
    return run(optax.sgd(RATE), lambda step: regret(step) | {"hidden": step.params["hidden"], "xs_adv": step.xs_adv})


def test_the_terms_are_those_written_out_in_numpy(result):
    certificate = RegretCertificate.of(result, learning_rate=RATE)
    a, U, ys = np.asarray(PARAMS["readout"]), np.asarray(comparator(0.1)["hidden"]), np.asarray(YS)
    losses, at_goal, squares, curvature = [], [], [], []
    for t in range(STEPS):
        W, xs = np.asarray(result.history["hidden"][t]), np.asarray(result.history["xs_adv"][t])
        now, goal = np.tanh(xs @ W.T) @ a, np.tanh(xs @ U.T) @ a
        gradients = (a * (1 - np.tanh(xs @ W.T) ** 2))[:, :, None] * xs[:, None, :]
        slopes = np.sign(now - ys)
        losses.append(np.mean(np.abs(now - ys)))
        at_goal.append(np.mean(np.abs(goal - ys)))
        squares.append(np.sum(np.mean(slopes[:, None, None] * gradients, axis=0) ** 2))
        curvature.append(-np.mean(slopes * (goal - now - np.sum(gradients * (U - W), axis=(1, 2)))))
    counts = np.arange(1, STEPS + 1)
    visited = [*np.asarray(result.history["hidden"]), np.asarray(result.params["hidden"])]
    distances = np.array([np.sum((W - U) ** 2) for W in visited])
    np.testing.assert_allclose(certificate.mean_loss, np.cumsum(losses) / counts, rtol=1e-10)
    np.testing.assert_allclose(certificate.comparator_term, np.cumsum(at_goal) / counts, rtol=1e-10)
    np.testing.assert_allclose(certificate.radius_term, (distances[0] - distances[1:]) / (2 * RATE * counts), rtol=1e-9)
    np.testing.assert_allclose(certificate.step_term, RATE / 2 * np.cumsum(squares) / counts, rtol=1e-10)
    np.testing.assert_allclose(certificate.linearization_term, np.cumsum(curvature) / counts, rtol=1e-9, atol=1e-14)


def test_the_bound_holds_after_every_step_and_not_without_its_terms(result):
    certificate = RegretCertificate.of(result, learning_rate=RATE)
    assert bool(result.history["projected"].any())
    assert np.all(certificate.mean_loss <= certificate.bound + 1e-12)
    without_steps = certificate.bound - certificate.step_term
    assert np.any(certificate.mean_loss > without_steps)


def test_a_run_of_another_optimizer_or_record_is_refused():
    regret = RegretRecord(network, Absolute(), comparator(0.1))
    with pytest.raises(ValueError, match=r"the certificate is for optax\.sgd"):
        RegretCertificate.of(run(optax.sgd(RATE, momentum=0.9), regret), learning_rate=RATE)
    with pytest.raises(ValueError, match="give fit record=RegretRecord"):
        RegretCertificate.of(run(optax.sgd(RATE), None), learning_rate=RATE)
