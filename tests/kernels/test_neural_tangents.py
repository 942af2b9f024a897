"""neural-tangents through the door: each kernel and prediction against a value computed in another way."""

import json
import os
import subprocess
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from ntk_robust.kernels import load_neural_tangents

nt = load_neural_tangents()
stax = nt.stax

W_STD, B_STD = 1.4, 0.3


@pytest.fixture(scope="module", autouse=True)
def _promotion_as_neural_tangents_was_written_for():
    """neural-tangents divides floats by counts and adds arrays of different ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def points():
    generator = np.random.default_rng(1)
    return generator.normal(size=(6, 5)), generator.normal(size=(3, 5))


# Gaussian moments E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of (u, v) with covariance [[p, c], [c, q]]


def relu_moments(c, p, q):
    norm = np.sqrt(p * q)
    u = np.clip(c / norm, -1.0, 1.0)
    angle = np.arccos(u)
    return norm * (np.sqrt(1 - u * u) + (np.pi - angle) * u) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def erf_moments(c, p, q):
    norm = (1 + 2 * p) * (1 + 2 * q)
    return 2 / np.pi * np.arcsin(2 * c / np.sqrt(norm)), 4 / np.pi / np.sqrt(norm - 4 * c * c)


def moments_on_a_grid(function):
    """E[f(u)f(v)] by the trapezoidal rule in the plane."""
    grid = np.arange(-100, 101) * 0.09
    weight = np.exp(-0.5 * (grid[:, None] ** 2 + grid[None, :] ** 2)) * 0.09**2 / (2 * np.pi)

    def moment(c, p, q):
        u = np.sqrt(p) * grid[:, None]
        v = c / np.sqrt(p) * grid[:, None] + np.sqrt(np.maximum(q - c * c / p, 0.0)) * grid[None, :]
        return np.sum(weight * function(u) * function(v))

    return np.vectorize(moment)


def gelu_moments(c, p, q):
    def cdf(z):
        return 0.5 * (1 + scipy.special.erf(z / np.sqrt(2)))

    def slope(z):
        return cdf(z) + z * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    return moments_on_a_grid(lambda z: z * cdf(z))(c, p, q), moments_on_a_grid(slope)(c, p, q)


MOMENTS = {"Relu": relu_moments, "Erf": erf_moments, "Gelu": gelu_moments}


def dense_oracle(x1, x2, moments, num_hidden_layers):
    """NNGP and NTK of dense layers by the recursion of Jacot et al. 2018, in numpy."""
    first, second = np.concatenate([x1, x2]), slice(len(x1), None)
    nngp = W_STD**2 * first @ first.T / first.shape[1] + B_STD**2
    ntk = nngp
    for _ in range(num_hidden_layers):
        variance = np.diag(nngp)
        value, slope = moments(nngp, variance[:, None], variance[None, :])
        nngp = W_STD**2 * value + B_STD**2
        ntk = nngp + W_STD**2 * slope * ntk
    return nngp[: len(x1), second], ntk[: len(x1), second]


def dense_network(activation, num_hidden_layers):
    hidden = [stax.Dense(32, W_STD, B_STD), getattr(stax, activation)()] * num_hidden_layers
    return stax.serial(*hidden, stax.Dense(1, W_STD, B_STD))


@pytest.mark.parametrize("activation", MOMENTS)
def test_dense_kernels_follow_the_recursion_by_closed_form_or_quadrature(activation, points):
    kernel_fn = jax.jit(dense_network(activation, 2)[2], static_argnums=2)
    kernel = kernel_fn(*points, ("nngp", "ntk"))
    nngp, ntk = dense_oracle(*points, MOMENTS[activation], 2)
    np.testing.assert_allclose(kernel.nngp, nngp, rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, ntk, rtol=1e-12)


@pytest.mark.parametrize("activation", MOMENTS)
def test_dense_kernels_in_float32_are_right_to_float32(activation, points):
    with jax.enable_x64(False):
        kernel_fn = jax.jit(dense_network(activation, 2)[2], static_argnums=2)
        ntk = kernel_fn(*(jnp.asarray(x, jnp.float32) for x in points), "ntk")
    assert ntk.dtype == jnp.float32
    np.testing.assert_allclose(ntk, dense_oracle(*points, MOMENTS[activation], 2)[1], rtol=2e-6)


@pytest.mark.parametrize("activation", ["Relu", "Erf"])
def test_gradients_of_dense_kernels_are_those_of_the_closed_form(activation, points):
    x1, x2 = points
    kernel_fn = dense_network(activation, 2)[2]
    direction = np.random.default_rng(2).normal(size=x1.shape)
    gradient = jax.jit(jax.grad(lambda x: kernel_fn(x, x2, "ntk").sum()))(x1)
    step = 1e-5
    ahead, behind = (dense_oracle(x1 + s * direction, x2, MOMENTS[activation], 2)[1].sum() for s in (step, -step))
    # The error of a central difference is of the order of step² and of rounding/step.
    np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / (2 * step), rtol=1e-8)


# Convolutions: covariances between all pairs of pixels, of all pairs of images


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(3)
    return generator.normal(size=(2, 4, 4, 3)), generator.normal(size=(2, 4, 4, 3))


def pixel_pairs(images):
    count, height, width, channels = images.shape
    flat = images.reshape(count, height * width, channels)
    return np.einsum("apc,bqc->abpq", flat, flat) / channels, (height, width)


def shifted(side, offset, padding):
    """For each output position, the input position at `offset` in its window, or None in the zero padding."""
    if padding == "VALID":
        return [position + offset for position in range(side - 2)]
    sources = [position + offset - 1 for position in range(side)]
    if padding == "CIRCULAR":
        return [source % side for source in sources]
    return [source if 0 <= source < side else None for source in sources]


def convolved(cov, shape, padding):
    """Average over the nine offsets of a 3x3 filter of the covariances of the two shifted images."""
    total = 0.0
    for di in range(3):
        for dj in range(3):
            rows, columns = shifted(shape[0], di, padding), shifted(shape[1], dj, padding)
            sources = [None if i is None or j is None else i * shape[1] + j for i in rows for j in columns]
            pick = np.zeros((len(sources), shape[0] * shape[1]))
            for target, source in enumerate(sources):
                if source is not None:
                    pick[target, source] = 1.0
            total = total + np.einsum("ps,abst,qt->abpq", pick, cov, pick) / 9
    side = 2 if padding == "VALID" else 0
    return total, (shape[0] - side, shape[1] - side)


def after_relu(nngp, ntk):
    variance = np.einsum("aapp->ap", nngp)
    value, slope = relu_moments(nngp, variance[:, None, :, None], variance[None, :, None, :])
    return value, slope * ntk


def averaging(shape, window):
    """The matrix that averages pixels over windows that do not overlap."""
    rows, columns = shape[0] // window, shape[1] // window
    matrix = np.zeros((rows * columns, shape[0] * shape[1]))
    for i in range(shape[0]):
        for j in range(shape[1]):
            matrix[i // window * columns + j // window, i * shape[1] + j] = window**-2
    return matrix


def mixed(cov, left):
    return np.einsum("aps,abst,bqt->abpq", left, cov, left)


def conv_oracle(x1, x2, padding, readout):
    """NNGP and NTK of Conv 3x3 - ReLU - readout, with `readout` one of flatten, pool, global, attention."""
    cov, shape = pixel_pairs(np.concatenate([x1, x2]))
    cov, shape = convolved(cov, shape, padding)
    nngp = W_STD**2 * cov + B_STD**2
    value, ntk = after_relu(nngp, nngp)
    if readout == "attention":
        # Queries are tied to keys; in the limit their product is the covariance within an image (Hron et al. 2020).
        own = np.einsum("aapq->apq", value)
        weights = scipy.special.softmax(own, axis=-1)
        value, ntk = mixed(value, weights), mixed(ntk, weights)
        ntk = ntk + 2 * value  # the weights of values and of outputs
    if readout == "pool":
        matrix = np.broadcast_to(averaging(shape, 2), (len(value), 4, 16))
        value, ntk = mixed(value, matrix), mixed(ntk, matrix)
    axes = "abpq->ab" if readout == "global" else "abpp->ab"
    size = value.shape[2] ** 2 if readout == "global" else value.shape[2]
    value, ntk = np.einsum(axes, value) / size, np.einsum(axes, ntk) / size
    nngp = W_STD**2 * value + B_STD**2
    ntk = nngp + W_STD**2 * ntk
    return nngp[: len(x1), len(x1) :], ntk[: len(x1), len(x1) :]


def conv_network(padding, readout):
    layers = {
        "flatten": [stax.Flatten()],
        "pool": [stax.AvgPool((2, 2), (2, 2)), stax.Flatten()],
        "global": [stax.GlobalAvgPool()],
        "attention": [stax.GlobalSelfAttention(8, 8, 8, 2, linear_scaling=True), stax.Flatten()],
    }
    conv = stax.Conv(8, (3, 3), padding=padding, W_std=W_STD, b_std=B_STD)
    return stax.serial(conv, stax.Relu(), *layers[readout], stax.Dense(1, W_STD, B_STD))


@pytest.mark.parametrize(
    ("padding", "readout"),
    [
        ("SAME", "flatten"),
        pytest.param("VALID", "flatten", marks=pytest.mark.slow),
        pytest.param("CIRCULAR", "flatten", marks=pytest.mark.slow),
        ("SAME", "pool"),
        pytest.param("CIRCULAR", "global", marks=pytest.mark.slow),
        ("VALID", "attention"),
    ],
)
@pytest.mark.parametrize("x64", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Linear scaling attention used")  # it tells of the tied weights, as intended here
def test_convolutional_kernels_are_the_sums_over_pairs_of_pixels(padding, readout, x64, images):
    with jax.enable_x64(x64):
        kernel_fn = jax.jit(conv_network(padding, readout)[2], static_argnums=2)
        kernel = kernel_fn(*map(jnp.asarray, images), ("nngp", "ntk"))
    nngp, ntk = conv_oracle(*images, padding, readout)
    np.testing.assert_allclose(kernel.nngp, nngp, rtol=1e-12 if x64 else 2e-6)
    np.testing.assert_allclose(kernel.ntk, ntk, rtol=1e-12 if x64 else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["pool", "global", "attention"])
@pytest.mark.filterwarnings("ignore:Linear scaling attention used")
def test_gradients_of_convolutional_kernels_are_those_of_the_sums(readout, images):
    x1, x2 = images
    kernel_fn = conv_network("SAME", readout)[2]
    direction = np.random.default_rng(4).normal(size=x1.shape)
    gradient = jax.jit(jax.grad(lambda x: kernel_fn(x, x2, "ntk").sum()))(x1)
    step = 1e-5
    ahead, behind = (conv_oracle(x1 + s * direction, x2, "SAME", readout)[1].sum() for s in (step, -step))
    np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / (2 * step), rtol=1e-7)


SMOOTH, KINK, STEP = 1e-9, 1e-3, 3e-2  # what the trapezoidal rule is worth


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Inputs to this layer are assumed to have unit norm")  # they have
@pytest.mark.filterwarnings("ignore:Numerical Activation Layer")  # that it is numerical is what is asked for
@pytest.mark.filterwarnings("ignore:Using JAX autodiff to compute")  # of smooth functions, as it asks to make sure of
@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda: stax.ABRelu(-0.3, 1.2), KINK),
        (stax.Abs, KINK),
        (lambda: stax.Cos(1.1, 0.8, 0.2), SMOOTH),
        (lambda: stax.Exp(0.7, 0.5), SMOOTH),
        (stax.Gabor, SMOOTH),
        (lambda: stax.Gaussian(1.1, -0.4), SMOOTH),
        (lambda: stax.Hermite(3), SMOOTH),
        (lambda: stax.LeakyRelu(0.1), KINK),
        (lambda: stax.Monomial(3), SMOOTH),
        (lambda: stax.Polynomial([0.2, 0.5, -0.3]), SMOOTH),
        (lambda: stax.Rbf(0.6), SMOOTH),
        (lambda: stax.RectifiedMonomial(2), KINK),
        (stax.Sigmoid_like, SMOOTH),
        (stax.Sign, STEP),
        (lambda: stax.Sin(0.9, 1.2, 0.1), SMOOTH),
        (lambda: stax.ElementwiseNumerical(jnp.tanh, deg=40), 1e-4),
    ],
)
def test_every_activation_agrees_with_quadrature_of_its_own_function(make, tolerance, points):
    layer = make()
    both = np.concatenate([points[0][:2], points[1][:2]])
    both *= np.sqrt(both.shape[1]) / np.linalg.norm(both, axis=1, keepdims=True)
    kernel = stax.serial(stax.Dense(8), layer)[2](both[:2], both[2:], "nngp")
    expected = moments_on_a_grid(lambda z: np.asarray(layer[1]((), jnp.asarray(z))))(
        both @ both.T / both.shape[1], 1.0, 1.0
    )
    np.testing.assert_allclose(kernel, expected[:2, 2:], atol=tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using JAX autodiff to compute")  # of a smooth function
def test_an_elementwise_layer_differentiates_the_kernel_that_it_is_given(points):
    def nngp_fn(c, p, q):
        return 2 / jnp.pi * jnp.arcsin(2 * c / jnp.sqrt((1 + 2 * p) * (1 + 2 * q)))

    layer = stax.Elementwise(jax.scipy.special.erf, nngp_fn)
    kernel_fn = stax.serial(stax.Dense(8, W_STD, B_STD), layer, stax.Dense(1, W_STD, B_STD))[2]
    np.testing.assert_allclose(kernel_fn(*points, "ntk"), dense_oracle(*points, erf_moments, 1)[1], rtol=1e-11)


# nt.batch


def test_kernels_in_batches_are_the_kernels_at_once(points):
    x1, _ = points
    batched = nt.batch(dense_network("Erf", 1)[2], batch_size=3, device_count=0)(x1, None, ("nngp", "ntk"))
    nngp, ntk = dense_oracle(x1, x1, erf_moments, 1)
    np.testing.assert_allclose(batched.nngp, nngp, rtol=1e-12)
    np.testing.assert_allclose(batched.ntk, ntk, rtol=1e-12)


TWO_DEVICES = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from ntk_robust.kernels import load_neural_tangents
nt = load_neural_tangents()
stax = nt.stax
x1, x2, wanted = json.load(sys.stdin)
x1, x2 = np.asarray(x1), np.asarray(x2)
_, _, kernel_fn = stax.serial(stax.Dense(32, 1.4, 0.3), stax.Erf(), stax.Dense(1, 1.4, 0.3))
_, _, rest_fn = stax.serial(stax.Erf(), stax.Dense(1, 1.4, 0.3))

def batch(function, size, count=2, **options):
    return nt.batch(function, batch_size=size, device_count=count, **options)

def empirical():
    init_fn, apply_fn, _ = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(2))
    params = init_fn(jax.random.key(0), x1.shape)[1]
    at_once = nt.empirical_ntk_fn(apply_fn)
    return batch(at_once, 0)(x1, x2, params) - at_once(x1, x2, params)

ways = {
    "parallel": lambda: batch(kernel_fn, 0)(x1, x2, "ntk"),
    "on all devices": lambda: batch(kernel_fn, 0, -1)(x1, x2, "ntk"),
    "parallel and serial": lambda: batch(kernel_fn, 3)(x1, x2, "ntk"),
    "kept on the host": lambda: batch(kernel_fn, 3, store_on_device=False)(x1, x2, "ntk"),
    "committed to the second device": lambda: batch(kernel_fn, 3)(*jax.device_put((x1, x2), jax.devices()[1]), "ntk"),
    "a kernel of a kernel": lambda: batch(rest_fn, 0)(stax.Dense(32, 1.4, 0.3)[2](x1, x2)).ntk,
    "empirical": empirical,
}
got = {way: ways[way]() for way in wanted}
print(json.dumps({way: [kernel.tolist(), len(kernel.sharding.device_set)] for way, kernel in got.items()}))
"""
WAYS = ["parallel and serial", "committed to the second device"]
SLOW_WAYS = ["parallel", "on all devices", "kept on the host", "a kernel of a kernel", "empirical"]


