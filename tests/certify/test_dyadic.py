"""Interval bounds without slack: equal to those of rational arithmetic where they say so, and they say so honestly."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.attacks import LinfBall
from ntk_robust.certify import Affine, IntervalBounds, Network, Nonlinearity, Parallel, dyadic_interval_bounds

RELU = Nonlinearity(models.Relu())
bounds_of = jax.jit(dyadic_interval_bounds)


def rational_intervals(network, lower, upper):
    """Interval bounds of a chain in fractions, entry by entry."""
    low, high = ([Fraction(float(v)) for v in end] for end in (lower, upper))
    for layer in network.layers:
        if isinstance(layer, Affine):
            ends = []
            for row, b in zip(np.asarray(layer.weight), np.asarray(layer.bias), strict=True):
                terms = [
                    (Fraction(float(w)) * l, Fraction(float(w)) * u) for w, l, u in zip(row, low, high, strict=True)
                ]
                ends.append([Fraction(float(b)) + sum(pick(t) for t in terms) for pick in (min, max)])
            low, high = [end[0] for end in ends], [end[1] for end in ends]
        else:
            low, high = ([max(v, Fraction(0)) for v in end] for end in (low, high))
    return low, high


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_bounds_of_dyadic_networks_are_those_of_rational_arithmetic_to_the_last_bit(dtype):
    rng = np.random.default_rng(0)
    layers = []
    for shape in ((6, 4), (5, 6), (3, 5)):
        layers += [
            Affine(
                jnp.asarray(rng.integers(-8, 9, shape) / 8, dtype),
                jnp.asarray(rng.integers(-8, 9, shape[0]) / 4, dtype),
            ),
            RELU,
        ]
    network = Network(tuple(layers[:-1]), (4,))
    lower = (rng.integers(-16, 16, 4) / 32).astype(dtype)
    upper = lower + (rng.integers(0, 8, 4) / 32).astype(dtype)
    found = bounds_of(network, jnp.asarray(lower), jnp.asarray(upper))
    assert bool(found.exact)
    low, high = rational_intervals(network, lower, upper)
    assert [Fraction(float(v)) for v in found.lower] == low
    assert [Fraction(float(v)) for v in found.upper] == high


@pytest.mark.slow
def test_rounding_is_admitted_for_weights_or_inputs_that_are_not_dyadic_and_for_long_sums():
    def exact(weight, bias, lower, upper, dtype=np.float64):
        network = Network((Affine(jnp.asarray(weight, dtype), jnp.asarray(bias, dtype)), RELU), (len(weight[0]),))
        return bool(bounds_of(network, jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)).exact)

    assert exact([[0.5, 0.25]], [1.0], [0.0, 0.0], [0.5, 1.0])
    assert not exact([[0.1, 0.25]], [1.0], [0.1, 0.0], [0.5, 1.0])
    assert not exact([[0.5, 0.25]], [1e-17], [0.5, 0.5], [1.0, 1.0])
    # sums of about 2^25 beside an offset of 2^-3 do not fit into 24 digits, but into 53
    many = np.full((1, 2), 2.0**24)
    assert not exact(many, [2.0**-3], np.full(2, 0.5), np.full(2, 0.75), np.float32)
    assert exact(many, [2.0**-3], np.full(2, 0.5), np.full(2, 0.75), np.float64)


def clip_gate(points, labels, delta, theta, rng):
    """The student of Shi et al. by a clip instead of a product: labels on the cubes around points, a teacher elsewhere.

    Layers carry the bumps G_i along: max(min(teacher, u), l) with u = 1 + Σ (y_i - 1) G_i, l = -1 + Σ (y_i + 1) G_i.
    """
    n, d = points.shape
    width = 6
    teacher = [rng.integers(-8, 9, shape) / 8 for shape in ((width, d), (width, width), (1, width))]

    def block(*rows):
        return np.block([list(row) for row in rows])

    outward = np.concatenate([np.eye(d), -np.eye(d)])
    first = np.concatenate([np.tile(outward, (n, 1)), teacher[0]])
    first_bias = np.concatenate([np.ravel([[*(-x - delta), *(x - delta)] for x in points]), np.zeros(width)])
    bumps = np.kron(np.eye(n), np.full((1, 2 * d), -1 / theta))
    second = block((bumps, np.zeros((n, width))), (np.zeros((width, 2 * d * n)), teacher[1]))
    second_bias = np.concatenate([np.ones(n), np.zeros(width)])
    keep = np.eye(n)
    third = block((keep, np.zeros((n, width))), (np.zeros((1, n)), teacher[2]), (np.zeros((1, n)), -teacher[2]))
    fourth = block((keep, np.zeros((n, 2))), (labels[None] - 1, np.array([[-1.0, 1.0]])))
    fourth_bias = np.append(np.zeros(n), 1.0)
    fifth = block((keep, np.zeros((n, 1))), (np.full((1, n), -2.0), np.array([[-1.0]])))
    fifth_bias = np.append(np.zeros(n), 2.0)
    last = np.append(labels + 1, 1.0)[None]
    pairs = [
        (first, first_bias),
        (second, second_bias),
        (third, np.zeros(n + 2)),
        (fourth, fourth_bias),
        (fifth, fifth_bias),
        (last, -np.ones(1)),
    ]
    layers = [layer for w, b in pairs for layer in (Affine(jnp.asarray(w), jnp.asarray(b)), RELU)]
    return Network(tuple(layers[:-1]), (d,), scalar=True)


@pytest.mark.slow
def test_a_clip_gate_student_has_zero_width_on_every_training_ball_and_not_beyond():
    rng = np.random.default_rng(0)
    d, n, delta, theta = 3, 10, 1 / 16, 1 / 16
    grid = np.stack(np.meshgrid(*[np.array([0.0, 3.0, 6.0]) / 8] * d), axis=-1).reshape(-1, d)
    points = rng.permutation(grid)[:n]
    labels = rng.integers(-8, 9, n) / 8
    network = clip_gate(points, labels, delta, theta, rng)
    enclose = jax.jit(jax.vmap(lambda low, high: dyadic_interval_bounds(network, low, high)))
    found = enclose(jnp.asarray(points - delta), jnp.asarray(points + delta))
    assert np.all(found.exact)
    np.testing.assert_array_equal(found.lower, labels)
    np.testing.assert_array_equal(found.upper, labels)
    # the certificate must fail as soon as the ball leaves the plateau
    beyond = enclose(jnp.asarray(points - delta - 1 / 64), jnp.asarray(points + delta + 1 / 64))
    assert np.all(np.asarray(beyond.upper - beyond.lower) > 0)
    # with slack the interval is wider than a point, and around it
    slack = jax.jit(lambda x: IntervalBounds()(network, x, LinfBall(delta)))(jnp.asarray(points[0]))
    assert float(slack.lower) < labels[0] < float(slack.upper)
    assert float(slack.upper - slack.lower) < 1e-9


@pytest.mark.slow
def test_branches_are_exact_too_and_smooth_activations_are_refused():
    block = (Affine(jnp.array([[0.5, -0.5], [0.25, 1.0]])), Nonlinearity(models.LeakyRelu(0.25)))
    network = Network((Parallel(((), block)),), (2,))
    found = bounds_of(network, jnp.array([0.0, 0.0]), jnp.array([1.0, 0.5]))
    # x + leaky(x/2 - y/2), y + leaky(x/4 + y) on [0, 1] x [0, 1/2]
    assert bool(found.exact)
    np.testing.assert_array_equal([found.lower, found.upper], [[-0.0625, 0.0], [1.5, 1.25]])
    smooth = Network((Affine(jnp.ones((1, 1))), Nonlinearity(models.Tanh())), (1,))
    with pytest.raises(ValueError, match="piecewise linear"):
        dyadic_interval_bounds(smooth, jnp.zeros(1), jnp.ones(1))
