"""Certified accuracy beside that of attacks."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.attacks import PGD, Audit, Box, Evaluation, LinfBall, evaluate
from ntk_robust.certify import (
    Certificate,
    Crown,
    IntervalBounds,
    bracket_accuracy,
    certify_batch,
    network_of,
)
from ntk_robust.losses import Margin

N = 12


def classifier(key, num_outputs):
    """A network, and labels that it gives itself but for two examples."""
    model = models.FullyConnected(input_dim=6, width=16, num_hidden_layers=1, num_outputs=num_outputs)
    params = model.init(key=key)
    xs = jr.uniform(key, (N, 6))
    outputs = np.asarray(jax.jit(jax.vmap(lambda x: model.apply(params, x)))(xs))
    ys = np.sign(outputs) if num_outputs == "scalar" else np.argmax(outputs, axis=1)
    ys[:2] = -ys[:2] if num_outputs == "scalar" else (ys[:2] + 1) % num_outputs
    return model, params, xs, jnp.asarray(ys)


def attacked(model, params, xs, ys, *, perturbations, key):
    attack = PGD(10, 0.3)
    return evaluate(model.apply, params, xs, ys, attack=attack, perturbations=perturbations, loss=Margin(), key=key)


@pytest.mark.slow
@pytest.mark.parametrize("num_outputs", [4, "scalar"])
def test_certified_adversarial_and_natural_accuracy_are_in_order(num_outputs, key):
    model, params, xs, ys = classifier(key, num_outputs)
    network = network_of(model, params)
    perturbations = LinfBall(jnp.linspace(0.0, 0.1, N), Box(0.0, 1.0))
    evaluation = attacked(model, params, xs, ys, perturbations=perturbations, key=key)
    assert evaluation.natural_accuracy == (N - 2) / N
    accuracies = []
    for method in (IntervalBounds(), Crown()):
        certificate = certify_batch(method, network, xs, ys, perturbations)
        bracket = bracket_accuracy(evaluation, certificate)
        assert np.all(np.asarray(bracket.gap) >= 0)
        accuracies.append(bracket.certified_accuracy)
    assert accuracies[0] <= accuracies[1] <= evaluation.adversarial_accuracy
    assert accuracies[1] > 0.3
    # the first radius is 0 and that example is wrong; the third is right and barely moved
    assert list(np.asarray(certificate.certified[:3])) == [False, False, True]


def evaluation_with(margins, minimum_radii=None):
    """An evaluation at radius 0.1 with these margins of the attacker, whose attack moved nothing."""
    accuracy = float(np.mean(np.asarray(margins) < 0))
    counts = {
        field.name: field.type(0) if callable(field.type) and field.type in (int, float) else ()
        for field in dataclasses.fields(Audit)
    }
    audit = Audit(**counts)
    count = len(margins)
    return Evaluation(
        accuracy, accuracy, 0.0, 0.0, jnp.asarray(margins), jnp.asarray(margins), jnp.full(count, 0.1),
        jnp.full(count, jnp.inf) if minimum_radii is None else jnp.asarray(minimum_radii), audit, jnp.zeros((count, 2)),
    )  # fmt: skip


@pytest.mark.slow
def test_a_certificate_that_an_attack_refutes_is_an_error():
    certificate = Certificate(jnp.array([0.5, -0.1]), jnp.array([True, False]))
    bracket = bracket_accuracy(evaluation_with([-0.6, 0.05]), certificate)
    assert (bracket.certified_accuracy, bracket.adversarial_accuracy) == (0.5, 0.5)
    np.testing.assert_allclose(bracket.gap, [0.1, 0.05], atol=1e-15)
    np.testing.assert_array_equal(bracket.radius_lower, [0.1, 0.0])
    np.testing.assert_array_equal(
        bracket_accuracy(evaluation_with([-0.6, 0.05], [0.2, 0.0]), certificate).radius_upper, [0.2, 0.0]
    )
    with pytest.raises(ArithmeticError, match=r"example 0: at distance 0.09, certified up to 0.1"):
        bracket_accuracy(evaluation_with([-0.6, 0.05], [0.09, 0.0]), certificate)
    with pytest.raises(
        ArithmeticError, match=r"on 1 of 2 examples .* \(example 0: 0.4 found, at least 0.5 certified\)"
    ):
        bracket_accuracy(evaluation_with([-0.4, 0.05]), certificate)
    with pytest.raises(ValueError, match="3 examples and the certificate 2"):
        bracket_accuracy(evaluation_with([-0.4, 0.2, 0.1]), certificate)


@pytest.mark.slow
def test_margins_of_half_labels_are_those_of_whole_ones_halved_on_both_sides(key):
    model, params, xs, ys = classifier(key, "scalar")
    network, ball = network_of(model, params), LinfBall(0.02, Box(0.0, 1.0))
    whole, half = (certify_batch(IntervalBounds(), network, xs, size * ys, ball) for size in (1.0, 0.5))
    np.testing.assert_allclose(half.margins, whole.margins / 2, rtol=1e-12)
    found = attacked(model, params, xs, ys / 2, perturbations=ball, key=key)
    assert bracket_accuracy(found, half).certified_accuracy == whole.certified_accuracy > 0.3


@pytest.mark.slow
def test_batches_change_nothing(key):
    model, params, xs, ys = classifier(key, 4)
    network = network_of(model, params)
    whole, parts = (
        certify_batch(IntervalBounds(), network, xs, ys, LinfBall(0.02), batch_size=size).margins for size in (None, 5)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-12)


def test_wrong_calls_are_refused(key):
    model, params, xs, ys = classifier(key, 4)
    network, ball, method = network_of(model, params), LinfBall(0.1), IntervalBounds()
    for message, arguments in {
        "shape \\(12, 5\\)": (xs[:, :5], ys, ball),
        "at least one example": (xs[:0], ys[:0], ball),
        "nan or infinity": (xs.at[0, 0].set(jnp.nan), ys, ball),
        "cast one of them": (xs.astype(np.float32), ys, ball),
        "one label for each": (xs, ys[:5], ball),
        "run from 0 to 9": (xs, ys.at[0].set(9).at[1].set(0), ball),
        "takes integers": (xs, ys.astype(float), ball),
        "epsilon has shape": (xs, ys, LinfBall(jnp.ones(3))),
        "12 of 12 inputs leave the valid box": (xs + 1, ys, LinfBall(0.1, Box(0.0, 1.0))),
    }.items():
        with pytest.raises(ValueError, match=message):
            certify_batch(method, network, *arguments)
    with pytest.raises(ValueError, match="batch_size is 0"):
        certify_batch(method, network, xs, ys, ball, batch_size=0)
