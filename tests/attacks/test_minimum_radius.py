"""Minimum radii and transferred attacks where both are known in closed form."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import FGSM, L2Ball, LinfBall, minimum_radius, transfer
from ntk_robust.losses import Logistic


@pytest.mark.parametrize(("make", "dual"), [(LinfBall, 1), (L2Ball, 2)])
def test_the_minimum_radius_of_a_linear_network_is_its_distance_to_the_plane(make, dual, key):
    weights = jr.normal(key, (5,))
    xs = jr.normal(jr.fold_in(key, 1), (12, 5))
    ys = jnp.sign(xs @ weights).at[0].multiply(-1.0)  # one input is wrong from the start
    found = minimum_radius(
        jnp.vdot, weights, xs, ys, attack=FGSM(), perturbations=make(0.5), loss=Logistic(), key=key, num_halvings=14
    )
    expected = np.abs(np.asarray(xs @ weights)) / np.linalg.norm(weights, ord=dual)
    expected[0] = 0.0
    radius = np.asarray(found.radius)
    within = expected < 0.5
    assert 2 < within.sum() < 12
    np.testing.assert_allclose(radius[within], expected[within], rtol=0, atol=1e-4)
    assert (radius[within] >= expected[within] - 1e-12).all()
    assert (radius[~within] == np.inf).all()
    outputs = np.asarray(ys) * np.asarray(found.x_adv @ weights)
    assert (outputs[within] <= 1e-12).all()


def test_each_example_may_have_its_own_largest_radius(key):
    weights = jr.normal(key, (5,))
    xs = jr.normal(jr.fold_in(key, 1), (12, 5))
    largest = jnp.linspace(0.05, 0.6, 12)
    found = minimum_radius(
        jnp.vdot, weights, xs, jnp.sign(xs @ weights), attack=FGSM(), perturbations=L2Ball(largest), loss=Logistic(),
        key=key, num_halvings=14, batch_size=5,
    )  # fmt: skip
    expected = np.abs(np.asarray(xs @ weights)) / np.linalg.norm(weights)
    expected = np.where(expected < np.asarray(largest), expected, np.inf)
    assert 0 < np.isinf(expected).sum() < 12
    np.testing.assert_allclose(found.radius, expected, rtol=0, atol=1e-4)


def test_points_made_for_one_linear_network_fool_another_by_the_angle_between_them(key):
    source, other = jr.normal(key, (2, 5))
    xs = jr.normal(jr.fold_in(key, 1), (40, 5))
    ys = jnp.sign(xs @ other)
    found = transfer(
        (jnp.vdot, source), (jnp.vdot, other), xs, ys,
        attack=FGSM(), perturbations=L2Ball(0.8), loss=Logistic(), key=key, batch_size=16,
    )  # fmt: skip
    # The step is -0.8 y source / ‖source‖, whatever the target is.
    outputs = np.asarray(ys) * np.asarray(xs @ other) - 0.8 * float(source @ other / jnp.linalg.norm(source))
    assert found.target_natural_accuracy == 1.0
    assert found.target_accuracy == np.mean(outputs > 0)
    natural = np.asarray(ys) * np.asarray(xs @ source)
    assert found.source_accuracy == np.mean(natural - 0.8 * float(jnp.linalg.norm(source)) > 0)


def test_impossible_settings_give_one_clear_error(key):
    xs, ys = jnp.ones((2, 5)), jnp.ones(2)
    common = {"attack": FGSM(), "perturbations": L2Ball(0.8), "loss": Logistic(), "key": key}
    with pytest.raises(ValueError, match="num_halvings=0"):
        minimum_radius(jnp.vdot, jnp.ones(5), xs, ys, num_halvings=0, **common)
    with pytest.raises(ValueError, match="targets are floats"):
        transfer((jnp.vdot, jnp.ones(5)), (jnp.vdot, jnp.ones(5)), xs, ys.astype(int), **common)
