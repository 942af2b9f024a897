"""Constructions against formulas on the host, brute force on grids, and other bounds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from numpy.polynomial import Polynomial

from ntk_robust import constructions
from ntk_robust.attacks import PGD, LinfBall, attack_batch
from ntk_robust.certify import Crown, IntervalBounds, Zonotope, dyadic_interval_bounds, network_of, pieces_on_polygon
from ntk_robust.losses import Squared
from ntk_robust.models import FullyConnected
from ntk_robust.training import fit

EPSILON, TAU = 3.0 / 64, 1.0 / 32


@eqx.filter_jit
def outputs_of(network, xs):
    return jax.vmap(network)(xs)


@eqx.filter_jit
def bounds_on_cubes(network, xs, radius):
    return jax.vmap(lambda x: dyadic_interval_bounds(network, x - radius, x + radius))(xs)


def batch(network, xs):
    return np.asarray(outputs_of(network, jnp.asarray(xs)))


def bumps_on_the_host(xs, lower, upper, tau):
    distance = np.maximum(xs[:, None] - upper, 0) + np.maximum(lower - xs[:, None], 0)
    return np.maximum(0, 1 - distance.sum(axis=2) / tau)


@pytest.fixture(scope="module")
def data():
    """Dyadic points of the plane exactly 2ε + τ apart, labels in [-1, 1] and classes."""
    rng = np.random.default_rng(0)
    xs = np.array([(i, j) for i in range(4) for j in range(4)], float) * (2 * EPSILON + TAU)
    ys = rng.integers(-32, 33, size=len(xs)) / 32
    return jnp.asarray(xs), jnp.asarray(ys), jnp.asarray(rng.choice([-1.0, 1.0], len(xs)))


@pytest.fixture(scope="module")
def teacher():
    model = FullyConnected(2, 6, 2, "scalar", b_std=1.0)
    network = network_of(model, model.init(key=jr.key(3)))
    return constructions.clipped(constructions.rounded(network, bits=8), 1.0)


@pytest.fixture(scope="module")
def student(teacher, data):
    xs, ys, _ = data
    return constructions.clip_gate_student(teacher, xs, ys, epsilon=EPSILON, tau=TAU, bound=1.0)


def test_both_bumps_are_the_distance_to_the_box():
    rng = np.random.default_rng(1)
    lower = rng.integers(0, 20, size=(5, 3)) / 32
    upper = lower + rng.integers(0, 6, size=(5, 3)) / 32
    xs = rng.uniform(-0.2, 1.0, size=(500, 3))
    exact, paper = (
        make(jnp.asarray(lower), jnp.asarray(upper), tau=0.25)
        for make in (constructions.exact_bumps, constructions.trapezoid_bumps)
    )
    expected = bumps_on_the_host(xs, lower, upper, 0.25)
    np.testing.assert_allclose(batch(exact, xs), expected, atol=1e-14)
    np.testing.assert_allclose(batch(paper, xs), expected, atol=1e-14)
    assert constructions.num_parameters(exact) <= 5 * (6 * 3 + 1)


@pytest.mark.slow
def test_intervals_see_the_plateau_of_one_bump_and_not_of_the_other():
    rng = np.random.default_rng(1)
    lower = rng.integers(0, 20, size=(5, 3)) / 32
    upper = lower + rng.integers(1, 6, size=(5, 3)) / 32
    exact, paper = (
        make(jnp.asarray(lower), jnp.asarray(upper), tau=0.25)
        for make in (constructions.exact_bumps, constructions.trapezoid_bumps)
    )
    center, half = jnp.asarray((lower[4] + upper[4]) / 2), jnp.asarray((upper[4] - lower[4]) / 2)
    seen = dyadic_interval_bounds(exact, center - half, center + half)
    assert (float(seen.lower[4]), float(seen.upper[4]), bool(seen.exact)) == (1.0, 1.0, True)
    blurred = dyadic_interval_bounds(paper, center - half, center + half)
    assert blurred.upper[4] - blurred.lower[4] > 0.5


def test_a_trapezoid_has_its_four_corners():
    network = constructions.trapezoid(0.25, 0.5, tau=0.125)
    points = np.array([0.0, 0.125, 0.1875, 0.25, 0.4, 0.5, 0.5625, 0.625, 1.0])
    np.testing.assert_array_equal(
        batch(network, points[:, None]), np.interp(points, points, [0, 0, 0.5, 1, 1, 1, 0.5, 0, 0])
    )


def test_a_product_gate_keeps_its_error_and_multiplies_by_zero_and_one_exactly():
    bound, levels = 2.0, 4
    gate = constructions.product_gate(bound=bound, levels=levels)
    grid = np.linspace(-bound, bound, 129)
    u, v = (part.ravel() for part in np.meshgrid(grid, grid))
    error = batch(gate, np.stack([u, v], axis=1)) - u * v
    assert np.max(np.abs(error)) == bound**2 * 4.0**-levels  # attained on this grid
    for factor in (0.0, 1.0):
        np.testing.assert_array_equal(error[u == factor], 0.0)
    assert constructions.num_hidden_layers(gate) == levels + 1


@pytest.mark.slow
def test_interval_bounds_of_a_clip_gate_student_are_its_labels_and_nothing_wider(student, data):
    xs, ys, _ = data
    found = bounds_on_cubes(student, xs, jnp.asarray(EPSILON))
    assert bool(jnp.all(found.exact))
    np.testing.assert_array_equal(found.lower, ys)
    np.testing.assert_array_equal(found.upper, ys)
    beyond = bounds_on_cubes(student, xs, jnp.asarray(1.01 * EPSILON))
    assert float(jnp.min(beyond.upper - beyond.lower)) > 0.0


def test_a_clip_gate_student_is_the_formula_and_never_passes_the_labels(student, teacher, data):
    xs, ys, _ = data
    rng = np.random.default_rng(2)
    points = rng.uniform(-0.2, 0.7, size=(4000, 2))
    g = bumps_on_the_host(points, np.asarray(xs) - EPSILON, np.asarray(xs) + EPSILON, TAU)
    ys, taught, found = np.asarray(ys), batch(teacher, points), batch(student, points)
    upper, lower = 1 + g @ (ys - 1), -1 + g @ (ys + 1)
    np.testing.assert_allclose(found, np.maximum(np.minimum(taught, upper), lower), atol=1e-14)
    assert np.max(g.sum(axis=1)) <= 1 + 1e-14
    apart = ~np.any(g > 0, axis=1)
    assert 0.05 < np.mean(apart) < 0.95
    np.testing.assert_allclose(found[apart], taught[apart], atol=1e-15)
    mean = g @ ys / np.maximum(g.sum(axis=1), 1e-300)
    near = ~apart
    assert np.all((found - taught)[near] * (mean - taught)[near] >= -1e-14)
    assert np.all(np.abs(found - taught)[near] <= np.abs(mean - taught)[near] + 1e-14)


def test_the_size_of_a_student_is_linear_in_its_points(student, teacher, data):
    n, d = data[0].shape
    extra = constructions.num_parameters(student) - constructions.num_parameters(teacher)
    assert n * 6 * d <= extra <= n * (6 * d + 3) + 20
    hidden = constructions.num_hidden_layers
    assert hidden(student) == hidden(teacher) + 2
    assert constructions.num_parameters(constructions.trapezoid(0.25, 0.5, tau=0.125)) == 12


@pytest.mark.slow
def test_a_class_student_has_its_labels_where_cubes_of_one_class_overlap(teacher):
    xs = jnp.asarray([[0.0, 0.0], [1.0 / 64, 0.0], [0.5, 0.5], [0.5, 0.5]])
    labels = jnp.asarray([1.0, 1.0, -1.0, -1.0])
    network = constructions.class_student(teacher, xs, labels, epsilon=EPSILON, tau=TAU, bound=2.0)
    found = bounds_on_cubes(network, xs, jnp.asarray(EPSILON))
    np.testing.assert_array_equal(found.lower, 2 * labels)
    np.testing.assert_array_equal(found.upper, 2 * labels)


@pytest.mark.slow
def test_students_of_a_family_share_their_training_cubes_and_are_pairwise_different(teacher, data):
    xs, ys, _ = data
    few = iter(constructions.student_family(teacher, xs, ys, epsilon=EPSILON, bound=1.0))
    networks = [next(few) for _ in range(3)]
    for network in networks:
        found = bounds_on_cubes(network, xs, jnp.asarray(EPSILON))
        np.testing.assert_array_equal(found.lower, ys)
        np.testing.assert_array_equal(found.upper, ys)
    outputs = np.stack([batch(network, np.random.default_rng(4).uniform(0, 0.5, (3000, 2))) for network in networks])
    assert all(np.any(outputs[i] != outputs[j]) for i in range(3) for j in range(i))


def test_a_product_gate_student_is_exact_at_dyadic_points_of_its_cubes(teacher, data):
    xs, ys, _ = data
    network = constructions.product_gate_student(teacher, xs, ys, epsilon=EPSILON, tau=TAU, bound=1.0, levels=1)
    corners = np.array([(i, j) for i in (-3, 0, 2, 3) for j in (-3, -1, 3)]) / 64
    points = (np.asarray(xs)[:, None] + corners).reshape(-1, 2)
    np.testing.assert_allclose(batch(network, points), np.repeat(ys, len(corners)), atol=1e-14)


@pytest.mark.slow
def test_linear_bounds_of_the_papers_student_hold_and_its_enumeration_is_exact(teacher, data):
    xs, ys, _ = data
    four, labels = xs[:2], ys[:2]
    network = constructions.product_gate_student(teacher, four, labels, epsilon=EPSILON, tau=TAU, bound=1.0, levels=1)
    x, square = four[1], EPSILON * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    exact = pieces_on_polygon(network, np.asarray(x) + square)
    np.testing.assert_allclose([exact.minimum[0], exact.maximum[0]], float(labels[1]), atol=1e-13)
    for method in (IntervalBounds(), Zonotope(), Crown()):
        found = eqx.filter_jit(method)(network, x, LinfBall(EPSILON))
        assert found.lower <= labels[1] + 1e-9
        assert found.upper >= labels[1] - 1e-9
    paper = constructions.trapezoid_bumps(four - EPSILON, four + EPSILON, tau=TAU)
    own = eqx.filter_jit(Crown())(paper, x, LinfBall(EPSILON))
    np.testing.assert_allclose([own.lower[1], own.upper[1]], 1.0, atol=1e-9)


@pytest.mark.slow
def test_structured_layers_are_dense_matrices_with_zeros():
    rng = np.random.default_rng(5)
    lower = jnp.asarray(rng.uniform(size=(4, 3)))
    hinges, _, total, _ = constructions.exact_bumps(lower, lower + 0.1, tau=0.5).layers
    for layer, shape in ((hinges, (3,)), (total, (4, 2, 3))):
        size = int(np.prod(shape))
        matrix = np.stack([np.ravel(layer.linear(row.reshape(shape))) for row in jnp.eye(size)], axis=1)
        assert np.count_nonzero(matrix) == 24
        np.testing.assert_array_equal(layer.matrix(), matrix)
        h = rng.normal(size=shape)
        np.testing.assert_allclose(np.ravel(layer.absolute(jnp.asarray(np.abs(h)))), np.abs(matrix) @ np.abs(h).ravel())
        rows = rng.normal(size=(2, matrix.shape[0]))
        out = layer.transpose(jnp.asarray(rows).reshape(2, *np.shape(layer.linear(jnp.asarray(h)))), shape)
        np.testing.assert_allclose(np.reshape(out, (2, -1)), rows @ matrix, atol=1e-14)


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grid_teachers_have_the_values_of_the_target_at_their_nodes(dim):
    def target(points):
        return np.cos(points @ np.arange(1, dim + 1))

    cells = 4
    hats = constructions.hat_teacher(target, input_dim=dim, num_cells=cells)
    nodes = np.stack([a.ravel() for a in np.meshgrid(*[np.arange(cells + 1) / cells] * dim)], axis=1)
    np.testing.assert_allclose(batch(hats, nodes), target(nodes), atol=1e-13)
    constants = constructions.localized_teacher(target, input_dim=dim, num_cells=cells, tau=2.0**-8)
    centers = np.stack([a.ravel() for a in np.meshgrid(*[(np.arange(cells) + 0.5) / cells] * dim)], axis=1)
    np.testing.assert_allclose(batch(constants, centers + 0.1 / cells), target(centers), atol=1e-13)


@pytest.mark.slow
def test_hats_reproduce_affine_functions_in_three_dimensions():
    def target(points):
        return 0.5 + points @ np.array([1.0, -2.0, 3.0])

    hats = constructions.hat_teacher(target, input_dim=3, num_cells=3)
    points = np.random.default_rng(6).uniform(size=(500, 3))
    np.testing.assert_allclose(batch(hats, points), target(points), atol=1e-12)


@pytest.mark.slow
def test_taylor_teachers_gain_an_order_with_each_derivative():
    derivatives = [np.sin, np.cos, lambda t: -np.sin(t), lambda t: -np.cos(t)]
    points = np.random.default_rng(7).uniform(size=(400, 1))

    def error(terms, cells):
        network = constructions.taylor_teacher(derivatives[:terms], num_cells=cells, bound=4.0, levels=16)
        return np.max(np.abs(batch(network, points) - np.sin(points[:, 0])))

    assert error(3, 8) < 0.14 * error(3, 4) < 1e-3
    assert error(4, 4) < 0.2 * error(3, 4)


@pytest.mark.slow
def test_fitted_teachers_are_their_regressions():
    rng = np.random.default_rng(8)
    xs = rng.uniform(size=(40, 1))
    ys = np.sin(4 * xs[:, 0]) + 0.1 * rng.normal(size=40)
    spline = constructions.spline_teacher(jnp.asarray(xs), jnp.asarray(ys), num_pieces=3, bound=0.75)
    knots = np.arange(4) / 3
    hats = np.maximum(0, 1 - 3 * np.abs(xs - knots))
    values = np.linalg.solve(hats.T @ hats, hats.T @ ys)
    grid = np.linspace(0, 1, 61)
    np.testing.assert_allclose(
        batch(spline, grid[:, None]), np.clip(np.interp(grid, knots, values), -0.75, 0.75), atol=1e-12
    )
    features = constructions.random_feature_teacher(
        jnp.asarray(xs), jnp.asarray(ys), width=30, ridge=0.1, bound=1.0, key=jr.key(0)
    )
    # the dual form of the same regression
    phi, inside = (np.asarray(jax.nn.relu(jax.vmap(features.layers[0])(jnp.asarray(p)))) for p in (xs, grid[:, None]))
    dual = inside @ phi.T @ np.linalg.solve(phi @ phi.T + 0.1 * np.eye(40), ys)
    np.testing.assert_allclose(batch(features, grid[:, None]), np.clip(dual, -1, 1), atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.11])
def test_risks_on_a_line_agree_with_a_fine_grid(epsilon):
    rng = np.random.default_rng(9)
    function = constructions.Breakpoints(np.linspace(-0.2, 1.2, 60), rng.normal(size=60))
    target = Polynomial([0.2, 1.0, -1.5])
    grid = np.linspace(0, 1, 20001)
    offsets = np.concatenate([function.points, grid - epsilon, grid + epsilon])
    values = function(offsets)
    order = np.argsort(offsets)
    offsets, values = offsets[order], values[order]
    start, end = (np.searchsorted(offsets, grid + s * epsilon, side) for s, side in ((-1, "left"), (1, "right")))
    high, low = (np.array([pick(values[i:j]) for i, j in zip(start, end, strict=True)]) for pick in (np.max, np.min))
    worst = np.maximum((high - target(grid)) ** 2, (low - target(grid)) ** 2)
    brute = np.mean(0.5 * (worst[1:] + worst[:-1]))
    assert constructions.robust_risk(function, target, epsilon=epsilon) == pytest.approx(brute, rel=1e-5)


def test_the_price_of_interpolation_agrees_with_a_fine_grid():
    rng = np.random.default_rng(10)
    xs, ys, target = rng.uniform(size=9), rng.normal(size=9), Polynomial([0.0, 1.0])
    grid = (np.arange(40000) + 0.5) / 40000
    near = np.abs(grid[:, None] - xs) <= 0.07
    brute = np.mean(np.max(np.where(near, (ys - target(grid)[:, None]) ** 2, 0), axis=1))
    found = constructions.interpolation_bound(jnp.asarray(xs), jnp.asarray(ys), target, radius=0.07)
    assert found == pytest.approx(brute, rel=1e-4)


@pytest.mark.slow
def test_breakpoints_of_a_network_are_the_network(data):
    xs = data[0][:, :1][::4]
    network = constructions.clip_gate_student(
        constructions.spline_teacher(xs, xs[:, 0], num_pieces=2, bound=1.0),
        xs,
        jnp.asarray([0.5, -0.5, 0.25, 0.0]),
        epsilon=EPSILON,
        tau=TAU,
        bound=1.0,
    )
    found = constructions.breakpoints(network, -0.5, 1.5)
    grid = np.linspace(-0.5, 1.5, 301)
    np.testing.assert_allclose(found(grid), batch(network, grid[:, None]), atol=1e-13)


def test_the_volume_around_a_cube_agrees_with_counting():
    rng = np.random.default_rng(11)
    for dim in (1, 2, 3):
        points = rng.uniform(-1, 1, size=(200_000, dim))
        distance = np.maximum(np.abs(points) - 0.4, 0).sum(axis=1)
        share = np.mean(distance <= 0.3)
        assert constructions.union_volume(0.4, 0.3, dim) == pytest.approx(share * 2**dim, rel=0.02)


@pytest.mark.slow
def test_a_construction_is_a_model_with_weights(student, data, tmp_path):
    xs = data[0]
    model = constructions.architecture_of(student)
    assert hash(model) == hash(constructions.architecture_of(student))
    assert network_of(model, student) is student
    assert model.apply(student, xs[0]) == student(xs[0])
    fresh = model.init(key=jr.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(student)
    hidden = model.preactivations(student, xs[0])
    # bumps: the last entering their outer ReLU is 1 for the point's own bump
    assert [h.shape for h in hidden][:2] == [(16, 2, 2), (16,)]
    assert hidden[1][0] == 1.0
    assert all(jax.tree.leaves(model.trainable_mask(student)))
    path = tmp_path / "student.eqx"
    eqx.tree_serialise_leaves(path, student)
    loaded = eqx.tree_deserialise_leaves(path, fresh)
    assert all(bool(jnp.all(a == b)) for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(student), strict=True))


@pytest.mark.slow
def test_a_construction_can_be_attacked_and_trained_further(student, data):
    xs, ys, _ = data
    model, ball = constructions.architecture_of(student), LinfBall(EPSILON)
    loss = Squared()
    found = attack_batch(PGD(5, 0.5), lambda x, y: loss(model.apply(student, x), y), xs, ys, ball, key=jr.key(1))
    assert float(jnp.max(found.value)) < 1e-24
    moved = jax.tree.map(lambda leaf: 1.01 * leaf, student)
    result = fit(
        model.apply,
        moved,
        xs,
        ys,
        loss=loss,
        attack=PGD(2, 0.5),
        perturbations=ball,
        optimizer=optax.adam(1e-4),
        num_steps=60,
        key=jr.key(2),
    )
    losses = np.asarray(result.history["surrogate_loss"])
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_a_bracket_of_robust_errors_holds_what_cells_say_exactly(student, data):
    centers = data[0][:3] + jnp.asarray([[0.03, 0.01]])
    targets = jnp.asarray([0.25, -0.5, 0.0])
    found = constructions.robust_risk_bracket(
        student,
        centers,
        targets,
        perturbations=LinfBall(EPSILON),
        attack=PGD(10, 0.25),
        method=IntervalBounds(),
        key=jr.key(5),
    )
    square = EPSILON * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    for x, target, lower, upper in zip(centers, targets, found.lower, found.upper, strict=True):
        cells = pieces_on_polygon(student, np.asarray(x) + square)
        exact = float(max((cells.maximum[0] - target) ** 2, (cells.minimum[0] - target) ** 2))
        assert lower <= exact + 1e-12
        assert exact <= upper + 1e-12
        assert lower >= (student(x) - target) ** 2 - 1e-12


def test_wrong_constructions_are_refused_with_the_numbers(teacher, data):
    xs, ys, labels = data
    near = {"epsilon": EPSILON, "tau": 2 * TAU, "bound": 1.0}
    with pytest.raises(ValueError, match=r"0\.125 apart, less than 2 plateau \+ tau = 0\.15625"):
        constructions.clip_gate_student(teacher, xs, ys, **near)
    with pytest.raises(ValueError, match="raise the bound"):
        constructions.clip_gate_student(teacher, xs, 2.0 + ys, epsilon=EPSILON, tau=TAU, bound=1.0)
    with pytest.raises(ValueError, match="classes ±1"):
        constructions.class_student(teacher, xs, 0.5 * labels, epsilon=EPSILON, tau=TAU)
    with pytest.raises(ValueError, match="at least the radius"):
        constructions.class_student(teacher, xs, labels, epsilon=EPSILON, tau=TAU, plateau=0.5 * EPSILON)
    with pytest.raises(ValueError, match="power of two"):
        constructions.trapezoid(0.0, 1.0, tau=0.0)
    with pytest.raises(ValueError, match="empty"):
        constructions.exact_bumps(xs, xs - 1.0, tau=TAU)
    with pytest.raises(ValueError, match="positive bound"):
        constructions.product_gate(bound=0.0, levels=2)
    with pytest.raises(ValueError, match="degree 3"):
        constructions.robust_risk(
            constructions.Breakpoints(np.array([0.0, 1.0]), np.zeros(2)), Polynomial([0, 0, 0, 1.0]), epsilon=0.0
        )


def test_separation_is_the_smallest_distance_of_any_two_or_of_unlike_points():
    xs = jnp.asarray([[0.0, 0.0], [0.5, 0.1], [0.5, 0.4]])
    assert constructions.separation(xs) == pytest.approx(0.3)
    assert constructions.separation(xs, jnp.asarray([1.0, -1.0, -1.0])) == 0.5
    assert constructions.separation(xs, jnp.ones(3)) == np.inf
