"""Eigenpairs and Mercer eigenvalues against dense decompositions, closed forms and known decays."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ntk_robust.kernels import (
    analytic_nngp,
    analytic_ntk,
    effective_dimension,
    eigenpairs,
    gram,
    kernel_matvec,
    leading_eigenpairs,
    mercer_spectrum,
    power_coefficients,
    stored_matvec,
)
from ntk_robust.kernels._mercer import _at_angles, _by_quadrature, _by_series, _gauss_legendre, _num_harmonics
from ntk_robust.models import Erf, FullyConnected, LeakyRelu

KERNEL = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))


def _network(dim, depth, b_std=0.0, make=analytic_ntk, activation=None):
    extra = {} if activation is None else {"activation": activation}
    return make(FullyConnected(dim, 1, depth, "scalar", b_std=b_std, **extra))


@pytest.fixture(scope="module")
def matrix():
    x = np.random.default_rng(0).normal(size=(90, 3))
    return x, gram(KERNEL, x, tile=90)


@pytest.mark.slow
def test_leading_eigenpairs_are_those_of_the_dense_matrix_within_their_residuals(matrix):
    x, k = matrix
    exact = np.linalg.eigvalsh(k)[::-1]
    cases = ((k.__matmul__, (1, 5, 20)), (kernel_matvec(KERNEL, x, tile=90), (5,)), (stored_matvec(k), (5,)))
    for matvec, nums in cases:
        for num in nums:
            found = leading_eigenpairs(matvec, 90, num=num, key=jax.random.key(0), tolerance=1e-9)
            assert found.converged
            assert found.num_products < 30
            np.testing.assert_allclose(found.values, exact[:num], rtol=0, atol=1e-9 * exact[0])
            np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(num), atol=1e-10)
            misfit = np.linalg.norm(k @ found.vectors - found.vectors * found.values, axis=0)
            np.testing.assert_allclose(found.residual, misfit, atol=1e-11 * exact[0])


def test_pairs_cut_short_are_within_their_residuals_of_eigenvalues_and_below_them(matrix):
    _, k = matrix
    exact = np.linalg.eigvalsh(k)[::-1]
    for products in (1, 2, 3):
        found = leading_eigenpairs(
            k.__matmul__, 90, num=20, key=jax.random.key(1), tolerance=1e-13, max_products=products
        )
        assert (found.converged, found.num_products) == (False, products)
        distance = np.min(np.abs(found.values[:, None] - exact[None, :]), axis=1)
        assert np.all(distance <= found.residual * (1 + 1e-9))
        assert np.all(found.values <= exact[:20] * (1 + 1e-12))
        assert found.residual[-1] > 1e-6 * exact[0]


def test_matrices_of_low_rank_and_small_ones_end_early():
    v = np.linalg.qr(np.random.default_rng(1).normal(size=(50, 3)))[0]
    k = (v * [3.0, 2.0, 1.0]) @ v.T
    found = leading_eigenpairs(k.__matmul__, 50, num=5, key=jax.random.key(2))
    np.testing.assert_allclose(found.values, [3.0, 2.0, 1.0, 0.0, 0.0], atol=1e-12)
    assert found.num_products <= 2
    whole = leading_eigenpairs(k.__matmul__, 50, num=50, key=jax.random.key(3))
    np.testing.assert_allclose(whole.values[:3], [3.0, 2.0, 1.0], rtol=1e-12)
    zero = leading_eigenpairs(lambda u: 0.0 * u, 4, num=2, key=jax.random.key(4))
    np.testing.assert_array_equal(zero.values, 0.0)
    with pytest.raises(ValueError, match="num is 5 for 4"):
        leading_eigenpairs(lambda u: u, 4, num=5, key=jax.random.key(4))


def test_all_pairs_come_with_their_residuals(matrix):
    _, k = matrix
    found = eigenpairs(k)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(k)[::-1], rtol=1e-9)
    assert np.all(found.residual < 1e-12 * found.values[0])
    with pytest.raises(ValueError, match="nan or infinite"):
        eigenpairs(np.full((2, 2), np.nan))


def test_the_effective_dimension_lies_between_its_bounds(matrix):
    _, k = matrix
    for ridge in (1e-3, 0.1, 10.0):
        exact = np.trace(k @ np.linalg.inv(k + ridge * np.eye(90)))
        np.testing.assert_allclose(effective_dimension(np.linalg.eigvalsh(k), ridge=ridge), exact, rtol=1e-9)
        previous = np.inf
        for num in (5, 20, 60):
            leading = leading_eigenpairs(k.__matmul__, 90, num=num, key=jax.random.key(5), tolerance=1e-8)
            bounds = leading.effective_dimension(trace=np.trace(k), ridge=ridge)
            assert bounds.lower <= exact <= bounds.upper
            assert bounds.upper - bounds.lower <= previous
            previous = bounds.upper - bounds.lower
        assert bounds.upper - bounds.lower < 0.3 * exact
    rough = leading_eigenpairs(k.__matmul__, 90, num=20, key=jax.random.key(6), max_products=1)
    assert rough.effective_dimension(trace=np.trace(k), ridge=0.1).upper >= effective_dimension(
        np.linalg.eigvalsh(k), ridge=0.1
    )
    with pytest.raises(ValueError, match="ridge is 0"):
        effective_dimension(np.ones(3), ridge=0.0)


def test_multiplicities_are_dimensions_of_harmonics():
    assert [_num_harmonics(3, k) for k in range(5)] == [1, 3, 5, 7, 9]
    assert [_num_harmonics(2, k) for k in range(4)] == [1, 2, 2, 2]
    # harmonics of degree k and |x|² times polynomials of degree k - 2 make all homogeneous polynomials
    for dim, k in ((5, 4), (784, 3), (10, 7)):
        assert _num_harmonics(dim, k) == math.comb(dim + k - 1, k) - math.comb(dim + k - 3, k - 2)
        if dim > 2:
            closed = (2 * k + dim - 2) * math.comb(k + dim - 3, k) // (dim - 2)
            assert _num_harmonics(dim, k) == closed


@pytest.mark.parametrize("dim", [2, 3, 10, 784])
def test_powers_have_the_masses_of_their_closed_form(dim):
    # u^2 = 1/d + (1 - 1/d) P_2; u^3 = 3/(d+2) P_1 + (d-1)/(d+2) P_3;
    # u^4 = 3/(d(d+2)) + 6(d-1)/(d(d+4)) P_2 + (d-1)(d+1)/((d+2)(d+4)) P_4
    d = dim
    masses = {
        0: [1, 0, 0, 0, 0],
        1: [0, 1, 0, 0, 0],
        2: [1 / d, 0, 1 - 1 / d, 0, 0],
        3: [0, 3 / (d + 2), 0, (d - 1) / (d + 2), 0],
        4: [3 / (d * (d + 2)), 0, 6 * (d - 1) / (d * (d + 4)), 0, (d - 1) * (d + 1) / ((d + 2) * (d + 4))],
    }
    for power, expected in masses.items():
        found = mercer_spectrum(lambda u, power=power: u**power, dim, num_degrees=6)
        assert np.all(np.abs(found.mass[:5] - expected) <= found.error[:5] + 1e-15)
        assert np.all(found.error[:4] < 1e-8)
        assert abs(found.mass[5]) <= found.error[5]
        assert abs(found.tail) <= np.sum(found.error)


def _relu_masses(dim, num_degrees):
    """Shares of κ_1 = 2d E_w[σ(w·x) σ(w·z)], w uniform on the sphere: 2 d N σ_k² with σ_k the mean of σ P_k."""
    mp = mpmath.mp
    mp.dps = 20
    weight = lambda u: (1 - u * u) ** (mp.mpf(dim - 3) / 2)  # noqa: E731
    total = mp.quad(weight, [-1, 0, 1])
    masses = []
    for k in range(num_degrees):
        order = mp.mpf(dim - 2) / 2
        p = lambda u, k=k, order=order: mp.gegenbauer(k, order, u) / mp.gegenbauer(k, order, 1)  # noqa: E731
        mean = mp.quad(lambda u, p=p: u * p(u) * weight(u), [0, 0.25, 0.5, 1]) / total
        masses.append(float(2 * dim * _num_harmonics(dim, k) * mean**2))
    return np.array(masses)


@pytest.mark.parametrize("dim", [2, 3, 784])
def test_the_arc_cosine_kernel_has_the_masses_of_its_feature_in_every_dimension(dim):
    nngp = _network(dim, 1, make=analytic_nngp)
    found = mercer_spectrum(nngp, dim, num_degrees=12)
    expected = _closed_relu_masses(dim, 12) * found.total
    np.testing.assert_allclose(found.mass, expected, rtol=1e-10, atol=1e-14 if dim < 10 else 0.0)
    assert np.all(np.abs(found.mass - expected) <= found.error + 1e-30)
    assert np.all(found.error <= 1e-11 * found.total)
    assert np.all(found.mass[::2] > 1e3 * found.error[::2])
    np.testing.assert_allclose(found.eigenvalues * found.multiplicities, found.mass)
    np.testing.assert_allclose(found.tail, found.total - expected.sum(), rtol=1e-9)


def _closed_relu_masses(dim, num_degrees):
    """2 d N σ_k² with σ_k in closed form by Rodrigues' formula (Bach, JMLR 2017, appendix D.2), at 50 digits."""
    mp = mpmath.mp
    mp.dps = 50
    masses = []
    for k in range(num_degrees):
        # mean of u_+ P_k: with c = Γ(d/2) / (√π Γ((d-1)/2)) the density of u
        density = mp.gamma(mp.mpf(dim) / 2) / (mp.sqrt(mp.pi) * mp.gamma(mp.mpf(dim - 1) / 2))
        if k == 0:
            mean = density / (dim - 1)
        elif k == 1:
            mean = mp.mpf(1) / (2 * dim)
        else:
            # k-fold integration by parts against (1-u²)^{k+(d-3)/2}; u_+'' is a point mass at 0
            rodrigues = mp.gamma(mp.mpf(dim - 1) / 2) / (2**k * mp.gamma(k + mp.mpf(dim - 1) / 2))
            power = k + mp.mpf(dim - 3) / 2  # (1-u²)^power has its (k-2)-th derivative at 0 in closed form
            half, odd = divmod(k - 2, 2)
            at_zero = 0 if odd else (-1) ** half * mp.binomial(power, half) * mp.factorial(k - 2)
            mean = density * rodrigues * at_zero
        masses.append(float(2 * dim * _num_harmonics(dim, k) * mean**2))
    return np.array(masses)


