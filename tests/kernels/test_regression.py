"""Regression, gradient flow and conjugate gradients against dense linear algebra and refitting."""

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from ntk_robust.kernels import analytic_nngp, analytic_ntk, gram
from ntk_robust.kernels._conjugate_gradients import conjugate_gradients, kernel_matvec, pivoted_cholesky, stored_matvec
from ntk_robust.kernels._regression import cross_validation_residuals, gradient_flow, kernel_regression
from ntk_robust.models import FullyConnected

KERNEL = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    return x, y, gram(KERNEL, x)


def test_the_fit_solves_its_equation_and_reports_its_conditioning(problem):
    _, y, k = problem
    fit = kernel_regression(k, y, ridge=0.1)
    np.testing.assert_allclose(fit.dual, np.linalg.solve(k + 0.1 * np.eye(12), y), rtol=1e-10)
    np.testing.assert_allclose(fit(k), k @ fit.dual)
    exact = np.linalg.cond(k + 0.1 * np.eye(12), 1)
    assert 0.3 * exact <= fit.condition_number <= exact * (1 + 1e-10)
    assert fit.residual < 1e-12
    assert fit.ridge == 0.1


def test_cross_validation_in_closed_form_equals_refitting(problem):
    _, y, k = problem
    folds = [np.array([0, 5, 7]), np.array([1, 2, 3, 4]), np.array([6, 8, 9, 10, 11])]
    for chosen in (folds, [np.array([i]) for i in range(12)]):
        expected = np.empty_like(y)
        for fold in chosen:
            rest = np.setdiff1d(np.arange(12), fold)
            dual = kernel_regression(k[np.ix_(rest, rest)], y[rest], ridge=0.2).dual
            expected[fold] = y[fold] - k[np.ix_(fold, rest)] @ dual
        found = cross_validation_residuals(k, y, ridge=0.2, folds=None if len(chosen) == 12 else chosen)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    with pytest.raises(ValueError, match="exactly once"):
        cross_validation_residuals(k, y, ridge=0.2, folds=[np.arange(11)])


