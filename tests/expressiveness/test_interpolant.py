"""Robust interpolants, against closed forms and a support vector machine."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.svm import SVC

from ntk_robust.attacks import Box, L2Ball, LinfBall, SphereSlice
from ntk_robust.data import binary_task, circle_points, load_dataset, subset
from ntk_robust.expressiveness import ArcSets, AttackedSets, compatibility, norm_curve, robust_interpolant
from ntk_robust.kernels import AbstractKernel, analytic_ntk
from ntk_robust.models import FullyConnected, PairedTwoLayerNet, Relu


class Linear(AbstractKernel):
    """<x, z>, whose functions are linear."""

    def __call__(self, x, z):
        return jnp.vdot(x, z)


@pytest.mark.parametrize(("sets", "norm"), [(L2Ball(0.5), 1 / 1.5), (LinfBall(0.5), 1 / 1.5)])
def test_the_norm_of_a_robust_linear_function_of_two_opposite_points(sets, norm):
    xs, ys = jnp.array([[2.0, 0.0], [-2.0, 0.0]]), jnp.array([1.0, -1.0])
    found = robust_interpolant(Linear(), AttackedSets(xs, ys, sets), relative_gap=1e-3)
    assert found.converged
    assert abs(found.norm_lower / norm - 1) < 2e-3
    assert found.norm_lower <= norm * (1 + 1e-9) <= found.norm_attained * (1 + 2e-3)
    assert found.norm_upper == np.inf  # nothing is known of this kernel's geometry


@pytest.mark.slow
def test_without_perturbations_it_is_a_support_vector_machine():
    digits = subset(binary_task(load_dataset("digits"), (3, 8)), 30, 2, key=jr.key(0))
    xs, ys = digits.x_train.astype(jnp.float64), digits.y_train.astype(jnp.float64)
    kernel = analytic_ntk(FullyConnected(64, 8, 1, "scalar"))
    found = robust_interpolant(kernel, AttackedSets(xs, ys, LinfBall(0.0)))
    gram = np.asarray(kernel.gram(xs))
    machine = SVC(C=1e9, kernel="precomputed", tol=1e-9).fit(gram, np.asarray(ys))
    # its margins have an offset, which ours do not: the norm of its function without one is what can be compared
    weights = machine.dual_coef_[0]
    free = float(np.sqrt(weights @ gram[np.ix_(machine.support_, machine.support_)] @ weights))
    assert free <= found.norm_lower * (1 + 1e-6)
    assert found.norm_attained <= 1.01 * found.norm_lower
    assert found.norm_lower <= found.norm_upper <= 1.01 * found.norm_lower
    outputs = np.asarray(ys * (kernel.gram(xs, found.points) @ found.coefficients))
    assert np.min(outputs) > 0.99


@pytest.mark.parametrize("tolerance", [None, 0.2])
def test_on_arcs_the_certified_bounds_of_the_norm_meet(tolerance):
    xs, ys = circle_points(2)
    kernel = analytic_ntk(PairedTwoLayerNet(3, 8, Relu()))
    sets = ArcSets(xs, SphereSlice(0.2), ys)
    found = robust_interpolant(kernel, sets, tolerance=tolerance, relative_gap=0.05)
    assert found.converged
    assert 0 < found.norm_lower <= found.norm_upper <= 1.05 * found.norm_lower * (1 + 1e-9)
    wider = robust_interpolant(kernel, ArcSets(xs, SphereSlice(0.5), ys), tolerance=tolerance, relative_gap=0.05)
    assert wider.norm_lower > found.norm_lower


def test_margins_are_refused_for_targets_that_are_no_labels():
    xs, _ = circle_points(2)
    with pytest.raises(ValueError, match=r"one is 0\.5"):
        robust_interpolant(Linear(), ArcSets(xs, SphereSlice(0.1), jnp.array([0.5, 1.0])))


@pytest.mark.parametrize("kind", [L2Ball, LinfBall])
def test_compatibility_agrees_with_all_pairs(kind, key):
    xs = jr.normal(key, (12, 3))
    ys = jnp.arange(12) % 3
    order = 2 if kind is L2Ball else np.inf
    apart = np.array([[np.linalg.norm(np.asarray(x - z), order) for x in xs] for z in xs])
    unlike = np.asarray(ys)[:, None] != np.asarray(ys)[None, :]
    found = compatibility(xs, ys, kind(0.6))
    assert len(found.broken) == np.sum(np.triu(unlike & (apart <= 1.2)))
    np.testing.assert_allclose(found.largest_epsilon, np.min(apart[unlike]) / 2)
    a, b = found.pairs[0, 1]
    np.testing.assert_allclose(found.distances[0, 1], apart[a, b])
    assert compatibility(xs, ys, kind(0.99 * found.largest_epsilon)).compatible
    assert not compatibility(xs, ys, kind(1.01 * found.largest_epsilon)).compatible


def test_caps_of_a_slice_meet_where_their_angles_do():
    xs, ys = circle_points(4)
    radius = float(jnp.linalg.norm(xs[0, :2]))
    found = compatibility(xs, ys, SphereSlice(0.1))
    np.testing.assert_allclose(found.largest_epsilon, 2 * radius * np.sin(np.pi / 8))
    assert not compatibility(xs, ys, SphereSlice(1.01 * found.largest_epsilon)).compatible


@pytest.mark.slow
def test_norms_grow_along_a_curve_and_its_certificates_hold_where_they_close():
    digits = subset(binary_task(load_dataset("digits"), (3, 8)), 12, 2, key=jr.key(0))
    xs, ys = digits.x_train.astype(jnp.float64), digits.y_train.astype(jnp.float64)
    kernel = analytic_ntk(FullyConnected(64, 8, 1, "scalar"))
    sets = [AttackedSets(xs, ys, LinfBall(epsilon, Box(0.0, 1.0))) for epsilon in (0.0, 0.005, 0.1)]
    curve = norm_curve(kernel, sets, max_rounds=4)
    lower = [found.norm_lower for found in curve]
    assert lower == sorted(lower)
    assert all(found.norm_lower <= found.norm_attained * (1 + 1e-9) <= found.norm_upper for found in curve)
    assert curve[1].norm_upper < 1.3 * curve[1].norm_lower
    # every corner of the set keeps the margin that the certificate promises
    found = curve[1]
    corners = xs[:, None] + 0.005 * jr.rademacher(jr.key(1), (len(xs), 40, 64), float)
    corners = jnp.clip(corners, 0.0, 1.0).reshape(-1, 64)
    values = np.asarray(kernel.gram(corners, found.points) @ found.coefficients).reshape(len(xs), 40)
    margins = np.min(values * np.asarray(ys)[:, None])
    assert np.sqrt(found.function.inner_products[0, 0]) / margins <= found.norm_upper * (1 + 1e-6)


def test_sets_of_other_data_make_no_curve():
    xs, ys = circle_points(2)
    with pytest.raises(ValueError, match="different targets"):
        norm_curve(Linear(), [ArcSets(xs, SphereSlice(0.1), ys), ArcSets(xs, SphereSlice(0.2), -ys)])
