"""What attacks reach where the optimum is known: linear functions in closed form, tiny ReLU networks by enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ntk_robust import models
from ntk_robust.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    Box,
    CarliniWagner,
    DeepFool,
    L1Ball,
    L2Ball,
    LinfBall,
    Restarts,
    Square,
    attack_batch,
    minimum_radius,
)
from ntk_robust.certify import Affine, Network, network_of, pieces_on_polygon, pieces_on_segment
from ntk_robust.losses import Margin

NUM, DIM = 4, 5
BALLS = {"linf": (LinfBall, 1), "l2": (L2Ball, 2), "l1": (L1Ball, np.inf)}  # with the order of the dual norm
LARGEST = {"fgsm": (FGSM(), 1e-12), "pgd": (PGD(400, 0.5), 1e-3), "apgd": (APGD(60), 1e-3)}
NEAREST = {"fab": (FAB(20), 1.02), "deep-fool": (DeepFool(10), 1.02)}


def line(x, direction):
    return jnp.vdot(direction, x)


@pytest.mark.slow
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", LARGEST)
def test_on_a_linear_function_an_attack_gains_the_radius_times_the_dual_norm(name, norm, key):
    attack, relative = LARGEST[name]
    ball, order = BALLS[norm]
    gained(attack, ball, order, key, relative)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "relative"), [("linf", 1e-9), ("l2", 0.2)])
def test_square_gets_there_without_gradients(norm, relative, key):
    ball, order = BALLS[norm]
    gained(Square(400), ball, order, key, relative)


def gained(attack, ball, order, key, relative):
    directions = jr.normal(key, (NUM, DIM))
    found = attack_batch(attack, line, jnp.zeros((NUM, DIM)), directions, ball(0.3), key=key)
    optimum = 0.3 * np.linalg.norm(np.asarray(directions), order, axis=1)
    assert (np.asarray(found.value) <= optimum * (1 + 1e-9)).all()
    np.testing.assert_allclose(found.value, optimum, rtol=relative)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in NEAREST for norm in BALLS] + [("carlini-wagner", "l2")]
)
def test_attacks_of_least_norm_find_the_distance_to_a_hyperplane(name, norm, key):
    attack, factor = (CarliniWagner(150, 5), 1.1) if name == "carlini-wagner" else NEAREST[name]
    ball, order = BALLS[norm]
    directions = np.array(jr.normal(key, (NUM, DIM)))
    distances = 0.1 / np.linalg.norm(directions, order, axis=1)
    found = attack_batch(
        attack, lambda x, y: jnp.vdot(y, x) - 0.1, jnp.zeros((NUM, DIM)), jnp.asarray(directions), ball(2.0), key=key
    )
    norms = np.asarray(jax.vmap(ball(2.0).norm)(found.x_adv))
    assert (np.asarray(found.value) >= 0).all()
    assert (norms >= distances * (1 - 1e-9)).all()
    assert (norms <= distances * factor).all()


@pytest.mark.parametrize(
    "norm", [pytest.param("linf", marks=pytest.mark.slow), pytest.param("l2", marks=pytest.mark.slow), "l1"]
)
def test_a_larger_radius_never_finds_less_on_a_linear_function(norm, key):
    ball = BALLS[norm][0](jnp.asarray([0.0, 0.1, 0.3, 5.0]), Box(0.0, 1.0))
    x, direction = jr.uniform(key, (DIM,)), jr.normal(jr.fold_in(key, 1), (DIM,))
    same = (jnp.tile(x, (NUM, 1)), jnp.tile(direction, (NUM, 1)))
    values = np.asarray(attack_batch(FGSM(), line, *same, ball, key=key).value)
    assert (np.diff(values) > 0).all()
    assert values[0] == pytest.approx(float(x @ direction), rel=1e-12)
    assert values[-1] == pytest.approx(float(np.maximum(direction, 0).sum()), rel=1e-12)  # a corner of the box


vectors = hnp.arrays(np.float64, DIM, elements=st.floats(-3, 3, width=32))
inputs = hnp.arrays(np.float64, DIM, elements=st.floats(0, 1, width=32))


@eqx.filter_jit
def projections(perturbations, x, first, second):
    first, second = perturbations.project(x, first), perturbations.project(x, second)
    return jnp.stack([first, perturbations.project(x, first), second])


@pytest.mark.slow
@pytest.mark.parametrize("norm", BALLS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=inputs, first=vectors, second=vectors)
def test_projecting_again_changes_nothing_and_projecting_never_parts_points(norm, x, first, second):
    perturbations = BALLS[norm][0](0.4, Box(0.0, 1.0))
    once, twice, other = np.asarray(projections(perturbations, *map(jnp.asarray, (x, first, second))))
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-12)
    assert np.linalg.norm(once - other) <= np.linalg.norm(first - second) + 1e-9
    # `other` is in the set, so no farther from the projection than from the point itself.
    assert np.linalg.norm(once - other) <= np.linalg.norm(first - other) + 1e-9


class ScalarOutput(eqx.Module):
    network: Network

    def __call__(self, x, sign):
        return sign * self.network(x)


class FirstOutput(eqx.Module):
    network: Network

    def __call__(self, x, sign):
        return sign * self.network(x)[0]


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2])
def test_restarts_reach_the_enumerated_optimum_of_tiny_relu_networks(dim, key):
    model = models.FullyConnected(input_dim=dim, width=6, num_hidden_layers=2, num_outputs=1, b_std=0.3)
    x, radius = np.full(dim, 0.2), 0.7
    for seed in range(3):
        network = network_of(model, model.init(key=jr.fold_in(key, seed)))
        if dim == 1:
            found = pieces_on_segment(network, x - radius, x + radius)
        else:
            found = pieces_on_polygon(network, x + radius * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]))
        outputs = np.concatenate([np.asarray(values, float)[:, 0] for values in found.values])
        best = np.asarray([outputs.max(), -outputs.min()])
        span = outputs.max() - outputs.min()
        signs, xs = jnp.asarray([1.0, -1.0]), jnp.tile(jnp.asarray(x), (2, 1))
        for attack, relative in ((Restarts(PGD(60, 0.05), 8), 0.05), (Restarts(APGD(60), 8), 1e-2)):
            value = attack_batch(attack, FirstOutput(network), xs, signs, LinfBall(radius), key=key).value
            assert (np.asarray(value) <= best + 1e-9).all()
            assert (np.asarray(value) >= best - relative * span).all()


def above(params, q):
    network, level = params
    return network(q) - level


def cells(layers, x, radius):
    """Where a ReLU network is affine in the cube around x: cells rows·q <= limits, with slope and offset there.

    Every pattern of signs is tried, layer after layer; those without a point are given up as soon as that shows.
    """

    def go(number, rows, limits, weight, offset):
        if number == len(layers):
            yield rows, limits, weight[0], offset[0]
            return
        matrix, bias = layers[number]
        slopes, heights = matrix @ weight, matrix @ offset + bias
        if number == len(layers) - 1:
            yield from go(number + 1, rows, limits, slopes, heights)
            return
        for pattern in itertools.product((1.0, 0.0), repeat=len(slopes)):
            sign = np.where(np.asarray(pattern) > 0, -1.0, 1.0)[:, None]
            inner = np.concatenate([rows, sign * slopes]), np.concatenate([limits, -sign[:, 0] * heights])
            if scipy.optimize.linprog(np.zeros(len(x)), *inner, bounds=(None, None)).status == 0:
                yield from go(number + 1, *inner, np.diag(pattern) @ slopes, np.diag(pattern) @ heights)

    eye = np.eye(len(x))
    cube = np.concatenate([eye, -eye]), np.concatenate([x + radius, radius - x])
    return list(go(0, *cube, eye, np.zeros(len(x))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_in_three_dimensions_attacks_reach_the_optimum_of_linear_programs_over_all_activation_patterns(seed, key):
    model = models.FullyConnected(input_dim=3, width=4, num_hidden_layers=2, num_outputs="scalar", b_std=0.3)
    network = network_of(model, model.init(key=jr.fold_in(key, seed)))
    layers = [
        (np.asarray(layer.weight), np.zeros(len(layer.weight)) if layer.bias is None else np.asarray(layer.bias))
        for layer in network.layers if isinstance(layer, Affine)
    ]  # fmt: skip
    x, radius = np.asarray([0.2, -0.1, 0.3]), 0.9
    found = cells(layers, x, radius)
    assert len(found) > 6

    def lowest(rows, limits, slope, offset):
        return scipy.optimize.linprog(slope, rows, limits, bounds=(None, None)).fun + offset

    best = np.asarray([-min(lowest(r, l, -s, -o) for r, l, s, o in found), -min(lowest(*cell) for cell in found)])
    signs, xs = jnp.asarray([1.0, -1.0]), jnp.tile(jnp.asarray(x), (2, 1))
    value = attack_batch(
        Restarts(APGD(60), 8), ScalarOutput(network), xs, signs, LinfBall(radius), key=key
    ).value  # fmt: skip
    span = best.sum()
    assert (np.asarray(value) <= best + 1e-9).all()
    assert (np.asarray(value) >= best - 1e-3 * span).all()

    # The output moved so that x has one sign and the farther extreme the other: how far is the boundary?
    start = float(network(jnp.asarray(x)))
    level = start + 0.5 * (best[0] - start) if best[0] - start > start + best[1] else start - 0.5 * (start + best[1])
    sign = np.sign(start - level)
    distances = []
    for rows, limits, slope, offset in found:  # minimize t with |q - x| <= t and sign (slope q + offset - level) <= 0
        ones, eye = np.ones((3, 1)), np.eye(3)
        program = scipy.optimize.linprog(
            [0, 0, 0, 1],
            np.block([[rows, np.zeros((len(rows), 1))], [eye, -ones], [-eye, -ones], [sign * slope[None], 0]]),
            np.concatenate([limits, x, -x, [sign * (level - offset)]]),
            bounds=(None, None),
        )
        if program.status == 0:
            distances.append(program.fun)
    for attack, halvings, relative in ((FAB(60), 0, 0.05), (Restarts(APGD(30), 4), 12, 5e-3)):
        radii = minimum_radius(
            above, (network, jnp.asarray(level)), xs[:1], jnp.asarray([sign]),
            attack=attack, perturbations=LinfBall(radius), loss=Margin(), key=key, num_halvings=halvings,
        ).radius  # fmt: skip
        assert min(distances) * (1 - 1e-9) <= float(radii[0]) <= min(distances) * (1 + relative), attack
