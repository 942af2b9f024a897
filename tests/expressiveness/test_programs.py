"""The interior point method against other solvers."""

import numpy as np
import pytest
import scipy.optimize

from ntk_robust.expressiveness._programs import Groups, quadratic_program, within_radius


def problem(n: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    factor = rng.normal(size=(n, rank))
    return factor @ factor.T, rng.normal(size=n) + 0.5


def test_without_groups_it_is_nonnegative_least_squares():
    matrix, linear = problem(30, 40)
    root = np.linalg.cholesky(matrix)
    expected, _ = scipy.optimize.nnls(root.T, np.linalg.solve(root, linear))
    np.testing.assert_allclose(quadratic_program(matrix, linear), expected, atol=1e-6)


@pytest.mark.parametrize("rank", [3, 12])
def test_with_groups_it_meets_a_general_solver_also_where_the_matrix_is_singular(rank):
    matrix, linear = problem(12, rank)
    groups = Groups(np.arange(12) % 3, 0.2, 3)

    def value(z: np.ndarray) -> float:
        return float(0.5 * z @ matrix @ z - linear @ z)

    caps = [{"type": "ineq", "fun": lambda z, i=i: 0.2 - np.sum(z[np.arange(12) % 3 == i])} for i in range(3)]
    other = scipy.optimize.minimize(
        value,
        np.full(12, 0.01),
        jac=lambda z: matrix @ z - linear,
        bounds=[(0, None)] * 12,
        constraints=caps,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    found = quadratic_program(matrix, linear, groups)
    assert np.min(found) >= 0.0
    assert np.max(groups.sums(found)) <= 0.2 * (1 + 1e-12)
    assert value(found) <= other.fun + 1e-8


def test_the_penalty_is_found_at_which_the_norm_is_the_radius():
    matrix, linear = problem(12, 12)
    groups = Groups(np.arange(12) % 3, 0.2, 3)
    for radius in (0.05, 0.5):
        found = within_radius(matrix, linear, groups, radius, 1.0)
        norm = found.penalty * np.sqrt(found.weights @ matrix @ found.weights)
        assert abs(norm / radius - 1) < 1e-3
