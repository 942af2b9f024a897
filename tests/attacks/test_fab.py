"""Minimum-norm attacks: distances to known boundaries, in every norm, with and without a box."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize

from ntk_robust.attacks import FAB, Box, CarliniWagner, DeepFool, L1Ball, L2Ball, LinfBall, SphereSlice, attack_batch
from ntk_robust.attacks._nearest import nearest_on_hyperplane

BOX = Box(0.0, 1.0)


def test_the_nearest_point_of_a_hyperplane_in_the_box_satisfies_the_conditions_of_the_quadratic_program(key):
    sets = L2Ball(1.0, BOX)
    bases = jr.uniform(key, (12, 4)).at[::3, 0].set(0.0)
    normals = jr.normal(jr.fold_in(key, 1), (12, 4))
    gaps = 0.4 * jr.normal(jr.fold_in(key, 2), (12,))
    found = jax.jit(jax.vmap(lambda b, n, g: nearest_on_hyperplane(sets, b, n, g)))(bases, normals, gaps)
    num_reached = 0
    for base, normal, gap, point in zip(*map(np.asarray, (bases, normals, gaps, found)), strict=True):
        assert (point >= 0).all() and (point <= 1).all()  # noqa: PT018
        room = np.where(normal * gap > 0, 1 - base, -base)
        if abs(normal @ room) < abs(gap):  # the box ends before the hyperplane
            continue
        num_reached += 1
        delta = point - base
        assert normal @ delta == pytest.approx(gap, abs=1e-6)
        free = (point > 1e-9) & (point < 1 - 1e-9)
        multiplier = (delta[free] / normal[free]).mean()
        np.testing.assert_allclose(delta[free], multiplier * normal[free], atol=1e-6)
        # A coordinate at its face would go further along the normal.
        assert (np.abs(delta[~free]) <= np.abs(multiplier * normal[~free]) + 1e-6).all()
    assert num_reached > 6


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_the_nearest_point_of_a_hyperplane_in_the_box_is_the_linear_programs(name, key):
    perturbations = {"linf": LinfBall(1.0, BOX), "l1": L1Ball(1.0, BOX)}[name]
    bases = jr.uniform(key, (12, 4)).at[::3, 0].set(0.0)
    normals = jr.normal(jr.fold_in(key, 1), (12, 4))
    gaps = 0.4 * jr.normal(jr.fold_in(key, 2), (12,))
    found = jax.jit(jax.vmap(lambda b, n, g: nearest_on_hyperplane(perturbations, b, n, g)))(bases, normals, gaps)
    for base, normal, gap, point in zip(*map(np.asarray, (bases, normals, gaps, found)), strict=True):
        if name == "linf":  # minimize r with |δ_i| ≤ r
            ones = np.ones((4, 1))
            program = scipy.optimize.linprog(
                [0, 0, 0, 0, 1], A_ub=np.block([[np.eye(4), -ones], [-np.eye(4), -ones]]), b_ub=np.zeros(8),
                A_eq=np.append(normal, 0)[None], b_eq=[gap], bounds=[*zip(-base, 1 - base, strict=True), (0, None)],
            )  # fmt: skip
        else:  # minimize Σ(p + q) with δ = p - q
            program = scipy.optimize.linprog(
                np.ones(8), A_eq=np.append(normal, -normal)[None], b_eq=[gap],
                bounds=[(0, limit) for limit in np.append(1 - base, base)],
            )  # fmt: skip
        if program.status == 2:  # the box ends before the hyperplane
            continue
        assert normal @ (point - base) == pytest.approx(gap, abs=1e-9)
        assert float(perturbations.norm(jnp.asarray(point - base))) == pytest.approx(program.fun, abs=1e-8)
        assert (point >= 0).all() and (point <= 1).all()  # noqa: PT018


def plane(x, y):
    return jnp.vdot(y[:-1], x) - y[-1]


@pytest.mark.parametrize(
    ("attack", "make", "dual"),
    [
        (FAB(20), LinfBall, 1),
        (FAB(20), L2Ball, 2),
        (FAB(20), L1Ball, np.inf),
        (DeepFool(5), L1Ball, np.inf),
        (CarliniWagner(200, 8, 0.02), L2Ball, 2),
    ],
)
def test_the_distance_to_a_plane_is_the_dual_norms_distance(attack, make, dual, key):
    xs, normals = jr.normal(key, (6, 5)), jr.normal(jr.fold_in(key, 1), (6, 5))
    offsets = jnp.sum(xs * normals, axis=1) + jnp.linspace(0.1, 2.0, 6)
    sets = make(100.0)
    found = attack_batch(attack, plane, xs, jnp.append(normals, offsets[:, None], axis=1), sets, key=key)
    expected = np.linspace(0.1, 2.0, 6) / np.linalg.norm(normals, ord=dual, axis=1)
    distances = np.asarray(jax.vmap(sets.norm)(found.x_adv - xs))
    assert (np.asarray(found.value) > 0).all()
    assert (distances >= expected - 1e-12).all()
    np.testing.assert_allclose(distances, expected, rtol=5e-3)


def test_carlini_and_wagner_find_the_boundary_in_a_box_also_from_its_corner(key):
    # From a corner and from inside to a plane that cuts the opposite corner.
    xs = jnp.asarray([[0.0, 0.0, 0.0], [0.2, 0.5, 0.4]])
    ys = jnp.ones((2, 4)).at[:, 3].set(2.4)
    found = attack_batch(CarliniWagner(300, 8, 0.05), plane, xs, ys, L2Ball(5.0, BOX), key=key)
    assert (np.asarray(found.value) > 0).all()
    distances = np.linalg.norm(found.x_adv - xs, axis=1)
    np.testing.assert_allclose(distances, [2.4 / 3**0.5, 1.3 / 3**0.5], rtol=5e-3)  # no face is in the way


def test_deep_fool_crosses_a_curved_boundary_near_its_nearest_point(key):
    xs = 0.5 * jr.normal(key, (6, 3)) / 2
    found = attack_batch(DeepFool(30), lambda x, y: jnp.vdot(x, x) - y, xs, jnp.ones(6), L2Ball(100.0), key=key)
    distances = np.linalg.norm(found.x_adv - xs, axis=1)
    exact = 1 - np.linalg.norm(xs, axis=1)
    assert (distances >= exact - 1e-12).all()
    np.testing.assert_allclose(distances, exact, rtol=2e-2)


def test_the_distance_to_a_sphere_is_found_although_it_is_curved(key):
    # Adversarial outside the unit sphere; from x the nearest point lies straight outwards.
    xs = 0.5 * jr.normal(key, (6, 3)) / 2
    found = attack_batch(FAB(60), lambda x, y: jnp.vdot(x, x) - y, xs, jnp.ones(6), L2Ball(100.0), key=key)
    np.testing.assert_allclose(np.linalg.norm(found.x_adv - xs, axis=1), 1 - np.linalg.norm(xs, axis=1), rtol=1e-2)


@pytest.mark.slow
def test_success_in_the_set_is_exactly_whether_the_distance_is_below_the_radius(key):
    xs = jnp.full((8, 4), 0.5)
    distances = jnp.linspace(0.05, 0.4, 8)
    ys = jnp.concatenate([jnp.ones((8, 4)), (2.0 + 4 * distances)[:, None]], axis=1)
    sets = LinfBall(0.22, BOX)
    found = attack_batch(FAB(10), plane, xs, ys, sets, key=key)
    np.testing.assert_array_equal(np.asarray(found.value) > 0, np.asarray(distances) < 0.22)
    assert bool(jax.vmap(sets.contains)(xs, found.x_adv).all())


@pytest.mark.parametrize(
    ("attack", "sets", "message"),
    [
        (FAB(3), SphereSlice(0.1), "FAB projects on hyperplanes"),
        (DeepFool(3), SphereSlice(0.1), "DeepFool projects on hyperplanes"),
        (CarliniWagner(3), LinfBall(0.1), "the l2 norm, got LinfBall"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(attack, sets, message, key):
    with pytest.raises(ValueError, match=message):
        attack_batch(attack, plane, jnp.ones((2, 3)), jnp.ones((2, 4)), sets, key=key)
