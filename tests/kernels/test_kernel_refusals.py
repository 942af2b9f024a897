"""What no kernel can do is refused with the value and the remedy, before anything is traced.

The type checker of these tests stops some of it earlier; users do not have it, so that functions are taken without.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import (
    AbstractKernel,
    ScaledKernel,
    _room,
    analytic_ntk,
    analytic_ntk_and_nngp,
    bures_distance,
    cross_validation_residuals,
    effective_dimension,
    effective_rank,
    eigenpairs,
    eigenspace_overlap,
    empirical_nngp,
    empirical_ntk,
    empirical_ntk_diagonal,
    empirical_ntk_vector_product,
    gradient_flow,
    gram,
    kernel_alignment,
    kernel_angle,
    kernel_distance,
    kernel_drift,
    kernel_regression,
    kernel_velocity,
    mercer_spectrum,
    top_mass,
)
from ntk_robust.kernels._forecast import checked
from ntk_robust.models import Convolutional, FullyConnected

K = np.diag([3.0, 2.0, 1.0])
X = jnp.ones((2, 3))


class Linear(AbstractKernel):
    def __call__(self, x, z):
        return x @ z


class FirstCoordinate(AbstractKernel):
    def __call__(self, x, z):
        return x[0] * z[0]


def refused(message, function, *args, **options):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*args, **options)


@pytest.mark.parametrize("metric", [kernel_drift, kernel_alignment, kernel_distance, kernel_angle, bures_distance])
def test_metrics_compare_matrices_of_one_shape_and_of_numbers(metric):
    refused(r"has shape \(3, 3\) and k_\w \(1, 3\); give matrices of|shape \(1, 3\); give the square", metric, K, K[:1])
    holed = K.copy()
    holed[1, 2] = np.nan
    refused(r"is nan at \(1, 2\); find out", metric, K, holed)
    assert np.isnan(jax.jit(kernel_drift)(holed, K))  # a traced matrix has no values to refuse


def test_metrics_of_one_matrix_take_square_ones():
    refused(r"gram has shape \(3,\); give the square", effective_rank, K[0])
    refused(r"gram has shape \(2, 3\); give the square", top_mass, K[:2], 1)
    refused(r"k_2 has shape \(2, 3\); give the square", eigenspace_overlap, K, K[:2], 1)
    refused(r"give matrices of the same examples", eigenspace_overlap, K, K[:2, :2], 1)


def test_velocities_need_a_time_for_each_kernel_and_times_that_increase():
    path = np.stack([K, 2 * K, 3 * K])
    refused("time 2 is 1.0 after 1.0; give times that increase", kernel_velocity, path, np.array([0.0, 1.0, 1.0]))
    refused("time 1 is 0.0 after 2.0; give times that increase", kernel_velocity, path, np.array([2.0, 0.0, 3.0]))
    refused(r"times \(2,\); give one time for each", kernel_velocity, path, np.array([0.0, 1.0]))


def test_spectra_are_of_symmetric_matrices_and_dimensions_of_eigenvalues():
    skew = K.copy()
    skew[0, 2] = 1e-6
    refused(r"not symmetric: 1e-06 at \(0, 2\) and 0.0 at \(2, 0\)", eigenpairs, skew)
    rounded = K.copy()
    rounded[0, 2] = 1e-14
    np.testing.assert_allclose(eigenpairs(rounded).values, [3.0, 2.0, 1.0])
    refused(r"shape \(3,\); give a square", eigenpairs, K[0])
    refused(r"shape \(3, 3\); for a matrix give eigenpairs\(matrix\).values", effective_dimension, K, ridge=0.1)
    refused("eigenvalue 1 is nan", effective_dimension, np.array([1.0, np.nan]), ridge=0.1)
    refused("give one each", effective_dimension, K[0], ridge=0.1, multiplicities=np.ones(2))


def test_mercer_spectra_are_of_kernels_of_the_angle_in_whole_dimensions():
    refused("depends on more than norms and angle", mercer_spectrum, FirstCoordinate(), 3, num_degrees=2)
    image = analytic_ntk(Convolutional((2, 2, 1), 1, 1, "scalar"))
    refused(
        r"cannot be evaluated at points of a circle \(x1 has shape \(1, 2\)", mercer_spectrum, image, 4, num_degrees=2
    )
    refused("dim is 3.5; give a whole number", mercer_spectrum, np.square, 3.5, num_degrees=2)
    refused("num_degrees is 2.5; give a whole number", mercer_spectrum, np.square, 3, num_degrees=2.5)
    refused(r"shape \(\) for \d+ cosines", mercer_spectrum, lambda u: 1.0, 3, num_degrees=2)


@pytest.mark.parametrize("matrix", [gram, Linear.gram])
def test_matrices_take_rows_of_floats_of_one_width(matrix):
    refused(r"x1 has dtype int64; cast it to floats", matrix, Linear(), X.astype(int))
    refused(r"x1 has shape \(3,\); give one flat example per row, x1\[None\] for one", matrix, Linear(), X[0])
    refused(r"x1 has shape \(0, 3\): no examples", matrix, Linear(), X[:0])
    refused(r"x1 has shape \(2, 3\) and x2 \(2, 2\); give examples of one shape", matrix, Linear(), X, X[:, :2])
    if matrix is not gram:
        refused("x1 is a list; give an array", matrix, Linear(), X.tolist())
    refused("kernel is 'relu'; give a kernel", checked, "relu", X, None)


def test_networks_of_images_take_images_of_their_size_only():
    kernel = analytic_ntk(Convolutional((2, 2, 1), 1, 1, "scalar"))
    refused(r"x1 has shape \(2, 8\); give one example per row, \(rows, 4\)", type(kernel).gram, kernel, np.ones((2, 8)))
    refused(r"shape \(1, 8\); give one example per row, \(rows, 4\)", gram, kernel, np.ones((2, 8)))
    refused(r"x1 has dtype int64", type(kernel).gram, kernel, np.ones((2, 4), int))


def test_a_factor_is_one_number_of_at_least_zero():
    kernel = Linear()
    for factor in (-1, -0.5, np.float32(-2), jnp.float64(-3), np.nan, np.inf):
        for product in (lambda f: kernel * f, lambda f: f * kernel, lambda f: ScaledKernel(kernel, f)):
            with pytest.raises(ValueError, match=f"times {float(factor)} is not positive semi-definite; give a number"):
                product(factor)
    for factor in (np.ones(2), jnp.ones(2), [1.0, 2.0], [[1], [2, 3]], "2", None, True, 1j):
        for product in (lambda f: kernel * f, lambda f: f * kernel, lambda f: kernel / f):
            with pytest.raises(ValueError, match=r"a kernel times .* is no kernel; give one number of at least 0"):
                product(factor)
    with pytest.raises(ValueError, match="a kernel over 0 is no kernel"):
        _ = kernel / 0


def test_factors_of_any_kind_are_numbers_and_sums_start_at_nothing():
    kernel, matrix = Linear(), X @ X.T
    for scaled in (2 * kernel, kernel * np.float32(2), jnp.float32(2) * kernel, kernel / np.float64(0.5)):
        assert scaled.scale == 2.0
        assert type(scaled.scale) is float
    np.testing.assert_allclose(sum([kernel, kernel]).gram(X), 2 * matrix)
    np.testing.assert_allclose(jax.jit((jnp.float32(2) * kernel).gram)(X), 2 * matrix)
    np.testing.assert_allclose(jax.grad(lambda c: jnp.sum((c * kernel).gram(X)))(2.0), matrix.sum())
    np.testing.assert_allclose(jax.grad(lambda c: jnp.sum((kernel / c).gram(X)))(2.0), -matrix.sum() / 4)
    with pytest.raises(ValueError, match=r"array of shape \(2,\) is no kernel"):
        jax.jit(lambda c: (c * kernel).gram(X))(jnp.ones(2))


class IntoOld(Linear):
    def gram(self, x1, x2=None, *, out=None):
        return x1 @ x1.T if out is None else out  # what the old matrix held shows that it was handed on


def test_sums_products_and_multiples_hand_the_old_matrix_to_their_first_kernel():
    old, fresh = jnp.full((2, 2), 7.0), 3.0  # the entries of x x^T
    for kernel, expected in (
        (2 * IntoOld(), 2 * 7.0),
        (IntoOld() + IntoOld(), 7.0 + fresh),
        (IntoOld() * IntoOld(), 7.0 * fresh),
        (2 * IntoOld() + Linear(), 2 * 7.0 + fresh),
    ):
        np.testing.assert_array_equal(kernel.gram(X, out=old), np.full((2, 2), expected))
    with pytest.raises(TypeError, match="out"):
        (Linear() + IntoOld()).gram(X, out=old)


def test_empirical_kernels_say_what_is_wrong_with_examples_outputs_and_weights():
    model = FullyConnected(3, 4, 1, 2)
    params = model.init(key=jax.random.key(0), dtype=jnp.float32)
    for function in (empirical_ntk, empirical_ntk_diagonal, empirical_nngp):
        refused(r"x1 has shape \(0, 3\): no examples", function, model.apply, params, X[:0])
        refused(r"x1 has shape \(3,\); give one example per row, \(rows, 3\)", function, model.apply, params, X[0])
        refused(
            r"x1 has shape \(2, 2\); give one example per row, \(rows, 3\)", function, model.apply, params, X[:, :2]
        )
        refused("x1 has dtype int64", function, model.apply, params, X.astype(int))
    refused(r"x1 has shape \(2, 3\) and x2 \(2, 2\)", empirical_ntk, lambda p, x: x @ p, jnp.ones(3), X, X[:, :2])
    refused(
        "params2 PyTreeDef.*; give two states of one network", empirical_ntk, model.apply, params, X, params2=params[:1]
    )
    wide = FullyConnected(3, 5, 1, 2).init(key=jax.random.key(0))
    message = r"params\[0\].weight has shape \(4, 3\) and in params2 \(5, 3\); give two states"
    refused(message, empirical_ntk, model.apply, params, X, params2=wide)
    for function in (empirical_ntk, empirical_nngp):
        refused(
            "returned a tuple for one example; give", function, lambda p, x: (x @ p, x), jnp.ones(3), jnp.asarray(X)
        )
    product = lambda p, x: x @ p  # noqa: E731
    refused("vectors has dtype int64; cast", empirical_ntk_vector_product, product, jnp.ones(3), np.ones(2, int), X)


def test_matrices_take_points_of_the_network_only():
    for kernel in (
        analytic_ntk(FullyConnected(3, 4, 1, 1)),
        analytic_ntk(FullyConnected(3, 4, 1, 1, b_std=0.1)),
        analytic_ntk_and_nngp(FullyConnected(3, 4, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"shape \(2, 4\); give one example per row, \(rows, 3\)"):
            kernel.gram(jnp.ones((2, 4)))


def test_a_matrix_larger_than_memory_is_refused_before_it_is_begun(monkeypatch):
    monkeypatch.setattr(_room, "_ALWAYS_FITS", 0)
    monkeypatch.setattr(_room, "memory_available", lambda: 100)
    model = FullyConnected(3, 4, 1, 1)
    x, large = jnp.ones((3, 3), jnp.float32), jnp.ones((6, 3), jnp.float32)  # 36 and 144 bytes
    params = model.init(key=jax.random.key(0), dtype=jnp.float32)
    pooled = analytic_ntk(Convolutional((2, 2, 1), 1, 1, 1, pooling="average"))
    cases = (
        analytic_ntk(model).gram,
        Linear().gram,
        lambda x: empirical_ntk(model.apply, params, x),
        lambda x: empirical_nngp(model.apply, params, x),
        lambda x: kernel_regression(np.eye(len(x), dtype=np.float32), np.ones((len(x), 1)), ridge=0.0),
        lambda x: cross_validation_residuals(np.eye(len(x) - 1), np.ones((len(x) - 1, 1)), ridge=0.0),
        lambda x: gradient_flow(np.eye(len(x) - 1), np.ones((len(x) - 1, 1))),
    )
    for function in cases:
        function(x)
        with pytest.raises(ValueError, match=r"available; take (ntk_robust.kernels.gram|conjugate_gradients)"):
            function(large)
    with pytest.raises(ValueError, match="with 16 numbers for each pair"):
        pooled.gram(jnp.ones((3, 4), jnp.float32))
    jax.eval_shape(analytic_ntk(model).gram, large)  # nothing is computed
    monkeypatch.setattr(_room, "memory_available", lambda: None)
    analytic_ntk(model).gram(large)
