"""Networks against NumPy loops and moments of their initialization."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import models

MODELS = [
    models.FullyConnected(5, 8, 1, 3),
    models.FullyConnected(5, 8, 3, "scalar", activation=models.Tanh(), b_std=0.3),
    models.FullyConnected(5, 8, 2, 2, parameterization="standard", b_std=0.1, trainable="hidden"),
    models.FullyConnected(5, 8, 1, 1, trainable=(True, False)),
    models.DeepReluNet(5, 8, 2),
    models.DeepReluNet(5, 8, 1, first_activation=False),
    models.PairedTwoLayerNet(5, 8),
    models.PairedTwoLayerNet(5, 8, activation=models.Tanh()),
    models.Attention((5, 1), 4, 2, 1, 2, b_std=0.2, pooling="none"),
]


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weights_and_outputs_have_the_dtype_and_shape_asked_for(model, dtype, key):
    params = model.init(key=key, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    scalar = getattr(model, "num_outputs", "scalar") == "scalar"
    output = jax.jit(model.apply)(params, jnp.ones(5, dtype))
    assert output.dtype == dtype
    assert output.shape == (() if scalar else (model.num_outputs,))


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_the_same_key_gives_the_same_bits_and_another_key_others(model, key):
    first, second = (jax.tree.leaves(model.init(key=key)) for _ in range(2))
    other = jax.tree.leaves(model.init(key=jr.fold_in(key, 1)))
    assert all(bool(jnp.all(a == b)) for a, b in zip(first, second, strict=True))
    assert not all(bool(jnp.all(a == b)) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_the_trainable_mask_has_the_shape_of_the_weights(model, key):
    params = model.init(key=key)
    mask = model.trainable_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask))
    assert any(jax.tree.leaves(mask))


def test_hidden_means_that_the_first_and_the_last_layer_are_frozen(key):
    model = models.FullyConnected(5, 8, 3, 2, trainable="hidden")
    mask = model.trainable_mask(model.init(key=key))
    assert [dense.weight for dense in mask] == [False, True, True, False]
    deep = models.DeepReluNet(5, 8, 2)
    assert jax.tree.leaves(deep.trainable_mask(deep.init(key=key))) == [False, True, True, False]


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_fully_connected_is_the_loop_over_layers(parameterization, key):
    model = models.FullyConnected(5, 7, 2, 3, parameterization=parameterization, w_std=1.3, b_std=0.4)
    params = model.init(key=key)
    x = jr.normal(key, (5,))
    h = np.asarray(x)
    for index, dense in enumerate(params):
        weight, bias = np.asarray(dense.weight), np.asarray(dense.bias)
        if parameterization == "ntk":
            weight, bias = weight * 1.3 / np.sqrt(weight.shape[1]), bias * 0.4
        h = weight @ h + bias
        h = np.maximum(h, 0) if index < 2 else h
    np.testing.assert_allclose(model.apply(params, x), h, rtol=1e-12)


@pytest.mark.parametrize("first_activation", [True, False])
def test_the_deep_relu_net_is_the_loop_over_layers(first_activation, key):
    model = models.DeepReluNet(5, 6, 3, first_activation=first_activation)
    params = model.init(key=key)
    x = np.asarray(jr.normal(key, (5,)))
    h = np.asarray(params.embedding) @ x
    h = np.maximum(h, 0) if first_activation else h
    for weight in params.hidden:
        h = np.maximum(np.asarray(weight) @ h, 0)
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), np.asarray(params.readout) @ h, rtol=1e-12)


def test_attention_is_the_loop_over_heads(key):
    model = models.Attention((5, 2), 4, 3, 1, 2, b_std=0.2, pooling="none", score_std=1.5)
    params = model.init(key=key)
    x = np.asarray(jr.normal(key, (10,)))
    tokens, layer, heads = x.reshape(5, 2), jax.tree.map(np.asarray, params.layers[0]), []
    for head in range(3):
        keys = tokens @ layer.key[head]
        scores = np.exp(1.5 * keys @ keys.T / (2 * 4))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ tokens @ layer.value[head])
    w_std = np.sqrt(2.0)
    z = np.concatenate(heads, axis=1) @ layer.output.weight.T * w_std / np.sqrt(2 * 3 * 4) + 0.2 * layer.output.bias
    features = np.maximum(z, 0).reshape(-1)
    readout = jax.tree.map(np.asarray, params.readout)
    expected = readout.weight @ features * w_std / np.sqrt(features.size) + 0.2 * readout.bias
    np.testing.assert_allclose(jax.jit(model.apply)(params, jnp.asarray(x)), expected, rtol=1e-12)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_both_parameterizations_start_with_the_variance_of_the_theory(parameterization, key):
    # A linear network of one hidden layer: Var f = w⁴ |x|²/d + w² b² + b² at every width.
    model = models.FullyConnected(
        4, 16, 1, "scalar", activation=models.Identity(), parameterization=parameterization, w_std=1.2, b_std=0.5
    )
    x = jnp.asarray([1.0, -2.0, 0.5, 0.25])
    num_draws = 4000
    outputs = jax.jit(jax.vmap(lambda k: model.apply(model.init(key=k), x)))(jr.split(key, num_draws))
    variance = 1.2**4 * float(x @ x) / 4 + 1.2**2 * 0.25 + 0.25
    squares = outputs**2
    assert abs(float(jnp.mean(squares)) - variance) < 4 * float(jnp.std(squares)) / np.sqrt(num_draws)


@pytest.mark.parametrize("first_activation", [True, False])
def test_the_deep_relu_net_keeps_the_norm_of_its_input(first_activation, key):
    model = models.DeepReluNet(4, 8, 2, first_activation=first_activation)
    x = jr.normal(key, (4,))
    x = x / jnp.linalg.norm(x)
    num_draws = 2000
    draw = jax.vmap(lambda k: jax.nn.relu(model.preactivations(model.init(key=k), x)[-1]))
    last = jax.jit(draw)(jr.split(key, num_draws))
    squares = jnp.sum(last**2, axis=1)
    expected = 1.0 if first_activation else 2.0  # exact at every width
    assert abs(float(jnp.mean(squares)) - expected) < 5 * float(jnp.std(squares)) / np.sqrt(num_draws)


@pytest.fixture(params=[True, False], ids=["optimized", "unoptimized"])
def optimizations(request):
    """With and without XLA's optimizations: without, float32 softplus of equal numbers differs by their place."""
    jax.config.update("jax_disable_most_optimizations", not request.param)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("activation", [models.Softplus(), models.Tanh()], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.usefixtures("optimizations")
def test_the_paired_net_is_zero_to_the_bit_at_initialization(activation, dtype, key):
    model = models.PairedTwoLayerNet(6, 50, activation=activation)
    params = model.init(key=key, dtype=dtype)
    xs = jr.normal(key, (40, 6), dtype)
    outputs = jax.jit(jax.vmap(model.apply, (None, 0)))(params, xs)
    assert bool(jnp.all(outputs == 0.0))


def test_the_gradient_of_the_paired_net_is_at_most_the_activations_slope(key):
    model = models.PairedTwoLayerNet(6, 50, activation=models.Tanh())
    params = model.init(key=key)
    x = jr.normal(key, (6,))
    gradient = jax.grad(model.apply)(params, x / jnp.linalg.norm(x))
    norm = float(jnp.sqrt(jnp.sum(gradient.plus**2) + jnp.sum(gradient.minus**2)))
    assert 0.1 < norm <= models.Tanh().lipschitz


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_a_wrong_input_shape_is_refused_with_both_shapes(model, key):
    params = model.init(key=key)
    with pytest.raises(ValueError, match=r"shape \(5,\) and got \(4,\); flatten images and use jax.vmap"):
        model.apply(params, jnp.ones(4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.FullyConnected(0, 8, 1, 1), "input_dim=0"),
        (lambda: models.FullyConnected(5, -8, 1, 1), "width=-8"),
        (lambda: models.FullyConnected(5, 8, 0, 1), "num_hidden_layers=0"),
        (lambda: models.FullyConnected(5, 8, 1, 0), "num_outputs=0"),
        (lambda: models.FullyConnected(5, 8, 1, 1, w_std=float("nan")), "w_std=nan"),
        (lambda: models.FullyConnected(5, 8, 1, 1, b_std=-0.1), "b_std=-0.1"),
        (lambda: models.FullyConnected(5, 8, 1, 1, trainable=(True,)), "1 bools for 2 layers"),
        (lambda: models.DeepReluNet(5, 8, 0), "num_hidden_layers=0"),
        (lambda: models.PairedTwoLayerNet(5, 7), "width=7; neurons come in pairs"),
    ],
)
def test_impossible_sizes_are_refused_with_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_model_is_hashable_and_has_no_leaves():
    for model in MODELS:
        assert jax.tree.leaves(model) == []
        assert hash(model) == hash(model)
    assert models.FullyConnected(5, 8, 1, 3) == models.FullyConnected(5, 8, 1, 3)
