"""Certificates of kernel predictors: against searches over the set, and tight where they say so."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.attacks import PGD, L2Ball, SphereSlice
from ntk_robust.certify import (
    RkhsFunction,
    _rkhs,
    certified_kernel_radius,
    local_kernel_bounds,
    rkhs_bounds,
    rkhs_distance_bound,
)
from ntk_robust.data import sphere_points
from ntk_robust.kernels import ZonalKernel, analytic_nngp, analytic_ntk, kernel_regression, rkhs_distance_squared

D, N = 6, 30


def ntk(num_hidden_layers=2, **options):
    return analytic_ntk(
        models.FullyConnected(
            input_dim=D, width=1, num_hidden_layers=num_hidden_layers, num_outputs="scalar", **options
        )
    )


@pytest.fixture(scope="module")
def function():
    """NTK regression of two signs of directions, with some ridge."""
    x_train = 1.5 * sphere_points(N, D, key=jr.key(0))
    targets = np.sign(np.asarray(x_train)[:, :2])
    kernel = ntk()
    fitted = kernel_regression(np.asarray(kernel.gram(x_train)), targets, ridge=0.1)
    return RkhsFunction(kernel, x_train, jnp.asarray(fitted.dual))


by_norm_of, local_of = eqx.filter_jit(rkhs_bounds), eqx.filter_jit(local_kernel_bounds)
distances = eqx.filter_jit(
    lambda kernel, x, points: jax.vmap(lambda z: jnp.sqrt(rkhs_distance_squared(kernel, x, z)))(points)
)


@eqx.filter_jit
def attacked(function, row, x, perturbations, key):
    """Smallest value that 20 starts of PGD find."""
    attack = PGD(num_steps=20, relative_step=0.2)
    values = jax.vmap(lambda k: attack(lambda q: -row @ function(q), x, perturbations, key=k).value)
    return -jnp.max(values(jr.split(key, 20)))


def plane_points(x, radius, num=400):
    """Points of the ball in a plane through x, where a rotation-invariant supremum is attained."""
    other = jnp.zeros_like(x).at[jnp.argmin(jnp.abs(x))].set(1.0)
    across = other - x * (other @ x) / (x @ x)
    frame = jnp.stack([x / jnp.linalg.norm(x), across / jnp.linalg.norm(across)])
    angle = jnp.linspace(0, 2 * jnp.pi, num)
    return x[None] + radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) @ frame


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [ntk(), analytic_nngp(models.FullyConnected(D, 1, 3, "scalar"))], ids=["ntk", "nngp"]
)
@pytest.mark.parametrize("radius", [1e-3, 1.0])
def test_the_distance_bound_is_the_supremum_over_the_ball(kernel, radius, key):
    x = jr.normal(key, (D,))
    x = 1.2 * x / jnp.linalg.norm(x)
    rim, inside = plane_points(x, radius), plane_points(x, 0.9 * radius)
    largest = float(jnp.max(distances(kernel, x, jnp.concatenate([rim, inside]))))
    bound = float(eqx.filter_jit(rkhs_distance_bound)(kernel, x, L2Ball(radius)))
    assert largest <= bound <= 1.01 * largest


@pytest.mark.slow
def test_on_the_sphere_slice_the_distance_bound_is_attained_at_the_rim(key):
    x = jnp.append(0.6 * sphere_points(1, D - 1, key=key)[0], 0.8)
    smooth, slice_ = ntk(activation=models.Erf()), SphereSlice(0.2)
    for kernel in (ntk(), smooth):
        points = jax.jit(jax.vmap(lambda k: slice_.project(x, x + 5.0 * jr.normal(k, (D,)))))(jr.split(key, 50))
        chords = np.linalg.norm(np.asarray(points) - np.asarray(x), axis=1)
        found = np.asarray(distances(kernel, x, points[np.argsort(-chords)[:3]]))
        bound = float(eqx.filter_jit(rkhs_distance_bound)(kernel, x, slice_))
        assert np.all(found <= bound)
        np.testing.assert_allclose(found[0], bound, rtol=1e-6)


def normalized_on_complex_numbers(u, weights, kink):
    """The kernel's function of the cosine, with complex arguments."""
    theta, u = 0, u.astype(complex)
    for layer, weight in enumerate(weights):
        if layer:
            angle = np.arccos(u)
            theta, u = (1 - kink * angle / np.pi) * theta, u + kink * (np.sin(angle) - angle * u) / np.pi
        theta = theta + weight / sum(weights) * u
    return theta


