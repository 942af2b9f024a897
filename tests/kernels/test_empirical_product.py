"""Products of the empirical NTK with vectors against the matrix from explicit Jacobians."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import conjugate_gradients, empirical_ntk_vector_product
from ntk_robust.models import FullyConnected, Tanh
from ntk_robust.training import Linearized

MODEL = FullyConnected(3, 5, 2, 2, activation=Tanh(), b_std=0.3)
RNG = np.random.default_rng(0)
X, Z = jnp.asarray(RNG.normal(size=(7, 3))), jnp.asarray(RNG.normal(size=(5, 3)))
PARAMS, PARAMS2 = (MODEL.init(key=jax.random.key(seed)) for seed in (0, 1))


@pytest.fixture(scope="module")
def jacobians():
    """(n, k, P) at both weights and points by forward mode."""

    @jax.jit
    def of(params, x):
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        return jax.jacfwd(lambda v: jax.vmap(MODEL.apply, (None, 0))(unravel(v), x))(flat)

    return np.asarray(of(PARAMS, X)), np.asarray(of(PARAMS2, Z)), np.asarray(of(PARAMS, Z))


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("outputs", ["trace", "mean"])
def test_a_product_between_two_states_is_that_of_the_matrix(jacobians, outputs, batch_size):
    a, b, _ = jacobians
    kernel = np.einsum("iap,jap->ij", a, b) / (2 if outputs == "mean" else 1)
    vectors = RNG.normal(size=(5, 3))
    found = empirical_ntk_vector_product(
        MODEL.apply, PARAMS, jnp.asarray(vectors), X, Z, params2=PARAMS2, outputs=outputs, batch_size=batch_size
    )
    np.testing.assert_allclose(found, kernel @ vectors, rtol=1e-11, atol=1e-12)


def test_a_full_product_mixes_the_outputs(jacobians):
    a, _, c = jacobians
    vectors = RNG.normal(size=(5, 2))
    found = empirical_ntk_vector_product(MODEL.apply, PARAMS, jnp.asarray(vectors), X, Z, outputs="full", batch_size=2)
    np.testing.assert_allclose(found, np.einsum("iap,jbp,jb->ia", a, c, vectors), rtol=1e-11, atol=1e-12)


def test_a_mask_leaves_weights_out_of_the_product(jacobians):
    a, _, _ = jacobians
    mask = jax.tree.map(lambda leaf: leaf.ndim == 1, PARAMS)  # biases only
    leaves = jax.tree.leaves(PARAMS)
    kept = np.concatenate([np.full(leaf.size, leaf.ndim == 1) for leaf in leaves])
    kernel = np.einsum("iap,jap->ij", a[:, :, kept], a[:, :, kept])
    v = RNG.normal(size=7)
    found = jax.jit(lambda v: empirical_ntk_vector_product(MODEL.apply, PARAMS, v, X, trainable=mask))(jnp.asarray(v))
    np.testing.assert_allclose(found, kernel @ v, rtol=1e-11)


def test_conjugate_gradients_solve_with_the_product_alone(jacobians):
    a, _, _ = jacobians
    kernel = np.einsum("iap,jap->ij", a, a)
    targets = RNG.normal(size=(7, 1))
    solution = conjugate_gradients(
        lambda v: np.asarray(empirical_ntk_vector_product(MODEL.apply, PARAMS, jnp.asarray(v), X, batch_size=4)),
        targets,
        ridge=0.1,
        tolerance=1e-10,
    )
    np.testing.assert_allclose(solution.dual, np.linalg.solve(kernel + 0.1 * np.eye(7), targets), rtol=1e-7)


@pytest.mark.slow
def test_the_linearized_network_moves_by_the_product_when_its_weights_move_along_the_tangent_features(jacobians):
    _, _, c = jacobians
    vectors = RNG.normal(size=(5, 2))
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    moved = unravel(flat + jnp.asarray(np.einsum("jbp,jb->p", c, vectors)))
    network = Linearized(MODEL.apply, PARAMS)
    change = jax.jit(jax.vmap(network, (None, 0)))(moved, X) - jax.vmap(MODEL.apply, (None, 0))(PARAMS, X)
    product = empirical_ntk_vector_product(MODEL.apply, PARAMS, jnp.asarray(vectors), X, Z, outputs="full")
    np.testing.assert_allclose(change, product, rtol=1e-11, atol=1e-12)


def test_vectors_of_another_shape_and_empty_batches_are_refused():
    with pytest.raises(ValueError, match=r"vectors has shape \(4,\) for 7 examples"):
        empirical_ntk_vector_product(MODEL.apply, PARAMS, jnp.ones(4), X)
    with pytest.raises(ValueError, match=r"give \(7, 2\)"):
        empirical_ntk_vector_product(MODEL.apply, PARAMS, jnp.ones((7, 3)), X, outputs="full")
    with pytest.raises(ValueError, match="batch_size is 0"):
        empirical_ntk_vector_product(MODEL.apply, PARAMS, jnp.ones(7), X, batch_size=0)
