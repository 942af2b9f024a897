"""Empirical kernels of functions from anywhere, by every implementation, against explicit Jacobians in float64."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import (
    _empirical_generic,
    empirical_nngp,
    empirical_ntk,
    empirical_ntk_costs,
    empirical_ntk_diagonal,
)

METHODS = ("structured_derivatives", "ntk_vector_products", "jacobian_contraction")
RNG = np.random.default_rng(0)
X, Z = jnp.asarray(RNG.normal(size=(3, 4))), jnp.asarray(RNG.normal(size=(2, 4)))


def explicit_jacobian(apply_fn, params, x):
    """(n, k, P) by forward mode in the flat vector of all floats."""
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(arrays)

    def outputs(v):
        return jax.vmap(lambda row: jnp.atleast_1d(apply_fn(eqx.combine(unravel(v), rest), row)))(x)

    return np.asarray(jax.jacfwd(outputs)(flat))


def plain(params, x):
    """Dictionaries, a scalar leaf, an integer leaf, and a split."""
    gate, value = jnp.split(params["in"] @ x, 2)
    return params["out"] @ (jax.nn.sigmoid(gate) * value * params["scale"]) / params["count"].astype(x.dtype)


def plain_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"in": (6, 4), "out": (2, 3), "scale": ()}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()} | {"count": jnp.asarray(2)}


def nnx_network(seed):
    """A function of the weights of a convolutional module with statistics."""
    from flax import nnx

    class Convolutional(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, kernel_size=(3,), rngs=rngs, param_dtype=jnp.float64)
            self.norm = nnx.BatchNorm(2, use_running_average=True, rngs=rngs, param_dtype=jnp.float64)
            self.readout = nnx.Linear(8, 2, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x):
            return self.readout(nnx.gelu(self.norm(self.conv(x[None, :, None]))).reshape(-1))

    graph, weights, rest = nnx.split(Convolutional(nnx.Rngs(seed)), nnx.Param, ...)
    # statistics are always float32 in flax, and here nothing is promoted silently
    rest = jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, rest)
    return (lambda weights, x: nnx.merge(graph, weights, rest)(x)), weights


def as_function(name, seed=0):
    """What a user of each library types: a function of weights and one example, and the weights."""
    if name == "plain":
        return plain, plain_params(seed)
    if name == "equinox":
        return (lambda net, x: net(x)), eqx.nn.MLP(4, 2, 5, 2, key=jax.random.key(seed))
    if name == "equinox partitioned":
        arrays, rest = eqx.partition(eqx.nn.MLP(4, "scalar", 5, 1, key=jax.random.key(seed)), eqx.is_inexact_array)
        return (lambda arrays, x: eqx.combine(arrays, rest)(x)), arrays
    if name == "nnx":
        return nnx_network(seed)
    # pairs of functions that take a batch, as in haiku, linen and stax
    apply = lambda params, batch: jnp.tanh(batch @ params["linear"]["w"] + params["linear"]["b"][None])  # noqa: E731
    rng = np.random.default_rng(seed)
    params = {"linear": {"w": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.asarray(rng.normal(size=3))}}
    return (lambda params, x: apply(params, x[None])[0]), params


LIBRARIES = ["plain", "equinox", "equinox partitioned", "nnx", "init and apply"]
OTHER_METHODS = [(name, method) for name in ("plain", "nnx") for method in METHODS[1:]]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if (name, method) == ("plain", METHODS[0]) else pytest.mark.slow)
        for name, method in [*((name, METHODS[0]) for name in LIBRARIES), *OTHER_METHODS]
    ],
)
def test_a_network_of_any_library_by_any_method_is_the_product_of_jacobians(name, method):
    apply_fn, params = as_function(name)
    a, b = explicit_jacobian(apply_fn, params, X), explicit_jacobian(apply_fn, params, Z)
    full = empirical_ntk(apply_fn, params, X, Z, outputs="full", method=method)
    np.testing.assert_allclose(full, np.einsum("iap,jbp->ijab", a, b), rtol=1e-11, atol=1e-12)
    trace = empirical_ntk(apply_fn, params, X, method=method)
    np.testing.assert_allclose(trace, np.einsum("iap,jap->ij", a, a), rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [("equinox", method) for method in METHODS] + [("nnx", "structured_derivatives")]
)
def test_a_kernel_between_two_states_of_a_network(name, method):
    (apply_fn, params), (_, params2) = as_function(name), as_function(name, seed=1)
    a, b = explicit_jacobian(apply_fn, params, X), explicit_jacobian(apply_fn, params2, Z)
    found = empirical_ntk(apply_fn, params, X, Z, params2=params2, outputs="mean", method=method)
    np.testing.assert_allclose(found, np.einsum("iap,jap->ij", a, b) / a.shape[1], rtol=1e-11, atol=1e-12)
    same_points = empirical_ntk(apply_fn, params, Z, params2=params2, method=method)
    c = explicit_jacobian(apply_fn, params, Z)
    np.testing.assert_allclose(same_points, np.einsum("iap,jap->ij", c, b), rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_a_mask_in_the_shape_of_an_equinox_module_chooses_layers():
    apply_fn, net = as_function("equinox")
    mask = jax.tree.map(lambda _: False, net)
    mask = eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[-1].bias), mask, (True, True))
    arrays = eqx.filter(net, eqx.is_inexact_array)
    kept = [
        np.full(leaf.size, any(leaf is w for w in (net.layers[0].weight, net.layers[-1].bias)))
        for leaf in jax.tree.leaves(arrays)
    ]
    a = explicit_jacobian(apply_fn, net, X)[:, :, np.concatenate(kept)]
    for method in METHODS[::2]:
        found = empirical_ntk(apply_fn, net, X, trainable=mask, method=method)
        np.testing.assert_allclose(found, np.einsum("iap,jap->ij", a, a), rtol=1e-11)
    diagonal = empirical_ntk_diagonal(apply_fn, net, X, trainable=mask, outputs="mean")
    np.testing.assert_allclose(diagonal, np.sum(a * a, axis=(1, 2)) / a.shape[1], rtol=1e-11)


def test_the_diagonal_is_right_when_its_jacobians_come_in_batches(monkeypatch):
    params = plain_params(0)
    a = explicit_jacobian(plain, params, X)
    monkeypatch.setattr("ntk_robust.kernels._empirical._JACOBIAN_BYTES", 2 * a[0].nbytes)
    new = lambda weights, x: plain(weights, x) * 1.0  # noqa: E731 - a function that is not compiled yet
    found = empirical_ntk_diagonal(new, params, X)
    np.testing.assert_allclose(found, np.sum(a * a, axis=(1, 2)), rtol=1e-12)


@pytest.mark.slow
def test_the_nngp_of_an_nnx_module_is_the_product_of_its_outputs():
    apply_fn, weights = as_function("nnx")
    outputs = np.stack([apply_fn(weights, x) for x in X])
    np.testing.assert_allclose(empirical_nngp(apply_fn, weights, X), outputs @ outputs.T / 2, rtol=1e-12)


# choice


def transposed(params, x):
    """A product with a transpose, in which neural-tangents does not find the structure."""
    return jnp.tanh(x @ params["w"].T) @ params["v"].T


def straight(params, x):
    return params["v"] @ jnp.tanh(params["w"] @ x)


WIDE = {"w": jnp.asarray(RNG.normal(size=(64, 32))), "v": jnp.asarray(RNG.normal(size=(8, 64)))}
WIDE_X = jnp.asarray(RNG.normal(size=(6, 32)))


def compiled_flops(apply_fn, method):
    """Operations in the optimized program, counted by XLA when it has compiled it."""
    kernel = jax.jit(lambda params, x: empirical_ntk(apply_fn, params, x, method=method))
    return kernel.lower(WIDE, WIDE_X).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("apply_fn", [straight, pytest.param(transposed, marks=pytest.mark.slow)])
def test_the_choice_is_the_cheapest_compiled_program_and_depends_on_the_function(apply_fn):
    chosen = empirical_ntk_costs(apply_fn, WIDE, WIDE_X)[0].method
    flops = {method: compiled_flops(apply_fn, method) for method in METHODS}
    assert flops[chosen] <= 1.01 * min(flops.values())
    if apply_fn is straight:
        assert chosen == "structured_derivatives"
        assert flops[chosen] < 0.5 * max(flops.values())
    else:
        assert chosen != "structured_derivatives"


def test_auto_takes_the_first_of_the_costs_and_remembers_it(monkeypatch):
    asked = []
    cost = _empirical_generic._cost
    monkeypatch.setattr(_empirical_generic, "_REMEMBERED", type(_empirical_generic._REMEMBERED)())
    monkeypatch.setattr(_empirical_generic, "_cost", lambda *a: asked.append(a[0]) or cost(*a))
    taken = []
    compute = _empirical_generic.generic_ntk
    monkeypatch.setattr("ntk_robust.kernels._empirical.generic_ntk", lambda p, m: taken.append(m) or compute(p, m))
    params = plain_params(0)
    empirical_ntk(plain, params, X)
    empirical_ntk(plain, plain_params(1), X)  # other values, the same shapes
    assert asked == list(METHODS)
    assert taken == [empirical_ntk_costs(plain, params, X)[0].method] * 2
    empirical_ntk_costs(plain, params, Z)  # other shapes
    assert len(asked) == 6
    # planted: were another one cheaper, it would be taken
    record = _empirical_generic.NtkCost
    monkeypatch.setattr(_empirical_generic, "_cost", lambda m, *a: record(m, float(m == METHODS[2]) - 1.0, 0, ""))
    empirical_ntk(plain, params, X[:1], method="auto")
    assert taken[-1] == METHODS[0]
    monkeypatch.setattr(_empirical_generic, "_cost", lambda m, *a: record(m, -float(m == METHODS[2]), 0, ""))
    empirical_ntk(plain, params, X, Z)
    assert taken[-1] == METHODS[2]


def test_a_jacobian_that_takes_too_much_memory_is_the_last_choice(monkeypatch):
    monkeypatch.setattr(_empirical_generic, "_REMEMBERED", type(_empirical_generic._REMEMBERED)())
    params = {"w": jnp.ones((2, 4))}
    free = empirical_ntk_costs(lambda p, x: p["w"] @ x, params, X)
    assert {cost.method: cost.jacobian_bytes for cost in free}[METHODS[2]] == 3 * 2 * 8 * 8
    monkeypatch.setattr(_empirical_generic, "MAX_JACOBIAN_BYTES", 100)
    assert empirical_ntk_costs(lambda p, x: p["w"] @ x, params, X)[-1].method == METHODS[2]


@pytest.mark.slow
def test_the_choice_is_made_inside_of_jit_too_and_nothing_of_the_trace_is_kept():
    before = dict(_empirical_generic._REMEMBERED)
    params = plain_params(0)

    @jax.jit
    def drift(params, x):
        return empirical_ntk(plain, params, x)

    with jax.checking_leaks():
        found = drift(params, X[1:])
    a = explicit_jacobian(plain, params, X)
    expected = np.einsum("iap,jap->ij", a, a)
    np.testing.assert_allclose(found, expected[1:, 1:], rtol=1e-11)

    @jax.jit
    def scaled(scale):  # the function closes over a tracer, its arguments are concrete
        return empirical_ntk(lambda p, x: scale * plain(p, x), params, X)

    np.testing.assert_allclose(scaled(jnp.asarray(3.0)), 9.0 * expected, rtol=1e-11)
    assert before == _empirical_generic._REMEMBERED


def test_an_implementation_that_cannot_be_applied_is_named_in_a_warning_and_not_taken(monkeypatch):
    by = _empirical_generic._by

    def planted(method, problem):
        if method == "structured_derivatives":
            raise NotImplementedError("no rule for this")
        return by(method, problem)

    monkeypatch.setattr(_empirical_generic, "_by", planted)
    params, function = {"w": jnp.asarray(RNG.normal(size=(2, 4)))}, lambda p, x: jnp.sin(p["w"] @ x)
    with pytest.warns(UserWarning, match=r"structured_derivatives cannot be .*NotImplementedError: no rule for this"):
        found = empirical_ntk(function, params, X)
    a = explicit_jacobian(function, params, X)
    np.testing.assert_allclose(found, np.einsum("iap,jap->ij", a, a), rtol=1e-11)
    with pytest.raises(NotImplementedError):
        empirical_ntk(function, params, X, method="structured_derivatives")
    monkeypatch.setattr(_empirical_generic, "METHODS", METHODS[:1])
    with pytest.raises(ValueError, match="no implementation can be applied: structured_derivatives: NotImpl"):
        empirical_ntk_costs(function, params, X[:2])


def test_refusals_of_the_general_way_quote_the_value_and_the_remedy():
    with pytest.raises(ValueError, match="method is 'jacobian'; give 'auto'"):
        empirical_ntk(plain, plain_params(0), X, method="jacobian")
    with pytest.raises(ValueError, match="no weight is trainable"):
        empirical_ntk(plain, {"count": jnp.asarray(1)}, X)
    mask = {"in": False, "out": False, "scale": False, "count": True}
    with pytest.raises(ValueError, match="no weight is trainable"):  # an integer cannot train
        empirical_ntk(plain, plain_params(0), X, trainable=mask)


@pytest.mark.slow
def test_the_first_use_of_neural_tangents_may_be_inside_of_jit():
    program = """
import sys, jax, jax.numpy as jnp
import ntk_robust.kernels as kernels
assert "neural_tangents" not in sys.modules
x = jnp.eye(3)
f = lambda p, x: jnp.tanh(p @ x)
p = jnp.ones((2, 3))
with jax.checking_leaks():
    inside = jax.jit(lambda p: kernels.empirical_ntk(f, p, x))(p)
outside = kernels.empirical_ntk(f, p, x)  # constants of the import are still good
assert jnp.allclose(inside, outside) and "neural_tangents" in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
