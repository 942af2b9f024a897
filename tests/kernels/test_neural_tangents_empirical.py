"""Empirical kernels of neural-tangents through the door, against an explicit product of Jacobians."""

import functools
import logging

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import load_neural_tangents

nt = load_neural_tangents()
stax = nt.stax

AUTO, JACOBIAN, VECTOR_PRODUCTS, STRUCTURED = (
    nt.NtkImplementation.AUTO,
    nt.NtkImplementation.JACOBIAN_CONTRACTION,
    nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
    nt.NtkImplementation.STRUCTURED_DERIVATIVES,
)
IMPLEMENTATIONS = [JACOBIAN, VECTOR_PRODUCTS, STRUCTURED, AUTO]


@pytest.fixture(scope="module", autouse=True)
def _promotion_as_neural_tangents_was_written_for():
    """neural-tangents divides floats by counts and adds arrays of different ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def plain(params, x):
    """A function of plain jax: split, softmax, concatenate, pad, gather, custom derivatives, a leaf without use."""
    keys, values = jnp.split(x @ params["in"], 2, axis=-1)
    gate = jax.nn.softmax(keys * params["scale"], axis=-1)
    mixed = jnp.concatenate([gate * values, jnp.max(values, axis=-1, keepdims=True)], axis=-1)
    mixed = jnp.pad(jax.nn.relu(mixed) + jax.nn.silu(mixed)[:, ::-1], ((0, 0), (1, 0)))
    mixed = mixed / jnp.sqrt(1 + jnp.sum(mixed**2, axis=-1, keepdims=True))
    return jnp.cumsum(mixed, axis=-1)[:, jnp.array([1, 3, 4])] @ params["out"] + params["bias"]


PLAIN_SHAPES = {"in": (5, 6), "out": (3, 2), "scale": (), "bias": (2,), "unused": (2, 2)}


def drawn(shapes):
    """Standard normal entries in place of shapes; numpy's, which need no compilation."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape)), shapes)


def parameters(init_fn, shape):
    return drawn(jax.eval_shape(lambda key: init_fn(key, shape)[1], jax.random.key(0)))


@functools.cache
def network(name):
    """Forward function, parameters, and two batches of inputs."""
    if name == "plain":
        shapes = {leaf: jax.ShapeDtypeStruct(shape, float) for leaf, shape in PLAIN_SHAPES.items()}
        x = np.random.default_rng(1).normal(size=(5, 5))
        return plain, drawn(shapes), x[:3], x[3:]
    conv = stax.Conv(4, (3, 3), padding="SAME", b_std=0.1)
    circular = stax.Conv(4, (3, 3), padding="CIRCULAR")
    attention = stax.GlobalSelfAttention(4, 3, 3, 2, linear_scaling=False, b_std=0.1)
    readout = stax.serial(stax.GlobalAvgPool(), stax.Dense(2))
    layers, shape = {
        "dense": ([stax.Dense(7, b_std=0.5), stax.Relu(), stax.Dense(6), stax.Erf(), stax.Dense(2)], (5,)),
        "standard": ([stax.Dense(7, 1.2, 0.3, parameterization="standard"), stax.Gelu(), stax.Dense(2)], (5,)),
        "conv": ([conv, stax.Relu(), stax.AvgPool((2, 2), (2, 2)), stax.Flatten(), stax.Dense(2)], (4, 4, 2)),
        "deep conv": (
            [circular, stax.Relu(), stax.SumPool((2, 2)), stax.Conv(3, (2, 2), (2, 1)), stax.Erf(), readout],
            (4, 4, 2),
        ),
        "attention": ([conv, attention, stax.LayerNorm(), readout], (2, 2, 2)),
    }[name]
    init_fn, apply_fn, _ = stax.serial(*layers)
    x = np.random.default_rng(1).normal(size=(5, *shape))
    return apply_fn, parameters(init_fn, x.shape), x[:3], x[3:]


