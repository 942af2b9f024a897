"""The certified robust loss on the circle, the kernel fit, and what the two-layer check reads from a run."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import SphereSlice
from ntk_robust.data import circle_points
from ntk_robust.models import Tanh
from ntk_robust.theory import Verdict
from ntk_robust.theory.checks._adversaries import arc_attacks, arc_grid
from ntk_robust.theory.checks._circle import CircleProblem, grid_gap, kernel_fit, make_problem, robust_loss
from ntk_robust.theory.checks.gao2019_smooth_two_layer import Case, Watched, _conclusions, first_hit, make_case


@pytest.fixture(scope="module")
def problem() -> CircleProblem:
    return make_problem(2, 64, Tanh(), 0.4, key=jr.key(0))


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(2, 64, Tanh(), (0.4, 33), 0.01, key=jr.key(0))


def slow_outputs(problem: CircleProblem, params, angles: np.ndarray) -> np.ndarray:
    """f along the circle, in numpy."""
    points = np.stack([np.cos(angles), np.sin(angles), np.ones_like(angles)], axis=-1) / np.sqrt(2)
    plus, minus = np.asarray(params.plus), np.asarray(params.minus)
    values = np.tanh(points @ plus.T) - np.tanh(points @ minus.T)
    return values @ np.asarray(params.signs) / np.sqrt(2 * len(plus))


def test_the_robust_loss_lies_between_its_certified_bounds(problem):
    comparator = kernel_fit(problem, 0.01)
    worst = []
    for center, label in ((0.0, 1.0), (np.pi, -1.0)):
        angles = center + np.linspace(-0.4, 0.4, 50_001)
        worst.append(np.max(np.abs(slow_outputs(problem, comparator.params, angles) - label)))
    exact = np.mean(worst)
    assert comparator.robust_loss_lower - 1e-12 <= exact <= comparator.robust_loss_upper + 1e-12
    assert comparator.robust_loss_upper - comparator.robust_loss_lower < 1e-5


def test_the_gap_of_a_coarse_grid_covers_what_the_grid_misses(problem):
    params = kernel_fit(problem, 0.01).params
    moved = jax.tree.map(lambda w: w, params)
    fine = slow_outputs(problem, moved, np.linspace(-0.4, 0.4, 20_001))
    for count in (3, 5, 9):
        coarse = slow_outputs(problem, moved, np.linspace(-0.4, 0.4, count))
        missed = max(fine.max() - coarse.max(), coarse.min() - fine.min())
        assert missed <= grid_gap(problem, params, count)


def test_the_kernel_fit_is_ridge_regression_with_the_kernel_of_the_network(problem):
    ridge, angles = 0.01, np.concatenate([np.linspace(-0.4, 0.4, 9), np.pi + np.linspace(-0.4, 0.4, 9)])
    points = np.stack([np.cos(angles), np.sin(angles), np.ones_like(angles)], axis=-1) / np.sqrt(2)
    slopes = 1 / np.cosh(points @ np.asarray(problem.params.plus).T) ** 2
    gram = (points @ points.T) * (slopes @ slopes.T) * 2 / problem.net.width
    dual = np.linalg.solve(gram + ridge * np.eye(18), np.repeat([1.0, -1.0], 9))
    comparator = kernel_fit(problem, ridge)
    np.testing.assert_allclose(comparator.radius**2, dual @ gram @ dual, rtol=1e-10)


def test_robust_loss_of_the_initial_network_is_exactly_one(problem):
    lower, upper = robust_loss(problem, problem.params)
    assert lower == 1.0
    assert upper >= 1.0


def watched(case: Case, **changes) -> Watched:
    """A run that sits at U: the recursion holds there, and the loss is that of U."""
    steps = case.num_steps
    fields = {
        "surrogate_loss": np.full(steps, case.comparator.robust_loss_lower),
        "comparator_loss": np.full(steps, case.comparator.robust_loss_lower),
        "distance": np.zeros(steps),
        "next_distance": np.zeros(steps),
        "displacement": np.full(steps, case.comparator.radius),
        "size": np.ones(steps),
        "off_sphere": np.zeros(steps),
    }
    return Watched(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value", "verdicts"),
    [
        (None, 0.0, ("SUPPORTED", "SUPPORTED", "SUPPORTED")),
        ("surrogate_loss", 1e3, ("VIOLATED", "VIOLATED", "SUPPORTED")),
        ("next_distance", 1e3, ("SUPPORTED", "VIOLATED", "SUPPORTED")),
        ("displacement", 1e3, ("SUPPORTED", "SUPPORTED", "VIOLATED")),
    ],
)
def test_each_conclusion_fails_by_itself(case, field, value, verdicts):
    run = watched(case) if field is None else watched(case, **{field: np.full(case.num_steps, value)})
    assert tuple(claim.verdict for claim in _conclusions("c", case, run)) == tuple(Verdict(v) for v in verdicts)


def test_a_hit_in_the_last_step_counts_and_one_after_it_does_not(case):
    loss = np.full(case.num_steps, 10.0)
    assert first_hit(case, watched(case, surrogate_loss=loss)) == case.num_steps
    loss[-1] = case.comparator.robust_loss_lower
    assert first_hit(case, watched(case, surrogate_loss=loss)) == case.num_steps - 1


def test_the_case_has_exactly_the_required_width_and_enough_steps(case):
    smoothness = Tanh().smoothness
    required = 4 * smoothness**2 * case.comparator.radius**4 / case.epsilon**2
    np.testing.assert_allclose(required, 64, rtol=1e-12)
    assert case.num_steps >= 2 * case.comparator.radius**2 / (case.step_size * case.epsilon)
    assert jnp.all(jnp.abs(case.problem.params.signs) == 1)


@pytest.mark.slow
def test_an_attack_on_an_arc_takes_the_point_that_its_name_says():
    xs, _ = circle_points(2)
    arcs, center = SphereSlice(0.4), xs[0]
    attacks = arc_attacks(9, ("oracle", "weakest", "identity", "random"))
    found = {name: attack(lambda x: x[1], center, arcs, key=jr.key(3)).x_adv[1] for name, attack in attacks.items()}
    grid = np.asarray(arc_grid(center, arcs, 9)[:, 1])
    assert found["oracle"] == grid.max()
    assert found["weakest"] == grid.min()
    assert found["identity"] == center[1]
    assert found["random"] in grid
