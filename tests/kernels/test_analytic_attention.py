"""Kernels of attention networks against finite networks, neural-tangents, and the recursion written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import NeuralTangentsKernel, analytic_nngp, analytic_ntk, load_neural_tangents
from ntk_robust.models import Attention, Erf, Identity, Softplus

TOKENS, CHANNELS = 4, 3
SEQUENCES = jnp.asarray(np.random.default_rng(0).normal(size=(3, TOKENS * CHANNELS)))


def recursion(model, x, z):
    """NTK and NNGP of one pair in numpy, ReLU or identity, softmax or identity scores, mean over tokens."""
    b2, w2 = model.b_std**2, model.w_std**2

    def weights(covariance):
        scores = model.score_std * covariance
        if model.mechanism == "identity":
            return scores
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def features(k, p, q):  # of the tokens of one point with those of another; p, q their variances
        if isinstance(model.activation, Identity):
            return k, np.ones_like(k)
        norm = np.sqrt(np.outer(p, q))
        theta = np.arccos(np.clip(k / norm, -1.0, 1.0))
        return (
            norm * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi),
            (np.pi - theta) / (2 * np.pi),
        )

    a, b = (np.asarray(v).reshape(model.sequence_shape) for v in (x, z))
    kernels = {pair: u @ v.T / CHANNELS for pair, (u, v) in {"xx": (a, a), "xz": (a, b), "zz": (b, b)}.items()}
    ntk = np.zeros_like(kernels["xz"])
    for _ in range(model.num_hidden_layers):
        g, h = weights(kernels["xx"]), weights(kernels["zz"])
        mixed = {"xx": g @ kernels["xx"] @ g.T, "xz": g @ kernels["xz"] @ h.T, "zz": h @ kernels["zz"] @ h.T}
        before = {pair: w2 * k + b2 for pair, k in mixed.items()}
        ntk = w2 * g @ ntk @ h.T + 2 * w2 * mixed["xz"] + b2  # values, outputs and biases train
        p, q = np.diag(before["xx"]), np.diag(before["zz"])
        value, slope = features(before["xz"], p, q)
        kernels = {"xx": features(before["xx"], p, p)[0], "xz": value, "zz": features(before["zz"], q, q)[0]}
        ntk = slope * ntk
    nngp = w2 * kernels["xz"].mean() + b2
    return nngp + w2 * ntk.mean(), nngp


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["softmax", "identity"])
def test_kernels_are_those_of_the_recursion_written_out(mechanism):
    model = Attention((TOKENS, CHANNELS), 1, 1, 2, "scalar", mechanism, w_std=1.2, b_std=0.3, score_std=1.4)
    ntk, nngp = analytic_ntk(model), analytic_nngp(model)
    assert isinstance(ntk, NeuralTangentsKernel)
    expected = np.array([[recursion(model, x, z) for z in SEQUENCES] for x in SEQUENCES])
    matrix = jax.jit(ntk.gram)(SEQUENCES)
    # neural-tangents takes inverse cosines, which cost half of the digits on the diagonal
    np.testing.assert_allclose(matrix, expected[..., 0], rtol=1e-7)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(jax.jit(nngp.gram)(SEQUENCES[:1], SEQUENCES), expected[:1, :, 1], rtol=1e-7)
    np.testing.assert_allclose(jax.jit(ntk)(SEQUENCES[0], SEQUENCES[2]), expected[0, 2, 0], rtol=1e-10)
    assert np.all(np.isfinite(jax.jit(jax.grad(ntk))(SEQUENCES[0], SEQUENCES[2])))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Linear scaling attention")
@pytest.mark.parametrize(("mechanism", "pooling"), [("relu", "average"), ("abs", "none"), ("softmax", "none")])
def test_values_are_those_of_neural_tangents_given_the_layers(mechanism, pooling):
    stax = load_neural_tangents().stax
    model = Attention((TOKENS, CHANNELS), 5, 2, 1, 2, mechanism, pooling, Erf(), score_std=0.8, w_std=1.1, b_std=0.4)
    attend = stax.GlobalSelfAttention(
        5, 5, 5, 2, W_key_std=0.5, W_query_std=1.6, W_value_std=2.2, W_out_std=0.5, b_std=0.4,
        attention_mechanism=mechanism.upper(),
    )  # fmt: skip
    pool = stax.GlobalAvgPool() if pooling == "average" else stax.Flatten()
    kernel_fn = stax.serial(attend, stax.Erf(), pool, stax.Dense(2, W_std=1.1, b_std=0.4))[2]
    expected = kernel_fn(SEQUENCES.reshape(-1, TOKENS, CHANNELS), None, "ntk")
    np.testing.assert_allclose(jax.jit(analytic_ntk(model).gram)(SEQUENCES), expected, rtol=1e-12)


def kernels_of(model, key, num_draws):
    """NTK by the Jacobian and products of outputs, averaged over outputs, for several initializations."""

    def draw(key):
        params = model.init(key=key)
        outputs = jax.vmap(lambda x: model.apply(params, x))(SEQUENCES)
        rows = jax.lax.map(lambda x: jax.jacobian(model.apply)(params, x), SEQUENCES)
        flat = jnp.concatenate([leaf.reshape(*outputs.shape, -1) for leaf in jax.tree.leaves(rows)], axis=-1)
        k = outputs.shape[1]
        return jnp.einsum("iop,jop->ij", flat, flat) / k, outputs @ outputs.T / k

    return jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(key, num_draws))


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "pooling", "b_std"), [(2, "average", 0.0)])
def test_kernels_of_finite_networks_approach_the_analytic_ones_in_width_and_heads(layers, pooling, b_std, key):
    errors, samples = {}, {}
    for size, num_draws in ((4, 40), (16, 40)):
        model = Attention((TOKENS, CHANNELS), size, size, layers, 4, pooling=pooling, b_std=b_std)
        samples["ntk"], samples["nngp"] = (np.asarray(k) for k in kernels_of(model, key, num_draws))
        for name, kernel in (("ntk", analytic_ntk(model)), ("nngp", analytic_nngp(model))):
            exact = np.asarray(kernel.gram(SEQUENCES))
            noise = samples[name].std(axis=0, ddof=1) / math.sqrt(num_draws)
            distance = np.abs(samples[name].mean(axis=0) - exact)
            # beside sampling noise a finite width leaves a bias of order depth over width
            assert np.all(distance <= 5 * noise + 3 * layers / size * exact.max())
            errors[name, size] = np.sqrt(np.mean((samples[name] - exact) ** 2)) / exact.max()
    assert errors["ntk", 16] < 0.7 * errors["ntk", 4]
    # planted: without the mixing of tokens the kernel is far away
    other = Attention((TOKENS, CHANNELS), 16, 16, layers, 4, "identity", pooling, b_std=b_std)
    wrong = np.asarray(analytic_ntk(other).gram(SEQUENCES))
    assert np.any(np.abs(samples["ntk"].mean(axis=0) - wrong) > 0.2 * wrong.max())


def test_impossible_attention_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"Softplus.*take one of Relu"):
        analytic_ntk(Attention((4, 3), 1, 1, 1, 2, activation=Softplus()))
    with pytest.raises(ValueError, match="tokens=0"):
        Attention((0, 3), 1, 1, 1, 2)
    with pytest.raises(ValueError, match="score_std=-1"):
        Attention((4, 3), 1, 1, 1, 2, score_std=-1.0)
