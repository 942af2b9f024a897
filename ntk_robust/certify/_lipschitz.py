r"""Lipschitz constants from above: global by spectral norms, local by intervals of slopes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet
from ntk_robust.certify._crown import relaxed
from ntk_robust.certify._interval import check_input, check_specification, identity_specification
from ntk_robust.certify._network import (
    AbstractLinear,
    AbstractReshape,
    Add,
    Affine,
    Network,
    Nonlinearity,
    PairedDifference,
    graph_of,
)
from ntk_robust.certify._reach import reach
from ntk_robust.certify._rounding import magnitude, slack_factor, underflow
from ntk_robust.certify._shapes import Interval, slope_range

_UNIT = float(np.finfo(np.float64).eps)


def spectral_norm_bound(matrix: Float[Array, "m n"] | np.ndarray, *, num_squarings: int = 8) -> float:
    r"""Upper bound of $\|W\|_2$, by powers of the Gram matrix.

    $\|W\|_2 ≤ \|(W^\top W)^{2^s}\|_F^{1/2^{s+1}} ≤ \|W\|_2 \, r^{1/2^{s+2}}$ with the rank r: 0.7 % too large for a
    thousand equal singular values and s = 8, exact in the limit. Power iteration would bound from below.

    The smaller Gram matrix is squared in float64 on the host, normalized at each step, together with a bound of its
    rounding errors, which is part of the result.

    Args:
        matrix: $W$.
        num_squarings: $s$.

    Returns:
        The bound, rounded upward; 0 for a zero matrix.

    Raises:
        ValueError: If the matrix is not one, is empty or not finite, or `num_squarings` is negative.

    Examples:
        >>> import numpy as np
        >>> 5.0 <= spectral_norm_bound(np.array([[3.0, 0.0], [0.0, 5.0]])) < 5.0 + 1e-10
        True
    """
    w = np.asarray(matrix, np.float64)
    if w.ndim != 2 or w.size == 0 or not np.isfinite(w).all():
        raise ValueError(f"the spectral norm is that of a finite matrix; got shape {w.shape}")
    if num_squarings < 0:
        raise ValueError(f"num_squarings is {num_squarings}; give at least 0")
    # a power of two, so that scaling is exact
    largest = float(np.max(np.abs(w)))
    if largest == 0.0:
        return 0.0
    scale = 2.0 ** math.floor(math.log2(largest))
    w = w / scale
    tall = w if w.shape[0] >= w.shape[1] else w.T
    gram = tall.T @ tall
    # ‖fl(A B) - A B‖_F ≤ γ ‖A‖_F ‖B‖_F; `error` bounds the distance of the computed power from the true one
    error = _gamma(tall.shape[0]) * float(np.sum(tall * tall)) * 1.01
    log_norm, share = 0.0, 0.5
    for _ in range(num_squarings):
        size = float(np.linalg.norm(gram))
        scaled = 2.0 ** math.floor(math.log2(size))
        gram, error, size = gram / scaled, error / scaled, size / scaled * 1.01
        log_norm += share * math.log(scaled)
        share /= 2.0
        error = error * (2.0 * size + error) + _gamma(len(gram)) * size * size
        gram = gram @ gram
    log_norm += share * math.log(float(np.linalg.norm(gram)) * (1.0 + _gamma(gram.size)) + error)
    return math.exp(log_norm) * scale * (1.0 + 64.0 * _UNIT * (1.0 + abs(log_norm)))


def lipschitz_bound(network: Network, *, num_squarings: int = 8) -> float:
    r"""Upper bound of the network's Lipschitz constant in $\|·\|_2$, from inputs to outputs, on all inputs.

    The product over layers of spectral norms and of $\sup|\sigma'|$; branches add up. For convolutions the norm is
    bounded by $\sqrt{\|M\|_1 \|M\|_∞}$, which is cheap and a few times too large.

    Args:
        network: The network.
        num_squarings: As in `spectral_norm_bound`.

    Returns:
        The bound in output units per input unit, infinite where an activation has no bounded slope.
    """
    graph = graph_of(network)
    found = [1.0]
    for node in graph.nodes[1:]:
        parents = [found[parent] for parent in node.parents]
        match node.layer:
            case AbstractLinear():
                found.append(parents[0] * _operator_norm(node.layer, graph.nodes[node.parents[0]].shape, num_squarings))
            case Nonlinearity():
                found.append(parents[0] * node.layer.activation.lipschitz)
            case PairedDifference():
                found.append((parents[1] + parents[2]) * node.layer.activation.lipschitz)
            case _:
                found.append(sum(parents))
    return found[-1] * (1.0 + 8.0 * len(found) * _UNIT)


def local_lipschitz_bound(
    network: Network,
    x: Float[Array, "*dims"],
    perturbations: AbstractPerturbationSet,
    specification: Float[Array, "rows k"] | None = None,
) -> Float[Array, " rows"]:
    r"""Upper bounds of the slopes of $C f$ on the set of one example, in the norm dual to the set's.

    The Jacobian's entries are enclosed by intervals, backward through the slopes that activations can have between the
    bounds of `Crown`; then $|C f(x') - C f(x'')| ≤ L \|x' - x''\|$ for all $x', x''$ in the set's convex hull, with the
    norm of the set: $L = \sup\|\nabla\|_1$ for l∞, $\|·\|_2$ for l2, $\|·\|_∞$ for l1.

    Args:
        network: The network.
        x: Center; callers `jax.vmap`.
        perturbations: The set.
        specification: $C$; None asks for the outputs.

    Returns:
        One constant for each row, in exact arithmetic of the function (rounding of its evaluation is not part of it).

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    check_input(network, x)
    rows = identity_specification(network) if specification is None else specification
    check_specification(network, rows)
    graph, around = graph_of(network), reach(perturbations, x)
    intervals = relaxed(graph, around).intervals
    last = len(graph.nodes) - 1
    slopes = {last: Interval(*(rows.reshape(-1, *graph.nodes[last].shape),) * 2)}
    eps = float(jnp.finfo(graph.dtype).eps)
    for index in range(last, 0, -1):
        if index not in slopes:
            continue
        at, node = slopes.pop(index), graph.nodes[index]
        match node.layer:
            case AbstractLinear():
                passed = [_transposed(node.layer, at, graph.nodes[node.parents[0]].shape)]
            case Nonlinearity():
                passed = [_times(at, slope_range(node.layer.activation, *intervals[node.parents[0]]))]
            case PairedDifference():
                _, plus, minus = (slope_range(node.layer.activation, *intervals[parent]) for parent in node.parents)
                zero = jnp.zeros_like(at.lower)
                passed = [Interval(zero, zero), _times(at, plus), _times(Interval(-at.upper, -at.lower), minus)]
            case _:
                assert isinstance(node.layer, Add)
                passed = [at] * len(node.parents)
        for parent, more in zip(node.parents, passed, strict=True):
            if parent not in slopes:
                slopes[parent] = more
                continue
            lower, upper = slopes[parent].lower + more.lower, slopes[parent].upper + more.upper
            room = eps * magnitude(lower, upper)
            slopes[parent] = Interval(lower - room, upper + room)
    sizes = magnitude(*slopes[0]).reshape(rows.shape[0], -1)
    match around.norm:
        case "linf":
            found = jnp.sum(sizes, axis=1)
        case "l2":
            found = jnp.linalg.norm(sizes, axis=1)
        case _:
            found = jnp.max(sizes, axis=1)
    return found * (1.0 + slack_factor(sizes.shape[1], graph.dtype))


def _transposed(layer: AbstractLinear, at: Interval, shape: tuple[int, ...]) -> Interval:
    """Interval of the rows times the layer's matrix."""
    middle = 0.5 * at.lower + 0.5 * at.upper
    terms = layer.num_terms()
    g = slack_factor(terms, middle.dtype)
    radius = jnp.maximum(at.upper - middle, middle - at.lower)
    spread = (1.0 + g) * radius + g * jnp.abs(middle)
    transposed = jax.linear_transpose(layer.absolute, jax.ShapeDtypeStruct(shape, middle.dtype))
    spread = jax.vmap(lambda row: transposed(row)[0])(spread) + underflow(terms, middle.dtype)
    center = layer.transpose(middle, shape)
    return Interval(center - spread, center + spread)


def _times(at: Interval, factor: Interval) -> Interval:
    """All products, one factor for each column of the rows."""
    products = jnp.stack([end * other[None] for end in at for other in factor])
    lower, upper = jnp.min(products, axis=0), jnp.max(products, axis=0)
    room = 2.0 * float(jnp.finfo(lower.dtype).eps) * magnitude(lower, upper)
    return Interval(lower - room, upper + room)


def _operator_norm(layer: AbstractLinear, shape: tuple[int, ...], num_squarings: int) -> float:
    if isinstance(layer, AbstractReshape):
        return 1.0
    if isinstance(layer, Affine):
        return spectral_norm_bound(layer.weight, num_squarings=num_squarings)
    weights = jax.tree.leaves(layer)
    ones = jnp.ones(shape, weights[0].dtype if weights else jnp.result_type(float))
    sums = layer.absolute(ones)
    transposed = jax.linear_transpose(layer.absolute, jax.ShapeDtypeStruct(shape, ones.dtype))
    columns = transposed(jnp.ones_like(sums))[0]
    g = slack_factor(layer.num_terms(), ones.dtype)
    return math.sqrt(float(jnp.max(sums)) * float(jnp.max(columns))) * (1.0 + g)


def _gamma(num_terms: int) -> float:
    """Rounding of a sum of products in float64, with room for its own."""
    return 1.01 * (num_terms + 4) * _UNIT
