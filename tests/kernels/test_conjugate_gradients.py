"""Iterative solutions, their errors and their preconditioners against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import (
    analytic_ntk,
    conjugate_gradients,
    gram,
    kernel_matvec,
    kernel_regression,
    nystrom,
    pivoted_cholesky,
    stored_matvec,
)
from ntk_robust.models import FullyConnected

KERNEL = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))
RIDGE = 1e-3


@pytest.fixture(scope="module")
def system():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    k = gram(KERNEL, x, tile=60)
    return x, y, k, np.linalg.solve(k + RIDGE * np.eye(60), y)


def _preconditioners(x, k):
    return {
        "pivoted": pivoted_cholesky(KERNEL, x, rank=30, ridge=RIDGE),
        "nystrom": nystrom(k.__matmul__, 60, rank=30, ridge=RIDGE, key=jax.random.key(0), dtype=np.float64),
    }


@pytest.mark.slow
def test_preconditioners_invert_what_they_say(system):
    x, _, k, _ = system
    v = np.random.default_rng(4).normal(size=(60, 2))
    for name, preconditioner in _preconditioners(x, k).items():
        u, mu = preconditioner.vectors, preconditioner.shift
        np.testing.assert_allclose(u.T @ u, np.eye(30), atol=1e-12, err_msg=name)
        dense = (u * preconditioner.values) @ u.T + mu * (np.eye(60) - u @ u.T)
        np.testing.assert_allclose(preconditioner(v), np.linalg.solve(dense, v), rtol=1e-8, atol=1e-9, err_msg=name)
        assert mu >= RIDGE
    pivoted = _preconditioners(x, k)["pivoted"]
    approximation = (pivoted.vectors * (pivoted.values - pivoted.shift)) @ pivoted.vectors.T
    np.testing.assert_allclose(pivoted.trace_left, np.trace(k - approximation) / np.trace(k), rtol=1e-6)


def test_sketches_and_pivots_of_full_rank_are_the_matrix_itself(system):
    x, y, k, exact = system
    for preconditioner in (
        pivoted_cholesky(KERNEL, x, rank=60, ridge=RIDGE),
        nystrom(k.__matmul__, 60, rank=60, ridge=RIDGE, key=jax.random.key(1), dtype=np.float64),
    ):
        found = conjugate_gradients(k.__matmul__, y, ridge=RIDGE, preconditioner=preconditioner)
        assert found.num_products <= 8
        np.testing.assert_allclose(found.dual, exact, rtol=1e-3)


def test_conjugate_gradients_find_the_solution_and_bound_its_error(system, tmp_path):
    x, y, k, exact = system
    store = gram(KERNEL, x, tile=25, out=tmp_path / "k")
    plain = conjugate_gradients(k.__matmul__, y, ridge=RIDGE, tolerance=1e-10)
    size = np.linalg.norm(y, axis=0)
    matvecs = (kernel_matvec(KERNEL, x, tile=25), stored_matvec(store), stored_matvec(k, tile=25))
    for preconditioner in _preconditioners(x, k).values():
        for matvec in matvecs:
            found = conjugate_gradients(matvec, y, ridge=RIDGE, preconditioner=preconditioner, tolerance=1e-10)
            assert found.converged
            error = found.dual - exact
            assert np.all(np.linalg.norm(error, axis=0) / size <= found.error_bound)
            assert np.all(np.sqrt(np.sum(error * (k @ error), axis=0)) <= found.rkhs_error_bound)
            assert found.num_products < 0.7 * plain.num_products
    np.testing.assert_allclose(plain.dual, exact, rtol=1e-5)


def test_a_solution_cut_short_says_by_how_much_it_errs(system):
    _, y, k, exact = system
    a = k + RIDGE * np.eye(60)
    previous = np.inf
    for products in (3, 10, 20, 40):
        cut = conjugate_gradients(k.__matmul__, y, ridge=RIDGE, max_products=products, tolerance=1e-9)
        assert (cut.converged, cut.num_products) == (False, products)
        np.testing.assert_allclose(
            cut.residual, np.linalg.norm(a @ cut.dual - y, axis=0) / np.linalg.norm(y, axis=0), rtol=1e-7
        )
        error = cut.dual - exact
        energy = np.sqrt(np.sum(error * (a @ error), axis=0) / np.sum(exact * (a @ exact), axis=0))
        assert np.all(np.linalg.norm(error, axis=0) / np.linalg.norm(y, axis=0) <= cut.error_bound)
        assert np.all(np.sqrt(np.sum(error * (k @ error), axis=0)) <= cut.rkhs_error_bound)
        # an estimate: of the error four steps before, from below, and within a factor of what is left now
        assert np.all((energy <= 20 * cut.energy_error) & (cut.energy_error <= previous))
        previous = 1.0


def test_an_error_bound_that_forgets_the_ridge_would_be_noticed(system):
    _, y, k, exact = system
    cut = conjugate_gradients(k.__matmul__, y, ridge=RIDGE, max_products=40)
    error = np.linalg.norm(cut.dual - exact, axis=0) / np.linalg.norm(y, axis=0)
    assert np.any(error > cut.residual)


def test_products_in_float32_reach_a_residual_near_its_rounding_and_say_so(system):
    _, y, k, _ = system
    matvec = stored_matvec(k.astype(np.float32), tile=25)
    found = conjugate_gradients(matvec, y, ridge=0.1, tolerance=1e-5)
    assert found.converged
    np.testing.assert_allclose(found.dual, np.linalg.solve(k + 0.1 * np.eye(60), y), rtol=1e-2, atol=1e-3)
    impossible = conjugate_gradients(matvec, y, ridge=RIDGE, tolerance=1e-12, max_products=300)
    assert not impossible.converged
    assert np.all(impossible.residual < 1e-3)
    assert np.all(np.isfinite(impossible.dual))
    in_float32 = conjugate_gradients(matvec, y.astype(np.float32), ridge=0.1, tolerance=1e-5)
    assert in_float32.dual.dtype == np.float32


def test_a_factor_in_float32_refines_to_float64(system):
    _, y, k, exact = system
    rough = kernel_regression(k.astype(np.float32), y, ridge=RIDGE)
    assert np.linalg.norm(rough.dual - exact) > 1e-6 * np.linalg.norm(exact)
    found = conjugate_gradients(k.__matmul__, y, ridge=RIDGE, preconditioner=rough.solve, tolerance=1e-13)
    assert found.converged
    assert found.num_products <= 8
    np.testing.assert_allclose(found.dual, exact, rtol=1e-9)


def test_a_zero_column_of_targets_has_the_zero_solution():
    k = np.eye(4) + 1.0
    y = np.array([[1.0, 0.0]] * 4)
    found = conjugate_gradients(k.__matmul__, y, ridge=0.0)
    np.testing.assert_allclose(found.dual, np.linalg.solve(k, y), atol=1e-12)
    assert found.converged
    np.testing.assert_array_equal(found.residual[1], 0.0)


def test_singular_and_indefinite_systems_end_finite_and_are_reported():
    singular = np.diag([1.0, 1.0, 0.0])
    consistent = conjugate_gradients(singular.__matmul__, np.array([[1.0], [2.0], [0.0]]), ridge=0.0)
    assert consistent.converged
    for matrix in (singular, np.diag([1.0, -1e-7, 2.0])):
        found = conjugate_gradients(matrix.__matmul__, np.array([[1.0], [1.0], [1.0]]), ridge=0.0)
        assert not found.converged
        np.testing.assert_array_equal(found.error_bound, np.inf)
        assert np.all(np.isfinite(found.dual))
        assert np.all(found.residual <= 1.0)
    with pytest.raises(ValueError, match="product with the kernel matrix is nan"):
        conjugate_gradients(lambda v: v * np.nan, np.ones((3, 1)), ridge=1.0)


def test_duplicates_leave_no_pivots_behind():
    x = np.repeat(np.random.default_rng(7).normal(size=(8, 3)), 3, axis=0)
    preconditioner = pivoted_cholesky(KERNEL, x, rank=20, ridge=RIDGE)
    assert preconditioner.vectors.shape == (24, 8)
    assert preconditioner.trace_left < 1e-12
    y = np.random.default_rng(8).normal(size=(24, 1))
    k = gram(KERNEL, x, tile=60)
    found = conjugate_gradients(k.__matmul__, y, ridge=RIDGE, preconditioner=preconditioner)
    assert found.converged
    assert found.num_products <= 8
    sketched = nystrom(k.__matmul__, 24, rank=20, ridge=RIDGE, key=jax.random.key(2), dtype=np.float64)
    assert np.all(np.isfinite(sketched(y)))


def test_products_of_a_function_are_those_of_its_matrix():
    x = np.random.default_rng(9).normal(size=(7, 3))
    product = kernel_matvec(lambda a, b: jnp.exp(a @ (a if b is None else b).T), x, tile=3)
    v = np.random.default_rng(10).normal(size=(7, 11))
    np.testing.assert_allclose(product(v), np.exp(x @ x.T) @ v, rtol=1e-12)


def test_impossible_ranks_and_matrices_are_refused():
    with pytest.raises(ValueError, match="rank is 5 for 4"):
        pivoted_cholesky(KERNEL, np.ones((4, 3)), rank=5, ridge=1.0)
    with pytest.raises(ValueError, match="not positive semi-definite on a sketch"):
        nystrom(lambda v: -v, 4, rank=2, ridge=1.0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        stored_matvec(np.ones((2, 3)))
    with pytest.raises(ValueError, match="tolerance is 0"):
        conjugate_gradients(lambda v: v, np.ones((3, 1)), ridge=1.0, tolerance=0.0)


def test_integer_targets_are_solved_for_in_float64():
    k = np.array([[2.0, 0.5], [0.5, 1.0]])
    found = conjugate_gradients(k.__matmul__, np.array([[1], [-1]]), ridge=0.1, preconditioner=None)
    np.testing.assert_allclose(found.dual, np.linalg.solve(k + 0.1 * np.eye(2), [[1.0], [-1.0]]), rtol=1e-5)
