"""Analytic kernels against 50 digits, quadrature, Monte Carlo, neural-tangents and finite differences."""

import dataclasses
import math
import re
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import (
    DenseKernel,
    JointKernel,
    KernelPredictor,
    ZonalKernel,
    analytic_nngp,
    analytic_ntk,
    analytic_ntk_and_nngp,
    empirical_ntk,
    rkhs_distance_squared,
)
from ntk_robust.models import (
    Abs,
    DeepReluNet,
    Erf,
    FullyConnected,
    Gelu,
    LeakyRelu,
    PairedTwoLayerNet,
    QuadraticRelu,
    Relu,
    Softplus,
    Tanh,
)

sys.path.insert(0, str(Path(__file__).parent))
import oracles

OPTIMIZED = {"xla_backend_optimization_level": 1}  # what conftest leaves out makes many random draws slow
_pairs = eqx.filter_jit(lambda kernel, x, z: jax.vmap(kernel)(x, z))
_distances = eqx.filter_jit(lambda kernel, x, z: jax.vmap(lambda a, b: rkhs_distance_squared(kernel, a, b))(x, z))
_gram = eqx.filter_jit(lambda kernel, x, z: kernel.gram(x, z))

_all_ways = eqx.filter_jit(
    lambda kernel, x: (
        jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(x))(x),
        kernel.gram(x),
        kernel.gram(x, x),
        kernel.diagonal(x),
    )
)

ANGLES = [0.0, 1e-8, 1e-6, 1e-4, 1e-2, 0.3, 1.2, math.pi / 2, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi]


@pytest.mark.parametrize(
    ("depth", "b_std", "dtype", "tolerance"),
    [
        (1, 0.0, np.float64, 1e-14),
        (20, 0.0, np.float64, 1e-14),
        (3, 0.2, np.float64, 1e-14),
        (3, 0.0, np.float32, 3e-7),
        (20, 0.0, np.float32, 3e-7),
        (3, 0.2, np.float32, 3e-7),
    ],
)
def test_relu_ntk_agrees_with_fifty_digits_at_every_angle(depth, b_std, dtype, tolerance):
    rng = np.random.default_rng(depth)
    model = FullyConnected(784, 1, depth, "scalar", b_std=b_std)
    kernel = analytic_ntk(model)
    assert isinstance(kernel, DenseKernel if b_std else ZonalKernel)
    x, z = oracles.pairs_at_angles(ANGLES, 784, rng, dtype)
    found = np.asarray(_pairs(kernel, jnp.asarray(x), jnp.asarray(z)))
    assert found.dtype == dtype
    terms = {"weight_terms": [2.0] * (depth + 1), "bias_terms": [b_std**2] * (depth + 1), "w_std": math.sqrt(2.0)}
    for a, b, value in zip(x, z, found, strict=True):
        xx, zz, xz = oracles.relu_ntk(a, b, **terms, b_std=b_std, input_scale=1 / 784)
        assert abs(float(value - xz)) <= tolerance * float((xx * zz) ** 0.5)


@pytest.mark.parametrize(
    ("b_std", "dtype", "smallest", "tolerance"),
    [
        (0.0, np.float64, 1e-7, 1e-6),
        (0.2, np.float64, 1e-7, 1e-6),
        (0.0, np.float32, 1e-4, 1e-2),
        (0.2, np.float32, 1e-4, 1e-2),
    ],
)
def test_rkhs_distance_keeps_its_relative_accuracy_as_points_meet(b_std, dtype, smallest, tolerance):
    rng = np.random.default_rng(0)
    kernel = analytic_ntk(FullyConnected(784, 1, 3, "scalar", b_std=b_std))
    angles = np.geomspace(smallest, math.pi, 9)
    x, z = oracles.pairs_at_angles(angles, 784, rng, dtype, ratio=1.0)
    uneven = oracles.pairs_at_angles(angles, 784, rng, dtype)
    x, z = np.concatenate([x, uneven[0]]), np.concatenate([z, uneven[1]])
    found = np.asarray(_distances(kernel, jnp.asarray(x), jnp.asarray(z)))
    for a, b, value in zip(x, z, found, strict=True):
        xx, zz, xz = oracles.relu_ntk(
            a,
            b,
            weight_terms=[2.0] * 4,
            bias_terms=[b_std**2] * 4,
            w_std=math.sqrt(2.0),
            b_std=b_std,
            input_scale=1 / 784,
        )
        assert abs(float(value / (xx + zz - 2 * xz) - 1)) <= tolerance


