"""Every method of bounds on every kind of set and of activation: nothing sampled or attacked leaves, order is kept."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.attacks import PGD, Box, L1Ball, L2Ball, LinfBall
from ntk_robust.certify import AlphaCrown, Crown, IntervalBounds, Zonotope, network_of

METHODS = (IntervalBounds(), Zonotope(), Crown(), AlphaCrown(num_steps=5))
BOX = Box(-1.0, 0.6)
SETS = {"linf": LinfBall(0.2, BOX), "l2": L2Ball(0.4, BOX), "l1": L1Ball(0.7, BOX)}


@eqx.filter_jit
def bounds_of_all(network, x, perturbations):
    return [(found.lower, found.upper) for found in (method(network, x, perturbations) for method in METHODS)]


@eqx.filter_jit
def outputs_around(model, params, x, perturbations, key):
    """Outputs at 2000 samples, at the maximizers of 500 linear functions, and where PGD ends for each output."""
    attack = PGD(num_steps=20, relative_step=0.2)

    def ascend(direction, key):
        return attack(lambda q: direction @ model.apply(params, q), x, perturbations, key=key).x_adv

    directions = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    ends = jax.vmap(jax.vmap(ascend, (None, 0)), (0, None))(directions, jr.split(key, 10))
    corners = jax.vmap(lambda v: perturbations.argmax_linear(x, v))(jr.normal(key, (500, *x.shape)))
    samples = jax.vmap(lambda k: perturbations.sample(x, key=k))(jr.split(key, 2000))
    points = jnp.concatenate([ends.reshape(-1, *x.shape), corners, samples])
    return jax.vmap(lambda q: model.apply(params, q))(points)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize(
    "activation", [models.Relu(), models.Tanh(), models.Softplus()], ids=lambda a: type(a).__name__
)
def test_no_point_leaves_the_bounds_and_optimized_lines_are_no_looser(activation, kind, key):
    model = models.FullyConnected(4, 8, 1, num_outputs=3, activation=activation, b_std=0.4)
    params = model.init(key=key)
    x = jnp.clip(0.5 * jr.normal(key, (4,)), -1.0, 0.6)
    outputs = np.asarray(outputs_around(model, params, x, SETS[kind], key))
    found = bounds_of_all(network_of(model, params), x, SETS[kind])
    reached = outputs.max(axis=0) - outputs.min(axis=0)
    for method, (lower, upper) in zip(METHODS, found, strict=True):
        name = type(method).__name__
        assert np.all((outputs >= np.asarray(lower)) & (outputs <= np.asarray(upper))), name
        assert np.all(np.asarray(upper - lower) < 20 * reached), name  # not by saying nothing
    (lower, upper), (best_lower, best_upper) = found[2], found[3]
    rounding = 1e-14 * np.abs(outputs).max()
    assert np.all(np.asarray(best_lower) >= np.asarray(lower) - rounding)
    assert np.all(np.asarray(best_upper) <= np.asarray(upper) + rounding)