@pytest.mark.parametrize("case", ["ntk", "leaky nngp"])
def test_the_kernels_have_the_power_series_that_the_bounds_rest_on(case):
    leaky = models.FullyConnected(D, 1, 2, "scalar", activation=models.LeakyRelu(0.3))
    kernel = ntk(3) if case == "ntk" else analytic_nngp(leaky)
    weights, kink = kernel.layer_weights, kernel.kink
    # by the kernel itself, at unit vectors
    u = np.linspace(-0.95, 0.95, 21)
    points = jnp.zeros((21, D)).at[:, 0].set(u).at[:, 1].set(np.sqrt(1 - u**2))
    values = jax.jit(jax.vmap(lambda point: kernel(jnp.eye(D)[0], point) / kernel.scale))(points)
    np.testing.assert_allclose(normalized_on_complex_numbers(u, weights, kink).real, values, atol=1e-12)
    ours = jax.jit(jax.vmap(_rkhs._normalized(kernel)))(jnp.asarray(u))
    np.testing.assert_allclose(ours, values, atol=1e-12)
    # Taylor coefficients by Cauchy's formula on a circle
    circle = 0.8 * np.exp(2j * np.pi * np.arange(256) / 256)
    coefficients = np.fft.fft(normalized_on_complex_numbers(circle, weights, kink)).real / 256 / 0.8 ** np.arange(256)
    assert np.all(coefficients[:40] > -1e-11)
    np.testing.assert_allclose(np.polyval(coefficients[60::-1], u[5:16]), np.asarray(values)[5:16], atol=1e-8)


@pytest.mark.slow
def test_no_attack_on_a_regression_leaves_the_bounds(function, key):
    rows, perturbations = jnp.array([[1.0, 0.0], [-1.0, 1.0]]), L2Ball(0.05)
    x = 1.4 * sphere_points(1, D, key=key)[0]
    points = jax.jit(jax.vmap(lambda k: perturbations.sample(x, key=k)))(jr.split(key, 500))
    outputs = np.asarray(jax.jit(jax.vmap(function))(points)) @ np.asarray(rows).T
    by_norm, local = (bounds_of(function, x, perturbations, rows) for bounds_of in (by_norm_of, local_of))
    for found in (by_norm, local):
        assert np.all((outputs >= np.asarray(found.lower)) & (outputs <= np.asarray(found.upper)))
        for row, lower in zip(rows, found.lower, strict=True):
            assert float(attacked(function, row, x, perturbations, key)) >= float(lower)
    # at small radii the gradient knows more than the norm
    assert np.all(np.asarray(local.upper - local.lower) < np.asarray(by_norm.upper - by_norm.lower))


@pytest.mark.slow
def test_the_angle_bound_is_attained_by_the_worst_function_of_a_norm_and_a_value():
    # in span{k_x, k_z} with z on the rim: k_x lies between f and k_z, so that angles add
    kernel = ntk()
    x = jnp.zeros(D).at[0].set(1.0).at[-1].set(0.5)
    slice_ = SphereSlice(0.3)
    z = slice_.project(x, x.at[1].set(10.0))
    function = RkhsFunction(kernel, jnp.stack([x, z]), jnp.array([[2.0], [-1.2]]))
    found = by_norm_of(function, x, slice_)
    assert float(function(x)[0]) > 0
    np.testing.assert_allclose(found.lower[0], function(z)[0], rtol=1e-4)
    assert float(found.lower[0]) <= float(function(z)[0])


@pytest.mark.slow
def test_no_attack_succeeds_within_a_certified_radius_and_wrong_examples_have_none(function, key):
    xs = 1.5 * sphere_points(3, D, key=key)
    signs = np.sign(np.asarray(jax.jit(jax.vmap(function))(xs))[:, 0])
    rows = jnp.asarray(np.stack([signs, 0 * signs], axis=1))

    @jax.jit
    def radii(rows):
        radius = lambda x, row: certified_kernel_radius(function, x, row[None], L2Ball(1.0), num_halvings=12)  # noqa: E731
        return jax.vmap(radius)(xs, rows)

    proven = np.asarray(radii(rows))
    assert np.all(proven > 0)
    for x, row, size in zip(xs, rows, proven, strict=True):
        assert float(attacked(function, row, x, L2Ball(size), key)) > 0
    assert np.all(np.asarray(radii(-rows)) == 0)


@pytest.mark.slow
def test_a_remainder_that_is_too_small_is_noticed(function, key, monkeypatch):
    x = 1.4 * sphere_points(1, D, key=key)[0]
    rows, ball = jnp.array([[1.0, 0.0], [-1.0, 1.0]]), L2Ball(0.2)
    lowest, highest = (float(sign * attacked(function, sign * rows[0], x, ball, key)) for sign in (1.0, -1.0))

    def contains(found):
        return float(found.lower[0]) <= lowest <= highest <= float(found.upper[0])

    assert contains(local_of(function, x, ball, rows))
    right = _rkhs._normalized
    monkeypatch.setattr(_rkhs, "_normalized", lambda kernel: lambda u: 1e-3 * right(kernel)(u))
    # a curved function leaves its tangent plane on one side or the other
    assert not contains(eqx.filter_jit(lambda function: local_kernel_bounds(function, x, ball, rows))(function))


@pytest.mark.slow
def test_kernels_and_shapes_of_which_nothing_is_known_are_refused(key):
    smooth = ntk(activation=models.Erf())
    x = jnp.ones(D)
    with pytest.raises(TypeError, match="ZonalKernel"):
        rkhs_distance_bound(smooth, x, L2Ball(0.1))
    with pytest.raises(ValueError, match="one row of dual"):
        RkhsFunction(ntk(), jnp.ones((3, D)), jnp.ones((2, 1)))
    assert isinstance(ntk(), ZonalKernel)