@pytest.mark.parametrize(
    ("trainable", "parameterization", "b_std"),
    [
        ("all", "ntk", 0.0),
        ("hidden", "ntk", 0.5),
        ((True, False, True, False), "standard", 0.5),
        ("all", "standard", 0.0),
    ],
)
def test_trained_subsets_and_parameterizations_agree_with_the_recursion_at_fifty_digits(
    trainable, parameterization, b_std
):
    model = FullyConnected(4, 6, 3, 2, w_std=1.1, b_std=b_std, trainable=trainable, parameterization=parameterization)
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, 4))
    counts = [float(c) for c in model.layer_trainable]
    weights, bias = ([4, 6, 6, 6], 1.0) if parameterization == "standard" else ([1.1**2] * 4, b_std**2)
    expected = oracles.relu_ntk(
        x,
        z,
        weight_terms=[w * c for w, c in zip(weights, counts, strict=True)],
        bias_terms=[bias * c * (b_std > 0) for c in counts],
        w_std=1.1,
        b_std=b_std,
        input_scale=1 / 4,
    )[2]
    found = analytic_ntk(model)(jnp.asarray(x), jnp.asarray(z))
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-13)


@pytest.mark.parametrize(
    "activation",
    [
        Gelu(),
        pytest.param(Tanh(), marks=pytest.mark.slow),
        pytest.param(Softplus(), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_other_activations_agree_with_quadrature_in_the_plane(activation):
    model = FullyConnected(3, 1, 2, "scalar", activation=activation, w_std=1.1, b_std=0.3)
    rng = np.random.default_rng(2)
    x, z = rng.normal(size=(2, 3)) * np.array([[1.0], [0.5]])
    terms = {"weight_terms": [1.1**2] * 3, "bias_terms": [0.3**2] * 3, "w_std": 1.1, "b_std": 0.3, "input_scale": 1 / 3}
    numpy_of = lambda f: lambda v: np.asarray(f(jnp.asarray(v)))  # noqa: E731
    expected = oracles.quadrature_ntk(x, z, numpy_of(activation), numpy_of(activation.derivative), **terms)
    kernel = analytic_ntk(model)
    found = _pairs(kernel, jnp.asarray(np.stack([x, -x, z])), jnp.asarray(np.stack([z, z, z])))
    np.testing.assert_allclose(found[0], expected, rtol=1e-11)
    opposite = oracles.quadrature_ntk(-x, z, numpy_of(activation), numpy_of(activation.derivative), **terms)
    np.testing.assert_allclose(found[1], opposite, rtol=1e-10, atol=1e-12)


def test_quadratic_relu_agrees_with_the_arc_cosine_kernel_of_order_two():
    # E[g₊² g'₊²] for unit variances at correlation u, from the third-order arc-cosine formula of Cho and Saul
    kernel = analytic_nngp(FullyConnected(2, 1, 1, "scalar", activation=QuadraticRelu(), w_std=1.0))
    for theta in (0.0, 0.4, 1.5, 2.5, math.pi):
        x, z = jnp.array([1.0, 0.0]) * math.sqrt(2), jnp.array([math.cos(theta), math.sin(theta)]) * math.sqrt(2)
        j = 3 * math.sin(theta) * math.cos(theta) + (math.pi - theta) * (1 + 2 * math.cos(theta) ** 2)
        np.testing.assert_allclose(jax.jit(kernel)(x, z), j / (2 * math.pi), rtol=1e-12, atol=1e-14)


def test_series_state_how_much_they_leave_out():
    dual = analytic_ntk(FullyConnected(3, 1, 1, "scalar", activation=Tanh())).dual
    tails = [float(t) for t in dual.truncation(jnp.asarray(1.0))]
    assert max(tails) < 1e-12
    short = type(dual)(Tanh(), num_terms=8)
    value_tail, slope_tail = (float(t) for t in short.truncation(jnp.asarray(1.0)))
    one = jnp.asarray(1.0)
    from ntk_robust.kernels._pairs import Pair

    pairs = Pair(jnp.asarray(0.01), jnp.asarray(True), one, one)
    cut, full = short.moments(pairs), dual.moments(pairs)
    error = abs(float(cut.slope - full.slope))
    assert 0.0 < error <= slope_tail
    assert 0.0 < value_tail < 1e-3


@pytest.mark.parametrize(
    "model",
    [
        FullyConnected(5, 4, 2, "scalar"),
        pytest.param(FullyConnected(5, 4, 2, "scalar", b_std=0.3), marks=pytest.mark.slow),
        FullyConnected(5, 4, 2, "scalar", activation=LeakyRelu(0.7), b_std=0.3),
        FullyConnected(5, 4, 2, "scalar", activation=Abs(), trainable="hidden"),
        pytest.param(FullyConnected(5, 4, 2, "scalar", activation=Tanh()), marks=pytest.mark.slow),
        pytest.param(DeepReluNet(5, 4, 2), marks=pytest.mark.slow),
        PairedTwoLayerNet(5, 4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_pair_function_matrix_and_diagonal_are_one_kernel(model):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(6, 5)))
    x = x.at[4].set(x[1]).at[5].set(-2.0 * x[0])
    kernel = analytic_ntk(model)
    by_pairs, symmetric, cross, diagonal = _all_ways(kernel, x)
    scale = float(jnp.max(by_pairs))
    np.testing.assert_allclose(cross, by_pairs, atol=3e-14 * scale)
    np.testing.assert_allclose(symmetric, by_pairs, atol=3e-14 * scale)
    np.testing.assert_array_equal(symmetric, symmetric.T)
    np.testing.assert_allclose(diagonal, np.diagonal(by_pairs), rtol=1e-13)
    assert np.linalg.eigvalsh(symmetric)[0] > -1e-13 * scale


@pytest.mark.slow  # the blocks of a matrix written over another one are the same, with fewer rows
def test_blocked_half_equals_the_whole_matrix():
    kernel = analytic_ntk(FullyConnected(7, 1, 3, "scalar"))
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(3001, 7)))
    blocked = eqx.filter_jit(lambda k, x: k.gram(x))(kernel, x)
    whole = _gram(kernel, x[:700], x)
    np.testing.assert_allclose(blocked[:700], whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(blocked, blocked.T)


@pytest.mark.slow
def test_a_matrix_written_over_another_one_is_the_same_and_symmetric_with_a_rest_of_rows():
    kernel = analytic_ntk(FullyConnected(7, 1, 3, "scalar"))
    x = jnp.asarray(np.random.default_rng(4).normal(size=(61, 7)))
    x = x.at[60].set(x[2] + 1e-9).at[33].set(-x[7])
    into = jax.jit(lambda x, out: kernel.gram(x, out=out), donate_argnums=1)
    found = into(x, jnp.full((61, 61), jnp.nan))
    np.testing.assert_array_equal(found, found.T)
    expected = _pairs(kernel, jnp.repeat(x, 61, axis=0), jnp.tile(x, (61, 1))).reshape(61, 61)
    np.testing.assert_allclose(found, expected, rtol=2e-14)
    with pytest.raises(ValueError, match=r"float64\(3, 3\)"):
        kernel.gram(x, out=jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        kernel.gram(x, x, out=found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [FullyConnected(5, 4, 3, "scalar", trainable="hidden"), FullyConnected(5, 4, 2, 2, b_std=0.3)]
)
def test_both_kernels_from_one_pass_are_those_from_two(model):
    both = analytic_ntk_and_nngp(model)
    x = jnp.asarray(np.random.default_rng(13).normal(size=(6, 5)))
    compiled = jax.jit(both.gram).lower(x, x).compile()
    found = (both.gram(x), compiled(x, x), both.diagonal(x), both(x[0], x[1]))
    for name, kernel in (("ntk", analytic_ntk(model)), ("nngp", analytic_nngp(model))):
        pairs = _pairs(kernel, jnp.repeat(x, 6, axis=0), jnp.tile(x, (6, 1))).reshape(6, 6)
        for values, expected in zip(found, (pairs, pairs, jnp.diagonal(pairs), pairs[0, 1]), strict=True):
            np.testing.assert_allclose(getattr(values, name), expected, rtol=1e-11)
    products = re.findall(r"= f64\[6,6\]\S* dot\(", compiled.as_text())
    of_one = jax.jit(both.ntk.gram).lower(x, x).compile().as_text()
    assert 0 < len(products) == len(re.findall(r"= f64\[6,6\]\S* dot\(", of_one))
    other = dataclasses.replace(both.ntk, **({"b_std": 0.1} if model.b_std else {}))
    if model.b_std:
        with pytest.raises(ValueError, match="another network"):
            JointKernel(both.ntk, other).gram(x)


def test_the_gram_matrix_repairs_twins_that_a_rounded_cosine_would_lose():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 784)).astype(np.float32)
    twins = (x + 1e-4 * rng.normal(size=x.shape)).astype(np.float32)
    kernel = analytic_ntk(FullyConnected(784, 1, 3, "scalar"))
    matrix = np.asarray(_gram(kernel, jnp.asarray(x), jnp.asarray(twins)))
    exact = np.asarray(_pairs(kernel, jnp.asarray(x, jnp.float64), jnp.asarray(twins, jnp.float64)))
    assert np.max(np.abs(np.diagonal(matrix) / exact - 1)) < 3e-7
    # the fault this guards against, planted: the same polynomial at the cosine of a float32 product
    from ntk_robust.kernels._pairs import Pair, rows

    a, b = rows(jnp.asarray(x)), rows(jnp.asarray(twins))
    u = jnp.sum(a.directions * b.directions, axis=1)
    naive = kernel.of_pairs(Pair(jnp.maximum(1 - u, 0), u >= 0, a.lengths, b.lengths))
    assert np.max(np.abs(np.asarray(naive) / exact - 1)) > 1e-5


@pytest.mark.parametrize(
    "model",
    [
        FullyConnected(3, 1, 2, "scalar"),
        pytest.param(FullyConnected(3, 1, 2, "scalar", b_std=0.4), marks=pytest.mark.slow),
    ],
    ids=["zonal", "biased"],
)
def test_derivatives_match_finite_differences_and_are_finite_at_coincident_points(model):
    kernel = analytic_ntk(model)
    rng = np.random.default_rng(6)
    x, z = jnp.asarray(rng.normal(size=(2, 3)))
    gradient = jax.jit(jax.grad(kernel))
    step = 1e-6
    value = jax.jit(kernel)
    numeric = [(value(x + step * e, z) - value(x - step * e, z)) / (2 * step) for e in jnp.eye(3)]
    np.testing.assert_allclose(gradient(x, z), jnp.stack(numeric), rtol=1e-8, atol=1e-9)
    close = x + 1e-7 * z
    direction = (x - close) / jnp.linalg.norm(x - close)
    # along the line to a close point the derivative is that of the deficit: finite, and of one sign on each side
    assert bool(jnp.all(jnp.isfinite(gradient(x, x))))
    assert bool(jnp.all(jnp.isfinite(gradient(x, close))))
    assert bool(jnp.all(jnp.isfinite(gradient(jnp.zeros(3), z))))
    if model.b_std == 0.0:  # homogeneous: half of the derivative of k(x, x) = c |x|²
        np.testing.assert_allclose(gradient(x, x), value(x, x) / (x @ x) * x, rtol=1e-12)
    matrix = jax.jit(jax.grad(lambda v: jnp.sum(kernel.gram(jnp.stack([v, z]), jnp.stack([x, z, close])) ** 2)))(x)
    assert bool(jnp.all(jnp.isfinite(matrix)))
    assert float(gradient(x, close) @ direction) != 0.0


def _at_zero(activation, b_std, ways, dtype):
    """Derivatives at the zero vector beside finite differences, both for two other points and relative to the latter"""
    kernel = analytic_ntk(FullyConnected(3, 1, 2, "scalar", activation=activation, b_std=b_std))
    z = jnp.asarray(np.random.default_rng(8).normal(size=(2, 3)))
    step = 1e-4
    around = np.asarray(kernel.gram(jnp.concatenate([step * jnp.eye(3), -step * jnp.eye(3)]), z))
    numeric = ((around[:3] - around[3:]) / (2 * step)).T
    computed = jax.jit(lambda x, z: [way(kernel, x, z) for way in ways])(jnp.zeros(3, dtype), z.astype(dtype))
    size = max(0.1, np.max(np.abs(numeric)))
    return [np.asarray(value, float) / size for value in computed], numeric / size


def _by_pairs(kernel, x, z):
    return jax.vmap(jax.grad(kernel), (None, 0))(x, z)


def _by_predictor(kernel, x, z):
    return jax.jacrev(KernelPredictor(kernel, z, jnp.eye(2, dtype=z.dtype)))(x)


def _by_matrix(kernel, x, z):
    return jax.jacrev(lambda x: kernel.gram(x[None], z)[0])(x)


def _by_distance(kernel, x, z):
    return -0.5 * jax.vmap(jax.grad(kernel.distance_squared), (None, 0))(x, z)


def test_derivatives_at_the_zero_vector_match_finite_differences_where_the_kernel_is_smooth():
    (pairs, predictor), numeric = _at_zero(Erf(), 0.0, (_by_pairs, _by_predictor), "float64")
    np.testing.assert_allclose(pairs, numeric, rtol=0.0, atol=1e-7)
    np.testing.assert_allclose(predictor, numeric, rtol=0.0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "b_std", "ways"),
    [
        (Relu(), 0.3, (_by_pairs, _by_predictor, _by_matrix, _by_distance)),
        (Softplus(), 0.0, (_by_pairs, _by_predictor, _by_matrix, _by_distance)),
        (QuadraticRelu(), 0.0, (_by_predictor,)),
        (Tanh(), 0.3, (_by_predictor, _by_matrix)),
    ],
    ids=["relu", "softplus", "quadratic relu", "tanh"],
)
def test_all_derivatives_at_the_zero_vector_match_finite_differences_in_single_precision(activation, b_std, ways):
    derivatives, numeric = _at_zero(activation, b_std, ways, "float32")
    for derivative in derivatives:
        np.testing.assert_allclose(derivative, numeric, rtol=0.0, atol=3e-6)


@pytest.mark.timeout(60)
def test_a_symmetric_matrix_of_one_block_compiles_in_seconds():
    kernel = analytic_ntk(FullyConnected(3, 8, 1, 1))
    points = jax.ShapeDtypeStruct((1500, 3), jnp.float32)
    assert jax.jit(kernel.gram).lower(points).compile() is not None


@pytest.mark.slow
def test_sums_products_and_multiples_are_kernels():
    first = analytic_ntk(FullyConnected(4, 1, 1, "scalar"))
    second = analytic_nngp(FullyConnected(4, 1, 2, "scalar"))
    x = jnp.asarray(np.random.default_rng(7).normal(size=(5, 4)))
    combined = 2.0 * (first + second) * first
    (_, k1, _, _), (_, k2, _, _), (pairs, symmetric, cross, diagonal) = (
        _all_ways(k, x) for k in (first, second, combined)
    )
    expected = 2.0 * (k1 + k2) * k1
    for found in (pairs, symmetric, cross):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(diagonal, np.diagonal(expected), rtol=1e-13)
    apart = np.diagonal(k1 + 3 * k2)
    found = _distances(first + 3.0 * second, x[:4], x[1:])
    np.testing.assert_allclose(found, apart[:4] + apart[1:] - 2 * np.diagonal(k1 + 3 * k2, 1), rtol=1e-12)
    near = x + 1e-6 * x[::-1]
    product = _distances(first * second, x, near)
    xx, zz, xz = (np.diagonal(_gram(first, a, b) * _gram(second, a, b)) for a, b in ((x, x), (near, near), (x, near)))
    np.testing.assert_allclose(product, xx + zz - 2 * xz, rtol=2e-3)  # which keeps few digits along the ray of row 2
    with pytest.raises(ValueError, match=r"times -1\.0"):
        -1.0 * first
    with pytest.raises(TypeError):
        first + 1.0


def test_the_number_of_traces_does_not_grow_with_the_number_of_kernels():
    count = 0

    @jax.jit
    def matrix(kernel, x):
        nonlocal count
        count += 1
        return kernel.gram(x)

    x = jnp.eye(3)
    for w_std in (1.0, 1.5, 2.0):
        kernel = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))
        matrix(eqx.tree_at(lambda k: k.scale, kernel, jnp.asarray(w_std)), x)
    assert count == 1


