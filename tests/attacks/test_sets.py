"""Perturbation sets against linear and quadratic programs, closed forms, and the laws of projections."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_robust.attacks import Box, L1Ball, L2Ball, LinfBall, SphereSlice

D = 4
BOX = Box(0.0, 1.0)
SETS = {
    "linf": LinfBall(0.3),
    "linf-box": LinfBall(0.3, BOX),
    "l2": L2Ball(0.5),
    "l2-box": L2Ball(0.5, BOX),
    "l1": L1Ball(0.7),
    "l1-box": L1Ball(0.7, BOX),
    "sphere": SphereSlice(0.4),
}
CONVEX = [name for name in SETS if name != "sphere"]


@eqx.filter_jit
def visit(perturbations, xs, points, keys):
    """All methods at once, so that each set compiles once."""

    def one(x, point, key):
        made = {
            "project": perturbations.project(x, point),
            "argmax_linear": perturbations.argmax_linear(x, point),
            "sample": perturbations.sample(x, key=key),
        }
        twice = perturbations.project(x, made["project"])
        inside = {name: perturbations.contains(x, found) for name, found in made.items()}
        return made, twice, inside

    return jax.vmap(one)(xs, points, keys)


# What conftest leaves out makes the incomplete beta function of caps in four and more dimensions slow.
@eqx.filter_jit(compiler_options={"xla_backend_optimization_level": 1})
def sample_many(perturbations, x, keys):
    return jax.vmap(lambda key: perturbations.sample(x, key=key))(keys)


project = eqx.filter_jit(lambda perturbations, x, point: perturbations.project(x, point))
argmax_linear = eqx.filter_jit(lambda perturbations, x, direction: perturbations.argmax_linear(x, direction))
contains = eqx.filter_jit(lambda perturbations, x, x_adv, atol=None: perturbations.contains(x, x_adv, atol=atol))


def random_cases(num, dtype=jnp.float64, seed=0):
    """Centres in the box, many of them on its faces; points near and far, some with zeros and ties."""
    rng = np.random.default_rng(seed)
    xs = rng.uniform(size=(num, D))
    xs[rng.uniform(size=xs.shape) < 0.3] = 0.0
    xs[rng.uniform(size=xs.shape) < 0.2] = 1.0
    xs[:, 0] = np.maximum(xs[:, 0], 0.2)
    points = rng.normal(size=(num, D)) * 10.0 ** rng.uniform(-2, 1, size=(num, 1))
    points[rng.uniform(size=points.shape) < 0.15] = 0.0
    points[::7] = np.sign(points[::7])
    return jnp.asarray(xs, dtype), jnp.asarray(points, dtype), jr.split(jr.key(seed), num)


def norm_order(name):
    return {"linf": np.inf, "l2": 2, "l1": 1}[name.split("-")[0]]


def bounds_of(name, x):
    return [(0.0, 1.0)] * D if "box" in name else [(None, None)] * D


IN_FLOAT32 = ["linf-box", "l2-box", "l1-box", "sphere"]


@pytest.mark.parametrize(("name", "dtype"), [(n, jnp.float64) for n in SETS] + [(n, jnp.float32) for n in IN_FLOAT32])
def test_every_method_stays_in_the_set_and_projecting_twice_changes_nothing(name, dtype):
    xs, points, keys = random_cases(300, dtype)
    made, twice, inside = visit(SETS[name], xs, points, keys)
    for method, found in made.items():
        assert found.dtype == dtype
        assert bool(inside[method].all()), method
    np.testing.assert_allclose(twice, made["project"], rtol=0, atol=16 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", CONVEX)
def test_a_point_of_the_set_is_its_own_projection(name):
    xs, points, keys = random_cases(300)
    inner = visit(SETS[name], xs, points, keys)[0]["sample"]
    projected = visit(SETS[name], xs, inner, keys)[0]["project"]
    np.testing.assert_allclose(projected, inner, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", CONVEX)
def test_project_finds_the_closest_point_that_a_quadratic_program_finds(name):
    xs, points, keys = random_cases(300)
    projected = np.asarray(visit(SETS[name], xs, points, keys)[0]["project"])
    epsilon, order = float(SETS[name].epsilon), norm_order(name)
    for x, point, found in list(zip(np.asarray(xs), np.asarray(points), projected, strict=True))[:25]:
        # Split δ = p - q with p, q ≥ 0, so that every norm is smooth or linear in (p, q).
        def distance(pq, x=x, point=point):
            return float(np.sum((x + pq[:D] - pq[D:] - point) ** 2))

        def slope(pq, x=x, point=point):
            gradient = 2 * (x + pq[:D] - pq[D:] - point)
            return np.concatenate([gradient, -gradient])

        room = 1.0 if order == np.inf else np.inf
        limits = [(0, (min(room * epsilon, epsilon)))] * (2 * D)
        constraints = []
        if order == 1:
            constraints.append({"type": "ineq", "fun": lambda pq: epsilon - pq.sum(), "jac": lambda _: -np.ones(2 * D)})
        if order == 2:
            constraints.append({"type": "ineq", "fun": lambda pq: epsilon**2 - np.sum((pq[:D] - pq[D:]) ** 2)})
        if "box" in name:
            constraints.append({"type": "ineq", "fun": lambda pq, x=x: x + pq[:D] - pq[D:]})
            constraints.append({"type": "ineq", "fun": lambda pq, x=x: 1 - x - pq[:D] + pq[D:]})
        solved = scipy.optimize.minimize(
            distance, np.zeros(2 * D), jac=slope, bounds=limits, constraints=constraints, method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )  # fmt: skip
        assert np.sum((found - point) ** 2) <= solved.fun + 1e-7
        np.testing.assert_allclose(found, x + solved.x[:D] - solved.x[D:], atol=2e-4)


@pytest.mark.parametrize("name", CONVEX)
def test_projections_satisfy_the_variational_inequality_at_every_sampled_and_extreme_point(name):
    xs, points, keys = random_cases(300)
    made, _, _ = visit(SETS[name], xs, points, keys)
    away = points - made["project"]
    extreme = visit(SETS[name], xs, away, keys)[0]["argmax_linear"]
    for other in (made["sample"], made["argmax_linear"], extreme):
        products = jnp.sum(away * (other - made["project"]), axis=1)
        assert float((products / (1 + jnp.linalg.norm(away, axis=1))).max()) <= 1e-14


@pytest.mark.parametrize("name", ["linf", "linf-box", "l1", "l1-box"])
def test_argmax_linear_reaches_the_value_of_the_linear_program(name):
    xs, directions, keys = random_cases(300)
    found = np.asarray(visit(SETS[name], xs, directions, keys)[0]["argmax_linear"])
    epsilon, order = float(SETS[name].epsilon), norm_order(name)
    for x, direction, best in list(zip(np.asarray(xs), np.asarray(directions), found, strict=True))[:40]:
        down = np.minimum(x, epsilon) if "box" in name else np.full(D, epsilon)
        up = np.minimum(1 - x, epsilon) if "box" in name else np.full(D, epsilon)
        program = scipy.optimize.linprog(
            np.concatenate([-direction, direction]),
            A_ub=np.ones((1, 2 * D)) if order == 1 else None,
            b_ub=[epsilon] if order == 1 else None,
            bounds=[(0, limit) for limit in np.concatenate([up, down])],
        )
        assert direction @ (best - x) == pytest.approx(-program.fun, abs=1e-12)


def test_argmax_linear_over_the_l2_ball_in_the_box_meets_its_dual_bound():
    xs, directions, keys = random_cases(300)
    perturbations = SETS["l2-box"]
    found = np.asarray(visit(perturbations, xs, directions, keys)[0]["argmax_linear"])
    epsilon = float(perturbations.epsilon)
    for x, direction, best in list(zip(np.asarray(xs), np.asarray(directions), found, strict=True))[:60]:
        # Weak duality: for every μ ≥ 0 the maximum is at most μ ε² + Σ_i max_δi (g_i δ_i - μ δ_i²) over the box.
        def bound(log_mu, x=x, direction=direction):
            mu = np.exp(log_mu)
            delta = np.clip(direction / (2 * mu), -x, 1 - x)
            return mu * epsilon**2 + np.sum(direction * delta - mu * delta**2)

        grid = np.linspace(-40, 10, 400)
        start = grid[np.argmin([bound(log_mu) for log_mu in grid])]
        dual = scipy.optimize.minimize_scalar(
            bound, bounds=(start - 0.2, start + 0.2), method="bounded", options={"xatol": 1e-12}
        )
        assert direction @ (best - x) == pytest.approx(min(dual.fun, bound(start)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "dual_order"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_without_a_box_the_support_function_is_the_dual_norm(name, dual_order):
    xs, directions, keys = random_cases(300)
    best = visit(SETS[name], xs, directions, keys)[0]["argmax_linear"]
    gains = np.sum(np.asarray(directions) * np.asarray(best - xs), axis=1)
    expected = float(SETS[name].epsilon) * np.linalg.norm(np.asarray(directions), ord=dual_order, axis=1)
    np.testing.assert_allclose(gains, expected, rtol=1e-12, atol=1e-14)


def test_on_the_circle_projecting_and_maximizing_agree_with_a_scan_of_the_arc(key):
    perturbations = SphereSlice(0.4)
    xs = jr.normal(key, (20, 3))
    points = jr.normal(jr.fold_in(key, 1), (20, 3))
    made, _, _ = visit(perturbations, xs, points, jr.split(key, 20))
    projected, best = np.asarray(made["project"]), np.asarray(made["argmax_linear"])
    for x, point, near, far in zip(np.asarray(xs), np.asarray(points), projected, best, strict=True):
        radius = np.hypot(x[0], x[1])
        angles = np.arctan2(x[1], x[0]) + np.linspace(-1, 1, 200_001) * 2 * np.arcsin(min(1, 0.4 / (2 * radius)))
        arc = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full_like(angles, x[2])], axis=1)
        assert np.sum((near - point) ** 2) <= np.sum((arc - point) ** 2, axis=1).min() + 1e-12
        assert far @ point >= (arc @ point).max() - 1e-12


@pytest.mark.parametrize("dim", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_on_the_slice_no_sampled_point_is_closer_or_higher_than_the_answers(dim, key):
    perturbations = SphereSlice(0.5)
    x, point = jr.normal(key, (2, dim))
    samples = sample_many(perturbations, x, jr.split(key, 2000))
    projected, best = project(perturbations, x, point), argmax_linear(perturbations, x, point)
    assert all(bool(contains(perturbations, x, sample)) for sample in samples[:200])
    assert (
        float(jnp.linalg.norm(projected - point)) <= float(jnp.linalg.norm(samples - point[None], axis=1).min()) + 1e-12
    )
    assert float(best @ point) >= float((samples @ point).max()) - 1e-12


def test_the_slice_survives_its_degenerate_points():
    perturbations = SphereSlice(0.5)
    x = jnp.asarray([0.6, 0.0, 0.8])
    antipode = project(perturbations, x, jnp.asarray([-0.6, 0.0, 0.8]))
    assert bool(contains(perturbations, x, antipode))
    assert float(jnp.linalg.norm(antipode - x)) == pytest.approx(0.5)  # the rim
    np.testing.assert_array_equal(project(perturbations, x, jnp.asarray([0.0, 0.0, 5.0])), x)
    pole = jnp.asarray([0.0, 0.0, 1.0])
    np.testing.assert_array_equal(project(perturbations, pole, jnp.asarray([3.0, 1.0, 0.0])), pole)
    everywhere = perturbations.with_epsilon(5.0)
    np.testing.assert_allclose(project(everywhere, x, jnp.asarray([-2.0, 0.0, 0.0])), [-0.6, 0.0, 0.8], atol=1e-15)
    with pytest.raises(ValueError, match="at least 3 coordinates"):
        perturbations.project(jnp.ones(2), jnp.ones(2))


def test_the_slice_accepts_its_points_and_refuses_points_off_it():
    perturbations = SphereSlice(0.5)
    x = jnp.asarray([0.6, 0.0, 0.8])
    assert bool(contains(perturbations, x, x))
    for wrong in ([0.59, 0.0, 0.8], [0.6, 0.0, 0.81], [0.0, 0.6, 0.8], [0.6, float("nan"), 0.8]):
        assert not bool(contains(perturbations, x, jnp.asarray(wrong))), wrong


@pytest.mark.parametrize("name", SETS)
def test_radius_zero_leaves_only_the_input(name):
    xs, points, keys = random_cases(300)
    made, _, _ = visit(SETS[name].with_epsilon(0.0), xs, points, keys)
    for method, found in made.items():
        np.testing.assert_allclose(found, xs, rtol=0, atol=1e-15, err_msg=method)


@pytest.mark.parametrize("name", ["l2-box"])
def test_a_radius_for_each_example_equals_one_set_for_each_example(name):
    xs, points, _ = random_cases(3)
    radii = jnp.asarray([0.0, 0.2, 0.9])
    together = jax.jit(jax.vmap(lambda r, x, point: SETS[name].with_epsilon(r).project(x, point)))(radii, xs, points)
    for radius, x, point, found in zip(radii, xs, points, together, strict=True):
        np.testing.assert_allclose(found, project(SETS[name].with_epsilon(radius), x, point), rtol=0, atol=1e-15)


floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(floats, min_size=D, max_size=D), st.lists(st.floats(0, 1, width=32), min_size=D, max_size=D))
@settings(max_examples=60, deadline=None)
def test_in_float32_no_point_however_far_is_projected_outside(point, x):
    for name in ("linf-box", "l2-box", "l1-box"):
        xs = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (300, D))
        points = jnp.broadcast_to(jnp.asarray(point, jnp.float32), (300, D))
        made, _, inside = visit(SETS[name], xs, points, jr.split(jr.key(0), 300))
        assert bool(inside["project"].all()), name
        assert bool(inside["argmax_linear"].all()), name
        assert bool(jnp.isfinite(made["argmax_linear"]).all()), name


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["l2", "l2-box"])
def test_a_direction_whose_square_leaves_float32_still_gives_a_full_step(name, scale):
    direction = jnp.asarray([3.0, 4.0, 0.0, 0.0], jnp.float32) * jnp.asarray(scale, jnp.float32)
    x = jnp.full(D, 0.4, jnp.float32)
    np.testing.assert_allclose(argmax_linear(SETS[name], x, direction) - x, [0.3, 0.4, 0.0, 0.0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "order"), [("l2", 2), ("l1", 1)])
def test_samples_of_a_ball_are_uniform(name, order, key):
    num = 4000
    x = jnp.zeros(D)
    samples = sample_many(SETS[name], x, jr.split(key, num))
    # In a uniform ball P(norm ≤ r) = (r/ε)^d, and the direction is independent of the norm and symmetric.
    shares = (np.linalg.norm(np.asarray(samples), ord=order, axis=1) / float(SETS[name].epsilon)) ** D
    assert scipy.stats.kstest(shares, "uniform").pvalue > 1e-6
    np.testing.assert_allclose(np.mean(np.asarray(samples), axis=0), 0, atol=5 * float(samples.std()) / num**0.5)
    # A thin slab around a coordinate plane: an independent Monte Carlo by rejection from the cube.
    cube = np.random.default_rng(1).uniform(-1, 1, size=(60 * num, D)) * float(SETS[name].epsilon)
    kept = cube[np.linalg.norm(cube, ord=order, axis=1) <= float(SETS[name].epsilon)]
    assert scipy.stats.ks_2samp(np.asarray(samples)[:, 0], kept[:, 0]).pvalue > 1e-6


@pytest.mark.parametrize("name", ["l2-box", "l1-box"])
def test_samples_around_a_corner_of_the_box_are_uniform_in_what_is_left_of_the_ball(name, key):
    x = jnp.asarray([0.0, 1.0, 0.0, 0.0])
    perturbations = SETS[name].with_epsilon(0.5)
    samples = np.asarray(sample_many(perturbations, x, jr.split(key, 4000)))
    cube = np.random.default_rng(1).uniform(0, 0.5, size=(200_000, D))
    kept = cube[np.linalg.norm(cube, ord=norm_order(name), axis=1) <= 0.5]
    for i in range(D):
        assert scipy.stats.ks_2samp(np.abs(samples[:, i] - np.asarray(x)[i]), kept[:, i]).pvalue > 1e-6


def test_samples_of_the_linf_ball_in_the_box_are_uniform_in_each_interval(key):
    x = jnp.asarray([0.0, 0.1, 0.5, 0.9])
    samples = np.asarray(sample_many(SETS["linf-box"], x, jr.split(key, 4000)))
    for values, low, high in zip(samples.T, [0.0, 0.0, 0.2, 0.6], [0.3, 0.4, 0.8, 1.0], strict=True):
        assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-6


@pytest.mark.parametrize(("dim", "epsilon"), [(3, 0.3), (4, 1.9), pytest.param(6, 1.9, marks=pytest.mark.slow)])
def test_samples_of_a_cap_are_uniform_in_its_surface(dim, epsilon, key):
    x = jnp.asarray([1.0] + [0.0] * (dim - 2) + [0.5])
    perturbations = SphereSlice(epsilon)
    samples = np.asarray(sample_many(perturbations, x, jr.split(key, 3000)))
    angles = np.arccos(np.clip(samples[:, 0], -1, 1))
    grid = np.linspace(0, 2 * np.arcsin(min(1, epsilon / 2)), 20_001)
    density = np.sin(grid) ** (dim - 3)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    assert scipy.stats.kstest(angles, lambda a: np.interp(a, grid, cumulative / cumulative[-1])).pvalue > 1e-6
    np.testing.assert_allclose(samples[:, 1:-1].mean(axis=0), 0, atol=5 / 3000**0.5)


def test_membership_allows_rounding_and_nothing_more():
    x = jnp.asarray([0.5, 0.25, 1.0, 0.0], jnp.float32)
    for name in CONVEX:
        corner = argmax_linear(SETS[name], x, jnp.asarray([1.0, -1.0, -2.0, 0.5], jnp.float32))
        assert bool(contains(SETS[name], x, corner))
        assert not bool(contains(SETS[name], x, corner + (corner - x) * 1e-4))
        assert bool(contains(SETS[name], x, corner + (corner - x) * 1e-4, atol=1e-3))
        assert not bool(contains(SETS[name], x, corner.at[0].set(jnp.nan)))
    assert not bool(contains(SETS["linf-box"], x, x.at[2].set(1.1)))


@pytest.mark.parametrize("kind", [LinfBall, L2Ball, L1Ball, SphereSlice])
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf"), np.asarray([0.1, -0.2])])
def test_a_radius_that_is_none_is_refused_with_its_value(kind, epsilon):
    with pytest.raises(ValueError, match="is no radius"):
        kind(epsilon)
    with pytest.raises(ValueError, match="is no radius"):
        kind(0.1).with_epsilon(epsilon)


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 0.0), (0.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_box_that_holds_nothing_is_refused(lower, upper):
    with pytest.raises(ValueError, match="lower < upper"):
        Box(lower, upper)