@pytest.mark.parametrize("ways", [WAYS, pytest.param(SLOW_WAYS, marks=pytest.mark.slow)])
def test_kernels_over_two_devices_are_the_kernels_at_once(ways, points):
    x1, x2 = points[0], np.concatenate([points[1], -points[1]])
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWO_DEVICES],
        input=json.dumps([x1.tolist(), x2.tolist(), ways]),
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    _, ntk = dense_oracle(x1, x2, erf_moments, 1)
    for way, (kernel, num_devices) in json.loads(completed.stdout).items():
        np.testing.assert_allclose(kernel, 0 * ntk if way == "empirical" else ntk, rtol=1e-12, atol=1e-12, err_msg=way)
        assert num_devices == (1 if way == "kept on the host" else 2), way


# nt.monte_carlo_kernel_fn


def test_monte_carlo_kernels_have_the_analytic_kernels_as_their_mean(points, key):
    # With one hidden layer in NTK parameterization, both are unbiased at every width.
    x1, x2 = points
    init_fn, apply_fn, _ = dense_network("Relu", 1)
    count = 100
    running = list(nt.monte_carlo_kernel_fn(init_fn, apply_fn, key, range(1, count + 1))(x1, x2, ("nngp", "ntk")))
    for name, expected in zip(("nngp", "ntk"), dense_oracle(x1, x2, relu_moments, 1), strict=True):
        means = np.stack([np.zeros_like(expected), *(np.asarray(getattr(mean, name)) for mean in running)])
        samples = np.diff(means * np.arange(count + 1)[:, None, None], axis=0)
        error = samples.std(axis=0, ddof=1) / np.sqrt(count)
        assert np.all(error < 0.25 * np.abs(expected).max())  # enough samples for the next line to mean something
        np.testing.assert_array_less(np.abs(means[-1] - expected), 5 * error)