@pytest.mark.parametrize("model", [FullyConnected(3, 4, 1, "scalar"), FullyConnected(3, 4, 1, "scalar", b_std=0.1)])
def test_a_second_call_outside_of_jit_compiles_nothing(model, caplog):
    kernel, x = analytic_ntk(model), jnp.eye(3)
    predictor = KernelPredictor(kernel, x, jnp.ones(3))

    def use() -> None:
        jax.block_until_ready((kernel.gram(x), kernel.diagonal(x), kernel(x[0], x[1]), predictor(x[0])))

    with jax.log_compiles():
        use()
        assert "Compiling" in caplog.text
        caplog.clear()
        use()
        assert "Compiling" not in caplog.text
    assert [len(jax.jit(method)(x)) for method in (kernel.gram, kernel.diagonal)] == [3, 3]  # bound methods hash


def test_the_fit_certifies_its_error():
    kernel = analytic_ntk(FullyConnected(784, 1, 3, "scalar"))
    assert 0.0 < kernel.fit("float32").error < 2e-7
    assert 0.0 < kernel.fit("float64").error < 1e-15
    assert len(kernel.fit("float32").acute) <= 14


@pytest.mark.slow
@pytest.mark.parametrize("first_activation", [True, False])
def test_the_deep_relu_kernel_is_the_mean_of_its_empirical_kernels(first_activation, key):
    model = DeepReluNet(4, 256, 2, first_activation)
    rng = np.random.default_rng(8)
    x = jnp.asarray(rng.normal(size=(3, 4)))
    draw = jax.jit(jax.vmap(lambda k: empirical_ntk(model.apply, model.init(key=k), x)), compiler_options=OPTIMIZED)
    samples = np.asarray(draw(jax.random.split(key, 64)))
    expected = np.asarray(analytic_ntk(model).gram(x))
    error = samples.std(axis=0, ddof=1) / math.sqrt(64)
    # finite width leaves a bias of order depth/width beside the sampling error
    assert np.all(np.abs(samples.mean(axis=0) - expected) <= 5 * error + 0.03 * np.max(expected))
    wrong = np.asarray(analytic_ntk(DeepReluNet(4, 256, 2, not first_activation)).gram(x))
    assert np.any(np.abs(samples.mean(axis=0) - wrong) > 5 * error + 0.03 * np.max(expected))


