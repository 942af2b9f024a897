r"""Teachers: networks that approximate a target, from its values, its derivatives or noisy samples.

Kinds (a) to (d) of `docs/theory/shi2024.md`: localized constants, piecewise linear interpolation, Taylor polynomials on
product gates, and fits of samples clipped to $[-M, M]$ in place of the paper's truncated least squares. A small network
trained with `ntk_robust.training.fit` is a teacher too: `clipped(network_of(model, params), bound)`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust.certify import Affine, Network, Nonlinearity, Parallel
from ntk_robust.constructions._blocks import RELU, affine, clip_layers, exact_bump_layers, product_gate_layers
from ntk_robust.models import FullyConnected, Relu

_MOST_CELLS = 4096


def clipped(network: Network, bound: float) -> Network:
    r"""The network with its output clipped to $[-M, M]$ by two more ReLU neurons.

    Raises:
        ValueError: If the network is not scalar or the bound is not positive.
    """
    if not network.scalar or not bound > 0.0:
        raise ValueError(
            f"a network of {network.num_outputs} outputs clipped at {bound}; give a scalar one, a bound > 0"
        )
    return Network((*network.layers, *clip_layers(bound, network.dtype)), network.input_shape, scalar=True)


def localized_teacher(
    target: Callable[[np.ndarray], np.ndarray], *, input_dim: int, num_cells: int, tau: float
) -> Network:
    r"""(a) $\sum_k f(c_k) G_k$ over the $N^d$ cells of $[0, 1]^d$: constant on each cell but for its rim of width τ.

    Off the rims, which have a measure of at most $2dNτ$, the error is that of a constant on a cell, of order $N^{-r}$
    for Hölder smoothness $r ≤ 1$. On the rims it falls to 0.

    Args:
        target: $f$, from points (m, d) to values (m,).
        input_dim: $d$.
        num_cells: $N$ per axis, $N^d$ at most 4096.
        tau: Width of the transition, less than half a cell.

    Returns:
        A scalar network in JAX's default dtype.

    Raises:
        ValueError: If there are too many cells or the transition leaves no plateau.
    """
    _check_cells(num_cells**input_dim)
    if not 0.0 < tau < 0.5 / num_cells:
        raise ValueError(f"tau is {tau} with cells of side {1.0 / num_cells}; give less than half a side")
    dtype = jnp.result_type(float)
    corners = _grid(num_cells, input_dim) / num_cells
    values = np.asarray(target(corners + 0.5 / num_cells))
    lower, upper = (corners + tau).astype(dtype), (corners + 1.0 / num_cells - tau).astype(dtype)
    layers = (*exact_bump_layers(lower, upper, tau), affine(values[None, :], None, dtype))
    return Network(layers, (input_dim,), scalar=True)


def hat_teacher(target: Callable[[np.ndarray], np.ndarray], *, input_dim: int, num_cells: int) -> Network:
    r"""(b) The continuous piecewise linear interpolant on the grid of $(N + 1)^d$ nodes.

    Hats of Kuhn's triangulation, $\varphi(t) = (1 - \max(0, t_1, …, t_d) + \min(0, t_1, …, t_d))_+$ with
    $t = N x - k$, which sum to 1 and reproduce affine functions: error $O(N^{-r})$ for $r ≤ 2$. In one dimension these
    are the usual hats; in more, tensor products of hats would not be piecewise linear.

    Args:
        target: $f$, from points (m, d) to values (m,).
        input_dim: $d$.
        num_cells: $N$ per axis; $(N + 1)^d$ at most 4096.

    Returns:
        A scalar network in JAX's default dtype, d + 1 hidden layers deep.

    Raises:
        ValueError: If there are too many nodes.
    """
    nodes = _grid(num_cells + 1, input_dim)
    _check_cells(len(nodes))
    values = np.asarray(target(nodes / num_cells))
    layers = _hat_layers(nodes, num_cells)
    return Network((*layers, affine(values[None, :], None, jnp.result_type(float))), (input_dim,), scalar=True)


def taylor_teacher(
    derivatives: Sequence[Callable[[np.ndarray], np.ndarray]], *, num_cells: int, bound: float, levels: int
) -> Network:
    r"""(c) $\sum_k \varphi_k(x)\, p_k(x)$ on $[0, 1]$: Taylor polynomials times hats, by product gates.

    $p_k$ is the Taylor polynomial at $k/N$ of as many terms as there are derivatives, evaluated by Horner's rule with
    one gate a step, and one more gate multiplies by the hat: error $O(N^{-r})$ for $r$ terms, plus $O(B^2 4^{-q})$.

    Args:
        derivatives: $f, f', f'', …$, each from points (m,) to values (m,).
        num_cells: $N$.
        bound: $B$ of the gates: at least 1 and every intermediate of Horner's rule on [0, 1].
        levels: $q$ of the gates.

    Returns:
        A scalar network of one input in JAX's default dtype.

    Raises:
        ValueError: If no derivative is given, or the bound is too small at the nodes.
    """
    if not derivatives:
        raise ValueError("a Taylor polynomial needs at least the function itself; give derivatives=(f, ...)")
    dtype = jnp.result_type(float)
    nodes = np.arange(num_cells + 1) / num_cells
    count = len(nodes)
    terms = [np.asarray(f(nodes)) / math.factorial(order) for order, f in enumerate(derivatives)]
    largest = max(1.0, *(float(np.max(np.abs(term))) for term in terms), sum(float(np.max(np.abs(t))) for t in terms))
    if bound < largest:
        raise ValueError(f"the gates' bound is {bound} and Horner's rule reaches {largest}; give at least that")
    # state: (t_k, p_k) for every node, t_k = x - k/N
    start = affine(
        np.concatenate([np.ones((count, 1)), np.zeros((count, 1))]), np.concatenate([-nodes, terms[-1]]), dtype
    )
    first = affine(np.eye(count, 2 * count), None, dtype)
    layers: list[eqx.Module] = [start]
    for term in reversed(terms[:-1]):
        product = (
            *product_gate_layers(bound, levels, count, dtype),
            affine(np.eye(2 * count, count, -count), np.concatenate([np.zeros(count), term]), dtype),
        )
        kept = (first, affine(np.eye(2 * count, count), None, dtype))
        layers.append(Parallel((product, kept)))
    last = affine(np.eye(count, 2 * count, count), None, dtype)
    polynomials = (*layers, last, affine(np.eye(2 * count, count, -count), None, dtype))
    hats = (*_hat_layers(np.arange(count)[:, None], num_cells), affine(np.eye(2 * count, count), None, dtype))
    gates = product_gate_layers(bound, levels, count, dtype)
    total = affine(np.ones((1, count)), None, dtype)
    return Network((Parallel((hats, polynomials)), *gates, total), (1,), scalar=True)


def spline_teacher(xs: Float[Array, "n 1"], ys: Float[Array, " n"], *, num_pieces: int, bound: float) -> Network:
    r"""(d) Least-squares continuous linear spline of equal pieces on [0, 1], clipped to $[-M, M]$.

    Args:
        xs: Points.
        ys: Noisy values.
        num_pieces: Pieces; about $n^{1/5}$ for two derivatives.
        bound: $M$.

    Returns:
        A scalar network of one input with `num_pieces` + 2 neurons, in the dtype of `xs`.

    Raises:
        ValueError: If the points do not have one coordinate, or the bound is not positive.
    """
    points, values = np.asarray(xs), np.asarray(ys)
    if points.ndim != 2 or points.shape[1] != 1:
        raise ValueError(f"points have shape {points.shape}; a spline takes (n, 1)")
    at_knots = spline_values(points[:, 0], values, num_pieces)
    slopes = np.diff(at_knots) * num_pieces
    knots = np.arange(num_pieces) / num_pieces
    dtype = points.dtype
    # f = f(0) + Σ (change of slope) (x - knot)_+, constant left of 0
    kinks = affine(np.ones((num_pieces, 1)), -knots, dtype)
    changes = np.diff(slopes, prepend=0.0)
    spline = Network((kinks, RELU, affine(changes[None, :], at_knots[:1], dtype)), (1,), scalar=True)
    return clipped(spline, bound)


def spline_values(points: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], num_pieces: int) -> np.ndarray:
    """Values at the knots of the least-squares continuous linear spline; the one of least norm if not unique."""
    hats = np.maximum(0.0, 1.0 - np.abs(num_pieces * points[:, None] - np.arange(num_pieces + 1)[None, :]))
    return np.linalg.lstsq(hats, values, rcond=None)[0]


def random_feature_teacher(
    xs: Float[Array, "n d"],
    ys: Float[Array, " n"],
    *,
    width: int,
    ridge: float,
    bound: float,
    key: Key[Array, ""],
) -> Network:
    r"""(d) Ridge regression on the last layer of a random ReLU network, clipped to $[-M, M]$.

    It is kernel ridge regression with the kernel of these features, which tends to that of the network's last layer
    (NNGP) as the width grows, and unlike kernel regression itself it is a network.

    Args:
        xs: Points.
        ys: Values or labels ±1.
        width: Random features.
        ridge: λ, absolute, added to the features' Gram matrix.
        bound: $M$.
        key: Randomness of the features.

    Returns:
        A scalar network with one hidden layer and the clip, in the dtype of `xs`.

    Raises:
        ValueError: If the ridge is not positive.
    """
    if not ridge > 0.0:
        raise ValueError(f"the ridge is {ridge}; give a positive number, so that the system has one solution")
    model = FullyConnected(xs.shape[1], width, 1, "scalar", parameterization="standard", b_std=1.0)
    first, _ = model.init(key=key, dtype=xs.dtype)
    features = np.maximum(np.asarray(xs) @ np.asarray(first.weight).T + np.asarray(first.bias), 0.0)
    gram = features.T @ features + ridge * np.eye(width)
    readout = np.linalg.solve(gram, features.T @ np.asarray(ys))
    layers = (Affine(first.weight, first.bias), Nonlinearity(Relu()), affine(readout[None, :], None, xs.dtype))
    return clipped(Network(layers, (xs.shape[1],), scalar=True), bound)


def _hat_layers(nodes: np.ndarray, num_cells: int) -> tuple[eqx.Module, ...]:
    """Kuhn hats at integer nodes: running maxima of t and of -t, one coordinate a layer, then the outer ReLU.

    The state of a node: P = max(0, t_1..t_k), Q = max(0, -t_1..-t_k), and the coordinates still to come, both signs.
    """
    count, dim = nodes.shape
    dtype = jnp.result_type(float)
    eye = np.eye(count)
    signs = np.concatenate([np.eye(dim), -np.eye(dim)])  # rows: +t_1..+t_d, -t_1..-t_d
    weight = np.concatenate([np.tile(row[None, :], (count, 1)) for row in signs * num_cells])
    bias = np.concatenate([-(signs @ nodes.T)], axis=1).ravel()
    layers: list[eqx.Module] = [affine(weight, bias, dtype), RELU]
    # neurons now: (t_j)_+ for all j, then (-t_j)_+; the first of each are P_1 and Q_1
    read_p, read_q = np.eye(2 * dim)[0], np.eye(2 * dim)[dim]
    coordinates = [np.eye(2 * dim)[j] - np.eye(2 * dim)[dim + j] for j in range(dim)]
    for k in range(1, dim):
        rows = [read_p, read_q, coordinates[k] - read_p, -coordinates[k] - read_q]
        rows += [sign * coordinates[j] for j in range(k + 1, dim) for sign in (1.0, -1.0)]
        layers += [affine(np.kron(np.stack(rows), eye), None, dtype), RELU]
        basis = np.eye(len(rows))
        read_p, read_q = basis[0] + basis[2], basis[1] + basis[3]
        later = {j: basis[4 + 2 * i] - basis[5 + 2 * i] for i, j in enumerate(range(k + 1, dim))}
        coordinates = [later.get(j, basis[0]) for j in range(dim)]
    layers += [affine(np.kron(-(read_p + read_q)[None, :], eye), np.ones(count), dtype), RELU]
    return tuple(layers)


def _grid(per_axis: int, dim: int) -> np.ndarray:
    axes: Any = np.meshgrid(*[np.arange(per_axis)] * dim, indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


def _check_cells(count: int) -> None:
    if count > _MOST_CELLS:
        raise ValueError(f"the grid has {count} cells or nodes, more than {_MOST_CELLS}; give fewer per axis")
