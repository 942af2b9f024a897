"""Minimum radii and transferred attacks where both are known in closed form."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import FAB, FGSM, Identity, L2Ball, LinfBall, MinimumRadius, evaluate, minimum_radius, transfer
from ntk_robust.losses import Logistic, Margin


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


def test_an_evaluation_knows_the_distances_that_its_attack_and_an_attack_of_least_norm_have_shown(key):
    weights = jr.normal(key, (5,))
    xs = jr.normal(jr.fold_in(key, 1), (12, 5))
    ys = jnp.sign(xs @ weights).at[0].multiply(-1.0)  # one input is wrong from the start
    distances = np.abs(np.asarray(xs @ weights)) / np.linalg.norm(weights)
    distances[0] = 0.0
    epsilon = float(np.median(distances))
    problem, common = (jnp.vdot, weights, xs, ys), {"loss": Margin(), "key": key}
    nearest = minimum_radius(*problem, attack=FAB(5), perturbations=L2Ball(10.0), num_halvings=0, **common)
    np.testing.assert_allclose(nearest.radius, distances, rtol=1e-2)  # FAB oversteps
    assert (np.asarray(nearest.radius) >= distances - 1e-12).all()

    def evaluated(nearest):
        return evaluate(*problem, attack=FGSM(), perturbations=L2Ball(epsilon), nearest=nearest, **common)

    alone, found = evaluated(None), evaluated(nearest)
    np.testing.assert_allclose(alone.minimum_radii, np.where(distances < epsilon, [0.0] + [epsilon] * 11, np.inf))
    np.testing.assert_array_equal(found.minimum_radii, np.minimum(alone.minimum_radii, nearest.radius))
    np.testing.assert_allclose(found.natural_margins, -np.asarray(ys * (xs @ weights)))
    np.testing.assert_allclose(found.epsilon, epsilon)
    assert "nearest-better" not in [finding.name for finding in found.audit.findings]
    # What is claimed of a point is not believed: neither a shorter distance nor that a right point is wrong.
    lies = MinimumRadius(nearest.radius / 2, nearest.x_adv)
    np.testing.assert_array_equal(evaluated(lies).minimum_radii, alone.minimum_radii)
    lies = MinimumRadius(nearest.radius, xs + 0.9 * (nearest.x_adv - xs))
    np.testing.assert_array_equal(evaluated(lies).minimum_radii, alone.minimum_radii)


@pytest.mark.slow
def test_an_attack_that_leaves_right_what_has_a_wrong_point_in_the_set_is_weak(key):
    weights, xs = jr.normal(key, (5,)), jr.normal(jr.fold_in(key, 1), (12, 5))
    ys = jnp.sign(xs @ weights)
    problem, common = (jnp.vdot, weights, xs, ys), {"loss": Margin(), "key": key}
    nearest = minimum_radius(*problem, attack=FAB(5), perturbations=L2Ball(10.0), num_halvings=0, **common)
    found = evaluate(*problem, attack=Identity(), perturbations=L2Ball(0.5), nearest=nearest, **common)
    assert found.audit.num_nearer == (np.asarray(nearest.radius) <= 0.5).sum() > 0
    assert "nearest-better" in [finding.name for finding in found.audit.findings]
    assert found.adversarial_accuracy == 1.0  # that of the attack which is evaluated


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
    with pytest.raises(ValueError, match="num_halvings=-1"):
        minimum_radius(jnp.vdot, jnp.ones(5), xs, ys, num_halvings=-1, **common)
    with pytest.raises(ValueError, match=r"nearest holds points of shape \(2, 4\) for inputs of shape \(2, 5\)"):
        evaluate(jnp.vdot, jnp.ones(5), xs, ys, nearest=MinimumRadius(jnp.ones(2), jnp.ones((2, 4))), **common)
    with pytest.raises(ValueError, match="targets are floats"):
        transfer((jnp.vdot, jnp.ones(5)), (jnp.vdot, jnp.ones(5)), xs, ys.astype(int), **common)
