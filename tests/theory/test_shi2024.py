"""The parts of the checks of Shi et al. against brute force, and planted faults that they must see."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.certify import Network, pieces_on_polygon
from ntk_robust.constructions import Breakpoints, clip_gate_student
from ntk_robust.theory.checks._overfitting import (
    affine_layer,
    bumps,
    lattice_points,
    layout,
    on_host,
    random_teacher,
    student_on_line,
)
from ntk_robust.theory.checks.shi2024_clean_labels import area, roof_teacher, together, unlike_area
from ntk_robust.theory.checks.shi2024_noisy_labels import hull
from ntk_robust.theory.checks.shi2024_robust_gap import largest_deviation
from ntk_robust.theory.checks.shi2024_separation import bounds, separations


def test_a_student_on_a_line_is_its_formula_also_where_bumps_of_neighbors_overlap():
    rng = np.random.default_rng(0)
    xs = np.cumsum(rng.uniform(0.1, 0.2, 12))
    ys, epsilon, tau = rng.uniform(-1, 1, 12), 0.02, 0.06
    teacher = Breakpoints(np.linspace(-0.5, 3.0, 30), rng.uniform(-1, 1, 30))
    found = student_on_line(teacher, xs, ys, epsilon=epsilon, tau=tau, bound=1.0)
    points = np.linspace(-0.4, 2.9, 5001)
    g = bumps(points[:, None], xs[:, None], epsilon, tau)
    assert np.max(np.sum(g > 0, axis=1)) == 2
    expected = np.maximum(np.minimum(teacher(points), 1 + g @ (ys - 1)), -1 + g @ (ys + 1))
    np.testing.assert_allclose(found(points), expected, atol=1e-12)


@pytest.mark.slow
def test_a_network_on_the_host_is_the_network():
    xs = jnp.asarray(lattice_points(6, 2, 0.25, jr.key(0)))
    student = clip_gate_student(random_teacher(2, jr.key(1)), xs, xs[:, 0], epsilon=0.0625, tau=0.125, bound=1.0)
    points = np.random.default_rng(1).uniform(-0.2, 1.2, size=(200, 2))
    np.testing.assert_allclose(on_host(student)(points), jax.vmap(student)(jnp.asarray(points)), atol=1e-13)


def test_a_layout_uses_up_the_separation_in_dyadic_numbers():
    for separation in (1 / 16, 0.5625, 3 / 256):
        epsilon, tau = layout(separation)
        assert 2 * epsilon + tau == separation
        assert np.log2(tau) == int(np.log2(tau))
        assert (2**20 * epsilon) % 1 == 0


def test_points_of_a_lattice_are_different_and_its_step_apart():
    points = lattice_points(40, 2, 0.125, jr.key(2))
    assert len(np.unique(points, axis=0)) == 40
    gaps = np.max(np.abs(points[:, None] - points), axis=2)[~np.eye(40, dtype=bool)]
    assert np.min(gaps) == 0.125


def test_separations_agree_with_all_pairs_and_lie_between_the_bounds_on_average():
    draws = np.random.default_rng(3).uniform(size=(400, 7, 2))
    expected = [min(np.max(np.abs(a - b)) for a, b in itertools.combinations(points, 2)) for points in draws]
    np.testing.assert_array_equal(separations(draws), expected)
    line = draws[:, :, :1]
    direct = [min(abs(a - b)[0] for a, b in itertools.combinations(points, 2)) for points in line]
    np.testing.assert_allclose(separations(line), direct)
    lower, upper = bounds(7, 2, 0.05)
    assert lower - 0.1 < np.mean(np.array(expected) >= 0.05) < upper + 0.1


@pytest.mark.slow
def test_a_planted_difference_of_signs_is_found_with_its_area():
    teacher = roof_teacher()
    other = Network((*teacher.layers, affine_layer([[1.0]], [0.25])), (2,), scalar=True)
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert unlike_area(pieces_on_polygon(together(teacher, teacher), square)) == 0.0
    # the boundary moves by 1/16 in x_1 along the whole height
    found = unlike_area(pieces_on_polygon(together(other, teacher), square))
    assert found == pytest.approx(1 / 16, abs=1e-12)


def test_areas_and_hulls_are_those_of_a_square_with_its_middle():
    square = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    assert area(square) == 4.0
    assert area(hull(np.concatenate([square, [[1.0, 1.0]]]))) == 4.0


def test_the_deviation_on_a_cube_is_seen_at_a_breakpoint_inside():
    spike = Breakpoints(np.array([0.0, 0.49, 0.5, 0.51, 1.0]), np.array([0.0, 0.0, 3.0, 0.0, 0.0]))
    assert largest_deviation(spike, np.array([0.5]), np.array([0.0]), 0.1) == 3.0