def test_both_closed_forms_of_the_relu_agree():
    np.testing.assert_allclose(_closed_relu_masses(5, 6), _relu_masses(5, 6), rtol=1e-12, atol=1e-25)


@pytest.mark.parametrize(("make", "exponent"), [(analytic_ntk, 0), (analytic_nngp, 2)])
@pytest.mark.parametrize("depth", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_eigenvalues_decay_as_known_for_relu_networks(make, exponent, depth):
    dim = 4
    found = mercer_spectrum(_network(dim, depth, make=make), dim, num_degrees=161)
    k = np.arange(80, 161, 2)
    slope = np.polyfit(np.log(k), np.log(found.eigenvalues[k]), 1)[0]
    assert slope == pytest.approx(-dim - exponent, abs=0.1)
    if depth == 1:
        assert np.all(np.abs(found.mass[3::2]) <= found.error[3::2])
    else:
        assert np.all(found.mass[3:40:2] > found.error[3:40:2])


@pytest.mark.slow
def test_the_masses_sum_to_the_kernel_at_one():
    kernels = ((3, _network(3, 1)), (784, _network(784, 3)), (20, _network(20, 1, b_std=0.5, activation=Erf())))
    for dim, kernel in kernels:
        found = mercer_spectrum(kernel, dim, num_degrees=60, radius=2.0)
        point = 2.0 * jnp.eye(dim)[0]
        np.testing.assert_allclose(found.total, float(kernel(point, point)), rtol=1e-13)
        known = found.error < 1e-3 * found.total
        assert np.all(found.mass[known] >= -found.error[known])
        assert found.mass[known].sum() <= found.total + found.error[known].sum()
        assert found.mass[known].sum() >= 0.9 * found.total
    smooth = mercer_spectrum(np.exp, 20, num_degrees=30)
    np.testing.assert_allclose(smooth.mass[smooth.error < 1e-9].sum(), math.e, rtol=1e-8)


@pytest.mark.parametrize("kernel", [_network(24, 2, b_std=0.7), _network(24, 2, activation=LeakyRelu(0.2))])
def test_quadrature_and_power_series_are_two_ways_to_the_same_masses(kernel):
    angles, weights = _gauss_legendre(500)
    values = _at_angles(kernel, 1.0, np.append(angles, 0.0))
    by_quadrature, rounding = _by_quadrature(values[:-1], angles, weights, 24, 10)
    by_series, error = _by_series(kernel, 24, 10, 1.0, float(values[-1]))
    assert np.all(np.abs(by_quadrature - by_series) <= rounding + error)
    assert np.all(rounding < 1e-9)
    assert np.all(error < 1e-9)


def test_power_coefficients_are_taylor_coefficients():
    mp = mpmath.mp
    mp.dps = 40
    kappa_0 = lambda u: 1 - mp.acos(u) / mp.pi  # noqa: E731
    kappa_1 = lambda u: (mp.sqrt(1 - u * u) + (mp.pi - mp.acos(u)) * u) / mp.pi  # noqa: E731
    # two hidden layers: Θ/3 = (κ1(κ1) + κ0(κ1) (κ1 + u κ0)) / 3 with the weights of an NTK
    ntk = lambda u: (kappa_1(kappa_1(u)) + kappa_0(kappa_1(u)) * (kappa_1(u) + u * kappa_0(u))) / 3  # noqa: E731
    expected = np.array([float(c) for c in mp.taylor(ntk, 0, 12)])
    found = power_coefficients(_network(3, 2), 13)
    np.testing.assert_allclose(found / found_at_one(_network(3, 2)), expected, rtol=1e-11)
    biased = _network(3, 2, b_std=0.4)
    series = power_coefficients(biased, 400, radius=1.5)
    for u in (-0.7, 0.1, 0.6):
        x, z = 1.5 * jnp.array([1.0, 0.0, 0.0]), 1.5 * jnp.array([u, math.sqrt(1 - u * u), 0.0])
        np.testing.assert_allclose(np.polyval(series[::-1], u), float(biased(x, z)), rtol=1e-12)
    assert np.all(series > 0.0)
    two_layers = power_coefficients(_network(3, 1, make=analytic_nngp), 30)
    np.testing.assert_array_equal(two_layers[3::2], 0.0)
    with pytest.raises(TypeError, match="no power series"):
        power_coefficients(_network(3, 1, activation=Erf()), 5)


def found_at_one(kernel):
    point = jnp.array([1.0, 0.0, 0.0])
    return float(kernel(point, point))


@pytest.mark.slow
def test_gram_eigenvalues_approach_the_mercer_eigenvalues():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(900, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = leading_eigenpairs(gram(KERNEL, x, tile=90).__matmul__, 900, num=4, key=jax.random.key(7), tolerance=1e-4)
    mercer = mercer_spectrum(KERNEL, 3, num_degrees=3)
    expected = np.array([mercer.eigenvalues[0], *[mercer.eigenvalues[1]] * 3])
    np.testing.assert_allclose(found.values / 900, expected, rtol=5 / math.sqrt(900))


def test_a_wrong_dimension_in_the_recurrence_would_be_noticed():
    found = mercer_spectrum(lambda u: u**2, 5, num_degrees=3)
    assert abs(found.mass[2] - (1 - 1 / 6)) > 1e3 * found.error[2]


def test_impossible_spheres_and_infinite_kernels_are_refused():
    with pytest.raises(ValueError, match="dim is 1"):
        mercer_spectrum(lambda u: u, 1, num_degrees=3)
    with pytest.raises(ValueError, match="must be finite"):
        mercer_spectrum(lambda u: np.full_like(u, np.nan), 3, num_degrees=3)
