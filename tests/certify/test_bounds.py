"""Bounds of networks: nothing sampled or attacked leaves them, and hand-computed cases come out as published."""

import itertools
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import models
from ntk_robust.attacks import PGD, Box, L1Ball, L2Ball, LinfBall, SphereSlice
from ntk_robust.certify import (
    Affine,
    AlphaCrown,
    AveragePool,
    Convolution,
    Crown,
    Flatten,
    Image,
    IntervalBounds,
    Network,
    Nonlinearity,
    Parallel,
    Zonotope,
    _crown,
    _interval,
    _reach,
    margin_specification,
    network_of,
    pieces_on_polygon,
)

SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
METHODS = [IntervalBounds(), Zonotope(), Crown(), AlphaCrown(num_steps=30)]
OPTIMIZED = {"xla_backend_optimization_level": 1}  # what conftest leaves out makes convolutions forty times slower
run = eqx.filter_jit(lambda method, *arguments: method(*arguments))


def name(value):
    return type(value).__name__


def bounds(method, network, x, perturbations, specification=None):
    found = run(method, network, x, perturbations, specification)
    return np.asarray(found.lower), np.asarray(found.upper)


def two_layers(key, activation, dtype=np.float64, width=12, input_dim=4):
    model = models.FullyConnected(
        input_dim=input_dim, width=width, num_hidden_layers=2, num_outputs=3, activation=activation, b_std=0.4
    )
    return model, model.init(key=key, dtype=dtype)


@eqx.filter_jit(compiler_options=OPTIMIZED)
def searched(model, params, x, perturbations, key):
    """The outputs at sampled points, at corners, and where PGD ends that raises or lowers an output: 10^5 in all."""
    attack = PGD(num_steps=10, relative_step=0.3)
    keys, num_outputs = jr.split(key, 40), 3
    directions = jnp.concatenate([jnp.eye(num_outputs, dtype=x.dtype), -jnp.eye(num_outputs, dtype=x.dtype)])

    def ascend(direction, key):
        return attack(lambda q: direction @ model.apply(params, q), x, perturbations, key=key).x_adv

    ends = jax.vmap(lambda direction: jax.vmap(lambda k: ascend(direction, k))(keys))(directions)
    corners = jax.vmap(lambda v: perturbations.argmax_linear(x, v))(jr.normal(key, (1000, *x.shape), x.dtype))
    samples = jax.vmap(lambda k: perturbations.sample(x, key=k))(jr.split(key, 99_000))
    points = jnp.concatenate([ends.reshape(-1, *x.shape), corners, samples])
    return jax.vmap(lambda q: model.apply(params, q))(points)


SLOW = pytest.mark.slow
BALLS = (LinfBall(0.1), LinfBall(1e-6))  # at the second radius rounding is as large as the set
CAPPED = (L2Ball(0.2, Box(-1.0, 0.6)),)


@pytest.mark.parametrize(
    ("dtype", "activation", "sets", "methods"),
    [
        pytest.param(np.float32, models.Relu(), BALLS, (IntervalBounds(), Crown()), id="float32", marks=SLOW),
        pytest.param(np.float64, models.Relu(), BALLS, (IntervalBounds(), Crown()), id="float64", marks=SLOW),
        pytest.param(np.float32, models.Tanh(), CAPPED, (Zonotope(), Crown()), id="tanh, l2 and box", marks=SLOW),
    ],
)
def test_a_hundred_thousand_sampled_and_attacked_points_stay_inside_the_bounds(dtype, activation, sets, methods, key):
    model, params = two_layers(key, activation, dtype)
    for perturbations in sets:
        x = jnp.clip(0.5 * jr.normal(key, (4,), dtype), -1.0, 0.6)
        outputs = np.asarray(searched(model, params, x, perturbations, key))
        assert len(outputs) > 1e5
        for method in methods:
            lower, upper = bounds(method, network_of(model, params), x, perturbations)
            assert lower.dtype == dtype
            assert np.all((outputs >= lower) & (outputs <= upper)), name(method)


@pytest.mark.slow
def test_points_that_leave_bounds_from_a_wrong_slope_are_noticed(key, monkeypatch):
    model, params = two_layers(key, models.Relu(), np.float32)
    x = 0.5 * jr.normal(key, (4,), np.float32)
    outputs = np.asarray(searched(model, params, x, LinfBall(0.1), key))
    right = _crown.lines

    def flattened(*arguments):
        found = right(*arguments)
        return found._replace(upper_slope=0.8 * found.upper_slope, upper_offset=0.8 * found.upper_offset)

    monkeypatch.setattr(_crown, "lines", flattened)
    found = eqx.filter_jit(lambda network: Crown()(network, x, LinfBall(0.1)))(network_of(model, params))
    assert np.any((outputs < np.asarray(found.lower)) | (outputs > np.asarray(found.upper)))