@functools.cache
def jacobian_product(name):
    """Θ[a, b, i, j] = ⟨∂f_i(x_a)/∂w, ∂f_j(x_b)/∂w⟩, from the full Jacobian in the flat parameters."""
    apply_fn, params, x1, x2 = network(name)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    jacobian = jax.jit(jax.jacfwd(lambda weights: apply_fn(unravel(weights), np.concatenate([x1, x2]))))(flat)
    return np.einsum("aip,bjp->abij", jacobian[: len(x1)], jacobian[len(x1) :])


NETWORKS = ["dense", "conv", "plain", "standard", "deep conv", "attention"]
BY_DEFAULT = [
    *[("dense", JACOBIAN), ("dense", VECTOR_PRODUCTS), ("dense", STRUCTURED)],
    *[("conv", VECTOR_PRODUCTS), ("conv", STRUCTURED), ("plain", STRUCTURED)],
]


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        pytest.param(name, one, marks=() if (name, one) in BY_DEFAULT else pytest.mark.slow)
        for name in NETWORKS
        for one in IMPLEMENTATIONS
    ],
)
def test_every_implementation_is_the_product_of_jacobians(name, implementation):
    apply_fn, params, x1, x2 = network(name)
    kernel_fn = jax.jit(nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=implementation))
    np.testing.assert_allclose(kernel_fn(x1, x2, params), jacobian_product(name), rtol=1e-11, atol=1e-11)


TRACE = {"trace_axes": (-1,)}, "abii->ab"
DIAGONAL = {"trace_axes": (), "diagonal_axes": (-1,)}, "abii->abi"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "implementation", "vmap_axes", "axes", "contraction"),
    [
        (name, implementation, vmap_axes, *form)
        for i, name in enumerate(["dense", "conv"])
        for j, implementation in enumerate([VECTOR_PRODUCTS, STRUCTURED])
        for k, vmap_axes in enumerate([None, 0])
        for l, form in enumerate([TRACE, DIAGONAL])
        if (i + j + k + l) % 2 == 0  # half of all combinations, and all of any three choices
    ],
)
def test_traces_and_diagonals_are_those_of_the_full_kernel(name, implementation, vmap_axes, axes, contraction):
    apply_fn, params, x1, x2 = network(name)
    kernel_fn = nt.empirical_ntk_fn(apply_fn, **axes, vmap_axes=vmap_axes, implementation=implementation)
    if name == "conv" or vmap_axes == 0:  # the others outside of jit, where each operation is compiled alone
        kernel_fn = jax.jit(kernel_fn)
    expected = np.einsum(contraction, jacobian_product(name)) / (2 if contraction.endswith("ab") else 1)
    np.testing.assert_allclose(kernel_fn(x1, x2, params), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rules"),
    [
        *((name, {"_s_rules": False}) for name in NETWORKS),
        *((name, {"_j_rules": False, "_fwd": True}) for name in ("dense", "plain", "deep conv")),
        *((name, {"_j_rules": False, "_fwd": False}) for name in ("conv", "plain", "standard", "attention")),
    ],
)
def test_structured_derivatives_agree_without_their_rules(name, rules):
    # These go through the derivative of one equation at a time, forward and backward.
    apply_fn, params, x1, x2 = network(name)
    kernel_fn = jax.jit(nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=STRUCTURED, **rules))
    np.testing.assert_allclose(kernel_fn(x1, x2, params), jacobian_product(name), rtol=1e-11, atol=1e-11)


STRUCTURED_BY_DEFAULT = pytest.mark.parametrize(
    "implementation",
    [pytest.param(one, marks=() if one == STRUCTURED else pytest.mark.slow) for one in IMPLEMENTATIONS],
)


@STRUCTURED_BY_DEFAULT
def test_every_implementation_keeps_float32_and_is_right_to_float32(implementation):
    apply_fn, params, x1, x2 = network("dense")
    expected = jacobian_product("dense")
    with jax.enable_x64(False):
        single = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), (x1, x2, params))
        kernel = jax.jit(nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=implementation))(*single)
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@STRUCTURED_BY_DEFAULT
def test_gradients_of_every_implementation_are_those_of_the_product(implementation):
    apply_fn, params, x1, x2 = network("standard")  # smooth
    kernel_fn = nt.empirical_ntk_fn(apply_fn, implementation=implementation)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def by_jacobians(weights, x):
        rows, columns = (jax.jacrev(lambda w, y=y: apply_fn(unravel(w), y))(weights) for y in (x, x2))
        return jnp.einsum("aip,bip->", rows, columns) / 2

    found = jax.jit(jax.grad(lambda w, x: kernel_fn(x, x2, unravel(w)).sum(), argnums=(0, 1)))(flat, x1)
    expected = jax.jit(jax.grad(by_jacobians, argnums=(0, 1)))(flat, x1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected)


