"""Best fits in a ball, against linear programs and brute force."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jaxtyping import Array, Float

from ntk_robust.attacks import LinfBall, SphereSlice
from ntk_robust.data import circle_points
from ntk_robust.expressiveness import (
    ArcSets,
    AttackedSets,
    PointSets,
    TangentKernel,
    best_fit,
    error_curve,
    whole_circle,
)
from ntk_robust.kernels import AbstractKernel, analytic_ntk
from ntk_robust.models import PairedTwoLayerNet, Relu, Softplus


class Linear(AbstractKernel):
    """<x, z>, whose functions are linear."""

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.vdot(x, z)


def third_harmonic(x: Array) -> Array:
    return 4.0 * x[0] ** 3 - 3.0 * x[0]


def grid(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 2))
    return points, np.sin(2 * points[:, 0]) + points[:, 1]


def test_in_a_large_ball_it_is_the_chebyshev_approximation_on_thousands_of_points():
    points, targets = grid(4000)
    rows = np.block([[points, -np.ones((4000, 1))], [-points, -np.ones((4000, 1))]])
    program = scipy.optimize.linprog([0, 0, 1], rows, np.concatenate([targets, -targets]), bounds=(None, None))
    fit = best_fit(Linear(), PointSets(points[None], targets[None]), 30.0, relative_gap=1e-3)
    assert fit.converged
    assert fit.error_lower <= program.fun * (1 + 1e-9)
    assert program.fun <= fit.error_upper * (1 + 1e-9)
    assert fit.error_upper <= fit.error_lower * 1.002
    assert fit.num_constraints < 100


@pytest.mark.parametrize("radius", [0.3, 0.8])
def test_in_a_small_ball_no_point_of_it_does_better_than_the_lower_bound(radius):
    points, targets = grid(90)
    points, targets = points.reshape(15, 6, 2), targets.reshape(15, 6)
    fit = best_fit(Linear(), PointSets(points, targets), radius, relative_gap=1e-3)
    turns, sizes = np.meshgrid(np.linspace(0, 2 * np.pi, 721), np.linspace(0, radius, 60))
    weights = np.stack([sizes * np.cos(turns), sizes * np.sin(turns)], axis=-1)
    errors = np.mean(np.max(np.abs(np.einsum("abd,njd->abnj", weights, points) - targets), axis=-1), axis=-1)
    assert fit.converged
    assert fit.norm <= radius
    assert fit.error_lower <= np.min(errors) <= fit.error_upper * 1.002


@pytest.mark.slow
def test_an_odd_harmonic_stays_out_of_reach_of_a_relu_kernel_at_every_radius():
    kernel = analytic_ntk(PairedTwoLayerNet(3, 8, Relu()))
    curve = error_curve(kernel, whole_circle(third_harmonic, 3.0, 0.0), [1.0, 1000.0], relative_gap=0.02)
    assert curve.fits[-1].error_lower > 0.98
    assert curve.lower(10.0) > 0.98
    assert curve.smallest_radius(0.9)[0] > 1e4
    assert curve.smallest_radius(0.9)[1] == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("finite", [pytest.param(False, marks=pytest.mark.slow), True])
def test_suprema_on_arcs_are_between_a_dense_grid_and_the_certificate(finite, key):
    xs, ys = circle_points(2)
    net = PairedTwoLayerNet(3, 64, Softplus())
    kernel = TangentKernel(net, net.init(key=key)) if finite else analytic_ntk(net)
    arcs = SphereSlice(0.35)
    curve = error_curve(kernel, ArcSets(xs, arcs, ys), [1.0, 2.0])
    half = float(arcs.max_angle(xs[0]))
    angles = np.linspace(-half, half, 100) + np.array([[0.0], [np.pi]])
    points = np.stack([np.cos(angles), np.sin(angles), np.ones_like(angles)], axis=-1) / np.sqrt(2)
    for fit in curve.fits:
        outputs = np.asarray(kernel.gram(jnp.asarray(points.reshape(-1, 3)), fit.points) @ fit.coefficients)
        dense = np.mean(np.max(np.abs(outputs.reshape(2, -1) - np.asarray(ys)[:, None]), axis=1))
        assert fit.converged
        assert fit.error_lower <= dense * (1 + 1e-9)
        assert dense <= fit.error_upper
        assert fit.error_upper <= 1.02 * fit.error_lower
    assert curve.lower(1.5) <= curve.upper(1.5) <= curve.upper(1.0)
    if finite:
        params = kernel.displaced(curve.fits[0].points, curve.fits[0].coefficients)
        moved = np.sqrt(np.sum((params.plus - net.init(key=key).plus) ** 2) * 2)
        assert abs(moved / curve.fits[0].norm - 1) < 1e-6


@pytest.mark.slow
def test_where_certificates_do_not_close_the_function_is_the_one_that_the_attack_cannot_fault(key):
    net = PairedTwoLayerNet(3, 16, Softplus())
    xs, ys = circle_points(2)
    sets = AttackedSets(xs, ys, LinfBall(0.3))
    fit = best_fit(TangentKernel(net, net.init(key=key)), sets, 1.0, relative_gap=0.05)
    assert fit.converged
    assert 0.0 < fit.error_lower <= fit.error_attained <= 1.05 * fit.error_lower < 1.0
    # that of another function: 0 has the error 1, and this one no certificate so good
    assert fit.error_upper == 1.0
    grid = np.stack(np.meshgrid(*[np.linspace(-0.3, 0.3, 7)] * 3), axis=-1).reshape(-1, 1, 3) + np.asarray(xs)
    values = np.asarray(fit.kernel.gram(jnp.asarray(grid.reshape(-1, 3)), fit.points) @ fit.coefficients)
    worst = np.max(np.abs(values.reshape(-1, 2) - np.asarray(ys)), axis=0)
    assert np.mean(worst) <= fit.error_attained * 1.01


def test_a_target_that_rises_faster_than_promised_would_be_noticed():
    with pytest.raises(ValueError, match="target_lipschitz is 0"):
        whole_circle(third_harmonic, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"float32.*jax_enable_x64"):
        PointSets(jnp.zeros((1, 4, 3), jnp.float32), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"radii are \[-1"):
        best_fit(Linear(), PointSets(jnp.ones((1, 4, 3)), jnp.zeros((1, 4))), -1.0)