def test_gradient_flow_solves_its_differential_equation(problem):
    _, y, k = problem
    flow = gradient_flow(k, y)
    path = scipy.integrate.solve_ivp(
        lambda _, f: -(k @ (f.reshape(y.shape) - y)).ravel(), (0, 0.7), np.zeros(y.size), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(flow.mean(k, 0.7), path.y[:, -1].reshape(y.shape), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(flow.dual(0.0), np.zeros_like(y))
    np.testing.assert_allclose(flow.dual(np.inf), np.linalg.solve(k, y), rtol=1e-7)
    np.testing.assert_allclose(flow.dual(1e12), flow.dual(np.inf), rtol=1e-7)
    with pytest.raises(ValueError, match="time is -1"):
        flow.dual(-1.0)


def test_the_ensemble_covariance_is_that_of_flows_from_random_starts(problem):
    x, y, k = problem
    nngp_kernel = analytic_nngp(FullyConnected(3, 1, 2, "scalar"))
    z = np.random.default_rng(1).normal(size=(3, 3))
    both = np.concatenate([z, x])
    nngp, ntk = gram(nngp_kernel, both), gram(KERNEL, both)
    starts = np.linalg.cholesky(nngp + 1e-12 * np.eye(15)) @ np.random.default_rng(2).normal(size=(15, 20000))
    # f_t(z) = f_0(z) + K_zX g_t(K) (y - f_0(X)), one flow per start
    flow = gradient_flow(k, y)
    response = gradient_flow(k, np.eye(12)).mean(ntk[:3, 3:], 0.5)
    ends = starts[:3] - response @ starts[3:]
    found = flow.covariance(ntk[:3, 3:], nngp[:3, :3], nngp[:3, 3:], nngp[3:, 3:], 0.5)
    scale = np.sqrt(np.outer(np.diagonal(found), np.diagonal(found)))
    assert np.all(np.abs(np.cov(ends) - found) <= 5 * scale * np.sqrt(2 / 20000))
    np.testing.assert_allclose(
        flow.covariance(ntk[:3, 3:], nngp[:3, :3], nngp[:3, 3:], nngp[3:, 3:], 0.0), nngp[:3, :3]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_singular_matrices_give_one_clear_error_or_a_finite_answer(problem, dtype):
    x, y, _ = problem
    x, y = np.concatenate([x, x[:1]]).astype(dtype), np.concatenate([y, y[:1]]).astype(dtype)
    k = gram(KERNEL, x)
    with pytest.raises(ValueError, match="not numerically positive definite") as caught:
        kernel_regression(k, y, ridge=0.0)
    advised = float(str(caught.value).split("at least ")[1].split(",")[0])
    fit = kernel_regression(k, y, ridge=advised)
    assert np.all(np.isfinite(fit.dual))
    assert fit.condition_number > 1e3
    flow = gradient_flow(k, y)
    assert flow.rank == 12
    for time in (0.0, 1.0, np.inf):
        assert np.all(np.isfinite(flow.dual(time)))
    tolerance = 1e-2 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(flow.mean(k, np.inf), y, atol=tolerance)
    assert flow.dual(1.0).dtype == dtype


def test_bad_systems_are_refused(problem):
    _, y, k = problem
    with pytest.raises(ValueError, match=r"shape \(12, 12\) for 11"):
        kernel_regression(k, y[:11], ridge=0.0)
    with pytest.raises(ValueError, match="ridge is -1"):
        kernel_regression(k, y, ridge=-1.0)
    with pytest.raises(ValueError, match="nan or infinite"):
        kernel_regression(np.where(k > 1, np.nan, k), y, ridge=1.0)


def test_conjugate_gradients_find_the_solution_and_bound_its_error(tmp_path):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    k = gram(KERNEL, x)
    exact = np.linalg.solve(k + 1e-3 * np.eye(60), y)
    preconditioner = pivoted_cholesky(KERNEL, x, rank=30, ridge=1e-3)
    left = np.trace(k - preconditioner.factor @ preconditioner.factor.T) / np.trace(k)
    np.testing.assert_allclose(preconditioner.trace_left, left, rtol=1e-6)
    v = rng.normal(size=(60, 2))
    dense = preconditioner.factor @ preconditioner.factor.T + preconditioner.shift * np.eye(60)
    np.testing.assert_allclose(preconditioner(v), np.linalg.solve(dense, v), rtol=1e-8, atol=1e-9)
    store = gram(KERNEL, x, tile=25, out=tmp_path / "k")
    plain = conjugate_gradients(k.__matmul__, y, ridge=1e-3, tolerance=1e-10)
    for matvec in (k.__matmul__, kernel_matvec(KERNEL, x, tile=25), stored_matvec(store, tile=25)):
        found = conjugate_gradients(matvec, y, ridge=1e-3, preconditioner=preconditioner, tolerance=1e-10)
        assert found.converged
        error = np.linalg.norm(found.dual - exact, axis=0) / np.linalg.norm(y, axis=0)
        assert np.all(error <= found.error_bound)
        assert found.num_iterations < 0.7 * plain.num_iterations
    cut = conjugate_gradients(k.__matmul__, y, ridge=1e-3, max_iterations=3)
    assert not cut.converged
    assert cut.num_iterations == 3
    assert np.all(np.linalg.norm(cut.dual - exact, axis=0) / np.linalg.norm(y, axis=0) <= cut.error_bound)


def test_a_zero_column_of_targets_has_the_zero_solution():
    k = np.eye(4) + 1.0
    y = np.array([[1.0, 0.0]] * 4)
    found = conjugate_gradients(k.__matmul__, y, ridge=0.0)
    np.testing.assert_allclose(found.dual, np.linalg.solve(k, y), atol=1e-12)
    assert found.converged


def test_impossible_ranks_are_refused():
    with pytest.raises(ValueError, match="rank is 5 for 4"):
        pivoted_cholesky(KERNEL, np.ones((4, 3)), rank=5, ridge=1.0)