# Whichever way STRUCTURED_DERIVATIVES is computed, its value is right: only its cost shows that it is structured.

OUTPUTS, BATCH = 8, 3


def dense_layers(width):
    """Two wide layers, and the operations that their structured NTK may take."""
    layers = [stax.Dense(width), stax.Relu(), stax.Dense(width), stax.Relu(), stax.Dense(OUTPUTS)]
    forward = 2 * BATCH * width * (2 * width + OUTPUTS)
    # Cotangents against cotangents for all pairs of outputs, inputs against inputs; never over the width² weights.
    contraction = 2 * (BATCH * OUTPUTS) ** 2 * 3 * width + 2 * BATCH**2 * 3 * width
    return layers, (width,), forward + OUTPUTS * forward + contraction


def conv_layers(channels):
    """A wide convolution on four pixels, and the operations that its structured NTK may take."""
    layers = [stax.Conv(channels, (3, 3), padding="SAME"), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(OUTPUTS)]
    pixels, patch = 4, 9 * channels
    forward = 2 * BATCH * pixels * patch * channels
    # Cotangents and patches, each for all pairs of pixels; a Jacobian has patch * channels columns.
    contraction = 2 * (BATCH * OUTPUTS * pixels) ** 2 * (channels + 2) + 2 * (BATCH * pixels) ** 2 * patch
    return layers, (2, 2, channels), forward + OUTPUTS * forward + contraction


def count_flops(compiled):
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def flops_and_budget(make_layers):
    layers, shape, budget = make_layers(96)
    init_fn, apply_fn, _ = stax.serial(*layers)
    x = jax.ShapeDtypeStruct((BATCH, *shape), float)
    # A network that is jitted already must not hide its structure behind one equation.
    kernel_fn = nt.empirical_ntk_fn(jax.jit(apply_fn), trace_axes=(), vmap_axes=0, implementation=STRUCTURED)
    return count_flops(jax.jit(kernel_fn).lower(x, None, parameters(init_fn, x.shape)).compile()), budget


@pytest.mark.parametrize("make_layers", [dense_layers, conv_layers])
def test_structured_derivatives_cost_what_structure_costs(make_layers):
    flops, budget = flops_and_budget(make_layers)
    assert flops < budget


@pytest.mark.parametrize("make_layers", [dense_layers, conv_layers])
def test_a_fallback_to_jacobians_would_break_the_budget(make_layers, monkeypatch):
    table = nt._src.empirical._implementation_to_ntk_fn
    monkeypatch.setitem(table, STRUCTURED, table[JACOBIAN])
    flops, budget = flops_and_budget(make_layers)
    assert flops > 4 * budget


@pytest.mark.slow
@pytest.mark.parametrize("make_layers", [dense_layers, conv_layers])
def test_losing_the_rules_of_structure_would_break_the_budget(make_layers, monkeypatch):
    monkeypatch.setattr(nt._src.utils.rules, "STRUCTURE_RULES", {})
    flops, budget = flops_and_budget(make_layers)
    assert flops > 4 * budget


def test_auto_takes_the_cheapest_without_a_word_on_stdout(caplog, capsys):
    apply_fn, params, x1, x2 = network("dense")
    kernel_fn = jax.jit(nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=AUTO))
    with caplog.at_level(logging.DEBUG, logger="neural_tangents"):
        compiled = kernel_fn.lower(x1, x2, params).compile()
    assert capsys.readouterr().out == ""
    costs = [float(message.partition("flops=")[2]) for message in caplog.messages]
    assert len(costs) == 3
    assert count_flops(compiled) == min(costs) < max(costs)
    np.testing.assert_allclose(compiled(x1, x2, params), jacobian_product("dense"), rtol=1e-11, atol=1e-11)
