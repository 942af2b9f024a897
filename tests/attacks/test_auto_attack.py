"""AutoAttack where the exact robust accuracy is known, for logits, two classes and a scalar output."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import Box, L1Ball, LinfBall, auto_attack

BUDGET = {"num_steps": 8, "num_queries": 20, "num_targets": 2}


def linear_network(params, x):
    return params @ x


def exact_is_right(weights, xs, ys, epsilon, dual_order):
    """A linear classifier errs in the ball exactly when a dual norm of a difference of rows exceeds a lead."""
    logits = np.asarray(xs @ weights.T)
    right = np.ones(len(logits), bool)
    for i, label in enumerate(np.asarray(ys)):
        for other in set(range(len(weights))) - {int(label)}:
            slope = np.linalg.norm(np.asarray(weights[other] - weights[label]), ord=dual_order)
            right[i] &= logits[i, label] - logits[i, other] > epsilon * slope
    return right


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 5])
def test_on_a_linear_classifier_exactly_the_breakable_examples_fall(num_classes, key):
    weights = jr.normal(key, (num_classes, 6))
    xs = jr.normal(jr.fold_in(key, 1), (40, 6))
    ys = jnp.argmax(xs @ weights.T, axis=1).at[0].set(1)
    found = auto_attack(linear_network, weights, xs, ys, perturbations=LinfBall(0.2), key=key, batch_size=16, **BUDGET)
    expected = exact_is_right(weights, xs, ys, 0.2, 1)
    assert 0 < expected.sum() < 39
    np.testing.assert_array_equal(found.is_right, expected)
    assert found.adversarial_accuracy == expected.mean()
    assert found.natural_accuracy == np.mean(np.asarray(jnp.argmax(xs @ weights.T, axis=1)) == np.asarray(ys))
    last = ["fab", "square"] if num_classes == 2 else ["fab-t", "square"]
    assert list(found.accuracy_after)[-2:] == last
    assert (np.diff(list(found.accuracy_after.values())) <= 0).all()
    fooled = ~found.is_right & (np.asarray(found.x_adv) != np.asarray(xs)).any(axis=1)
    predicted = np.asarray(jnp.argmax(found.x_adv @ weights.T, axis=1))
    assert (predicted[fooled] != np.asarray(ys)[fooled]).all()
    assert np.abs(np.asarray(found.x_adv - xs)).max() <= 0.2 + 1e-12
    np.testing.assert_array_equal(np.asarray(found.x_adv)[found.is_right], np.asarray(xs)[found.is_right])


def test_a_scalar_network_is_attacked_although_it_has_no_second_class(key):
    weights = jr.normal(key, (6,))
    xs = jr.normal(jr.fold_in(key, 1), (30, 6))
    ys = jnp.sign(xs @ weights)
    radii = jnp.linspace(0.0, 2.0, 30)  # one for each example
    found = auto_attack(jnp.vdot, weights, xs, ys, perturbations=L1Ball(radii), key=key, **BUDGET)
    expected = np.abs(np.asarray(xs @ weights)) > np.asarray(radii) * np.abs(weights).max()
    np.testing.assert_array_equal(found.is_right, expected)
    assert list(found.accuracy_after) == ["apgd-ce", "apgd-margin", "fab"]  # Square is for l∞ and l2


@pytest.mark.slow
def test_square_breaks_what_the_gradient_attacks_leave(key):
    def stepped(params, x):
        return params @ (jnp.round(4 * x) / 4)

    weights = jr.normal(key, (3, 6))
    xs = jr.uniform(jr.fold_in(key, 1), (20, 6))
    ys = jnp.argmax(jax.vmap(stepped, (None, 0))(weights, xs), axis=1)
    found = auto_attack(
        stepped, weights, xs, ys, perturbations=LinfBall(0.3, Box(0.0, 1.0)), key=key,
        num_steps=2, num_queries=300, num_targets=1,
    )  # fmt: skip
    assert found.accuracy_after["square"] < found.accuracy_after["fab-t"]


def test_budgets_and_labels_that_do_not_fit_give_one_clear_error(key):
    xs, weights = jnp.ones((2, 6)), jnp.ones((3, 6))
    with pytest.raises(ValueError, match="num_targets=0"):
        auto_attack(
            linear_network, weights, xs, jnp.asarray([0, 1]), perturbations=LinfBall(0.2), key=key, num_targets=0
        )
    with pytest.raises(ValueError, match=r"only=\['cw'\]; the attacks for this network and set are \['apgd-ce'"):
        auto_attack(linear_network, weights, xs, jnp.asarray([0, 1]), perturbations=LinfBall(0.2), key=key, only=["cw"])
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        auto_attack(linear_network, weights, xs, jnp.asarray([0, 3]), perturbations=LinfBall(0.2), key=key)