@pytest.mark.slow
def test_the_paired_kernel_is_the_mean_of_its_empirical_kernels(key):
    model = PairedTwoLayerNet(4, 2000, Tanh())
    rng = np.random.default_rng(9)
    x = jnp.asarray(rng.normal(size=(3, 4)))
    samples = np.asarray(
        jax.jit(jax.vmap(lambda k: empirical_ntk(model.apply, model.init(key=k), x)))(jax.random.split(key, 32))
    )
    error = samples.std(axis=0, ddof=1) / math.sqrt(32)
    assert np.all(np.abs(samples.mean(axis=0) - analytic_ntk(model).gram(x)) <= 5 * error)


@pytest.mark.slow
def test_the_nngp_kernel_is_the_covariance_of_outputs(key):
    model = FullyConnected(3, 512, 2, 64, b_std=0.5, w_std=1.3)
    x = jnp.asarray(np.random.default_rng(10).normal(size=(3, 3)))
    draw = jax.vmap(lambda k: jax.vmap(model.apply, (None, 0))(model.init(key=k), x))
    outputs = jax.jit(draw, compiler_options=OPTIMIZED)(jax.random.split(key, 40))
    products = np.einsum("sik,sjk->sij", outputs, outputs) / 64
    error = products.std(axis=0, ddof=1) / math.sqrt(40)
    assert np.all(np.abs(products.mean(axis=0) - analytic_nngp(model).gram(x)) <= 5 * error)


