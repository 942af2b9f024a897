"""Empirical kernels against explicit Jacobians, for every way to compute them."""

import functools

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import empirical_nngp, empirical_ntk, empirical_ntk_diagonal
from ntk_robust.models import DeepReluNet, FullyConnected, LeakyRelu, PairedTwoLayerNet, Tanh

METHOD = "jacobian_contraction"
MODELS = [
    FullyConnected(3, 5, 2, 2, activation=Tanh(), b_std=0.3),
    FullyConnected(3, 5, 2, 2, activation=LeakyRelu(0.2), parameterization="standard", b_std=0.3, trainable="hidden"),
    FullyConnected(3, 5, 2, 3, trainable=(True, False, False)),
    DeepReluNet(3, 6, 2),
    DeepReluNet(3, 6, 2, first_activation=False),
    PairedTwoLayerNet(3, 6),
]


def _jacobians(model, params, x, mask):
    """(n, k, P) by forward mode, one weight after another: what the definition says."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    keep = np.concatenate([np.full(leaf.size, kept) for leaf, kept in zip(leaves, jax.tree.leaves(mask), strict=True)])
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def function(v):
        return jax.vmap(lambda row: jnp.atleast_1d(model.apply(unravel(v), row)))(x)

    return np.asarray(jax.jit(jax.jacfwd(function))(flat))[:, :, keep]


@pytest.mark.parametrize(
    "model",
    [m if i in (1, 4, 5) else pytest.param(m, marks=pytest.mark.slow) for i, m in enumerate(MODELS)],
    ids=lambda m: type(m).__name__,
)
def test_every_way_agrees_with_the_explicit_jacobian(model, key):
    first_key, second_key, x_key = jax.random.split(key, 3)
    params, params2 = model.init(key=first_key), model.init(key=second_key)
    x, z = jax.random.normal(x_key, (2, 4, 3))
    mask = model.trainable_mask(params)
    a, b = _jacobians(model, params, x, mask), _jacobians(model, params2, z, mask)
    num_outputs = a.shape[1]
    # for the first model the general way too
    for method in ("layerwise", "structured_derivatives")[: 1 + (model is MODELS[0])]:
        kernel = functools.partial(empirical_ntk, model.apply, method=method)

        def every_form(params, params2, x, z, kernel=kernel):
            trace, full = kernel(params, x), kernel(params, x, outputs="full")
            mixed = kernel(params, x, z, params2=params2, outputs="mean")
            return trace, mixed, full, empirical_ntk_diagonal(model.apply, params, x)

        trace, mixed, full, diagonal = jax.jit(every_form)(params, params2, x, z)  # one program compiles faster
        np.testing.assert_allclose(trace, np.einsum("iap,jap->ij", a, a), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(mixed, np.einsum("iap,jap->ij", a, b) / num_outputs, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(full, np.einsum("iap,jbp->ijab", a, a), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(diagonal, np.sum(a * a, axis=(1, 2)), rtol=1e-11)


def test_a_mask_selects_weights_in_both_ways(key):
    model = FullyConnected(3, 5, 2, 2, b_std=0.3)
    params = model.init(key=key)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    mask = jax.tree.map(lambda _: False, params)
    mask = eqx.tree_at(lambda m: (m[1].bias, m[0].weight), mask, (True, True))
    a = _jacobians(model, params, x, mask)
    for method in ("layerwise", "jacobian_contraction"):
        found = empirical_ntk(model.apply, params, x, trainable=mask, method=method)
        np.testing.assert_allclose(found, np.einsum("iap,jap->ij", a, a), rtol=1e-11)


def test_any_function_and_any_tree_of_weights_will_do(key):
    params = {"w": jax.random.normal(key, (2, 3)), "scale": jnp.asarray(2.0)}
    function = lambda p, x: p["scale"] * jnp.sin(p["w"] @ x)  # noqa: E731
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    z = params["w"] @ x.T
    expected = 4.0 * np.einsum("oi,oj,ij->ij", jnp.cos(z), jnp.cos(z), x @ x.T) + jnp.sin(z).T @ jnp.sin(z)
    np.testing.assert_allclose(empirical_ntk(function, params, x), expected, rtol=1e-12)
    np.testing.assert_allclose(empirical_ntk_diagonal(function, params, x), jnp.diagonal(expected), rtol=1e-12)
    nngp = 4.0 * jnp.sin(z).T @ jnp.sin(z)
    np.testing.assert_allclose(empirical_nngp(function, params, x), nngp / 2, rtol=1e-12)
    np.testing.assert_allclose(empirical_nngp(function, params, x, outputs="trace"), nngp, rtol=1e-12)
    full = empirical_nngp(function, params, x, x[:2], outputs="full")
    np.testing.assert_allclose(jnp.trace(full, axis1=2, axis2=3), nngp[:, :2], rtol=1e-12)


def test_a_symmetric_kernel_in_panels_is_exactly_symmetric_and_keeps_the_dtype(key):
    model = FullyConnected(4, 7, 2, 2)
    params = model.init(key=key, dtype=jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(70, 4)), jnp.float32)
    for outputs in ("trace", "full"):
        found = empirical_ntk(model.apply, params, x, outputs=outputs)
        assert found.dtype == jnp.float32
        swapped = found.T if outputs == "trace" else found.transpose(1, 0, 3, 2)
        diagonal = np.eye(70, dtype=bool)
        np.testing.assert_array_equal(np.asarray(found)[~diagonal], np.asarray(swapped)[~diagonal])
        cross = empirical_ntk(model.apply, params, x, x, outputs=outputs)
        np.testing.assert_allclose(found, cross, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_kernel_has_a_gradient_where_a_neuron_is_not_read_out():
    model = FullyConnected(3, 4, 1, 2)
    params = model.init(key=jax.random.key(0))
    params = eqx.tree_at(lambda p: p[1].weight, params, params[1].weight.at[:, 0].set(0.0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))
    total = lambda params, method: jnp.sum(empirical_ntk(model.apply, params, x, method=method))  # noqa: E731
    found, expected = (jax.jit(jax.grad(total), static_argnums=1)(params, m) for m in ("layerwise", METHOD))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def test_refusals_quote_the_value_and_the_remedy(key):
    model = FullyConnected(3, 5, 1, 2)
    params = model.init(key=key)
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="outputs is 'sum'"):
        empirical_ntk(model.apply, params, x, outputs="sum")
    with pytest.raises(ValueError, match="needs apply_fn to be the apply method"):
        empirical_ntk(lambda p, v: 2.0 * model.apply(p, v), params, x, method="layerwise")
    with pytest.raises(ValueError, match="no weight is trainable"):
        empirical_ntk(model.apply, params, x, trainable=jax.tree.map(lambda _: False, params))
    with pytest.raises(ValueError, match="one bool for each"):
        empirical_ntk(model.apply, params, x, trainable=True)
    with pytest.raises(ValueError, match="give one axis of outputs"):
        empirical_ntk(lambda p, v: jnp.outer(model.apply(p, v), v), params, x)
    with pytest.raises(ValueError, match="one number per example"):
        empirical_ntk_diagonal(model.apply, params, x, outputs="full")
