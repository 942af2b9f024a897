"""Pieces of piecewise linear networks, against functions whose pieces are known and against dense grids."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.certify import (
    Affine,
    Convolution,
    Flatten,
    Network,
    Nonlinearity,
    Parallel,
    network_of,
    pieces_on_polygon,
    pieces_on_segment,
)

SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def tent():
    """The tent map |1 - 2x| upside down: 1 - |2x - 1|, as a ReLU network."""
    return [
        Affine(jnp.array([[2.0], [4.0]]), jnp.array([0.0, -2.0])),
        Nonlinearity(models.Relu()),
        Affine(jnp.array([[1.0, -1.0]])),
    ]


def random_network(key, *, input_dim=2, width=6, depth=2, activation=None, num_outputs=1):
    model = models.FullyConnected(
        input_dim=input_dim,
        width=width,
        num_hidden_layers=depth,
        num_outputs=num_outputs,
        activation=activation or models.Relu(),
        b_std=0.3,
    )
    return network_of(model, model.init(key=key))


@pytest.mark.slow
def test_the_tent_map_composed_with_itself_doubles_its_pieces_each_time():
    layers = []
    for times in range(1, 7):
        layers += tent()
        found = pieces_on_segment(Network(tuple(layers), (1,)), np.zeros(1), np.ones(1), rational=True)
        assert len(found.pieces) == 2**times
        breakpoints = [piece[0] for piece in found.pieces] + [found.pieces[-1][1]]
        assert breakpoints == [Fraction(i, 2**times) for i in range(2**times + 1)]
        assert {value for values in found.values for value in values[:, 0]} == {0, 1}


@pytest.mark.slow
def test_pieces_on_a_segment_agree_with_evaluation_and_their_maximum_with_a_fine_grid(key):
    network = random_network(key, input_dim=5, width=8, depth=3, activation=models.LeakyRelu(0.3), num_outputs=2)
    start, end = jr.normal(key, (2, 5))
    found = pieces_on_segment(network, start, end)
    ends = np.stack(found.pieces)
    np.testing.assert_array_equal(ends[1:, 0], ends[:-1, 1])
    assert ends[0, 0] == 0
    assert ends[-1, 1] == 1
    evaluate = jax.jit(jax.vmap(lambda t: network(start + t * (end - start))))
    np.testing.assert_allclose(evaluate(jnp.asarray(ends[:, 1])), [v[1] for v in found.values], atol=1e-12)
    # between breakpoints the function is affine
    np.testing.assert_allclose(
        evaluate(jnp.asarray(ends.mean(axis=1))), [v.mean(axis=0) for v in found.values], atol=1e-12
    )
    grid = np.asarray(evaluate(jnp.linspace(0, 1, 20001)))
    assert np.all(grid.max(axis=0) <= found.maximum + 1e-12)
    np.testing.assert_allclose(grid.max(axis=0), found.maximum, atol=2e-3)
    np.testing.assert_allclose(grid.min(axis=0), found.minimum, atol=2e-3)


@pytest.mark.slow
def test_cells_cover_the_square_without_overlap_and_are_affine(key):
    network = random_network(key)
    found = pieces_on_polygon(network, SQUARE)
    areas = [abs(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1))) / 2 for p in found.pieces]
    np.testing.assert_allclose(sum(areas), 4.0, rtol=1e-12)
    evaluate = jax.jit(jax.vmap(network))
    corners = np.concatenate(found.pieces)
    np.testing.assert_allclose(evaluate(jnp.asarray(corners)), np.concatenate(found.values), atol=1e-12)
    centers = np.array([piece.mean(axis=0) for piece in found.pieces])
    np.testing.assert_allclose(
        evaluate(jnp.asarray(centers)), [values.mean(axis=0) for values in found.values], atol=1e-12
    )
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), axis=-1).reshape(-1, 2)
    values = np.asarray(evaluate(jnp.asarray(grid)))
    assert np.all(values.max(axis=0) <= found.maximum + 1e-12)
    np.testing.assert_allclose(values.max(axis=0), found.maximum, atol=5e-2)


def test_rational_and_float_pieces_have_the_same_extrema(key):
    network = random_network(key, width=4)
    exact, rounded = (pieces_on_polygon(network, SQUARE, rational=rational) for rational in (True, False))
    assert isinstance(exact.maximum[0], Fraction)
    np.testing.assert_allclose(exact.maximum.astype(float), rounded.maximum, rtol=1e-12)
    np.testing.assert_allclose(exact.minimum.astype(float), rounded.minimum, rtol=1e-12)


@pytest.mark.slow
def test_convolutions_branches_and_paired_neurons_are_enumerated_too(key):
    keys = jr.split(key, 6)
    block = (Convolution(0.4 * jr.normal(keys[0], (3, 3, 2, 2))), Nonlinearity(models.Relu()))
    image = Network(
        (
            Convolution(jr.normal(keys[1], (3, 3, 1, 2)), jr.normal(keys[2], (2,))),
            Nonlinearity(models.Relu()),
            Parallel(((), block)),
            Flatten(),
            Affine(jr.normal(keys[3], (1, 32))),
        ),
        (4, 4, 1),
    )
    paired = models.PairedTwoLayerNet(input_dim=3, width=40, activation=models.Abs())
    params = paired.init(key=keys[4])
    moved = type(params)(params.plus, -0.7 * params.minus, params.signs)
    for network in (image, network_of(paired, moved)):
        start, end = jr.normal(keys[5], (2, *network.input_shape))
        found = pieces_on_segment(network, start, end)
        assert len(found.pieces) > 3
        ends = np.array([piece.mean() for piece in found.pieces])
        values = [float(jnp.ravel(network(start + t * (end - start)))[0]) for t in ends]
        np.testing.assert_allclose(values, [v.mean() for v in found.values], atol=1e-12)


@pytest.mark.slow
def test_wrong_calls_are_refused(key):
    with pytest.raises(ValueError, match="Tanh is not piecewise linear"):
        pieces_on_polygon(random_network(key, activation=models.Tanh()), SQUARE)
    network = random_network(key)
    with pytest.raises(ValueError, match="strictly convex"):
        pieces_on_polygon(network, SQUARE[[0, 2, 1, 3]])
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        pieces_on_polygon(network, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"\(2,\) and got \(1,\)"):
        pieces_on_segment(network, np.zeros(1), np.ones(1))