@pytest.mark.slow
@pytest.mark.parametrize("convolves", [False, True])
def test_without_the_allowance_for_rounding_float32_outputs_leave_the_bounds(convolves, key, monkeypatch):
    # one affine layer of many terms at radius 0: the bounds are the output itself, and what rounding does to it
    weight, x = jr.normal(key, (64, 600), np.float32), jr.normal(key, (600,), np.float32)
    network = Network((Affine(weight),), (600,))
    if convolves:  # the same sums, each over a window that is the whole image
        layer = Convolution(weight.T.reshape(10, 10, 6, 64), padding="VALID")
        network = Network((Image((10, 10, 6)), layer, Flatten()), (600,))
    order = np.random.default_rng(0).permuted(np.tile(np.arange(600), (20, 1)), axis=1)
    products = np.asarray(weight)[:, order] * np.asarray(x)[order]
    outputs = np.cumsum(products, axis=2, dtype=np.float32)[:, :, -1].T

    def contains():
        found = jax.jit(lambda x: Crown()(network, x, LinfBall(0.0)))(x)
        return bool(np.all((outputs >= np.asarray(found.lower)) & (outputs <= np.asarray(found.upper))))

    assert contains()
    for module in (_crown, _interval):
        monkeypatch.setattr(module, "slack_factor", lambda *_: 0.0)
    monkeypatch.setattr("ntk_robust.attacks.LinfBall.rounding", lambda self, x: jnp.zeros((), x.dtype))
    assert not contains()


def crown_by_hand(weights, biases, lower, upper):
    """IBP and CROWN of a scalar ReLU network on a box, written out neuron by neuron in rational numbers."""
    relu = lambda v: max(v, Fraction(0))  # noqa: E731
    low, high = list(lower), list(upper)
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        ends = [
            (
                sum(c * (l if c > 0 else u) for c, l, u in zip(row, low, high, strict=True)) + offset,
                sum(c * (u if c > 0 else l) for c, l, u in zip(row, low, high, strict=True)) + offset,
            )
            for row, offset in zip(w, b, strict=True)
        ]
        low, high = [end[0] for end in ends], [end[1] for end in ends]
        if layer + 1 < len(weights):
            low, high = [relu(v) for v in low], [relu(v) for v in high]
    interval = (low[0], high[0])

    known = []  # bounds before each ReLU

    def lowest(row, offset, depth):
        """CROWN lower bound of row · (input of layer `depth`) + offset."""
        row = list(row)
        for layer in range(depth - 1, -1, -1):
            # ReLU of layer `layer`, then its affine map
            new = []
            for c, (l, u) in zip(row, known[layer], strict=True):
                if l >= 0:
                    slope, shift = Fraction(1), Fraction(0)
                elif u <= 0:
                    slope, shift = Fraction(0), Fraction(0)
                elif c > 0:
                    slope, shift = Fraction(int(u > -l)), Fraction(0)
                else:
                    slope, shift = u / (u - l), -u * l / (u - l)
                new.append(c * slope)
                offset += c * shift
            offset += sum(c * b for c, b in zip(new, biases[layer], strict=True))
            row = [sum(c * weights[layer][i][j] for i, c in enumerate(new)) for j in range(len(weights[layer][0]))]
        return sum(c * (l if c > 0 else u) for c, l, u in zip(row, lower, upper, strict=True)) + offset

    low, high = lower, upper
    for depth in range(len(weights) - 1):
        found = []
        for row, b in zip(weights[depth], biases[depth], strict=True):
            # the better of the linear bound and of one interval step
            stepped = [
                sum(c * (l if c * s > 0 else u) for c, l, u in zip(row, low, high, strict=True)) + b for s in (1, -1)
            ]
            found.append(
                (max(lowest(row, b, depth), stepped[0]), min(-lowest([-c for c in row], -b, depth), stepped[1]))
            )
        known.append(found)
        low, high = [relu(l) for l, _ in found], [relu(u) for _, u in found]
    last = len(weights) - 1
    row, b = weights[last][0], biases[last][0]
    return interval, (lowest(row, b, last), -lowest([-c for c in row], -b, last))


