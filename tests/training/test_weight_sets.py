import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize

from ntk_robust.training import FrobeniusBall, LayerwiseFrobeniusBall, NeuronBall
from ntk_robust.training import _weight_sets as module

SETS = [LayerwiseFrobeniusBall(0.7), FrobeniusBall(0.9), NeuronBall(0.4)]
ANCHOR = {"weight": jr.normal(jr.key(0), (3, 2)), "bias": jr.normal(jr.key(1), (3,))}


def moved(key, size=1.0):
    keys = dict(zip(ANCHOR, jr.split(key, 2), strict=True))
    return {name: value + size * jr.normal(keys[name], value.shape) for name, value in ANCHOR.items()}


def flat(params):
    return np.concatenate([np.ravel(params[name]) for name in ("weight", "bias")])


def constraints(weights, x):
    """Radius squared minus distance squared, ball by ball, straight from the definition of each set."""
    delta = x - flat(ANCHOR)
    weight, bias = delta[:6].reshape(3, 2), delta[6:]
    match weights:
        case LayerwiseFrobeniusBall():
            squares = [np.sum(weight**2), np.sum(bias**2)]
        case FrobeniusBall():
            squares = [np.sum(delta**2)]
        case NeuronBall():
            squares = [*np.sum(weight**2, axis=1), *bias**2]
    return weights.radius**2 - np.array(squares)


@pytest.mark.parametrize("weights", SETS, ids=lambda w: type(w).__name__)
def test_the_projection_is_the_nearest_point_that_a_general_solver_finds(weights, key):
    point = moved(key)
    found = scipy.optimize.minimize(
        lambda x: np.sum((x - flat(point)) ** 2) / 2,
        flat(ANCHOR),
        jac=lambda x: x - flat(point),
        constraints={"type": "ineq", "fun": lambda x: constraints(weights, x)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(flat(weights.project(point, ANCHOR)), found.x, atol=1e-6)


@pytest.mark.parametrize("weights", SETS, ids=lambda w: type(w).__name__)
def test_points_of_the_set_come_back_bit_for_bit_and_projecting_twice_is_projecting_once(weights, key):
    inside = moved(key, 0.01)
    assert np.array_equal(flat(weights.project(inside, ANCHOR)), flat(inside))
    assert np.array_equal(flat(weights.project(ANCHOR, ANCHOR)), flat(ANCHOR))
    once = weights.project(moved(key), ANCHOR)
    np.testing.assert_allclose(flat(weights.project(once, ANCHOR)), flat(once), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("weights", SETS, ids=lambda w: type(w).__name__)
def test_the_projection_is_not_expansive(weights, key):
    for keys in jr.split(key, (10, 2)):
        a, b = moved(keys[0]), moved(keys[1])
        before = np.linalg.norm(flat(a) - flat(b))
        after = np.linalg.norm(flat(weights.project(a, ANCHOR)) - flat(weights.project(b, ANCHOR)))
        assert after <= before * (1 + 1e-14)


@pytest.mark.parametrize("weights", SETS, ids=lambda w: type(w).__name__)
def test_boundary_distance_is_the_largest_radius_of_a_ball_that_fits_inside(weights, key):
    assert float(weights.boundary_distance(ANCHOR, ANCHOR)) == weights.radius
    inside = moved(key, 0.05)
    distance = float(weights.boundary_distance(inside, ANCHOR))
    assert distance > 0
    directions = np.random.default_rng(0).normal(size=(2000, 9))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert all(constraints(weights, flat(inside) + 0.999 * distance * d).min() >= 0 for d in directions)
    assert float(weights.boundary_distance(moved(key, 5.0), ANCHOR)) < 0


@pytest.mark.parametrize("weights", SETS, ids=lambda w: type(w).__name__)
def test_frozen_weights_are_not_seen(weights):
    far = {"weight": ANCHOR["weight"] + 100.0, "bias": None}
    projected = weights.project(far, {"weight": ANCHOR["weight"], "bias": None})
    assert projected["bias"] is None
    assert float(weights.boundary_distance(projected, {"weight": ANCHOR["weight"], "bias": None})) > -1e-12


@pytest.mark.slow
def test_a_convolution_kernel_counts_its_first_axis_as_neurons(key):
    anchor = jnp.zeros((4, 2, 3, 3))
    projected = NeuronBall(1.0).project(jr.normal(key, anchor.shape), anchor)
    norms = np.linalg.norm(np.asarray(projected).reshape(4, -1), axis=1)
    np.testing.assert_allclose(norms, 1.0)


@pytest.mark.slow
def test_float32_points_stay_float32(key):
    point = jax.tree.map(lambda value: value.astype(jnp.float32), moved(key))
    anchor = jax.tree.map(lambda value: value.astype(jnp.float32), ANCHOR)
    for weights in SETS:
        assert {value.dtype for value in weights.project(point, anchor).values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("kind", [LayerwiseFrobeniusBall, FrobeniusBall, NeuronBall])
def test_impossible_radii_are_refused(kind, radius):
    with pytest.raises(ValueError, match=f"{kind.__name__} has radius"):
        kind(radius)


@pytest.mark.parametrize("radius", [0, -1, np.int64(-1), np.float32(-1.0)])
def test_impossible_whole_radii_are_refused_where_no_hook_checks_types(radius):
    with pytest.raises(ValueError, match=f"NeuronBall has radius {radius}"):
        module._check_radius(NeuronBall(1.0), radius)
