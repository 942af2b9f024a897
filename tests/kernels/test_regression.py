"""Regression and gradient flow against dense linear algebra, refitting, and neural-tangents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from ntk_robust.data import load_dataset
from ntk_robust.kernels import (
    analytic_nngp,
    analytic_ntk,
    cross_validation_residuals,
    gradient_flow,
    gram,
    kernel_regression,
    load_neural_tangents,
)
from ntk_robust.kernels._regression import _checked
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
    assert fit.relative_error == pytest.approx(fit.condition_number * 2.2e-16, rel=0.01)


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


@pytest.fixture(scope="module")
def ensemble():
    """Means and covariances of neural-tangents, which builds the same kernels from its own layers."""
    nt = load_neural_tangents()
    stax, rng = nt.stax, np.random.default_rng(5)
    layers = [stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1, W_std=2**0.5), stax.Relu()]
    kernel_fn = stax.serial(*layers, stax.Dense(1, W_std=2**0.5))[2]
    x, z, y = jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.normal(size=(4, 3))), rng.normal(size=(9, 2))

    def predicted(time, ridge):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            predict = nt.predict.gradient_descent_mse_ensemble(
                kernel_fn, x, jnp.asarray(y), diag_reg=ridge, diag_reg_absolute_scale=True
            )
            return predict(time, z, ("ntk", "nngp"), compute_cov=True)

    ntk, nngp = (make(FullyConnected(3, 1, 2, "scalar")) for make in (analytic_ntk, analytic_nngp))
    grams = {
        name: (gram(kernel, np.asarray(x)), gram(kernel, np.asarray(z), np.asarray(x)), gram(kernel, np.asarray(z)))
        for name, kernel in (("ntk", ntk), ("nngp", nngp))
    }
    return predicted, grams, y


@pytest.mark.slow
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_means_and_covariances_of_ensembles_are_those_of_neural_tangents(ensemble, ridge):
    predicted, grams, y = ensemble
    nngp_train, nngp_cross, nngp_test = grams["nngp"]
    for name in ("ntk", "nngp"):
        train, cross, _ = grams[name]
        flow = gradient_flow(train, y, ridge=ridge)
        for time in (0.0, 0.7, 30.0, np.inf):
            expected = getattr(predicted(None if time == np.inf else time, ridge), name)
            scaled = time / y.size  # neural-tangents descends on the mean over examples and outputs
            np.testing.assert_allclose(flow.mean(cross, scaled), expected.mean, rtol=1e-7, atol=1e-9)
            if name == "ntk" or ridge == 0.0:  # with a ridge its "nngp" covariance is the posterior, tested below
                found = flow.covariance(cross, nngp_test, nngp_cross, nngp_train, scaled)
                np.testing.assert_allclose(found, expected.covariance, rtol=1e-7, atol=1e-8)
    fit = kernel_regression(grams["ntk"][0], y, ridge=ridge)
    end = predicted(None, ridge)
    np.testing.assert_allclose(fit(grams["ntk"][1]), end.ntk.mean, rtol=1e-7, atol=1e-9)
    covariance = fit.covariance(grams["ntk"][1], nngp_test, nngp_cross, nngp_train)
    np.testing.assert_allclose(covariance, end.ntk.covariance, rtol=1e-7, atol=1e-8)
    posterior = kernel_regression(nngp_train, y, ridge=ridge).posterior_covariance(nngp_test, nngp_cross)
    np.testing.assert_allclose(posterior, end.nngp.covariance, rtol=1e-7, atol=1e-8)


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
    with pytest.raises(ValueError, match="differ by up to"):
        kernel_regression(np.triu(k), y, ridge=1.0)
    with pytest.raises(ValueError, match="nan or infinite"):
        gradient_flow(np.where(k > 1, np.inf, k), y)


@pytest.fixture(scope="module")
def hard_sets():
    """Digits of three layers: as they are, with coincident rows, with almost coincident ones, and 300 in a plane."""
    digits = load_dataset("digits")
    x = np.asarray(digits.x_train)[:150]
    y = np.eye(10)[np.asarray(digits.y_train)[:150]]
    rng = np.random.default_rng(6)
    twins = np.concatenate([x[:75], x[:75] + 1e-6 * rng.normal(size=x[:75].shape)])
    plane = rng.normal(size=(150, 2)) @ rng.normal(size=(2, 64))
    return {
        "digits": (x, y),
        "duplicates": (np.concatenate([x[:75], x[:75]]), y),
        "twins": (twins, y),
        "plane": (plane, y),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["digits", "duplicates", "twins", "plane"])
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_hard_systems_give_a_finite_answer_with_its_condition_or_one_clear_error(hard_sets, name, dtype, ridge):
    x, y = (part.astype(dtype) for part in hard_sets[name])
    k = gram(analytic_ntk(FullyConnected(64, 1, 3, "scalar")), x)
    try:
        fit = kernel_regression(k, y, ridge=ridge)
    except ValueError as error:
        assert "not numerically positive definite" in str(error)  # noqa: PT017 - either outcome is right, not a third
        assert (name, ridge) in {("duplicates", 0.0), ("duplicates", 1e-6), ("twins", 0.0), ("twins", 1e-6)}
        advised = float(str(error).split("at least ")[1].split(",")[0])
        fit = kernel_regression(k, y, ridge=advised)
    assert np.all(np.isfinite(fit.dual))
    assert fit.dual.dtype == dtype
    # the condition report is true: against the exact condition number in float64
    exact = np.linalg.cond(k.astype(np.float64) + fit.ridge * np.eye(150), 1)
    if exact < 0.1 / np.finfo(dtype).eps:
        assert 0.1 * exact <= fit.condition_number <= 2 * exact
    else:
        assert fit.relative_error > 0.01
    # and the error that it announces covers the one made
    truth = np.linalg.solve(k.astype(np.float64) + fit.ridge * np.eye(150), y.astype(np.float64))
    if fit.relative_error < 0.1:
        assert np.linalg.norm(fit.dual - truth) <= 10 * fit.relative_error * np.linalg.norm(truth)
    flow = gradient_flow(k, y, ridge=ridge)
    for time in (0.0, 1.0, 1e6, np.inf):
        assert np.all(np.isfinite(flow.dual(time)))
    assert np.isfinite(flow.condition_number)
    residuals = cross_validation_residuals(k, y, ridge=fit.ridge)
    assert np.all(np.isfinite(residuals))


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-3), (np.float64, 1e-7)])
def test_late_flow_on_a_singular_kernel_is_the_end_of_the_flow(dtype, rtol):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    x = np.concatenate([x, x[:5]])  # with other targets, so that no time fits them
    k = np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)).astype(dtype)
    y = rng.normal(size=(25, 1)).astype(dtype)
    flow = gradient_flow(k, y)
    end = flow.mean(k, np.inf)
    for time in (1e5, 1e9, 1e15, 1e30):
        np.testing.assert_allclose(flow.mean(k, time), end, rtol=rtol, atol=rtol)
    assert flow.rank == 20
    assert not np.any(flow.dual(0.0))


def test_targets_without_columns_and_integer_kernels_are_refused(problem):
    _, y, k = problem  # where nobody checks the types of arguments
    with pytest.raises(ValueError, match=r"shape \(12,\); give a column"):
        _checked(k, y[:, 0], 0.1, copies=1)
    with pytest.raises(ValueError, match="holds int64"):
        _checked(np.eye(12, dtype=int), y, 0.1, copies=1)
    with pytest.raises(ValueError, match="the kernel matrix is zero"):
        kernel_regression(np.zeros((12, 12)), y, ridge=0.0)