# nt.linearize, nt.taylor_expand


@pytest.mark.slow
def test_linearize_adds_the_jacobian_times_the_displacement(points, key):
    x, _ = points
    init_key, move_key = jax.random.split(key)
    init_fn, apply_fn, _ = dense_network("Erf", 1)
    params = jax.jit(lambda key: init_fn(key, x.shape)[1])(init_key)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    moved = flat + 0.1 * jax.random.normal(move_key, flat.shape)

    def network(weights):
        return apply_fn(unravel(weights), x)

    value, jacobian = jax.jit(lambda w: (network(w), jax.jacobian(network)(w)))(flat)
    linear = nt.linearize(lambda w, x: apply_fn(unravel(w), x), flat)
    found, gradient = jax.jit(lambda w: (linear(w, x), jax.grad(lambda w: linear(w, x).sum())(w)))(moved)
    np.testing.assert_allclose(found, value + jnp.tensordot(jacobian, moved - flat, 1), rtol=1e-12)
    np.testing.assert_allclose(gradient, jacobian.sum((0, 1)), rtol=1e-10)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_taylor_expand_is_the_polynomial_of_the_sine(degree, points):
    x, _ = points
    weights, moved = np.linspace(-1.0, 1.0, 5), np.linspace(0.3, -0.4, 5)
    expansion = nt.taylor_expand(lambda w, x: jnp.sin(x @ w), jnp.asarray(weights), degree)
    at, step = x @ weights, x @ (moved - weights)
    terms = [np.sin(at), np.cos(at) * step, -np.sin(at) * step**2 / 2, -np.cos(at) * step**3 / 6]
    np.testing.assert_allclose(expansion(jnp.asarray(moved), x), sum(terms[: degree + 1]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda w: expansion(w, x).sum()))(moved),
        x.T @ sum(term * k for k, term in zip(range(1, degree + 1), [t / step for t in terms[1:]], strict=False)),
        rtol=1e-10,
    )


