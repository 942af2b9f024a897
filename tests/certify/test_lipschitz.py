"""Lipschitz constants: above every slope that was found, and close to it where the truth is known."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

from ntk_robust import models
from ntk_robust.attacks import L1Ball, L2Ball, LinfBall
from ntk_robust.certify import (
    Affine,
    Convolution,
    Flatten,
    Network,
    Nonlinearity,
    Parallel,
    lipschitz_bound,
    local_lipschitz_bound,
    network_of,
    spectral_norm_bound,
)


def matrices():
    rng = np.random.default_rng(0)
    orthogonal = scipy.stats.ortho_group.rvs(40, random_state=0)
    return {
        "gaussian": rng.normal(size=(80, 50)),
        "wide": rng.normal(size=(20, 200)),
        "rank one": np.outer(rng.normal(size=30), rng.normal(size=20)),
        "flat spectrum": orthogonal,
        "huge": 1e150 * rng.normal(size=(10, 10)),
        "tiny": 1e-150 * rng.normal(size=(10, 10)),
        "two equal": np.diag([3.0, 3.0, 1.0]),
        "ill-conditioned": orthogonal * np.geomspace(1, 1e-12, 40),
        "column": rng.normal(size=(7, 1)),
    }


@pytest.mark.parametrize("case", matrices())
def test_the_spectral_norm_is_bounded_from_above_and_within_one_percent(case):
    matrix = matrices()[case]
    norm = np.linalg.svd(matrix / np.abs(matrix).max(), compute_uv=False)[0] * np.abs(matrix).max()
    bound = spectral_norm_bound(matrix)
    assert norm * (1 - 1e-13) <= bound <= norm * 1.01
    assert spectral_norm_bound(matrix, num_squarings=0) >= norm * (1 - 1e-13)


def test_power_iteration_would_have_been_below():
    matrix = matrices()["gaussian"]
    vector = np.ones(50)
    for _ in range(10):
        vector = matrix.T @ (matrix @ vector)
        vector /= np.linalg.norm(vector)
    assert np.linalg.norm(matrix @ vector) < np.linalg.norm(matrix, 2) * (1 - 1e-4) < spectral_norm_bound(matrix)


def test_wrong_matrices_are_refused():
    assert spectral_norm_bound(np.zeros((2, 3))) == 0
    for matrix in (np.zeros((0, 3)), np.full((2, 2), np.nan), np.zeros(3)):
        with pytest.raises(ValueError, match="finite matrix"):
            spectral_norm_bound(matrix)
    with pytest.raises(ValueError, match="num_squarings is -1"):
        spectral_norm_bound(np.eye(2), num_squarings=-1)


def image_network(key):
    keys = jr.split(key, 3)
    block = (Convolution(0.3 * jr.normal(keys[0], (3, 3, 2, 2))), Nonlinearity(models.Tanh()))
    layers = (Convolution(jr.normal(keys[1], (3, 3, 1, 2))), Parallel(((), block)), Flatten())
    return Network((*layers, Affine(jr.normal(keys[2], (1, 32)))), (4, 4, 1))


@pytest.mark.slow
def test_no_gradient_is_longer_than_the_global_bound_nor_on_the_set_than_the_local_one(key):
    paired = models.PairedTwoLayerNet(input_dim=5, width=10)
    start = paired.init(key=key)
    moved = type(start)(start.plus + 0.3 * jr.normal(key, start.plus.shape), start.minus, start.signs)
    for network in (network_of(paired, moved), image_network(key)):
        x = jr.normal(key, network.input_shape)
        gradient = jax.jit(jax.vmap(jax.grad(lambda q, network=network: jnp.sum(network(q)))))
        whole = lipschitz_bound(network)
        everywhere = np.asarray(gradient(2.0 * jr.normal(key, (2000, *network.input_shape)))).reshape(2000, -1)
        assert np.linalg.norm(everywhere, axis=1).max() <= whole
        sample = jax.jit(jax.vmap(lambda k, x=x: L2Ball(0.2).sample(x, key=k)))
        longest = np.linalg.norm(np.asarray(gradient(sample(jr.split(key, 500)))).reshape(500, -1), axis=1).max()
        local = float(jax.jit(local_lipschitz_bound)(network, x, L2Ball(0.2))[0])
        assert longest <= local < whole


@pytest.mark.slow
def test_of_an_affine_function_both_bounds_are_its_slope(key):
    weight = jr.normal(key, (1, 6))
    network = Network((Affine(weight),), (6,))
    np.testing.assert_allclose(lipschitz_bound(network), np.linalg.norm(weight), rtol=1e-6)
    for perturbations, dual in ((LinfBall(0.1), 1), (L2Ball(0.2), 2), (L1Ball(0.3), np.inf)):
        found = jax.jit(local_lipschitz_bound)(network, jnp.zeros(6), perturbations)
        np.testing.assert_allclose(found, np.linalg.norm(weight[0], ord=dual), rtol=1e-10)


def test_unbounded_slopes_give_infinity():
    network = Network((Affine(jnp.ones((2, 2))), Nonlinearity(models.Monomial(2))), (2,))
    assert lipschitz_bound(network) == np.inf
