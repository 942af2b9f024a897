"""Certificates of maxima against brute force, trajectories against NumPy, rates against what ascent does."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.certify._shapes import curvature_range
from ntk_robust.landscape import (
    TwoLayer,
    curvature_bound,
    global_maximum,
    local_maximum,
    projected_gradient_ascent,
    quadratic_maximum,
    two_layer_of,
    vertex_is_maximum,
)
from ntk_robust.models import (
    Cos,
    Erf,
    FullyConnected,
    Gelu,
    Identity,
    Monomial,
    PairedTwoLayerNet,
    QuadraticRelu,
    Relu,
    Sin,
    Softplus,
    Tanh,
)

D, M, EPSILON, TARGET = 6, 40, 0.3, 2.0


def gaussian(activation, scale=1.0, dim=D):
    """A network and a point of the size `scale` where pre-activations are of that size."""
    weight_key, sign_key, point_key = jr.split(jr.key(3), 3)
    weights = jr.normal(weight_key, (M, dim)) / dim**0.5
    net = TwoLayer(weights, jnp.zeros(M), jr.rademacher(sign_key, (M,), float) / M**0.5, jnp.zeros(()), activation)
    return net, scale * jr.normal(point_key, (dim,))


def loss_of(net, x):
    return lambda delta: 0.5 * (net(x + delta) - TARGET) ** 2


def found_maximum(net, x, epsilon, steps=400):
    return projected_gradient_ascent(loss_of(net, x), epsilon, jnp.zeros(len(x)), step_size=0.5, num_steps=steps)


@pytest.fixture(scope="module")
def tanh():
    net, x = gaussian(Tanh())
    ascent = found_maximum(net, x, EPSILON)
    return net, x, ascent, jnp.sign(net(x) - TARGET)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        FullyConnected(D, 8, 1, "scalar", activation=Tanh(), b_std=0.5),
        FullyConnected(D, 8, 1, "scalar", activation=Softplus(), parameterization="standard"),
        PairedTwoLayerNet(D, 8, activation=Erf()),
    ],
)
def test_a_two_layer_network_is_the_model_with_its_weights(model, key):
    params = model.init(key=key)
    params = jax.tree.map(lambda w: w * (1 + 0.1 * jr.normal(jr.key(w.size), w.shape)), params)
    if isinstance(model, PairedTwoLayerNet):
        params = eqx.tree_at(lambda p: p.minus, params, 0.5 * params.plus)
    x = jr.normal(jr.fold_in(key, 1), (D,))
    net = two_layer_of(model, params)
    np.testing.assert_allclose(net(x), model.apply(params, x), rtol=1e-13)
    np.testing.assert_allclose(net.hessian(x), jax.hessian(lambda u: model.apply(params, u))(x), rtol=1e-9, atol=1e-12)


def test_deeper_networks_are_refused(key):
    model = FullyConnected(D, 8, 2, "scalar")
    with pytest.raises(ValueError, match="is not a two-layer network with scalar output"):
        two_layer_of(model, model.init(key=key))


def test_ascent_is_the_iteration_of_numpy(tanh):
    net, x, ascent, _ = tanh
    weights, readout, point = (np.asarray(part) for part in (net.weights, net.readout, x))
    delta = np.zeros(D)
    for t in range(6):
        np.testing.assert_allclose(ascent.deltas[t], delta, atol=1e-14)
        z = weights @ (point + delta)
        residual = readout @ np.tanh(z) - TARGET
        assert ascent.values[t] == pytest.approx(0.5 * residual**2, rel=1e-12)
        delta = delta + 0.5 * residual * weights.T @ (readout * (1 - np.tanh(z) ** 2))
        delta *= min(1.0, EPSILON / np.linalg.norm(delta))
    # Rounding of the two matrix products may move a value by 180 of its units in the last place; measured are 3.
    assert (np.diff(ascent.values) >= -8 * np.spacing(ascent.values[-1])).all()
    assert ascent.relative_norms[int(ascent.first_on_sphere)] == pytest.approx(1.0, abs=1e-12)
    assert ascent.relative_norms[int(ascent.first_on_sphere) - 1] < 1 - 1e-9
    assert (ascent.residuals[: int(ascent.first_on_sphere)] == 1).all()
    assert ascent.residuals[-1] < 1e-12


def test_too_large_a_step_is_seen_to_descend(tanh):
    net, x, _, _ = tanh
    wild = projected_gradient_ascent(loss_of(net, x), 50.0, jnp.zeros(D), step_size=500.0, num_steps=20)
    assert (np.diff(wild.values) < 0).any()


@pytest.mark.slow
def test_the_second_order_certificate_has_the_eigenvalues_of_the_formula(tanh):
    net, x, ascent, _ = tanh
    delta = ascent.deltas[-1]
    found = local_maximum(loss_of(net, x), EPSILON, delta)
    gradient = jax.grad(net)(x + delta)
    normal = np.asarray(delta / jnp.linalg.norm(delta))
    basis = np.linalg.svd(normal[None])[2][1:]
    residual = float(net(x + delta) - TARGET)
    expected = np.linalg.eigvalsh(residual * basis @ np.asarray(net.hessian(x + delta)) @ basis.T)[::-1]
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-12)
    assert found.multiplier == pytest.approx(abs(residual) * float(jnp.linalg.norm(gradient)) / EPSILON, rel=1e-9)
    assert bool(found.is_strict)
    assert 0 < float(found.margin) < 2
    assert abs(float(found.direction @ delta)) < 1e-12


def test_a_minimum_and_a_saddle_are_refused_as_maxima():
    # x³-like bowl: on the sphere of radius 1, -z_1² + z_2² has saddles and maxima.
    def quadratic(delta):
        return delta[0] ** 2 + 2 * delta[1] ** 2 + 3 * delta[2] ** 2

    top, saddle, bottom = jnp.eye(3)[2], jnp.eye(3)[1], jnp.eye(3)[0]
    strict = [bool(local_maximum(quadratic, 1.0, point).is_strict) for point in (top, saddle, bottom)]
    assert strict == [True, False, False]
    assert not bool(local_maximum(lambda delta: -quadratic(delta), 1.0, top).is_strict)


@pytest.mark.slow
def test_ascent_approaches_the_maximum_at_the_predicted_rate(tanh):
    net, x, _, _ = tanh
    maximum = found_maximum(net, x, EPSILON, steps=3000).deltas[-1]
    found = local_maximum(loss_of(net, x), EPSILON, maximum)
    start = maximum + 1e-5 * EPSILON * found.direction
    start *= EPSILON / jnp.linalg.norm(start)
    ascent = projected_gradient_ascent(loss_of(net, x), EPSILON, start, step_size=0.5, num_steps=3)
    distances = np.linalg.norm(np.asarray(ascent.deltas) - np.asarray(maximum)[None], axis=1)
    # The slowest direction of the certificate is that of the largest eigenvalue where none is very negative.
    assert distances[1] / distances[0] == pytest.approx(float(found.rate(0.5)), rel=1e-4)
    assert float(found.rate(0.5)) < 1


POWERS = [Monomial(2), Monomial(3)]  # pyright: ignore[reportCallIssue]
SMOOTH = [Identity(), Tanh(), Softplus(), Erf(), Gelu(), Sin(), Cos(), *POWERS, QuadraticRelu()]


@pytest.mark.slow
@pytest.mark.parametrize("activation", SMOOTH)
def test_second_derivatives_stay_in_their_range_and_fill_it(activation, key):
    ends = jnp.sort(3 * jr.normal(key, (2, 200)), axis=0)
    low, high = curvature_range(activation, *ends)
    inside = jnp.linspace(ends[0], ends[1], 101)
    curvatures = np.asarray(jax.vmap(jax.vmap(jax.grad(jax.grad(activation))))(inside))
    low, high = np.asarray(low), np.asarray(high)
    assert (curvatures <= high).all()
    assert (curvatures >= low).all()
    scale = np.abs(high).max() + np.abs(low).max()
    assert (high - curvatures.max(axis=0)).max() < 0.01 * scale + 1e-12
    assert (curvatures.min(axis=0) - low).max() < 0.01 * scale + 1e-12


def test_the_sign_of_a_second_derivative_is_exact_where_it_is_one():
    lower, upper = jnp.asarray([0.0, -40.0, -1.0]), jnp.asarray([40.0, 0.0, 1.0])
    low, high = curvature_range(Tanh(), lower, upper)
    assert high[0] == low[1] == 0.0
    assert low[2] < 0 < high[2]
    assert (curvature_range(Softplus(), lower, upper).lower >= 0).all()


def test_an_activation_without_a_second_derivative_is_refused():
    with pytest.raises(ValueError, match="Relu has a kink and no second derivative; use a smooth"):
        curvature_range(Relu(), jnp.zeros(2), jnp.ones(2))


@pytest.mark.slow
def test_the_bound_of_the_hessian_is_above_it_everywhere(tanh, key):
    net, x, _, _ = tanh
    points = jr.ball(key, D, shape=(200,)) * EPSILON
    for sign in (1.0, -1.0):
        bound = curvature_bound(net, x, EPSILON, sign=sign)
        gaps = jax.vmap(lambda delta, bound=bound, sign=sign: bound - sign * net.hessian(x + delta))(points)
        assert float(jnp.min(jnp.linalg.eigvalsh(gaps))) > -1e-12


@pytest.mark.slow
def test_no_point_of_the_ball_beats_a_certified_maximum(tanh, key):
    net, x, ascent, sign = tanh
    rough = ascent.deltas[int(ascent.first_on_sphere)]
    points = EPSILON * jr.ball(key, D, shape=(20000,))
    values = sign * jax.vmap(lambda delta: net(x + delta))(points)
    for delta in (rough, ascent.deltas[-1]):
        found = global_maximum(net, x, EPSILON, delta, sign=float(sign))
        assert bool(found.certified)
        on_sphere = delta * EPSILON / jnp.linalg.norm(delta)
        assert float(jnp.max(values)) <= float(sign * net(x + on_sphere)) + float(found.gap)
        assert float(jnp.linalg.norm(on_sphere - ascent.deltas[-1])) <= float(found.distance) + 1e-12
    assert float(global_maximum(net, x, EPSILON, ascent.deltas[-1], sign=float(sign)).gap) < 1e-20
    # The minimum of the same side is no maximum, and a large ball cannot be certified.
    assert not bool(global_maximum(net, x, EPSILON, -ascent.deltas[-1], sign=float(sign)).certified)
    assert not bool(global_maximum(net, x, 50.0, ascent.deltas[-1], sign=float(sign)).certified)


@pytest.mark.slow
def test_a_certified_vertex_is_the_best_vertex(key):
    net, x = gaussian(Tanh())
    epsilon = 0.01
    vertex = epsilon * jnp.sign(jax.grad(net)(x))
    assert bool(vertex_is_maximum(net, x, epsilon, vertex))
    corners = epsilon * jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=D)))
    inside = jr.uniform(key, (5000, D), minval=-epsilon, maxval=epsilon)
    assert (
        float(jnp.max(jax.vmap(lambda delta: net(x + delta))(jnp.concatenate([corners, inside]))))
        <= float(net(x + vertex)) + 1e-15
    )
    assert not bool(vertex_is_maximum(net, x, epsilon, -vertex))
    assert not bool(vertex_is_maximum(net, x, 100.0, 1e4 * vertex))


def conditions(gradient, hessian, epsilon, found):
    """Violations of the optimality conditions, which are sufficient."""
    shifted = found.multiplier * np.eye(len(gradient)) - hessian
    scale = np.abs(hessian).max() + np.linalg.norm(gradient) / epsilon
    return (
        np.linalg.norm(shifted @ found.delta - gradient) / scale,
        max(-np.linalg.eigvalsh(shifted)[0] / scale, 0.0),
        max(np.linalg.norm(found.delta) / epsilon - 1, 0.0),
        abs(found.multiplier) / scale * abs(1 - np.linalg.norm(found.delta) / epsilon),
    )


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, -50.0, 50.0])
@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 1e3])
def test_the_maximum_of_a_quadratic_meets_its_optimality_conditions(shift, epsilon, key):
    raw = jr.normal(key, (5, 5))
    hessian = np.asarray(raw + raw.T) + shift * np.eye(5)
    gradient = np.asarray(jr.normal(jr.fold_in(key, 1), (5,)))
    found = quadratic_maximum(jnp.asarray(gradient), jnp.asarray(hessian), epsilon)
    assert max(conditions(gradient, hessian, epsilon, found)) < 1e-9
    value = gradient @ found.delta + 0.5 * found.delta @ hessian @ found.delta
    assert float(found.value) == pytest.approx(float(value), rel=1e-9)
    points = epsilon * np.asarray(jr.ball(key, 5, shape=(5000,)))
    values = points @ gradient + 0.5 * np.einsum("ni,ij,nj->n", points, hessian, points)
    assert values.max() <= float(found.value) * (1 + np.sign(found.value) * 1e-9)


def test_the_hard_case_fills_the_ball_along_the_top_eigenvector():
    hessian, gradient = jnp.diag(jnp.asarray([1.0, 2.0, 5.0])), jnp.asarray([0.3, -0.2, 0.0])
    found = quadratic_maximum(gradient, hessian, 1.0)
    assert max(conditions(np.asarray(gradient), np.asarray(hessian), 1.0, found)) < 1e-9
    assert float(found.multiplier) == pytest.approx(5.0, rel=1e-9)
    assert float(jnp.linalg.norm(found.delta)) == pytest.approx(1.0, rel=1e-9)