# nt.predict, with kernels from the closed form


@pytest.fixture(scope="module")
def regression(points):
    x_train, x_test = points
    targets = np.sin(3 * x_train[:, :2])
    _, k_train = dense_oracle(x_train, x_train, erf_moments, 2)
    _, k_test = dense_oracle(x_test, x_train, erf_moments, 2)
    nngps = tuple(
        dense_oracle(a, b, erf_moments, 2)[0] for a, b in ((x_train, x_train), (x_test, x_train), (x_test, x_test))
    )
    return {"train": k_train, "test": k_test, "targets": targets, "nngps": nngps}


def flow(regression, time, kernel=None):
    """Predictions of gradient flow on the mean squared error over 2, by the matrix exponential."""
    kernel = regression["train"] if kernel is None else kernel
    targets = regression["targets"]
    decay = scipy.linalg.expm(-kernel * time / targets.size) if np.isfinite(time) else 0.0
    residual = (np.eye(len(kernel)) - decay) @ targets
    return residual, regression["test"] @ np.linalg.solve(kernel, residual)


def test_gradient_descent_on_squares_is_the_matrix_exponential_in_and_out_of_transforms(regression):
    k_test = jnp.asarray(regression["test"])
    predict_fn = nt.predict.gradient_descent_mse(jnp.asarray(regression["train"]), jnp.asarray(regression["targets"]))

    def test_prediction(time, k):
        return predict_fn(time, 0.0, 0.0, k)[1]

    times = np.array([3.0, 40.0])
    expected = np.stack([flow(regression, time)[1] for time in times])
    # Traced twice: what is computed in the first trace must not be seen in the second, or after both.
    at_times = jax.jit(jax.vmap(test_prediction, (0, None)))
    np.testing.assert_allclose(at_times(times, k_test), expected, rtol=1e-9)
    np.testing.assert_allclose(at_times(times[:1], k_test[:2]), expected[:1, :2], rtol=1e-9)
    step = 1e-4
    slope = (flow(regression, 3.0 + step)[1].sum() - flow(regression, 3.0 - step)[1].sum()) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda t: test_prediction(t, k_test).sum()))(3.0), slope, rtol=1e-7)
    at_the_end = jax.jit(lambda k: test_prediction(None, k)).trace(k_test)
    assert "cholesky" not in str(at_the_end.jaxpr)  # the kernel has values, so it is factored once, not in every call
    np.testing.assert_allclose(at_the_end.lower().compile()(k_test), flow(regression, np.inf)[1], rtol=1e-9)
    np.testing.assert_allclose(test_prediction(None, k_test), flow(regression, np.inf)[1], rtol=1e-9)