def rational_network(seed, sizes):
    rng = np.random.default_rng(seed)
    weights = [rng.integers(-6, 7, (n, m)) / 4 for m, n in itertools.pairwise(sizes)]
    biases = [rng.integers(-4, 5, n) / 8 for n in sizes[1:]]
    layers = []
    for w, b in zip(weights, biases, strict=True):
        layers += [Affine(jnp.asarray(w), jnp.asarray(b)), Nonlinearity(models.Relu())]
    fractions = jax.tree.map(Fraction, ([w.tolist() for w in weights], [b.tolist() for b in biases]))
    return Network(tuple(layers[:-1]), (sizes[0],)), *fractions


@pytest.mark.slow
def test_a_case_small_enough_to_check_on_paper():
    # f = relu(x + y) + relu(x - y) - relu(-x + 1/2) on |x|, |y| <= 1
    network = Network(
        (
            Affine(jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]), jnp.array([0.0, 0.0, 0.5])),
            Nonlinearity(models.Relu()),
            Affine(jnp.array([[1.0, 1.0, -1.0]])),
        ),
        (2,),
    )
    x, square = jnp.zeros(2), LinfBall(1.0)
    # intervals: relu(±2) + relu(±2) - [0, 3/2]
    lower, upper = bounds(IntervalBounds(), network, x, square)
    np.testing.assert_allclose([lower[0], upper[0]], [-1.5, 4.0], atol=1e-12)
    # above: (x + y)/2 + 1 + (x - y)/2 + 1 - 0 with slope 1 below relu(-x + 1/2), u = 3/2 > 1/2 = -l:
    #   x + 2 + x - 1/2 = 2x + 3/2 <= 7/2
    # below: 0 + 0 (ties take slope 0) - 3/4 (-x + 1/2 + 1/2): 3/4 x - 3/4 >= -3/2
    lower, upper = bounds(Crown(), network, x, square)
    np.testing.assert_allclose([lower[0], upper[0]], [-1.5, 3.5], atol=1e-12)
    # the truth: 2 at x = 1, and -3/2 at x = -1, y = 0
    exact = pieces_on_polygon(network, SQUARE, rational=True)
    assert (exact.minimum[0], exact.maximum[0]) == (Fraction(-3, 2), 2)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_and_crown_agree_with_rational_arithmetic_of_the_published_formulas(seed):
    network, weights, biases = rational_network(seed, (2, 5, 5, 1))
    by_interval, by_crown = crown_by_hand(weights, biases, [Fraction(-1, 2)] * 2, [Fraction(1, 2)] * 2)
    x, box = jnp.zeros(2), LinfBall(0.5)
    found = bounds(IntervalBounds(), network, x, box)
    np.testing.assert_allclose([float(found[0][0]), float(found[1][0])], [float(v) for v in by_interval], atol=1e-12)
    found = bounds(Crown(), network, x, box)
    np.testing.assert_allclose([float(found[0][0]), float(found[1][0])], [float(v) for v in by_crown], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_better_methods_are_tighter_and_none_is_tighter_than_the_enumerated_truth(seed):
    network, _, _ = rational_network(10 + seed, (2, 5, 5, 1))
    exact = pieces_on_polygon(network, 0.5 * SQUARE, rational=True)
    truth = np.array([float(exact.minimum[0]), float(exact.maximum[0])])
    found = {name(m): bounds(m, network, jnp.zeros(2), LinfBall(0.5)) for m in METHODS}
    widths = {key: float(upper[0] - lower[0]) for key, (lower, upper) in found.items()}
    for lower, upper in found.values():
        assert lower[0] <= truth[0]
        assert upper[0] >= truth[1]
    assert widths["AlphaCrown"] <= widths["Crown"] + 1e-12
    assert widths["Crown"] < widths["IntervalBounds"]


@pytest.mark.parametrize(
    "perturbations",
    [
        L2Ball(0.6, Box(0.0, 1.0)),
        L1Ball(0.9, Box(0.0, 1.0)),
        pytest.param(LinfBall(0.2, Box(0.0, 1.0)), marks=SLOW),
        pytest.param(L2Ball(0.3), marks=SLOW),
        pytest.param(L1Ball(0.4), marks=SLOW),
        pytest.param(L2Ball(5.0, Box(0.0, 1.0)), marks=SLOW),
        pytest.param(L1Ball(5.0, Box(0.0, 1.0)), marks=SLOW),
        pytest.param(L2Ball(0.0, Box(0.0, 1.0)), marks=SLOW),
    ],
    ids=lambda p: f"{name(p)} {float(p.epsilon)} {'box' if p.box else ''}",
)
def test_linear_functions_are_bounded_by_their_maximum_on_the_set(perturbations, key):
    x = jnp.array([0.1, 0.5, 0.9, 0.3, 1.0])
    directions = jr.normal(key, (200, 5)).at[0].set(0.0).at[:50, 2].set(0.0)

    @jax.jit
    def both(directions):
        best = jax.vmap(perturbations.argmax_linear, (None, 0))(x, directions)
        bound = jax.value_and_grad(lambda c: _reach.support(_reach.reach(perturbations, x), c))
        return jnp.sum(directions * (best - x[None]), axis=1), *jax.vmap(bound)(directions)

    largest, bound, slope = both(directions)
    np.testing.assert_allclose(bound, largest, atol=1e-6, rtol=1e-6)
    assert np.all(np.asarray(bound) >= np.asarray(largest))
    # the gradient of a maximum is the maximizer
    moved = np.asarray(jnp.sum(slope * directions, axis=1))
    np.testing.assert_allclose(moved, largest, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_affine_network_is_bounded_exactly(key):
    weight, bias, x = jr.normal(key, (2, 5)), jnp.array([0.3, -0.2]), jnp.full(5, 0.3)
    network = Network((Affine(weight, bias),), (5,))
    for method in (IntervalBounds(), Crown()):
        lower, upper = bounds(method, network, x, L2Ball(0.3))
        center, spread = np.asarray(weight) @ np.asarray(x) + bias, 0.3 * np.linalg.norm(weight, axis=1)
        np.testing.assert_allclose([lower, upper], [center - spread, center + spread], atol=1e-12)


@pytest.mark.slow
def test_points_of_the_sphere_slice_stay_inside(key):
    model, params = two_layers(key, models.Relu(), input_dim=3)
    x = jnp.array([0.6, 0.0, 0.8])
    slice_ = SphereSlice(0.3)
    points = jax.jit(jax.vmap(lambda k: slice_.sample(x, key=k)))(jr.split(key, 2000))
    outputs = np.asarray(jax.jit(jax.vmap(lambda q: model.apply(params, q)))(points))
    lower, upper = bounds(Crown(), network_of(model, params), x, slice_)
    assert np.all((outputs >= lower) & (outputs <= upper))
    # the last coordinate stays: tighter than the ball
    wide = bounds(Crown(), network_of(model, params), x, L2Ball(0.3))
    assert np.all(upper - lower < wide[1] - wide[0])


def convolutional(key):
    keys = jr.split(key, 5)
    block = (
        Convolution(0.5 * jr.normal(keys[0], (3, 3, 2, 2)), jr.normal(keys[1], (2,))),
        Nonlinearity(models.Relu()),
    )
    return Network(
        (
            Convolution(0.5 * jr.normal(keys[2], (3, 3, 1, 2)), strides=(2, 2)),
            Nonlinearity(models.Relu()),
            Parallel(((), block)),
            AveragePool((2, 2)),
            Flatten(),
            Affine(jr.normal(keys[3], (3, 8))),
        ),
        (8, 8, 1),
    )


@pytest.mark.slow
def test_a_residual_convolutional_network_is_bounded_like_its_dense_twin_and_soundly(key):
    network = convolutional(key)
    matrix = lambda layer, shape: jax.vmap(layer.linear, out_axes=-1)(  # noqa: E731
        jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
    ).reshape(-1, int(np.prod(shape)))
    first, _, parallel, pool, _, last = network.layers
    inner = parallel.branches[1][0]
    twin = Network(
        (
            Affine(matrix(first, (8, 8, 1))),
            Nonlinearity(models.Relu()),
            Parallel(((), (Affine(matrix(inner, (4, 4, 2)), jnp.tile(inner.bias, 16)), Nonlinearity(models.Relu())))),
            Affine(matrix(pool, (4, 4, 2))),
            last,
        ),
        (64,),
    )
    x = jr.uniform(key, (8, 8, 1))
    perturbations = LinfBall(0.05, Box(0.0, 1.0))
    corners = jnp.clip(x[None] + 0.05 * jnp.sign(jr.normal(key, (500, 8, 8, 1))), 0.0, 1.0)
    outputs = np.asarray(jax.jit(jax.vmap(network))(corners))
    for method in (Zonotope(), Crown()):
        lower, upper = bounds(method, network, x, perturbations)
        assert np.all((outputs >= lower) & (outputs <= upper)), name(method)
    np.testing.assert_allclose([lower, upper], bounds(Crown(), twin, x.ravel(), perturbations), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "parameterization"), [("none", "ntk"), ("average", "standard")])
def test_a_convolutional_model_is_bounded_as_the_chain_of_its_layers(pooling, parameterization, key):
    model = models.Convolutional(
        (4, 5, 2), 3, 2, 3, pooling=pooling, parameterization=parameterization, b_std=0.5, activation=models.Gelu()
    )
    params = model.init(key=key)
    x, perturbations = jr.uniform(key, (40,)), LinfBall(0.03, Box(0.0, 1.0))
    network = network_of(model, params)
    np.testing.assert_allclose(network(x), model.apply(params, x), rtol=1e-13)
    outputs = np.asarray(searched(model, params, x, perturbations, key))
    for method in (IntervalBounds(), Crown()):
        lower, upper = bounds(method, network, x, perturbations)
        assert np.all((outputs >= lower) & (outputs <= upper)), name(method)
    assert np.max(upper - lower) < 3 * np.max(np.ptp(outputs, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["none", "average"])
def test_intervals_of_convolutions_without_negative_weights_are_the_values_at_two_corners(pooling, key, monkeypatch):
    # Such a network is monotone, so that nothing is lost, and bounds that are too narrow anywhere are noticed.
    model = models.Convolutional((4, 5, 2), 3, 2, 3, pooling=pooling, b_std=0.5, activation=models.Tanh())
    params = jax.tree.map(jnp.abs, model.init(key=key))
    x = jr.uniform(key, (40,))
    network, box = network_of(model, params), LinfBall(0.03, Box(0.0, 1.0))
    corners = [model.apply(params, jnp.clip(x + step, 0.0, 1.0)) for step in (-0.03, 0.03)]
    (lower, upper), (least, most) = bounds(IntervalBounds(), network, x, box), map(np.asarray, corners)
    assert np.all((lower <= least) & (upper >= most))
    np.testing.assert_allclose([lower, upper], [least, most], rtol=1e-12)

    right = _interval.linear_interval

    def narrow(layer, before):
        found = right(layer, before)
        middle, radius = (found.lower + found.upper) / 2, (found.upper - found.lower) / 2
        return found._replace(lower=middle - 0.8 * radius, upper=middle + 0.8 * radius)

    monkeypatch.setattr(_interval, "linear_interval", narrow)
    planted = jax.jit(lambda x: IntervalBounds()(network, x, box))(x)
    assert np.all((np.asarray(planted.lower) > least) & (np.asarray(planted.upper) < most))


@pytest.mark.slow
@pytest.mark.parametrize(("ball", "dual"), [(LinfBall, 1), (L2Ball, 2)])
def test_where_a_residual_convolutional_network_is_affine_linear_bounds_are_its_extremes(ball, dual, key):
    network = convolutional(key)
    *convolutions, last = network.layers
    network = Network((*jax.tree.map(jnp.abs, convolutions), last), (8, 8, 1))  # every ReLU is active
    x = jr.uniform(key, (8, 8, 1), minval=0.3, maxval=0.7)
    center, slopes = jax.jit(lambda x: (network(x), jax.jacrev(network)(x).reshape(3, -1)))(x)
    spread = 0.1 * np.linalg.norm(np.asarray(slopes), dual, axis=1)
    for method in (Zonotope(), Crown()):
        lower, upper = bounds(method, network, x, ball(0.1))
        np.testing.assert_allclose([lower, upper], [center - spread, center + spread], rtol=1e-10)


@pytest.mark.slow
def test_paired_neurons_are_bounded_by_their_differences(key):
    model = models.PairedTwoLayerNet(input_dim=3, width=40, activation=models.Softplus())
    start = model.init(key=key)
    step = 0.05 * jr.normal(key, start.plus.shape)
    params = eqx.tree_at(lambda p: p.plus, start, start.plus + step)
    x, perturbations = jnp.array([0.6, 0.0, 0.8]), L2Ball(0.3)
    points = jax.jit(jax.vmap(lambda k: perturbations.sample(x, key=k)))(jr.split(key, 3000))
    stacked = Network(
        (
            Affine(jnp.concatenate([params.plus, params.minus])),
            Nonlinearity(model.activation),
            Affine(jnp.concatenate([params.signs, -params.signs])[None] / np.sqrt(40)),
        ),
        (3,),
        scalar=True,
    )
    outputs = np.asarray(jax.jit(jax.vmap(lambda q: model.apply(params, q)))(points))
    for method in (IntervalBounds(), Crown()):
        lower, upper = bounds(method, network_of(model, params), x, perturbations)
        assert lower.shape == ()
        assert np.all((outputs >= lower) & (outputs <= upper)), name(method)
        wide = bounds(method, stacked, x, perturbations)
        assert np.all((outputs >= wide[0]) & (outputs <= wide[1]))
        # trained weights are close to the frozen twins, and their difference is what counts
        assert upper - lower < 0.6 * (wide[1] - wide[0]), name(method)
    lower, upper = bounds(Crown(), network_of(model, start), x, perturbations)
    assert upper - lower < 1e-10


@pytest.mark.slow
def test_one_trace_serves_all_weights_inputs_and_radii_of_a_shape(key):
    traces = []

    @eqx.filter_jit
    def certify(network, x, perturbations):
        traces.append(None)
        return IntervalBounds()(network, x, perturbations).lower

    for seed in range(3):
        model, params = two_layers(jr.key(seed), models.Relu())
        certify(network_of(model, params), jr.normal(jr.key(seed), (4,)), LinfBall(0.1 * seed))
    assert len(traces) == 1


@pytest.mark.slow
def test_a_batch_is_its_examples_one_by_one(key):
    model, params = two_layers(key, models.Relu())
    network = network_of(model, params)
    xs = jr.normal(key, (3, 4))
    together = jax.jit(jax.vmap(lambda x: Crown()(network, x, LinfBall(0.1))))(xs)
    for i in range(3):
        alone = bounds(Crown(), network, xs[i], LinfBall(0.1))
        np.testing.assert_allclose(together.lower[i], alone[0], rtol=1e-12)
        np.testing.assert_allclose(together.upper[i], alone[1], rtol=1e-12)


@pytest.mark.slow
def test_margins_of_a_label_leave_out_the_label():
    specification = margin_specification(jnp.asarray(1), 3, np.float64)
    np.testing.assert_array_equal(specification, [[-1, 1, 0], [0, 1, -1]])
    # of the difference of two outputs the bounds are better than of the outputs
    network = Network((Affine(jnp.ones((2, 2))), Nonlinearity(models.Relu()), Affine(jnp.ones((3, 2)))), (2,))
    lower, upper = bounds(IntervalBounds(), network, jnp.ones(2), LinfBall(0.5), specification)
    np.testing.assert_allclose([lower, upper], 0, atol=1e-12)


@pytest.mark.slow
def test_bounds_that_overflow_are_infinite_and_not_nan(key):
    layers = [Affine(jnp.full((4, 4), 1e30, np.float32)), Nonlinearity(models.Monomial(3))] * 3
    network = Network((*layers, Affine(jnp.ones((1, 4), np.float32))), (4,))
    for method in (IntervalBounds(), Crown()):
        lower, upper = bounds(method, network, jnp.ones(4, np.float32), LinfBall(0.1))
        assert (lower[0], upper[0]) == (-np.inf, np.inf)


@pytest.mark.slow
def test_wrong_calls_are_refused(key):
    model, params = two_layers(key, models.Relu())
    network = network_of(model, params)
    with pytest.raises(ValueError, match=r"shape \(4,\) and got \(2, 4\); use jax.vmap"):
        Crown()(network, jnp.zeros((2, 4)), LinfBall(0.1))
    with pytest.raises(ValueError, match="cast one of them"):
        Crown()(network, jnp.zeros(4, np.float32), LinfBall(0.1))
    with pytest.raises(ValueError, match="one column for each output"):
        Crown()(network, jnp.zeros(4), LinfBall(0.1), jnp.zeros((1, 5)))
    with pytest.raises(ValueError, match="num_steps is 0"):
        AlphaCrown(num_steps=0)
    with pytest.raises(ValueError, match="at least 2"):
        margin_specification(jnp.asarray(0), 1, np.float64)
    with pytest.raises(ValueError, match="no layers"):
        Network((), (3,))
    with pytest.raises(ValueError, match="do not fit inputs"):
        Network((Affine(jnp.ones((2, 3))),), (4,))
    paired = models.PairedTwoLayerNet(input_dim=3, width=4)
    pairs = network_of(paired, paired.init(key=key))
    with pytest.raises(ValueError, match="paired neurons"):
        Zonotope()(pairs, jnp.zeros(3), LinfBall(0.1))