@pytest.mark.slow
def test_empirical_kernels_approach_the_analytic_one_like_one_over_root_width(key):
    x = jnp.asarray(np.random.default_rng(11).normal(size=(4, 5)))
    widths, errors = [32, 128, 512], []
    for width in widths:
        model = FullyConnected(5, width, 1, "scalar")
        exact = analytic_ntk(model).gram(x)
        draw = jax.jit(jax.vmap(lambda k, model=model: empirical_ntk(model.apply, model.init(key=k), x)))
        samples = draw(jax.random.split(key, 48))
        errors.append(float(jnp.sqrt(jnp.mean((samples - exact[None]) ** 2))))
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.62 < slope < -0.38


def test_refusals_quote_the_value_and_the_remedy():
    with pytest.raises(ValueError, match="no layer trains"):
        analytic_ntk(FullyConnected(3, 2, 1, "scalar", trainable=(False, False)))
    with pytest.raises(ValueError, match="no NNGP"):
        analytic_nngp(PairedTwoLayerNet(3, 2))
    with pytest.raises(ValueError, match="float16"):
        analytic_ntk(FullyConnected(3, 2, 1, "scalar")).gram(jnp.ones((2, 3), jnp.float16))
    with pytest.raises(ValueError, match="kink is 3"):
        ZonalKernel(1.0, (1.0, 1.0), 3.0)
    with pytest.raises(ValueError, match="layer_weights"):
        ZonalKernel(1.0, (0.0, 0.0))


@pytest.mark.slow
def test_relu_and_leaky_kernels_agree_with_neural_tangents():
    from ntk_robust.kernels import load_neural_tangents

    stax = load_neural_tangents().stax
    x = jnp.asarray(np.random.default_rng(12).normal(size=(3, 5)))
    model = FullyConnected(5, 7, 2, 3, activation=LeakyRelu(0.3), b_std=0.4, parameterization="standard", w_std=1.2)
    dense = [stax.Dense(n, W_std=1.2, b_std=0.4, parameterization="standard") for n in (7, 7, 3)]
    kernel_fn = stax.serial(dense[0], stax.LeakyRelu(0.3), dense[1], stax.LeakyRelu(0.3), dense[2])[2]
    both = jax.jit(lambda x: tuple(kernel_fn(x, None, ("ntk", "nngp"))))(x)
    np.testing.assert_allclose(analytic_ntk(model).gram(x), both[0], rtol=1e-7)
    np.testing.assert_allclose(analytic_nngp(model).gram(x), both[1], rtol=1e-7)