@pytest.mark.parametrize("time", [pytest.param(3.0, marks=pytest.mark.slow), None])
def test_gradient_descent_on_squares_takes_a_traced_kernel(time, regression):
    targets, k_test = jnp.asarray(regression["targets"]), jnp.asarray(regression["test"])

    def prediction(kernel):
        return nt.predict.gradient_descent_mse(kernel, targets)(time, 0.0, 0.0, k_test)[1]

    kernels = np.stack([regression["train"], regression["train"] + np.eye(6)])
    end = np.inf if time is None else time
    expected = np.stack([flow(regression, end, kernel)[1] for kernel in kernels])
    np.testing.assert_allclose(jax.jit(prediction)(kernels[0]), expected[0], rtol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.vmap(prediction))(kernels), expected, rtol=1e-8)
    direction, step = np.diag(np.arange(6.0)), 1e-5
    ahead, behind = (flow(regression, end, kernels[0] + s * direction)[1].sum() for s in (step, -step))
    gradient = jax.grad(lambda kernel: prediction(kernel).sum())(jnp.asarray(kernels[0]))
    np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_gradient_descent_by_the_differential_equation_agrees_for_squares(regression):
    targets, k_test = jnp.asarray(regression["targets"]), jnp.asarray(regression["test"])

    def loss(outputs, wanted):
        return 0.5 * jnp.mean((outputs - wanted) ** 2)

    predict_fn = nt.predict.gradient_descent(loss, jnp.asarray(regression["train"]), targets)
    prediction = jax.jit(lambda time: predict_fn(time, 0.0, 0.0, k_test)[1])
    # odeint's own tolerance is 1.4e-8
    np.testing.assert_allclose(prediction(3.0), flow(regression, 3.0)[1], atol=1e-6)


def test_gaussian_process_inference_is_the_conditional_gaussian(regression):
    train, cross, test = regression["nngps"]
    predict_fn = nt.predict.gp_inference(jnp.asarray(train), jnp.asarray(regression["targets"]), diag_reg=0.1)

    @jax.jit
    def posterior(cross, test):
        return predict_fn(get="nngp", k_test_train=cross, k_test_test=test)

    regularized = train + 0.1 * np.trace(train) / len(train) * np.eye(len(train))
    mean = cross @ np.linalg.solve(regularized, regression["targets"])
    covariance = test - cross @ np.linalg.solve(regularized, cross.T)
    for first in (slice(None), slice(2)):  # a second trace, of other shapes
        found = posterior(cross[first], test[first, first])
        np.testing.assert_allclose(found.mean, mean[first], rtol=1e-10)
        np.testing.assert_allclose(found.covariance, covariance[first, first], rtol=1e-10)


def test_ensembles_of_gradient_descent_are_kernel_regression_in_and_out_of_transforms(regression, points):
    x_train, x_test = map(jnp.asarray, points)
    predict_fn = nt.predict.gradient_descent_mse_ensemble(
        dense_network("Erf", 2)[2], x_train, jnp.asarray(regression["targets"])
    )
    at_the_end = jax.jit(lambda x: predict_fn(x_test=x, get="ntk"))
    np.testing.assert_allclose(at_the_end(x_test), flow(regression, np.inf)[1], rtol=1e-8)
    at_a_time = jax.jit(lambda x: predict_fn(t=3.0, x_test=x, get="ntk"))  # a second trace
    np.testing.assert_allclose(at_a_time(x_test[:2]), flow(regression, 3.0)[1][:2], rtol=1e-8)


def test_the_largest_learning_rate_is_two_over_the_largest_eigenvalue(regression):
    kernel, size = regression["train"], regression["targets"].size
    expected = 2 * size / np.linalg.norm(kernel, 2)
    np.testing.assert_allclose(nt.predict.max_learning_rate(jnp.asarray(kernel), size), expected, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(lambda k: nt.predict.max_learning_rate(k, size))(kernel), expected, rtol=1e-10)
