r"""Linear relaxation backward (CROWN): lower bounds of $C f$ as linear functions of the input.

Going back from the output, each activation is replaced by the line below it where the coefficient is positive and by
the line above it where it is negative, until a linear function of the input remains, whose minimum over the set is
known.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet
from ntk_robust.certify._interval import AbstractBound, concretize_input, finite_or, step
from ntk_robust.certify._network import (
    AbstractLinear,
    Add,
    Graph,
    Network,
    Node,
    Nonlinearity,
    PairedDifference,
    graph_of,
)
from ntk_robust.certify._reach import Reach, reach
from ntk_robust.certify._relaxation import (
    Lines,
    Slopes,
    difference_error,
    lines,
    product_lines,
    tightest_slopes,
    worst_gap,
)
from ntk_robust.certify._rounding import magnitude, slack_factor, underflow
from ntk_robust.certify._shapes import Interval, slope_range


class Paired(NamedTuple):
    r"""Lines around $\sigma(p) - \sigma(q)$ in $t = p - q$, p and q: slopes of each, and one offset."""

    lower_slopes: tuple[Array, Array, Array]
    lower_offset: Array
    upper_slopes: tuple[Array, Array, Array]
    upper_offset: Array


class Crown(AbstractBound):
    r"""CROWN: backward linear bounds, with the bounds before every activation from the same method.

    Slopes are those of `ntk_robust.certify._relaxation`, which for ReLU are the published adaptive ones. Bounds before
    activations are the better of these and of one interval step.

    References:
        Zhang et al., Efficient neural network robustness certification with general activation functions, NeurIPS 2018;
        Xu et al., Automatic perturbation analysis for scalable certified robustness and beyond, NeurIPS 2020.
    """

    def lower(
        self,
        network: Network,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        specification: Float[Array, "rows k"],
    ) -> Float[Array, " rows"]:
        """Lower bounds of the rows of $C f(x')$."""
        graph, around = graph_of(network), reach(perturbations, x)
        intervals, relaxations = relaxed(graph, around)
        a = specification.reshape(-1, *graph.nodes[-1].shape)
        last = len(graph.nodes) - 1
        return backward(graph, last, a, relaxations=relaxations, intervals=intervals, around=around)


def nonlinear(graph: Graph) -> list[int]:
    """Indices of the nodes that need lines."""
    return [i for i, node in enumerate(graph.nodes) if isinstance(node.layer, Nonlinearity | PairedDifference)]


def before_nonlinear(graph: Graph) -> list[int]:
    """Indices of the nodes whose bounds the lines depend on; the input's are known."""
    return sorted({parent for i in nonlinear(graph) for parent in graph.nodes[i].parents} - {0})


class Relaxed(NamedTuple):
    """Interval of every node, and lines around every nonlinear one."""

    intervals: list[Interval]
    relaxations: dict[int, Lines | Paired]


def relaxed(graph: Graph, around: Reach) -> Relaxed:
    """Bounds by linear bounds before activations and by interval steps elsewhere, with the lines that they allow."""
    wanted = before_nonlinear(graph)
    intervals = [Interval(around.lower, around.upper)]
    relaxations: dict[int, Lines | Paired] = {}
    for index, node in enumerate(graph.nodes[1:], start=1):
        found = step(graph, node, [intervals[parent] for parent in node.parents], around)
        intervals.append(found)
        if index in nonlinear(graph):
            relaxations[index] = relax(graph, index, intervals)
        # after one layer an interval step is as good already
        if index in wanted and node.parents != (0,):
            intervals[index] = tighten(graph, index, relaxations, intervals, around)
    return Relaxed(intervals, relaxations)


def tighten(
    graph: Graph, index: int, relaxations: dict[int, Lines | Paired], intervals: list[Interval], around: Reach
) -> Interval:
    """The intersection of a node's interval with its linear bounds."""
    shape = graph.nodes[index].shape
    size = math.prod(shape)
    eye = jnp.eye(size, dtype=graph.dtype).reshape(size, *shape)
    both = jnp.concatenate([eye, -eye])
    found = backward(graph, index, both, relaxations=relaxations, intervals=intervals, around=around)
    lower, upper = found[:size].reshape(shape), -found[size:].reshape(shape)
    known = intervals[index]
    return Interval(jnp.maximum(known.lower, lower), jnp.minimum(known.upper, upper))


def relax(graph: Graph, index: int, intervals: list[Interval], slopes: Slopes | None = None) -> Lines | Paired:
    """Lines around one nonlinear node; without slopes the tightest."""
    node = graph.nodes[index]
    if isinstance(node.layer, Nonlinearity):
        at = intervals[node.parents[0]]
        chosen = tightest_slopes(node.layer.activation, *at) if slopes is None else slopes
        return lines(node.layer.activation, *at, chosen)
    assert isinstance(node.layer, PairedDifference)
    return _relax_pairs(node.layer, *(intervals[parent] for parent in node.parents))


def _relax_pairs(layer: PairedDifference, moved: Interval, plus: Interval, minus: Interval) -> Paired:
    """For each pair the narrower of two enclosures: lines around both activations, or slope times difference."""
    sigma = layer.activation
    first, second = (lines(sigma, *side, tightest_slopes(sigma, *side)) for side in (plus, minus))
    factor = slope_range(sigma, jnp.minimum(plus.lower, minus.lower), jnp.maximum(plus.upper, minus.upper))
    product = product_lines(factor, *moved)
    error = difference_error(sigma, plus, minus)
    together = worst_gap(product, *moved) < worst_gap(first, *plus) + worst_gap(second, *minus)

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(together, one, other)

    none = jnp.zeros_like(error)
    return Paired(
        (
            choose(product.lower_slope, none),
            choose(none, first.lower_slope),
            choose(none, -second.upper_slope),
        ),
        choose(product.lower_offset, first.lower_offset - second.upper_offset) - error,
        (
            choose(product.upper_slope, none),
            choose(none, first.upper_slope),
            choose(none, -second.lower_slope),
        ),
        choose(product.upper_offset, first.upper_offset - second.lower_offset) + error,
    )


class _Passed(NamedTuple):
    """What one step back makes of linear functions of a node: coefficients for each parent, a constant, and slack.

    The slack is what rounding costs at most, of the network's own step and of the numbers here.
    """

    coefficients: list[Float[Array, "rows *dims"]]
    constant: Float[Array, " rows"]
    slack: Float[Array, " rows"]


def backward(
    graph: Graph,
    index: int,
    a: Float[Array, "rows *dims"],
    *,
    relaxations: dict[int, Lines | Paired],
    intervals: list[Interval],
    around: Reach,
) -> Float[Array, " rows"]:
    r"""Lower bounds of linear functions of one node.

    Rounding: replacing the coefficients $a$ at a layer by rounded ones $\hat a'$ at its parents changes the value by at
    most $\gamma \langle |a|, |M| |h| + |b| \rangle$, which is one more product with the same coefficients. Here γ is
    that of the sums in $M h$ and $a M$, which are short for a convolution; only the constant $\langle a, b \rangle$ is
    a sum over the whole layer.
    """
    rows, dtype = a.shape[0], graph.dtype
    coefficients = {index: a}
    constant = slack = jnp.zeros(rows, dtype)
    for i in range(index, 0, -1):
        if i not in coefficients:
            continue
        node = graph.nodes[i]
        parents = [intervals[parent] for parent in node.parents]
        passed = _step_back(graph, node, coefficients.pop(i), parents, relaxations.get(i))
        slack = slack + passed.slack
        for parent, more in zip(node.parents, passed.coefficients, strict=True):
            if parent in coefficients:
                coefficients[parent] = coefficients[parent] + more
                sizes = _inner(jnp.abs(coefficients[parent]), magnitude(*intervals[parent]))
                slack = slack + slack_factor(1, dtype) * sizes
            else:
                coefficients[parent] = more
        constant = constant + passed.constant
    lowest = constant - slack * (1.0 + slack_factor(len(graph.nodes), dtype))
    if 0 in coefficients:
        lowest = lowest + concretize_input(coefficients[0], around, graph)
    rounding = 2.0 * float(jnp.finfo(dtype).eps) * jnp.abs(lowest)
    return finite_or(lowest - rounding, -jnp.inf)


def _step_back(
    graph: Graph, node: Node, a: Float[Array, "rows *dims"], parents: list[Interval], around_node: Lines | Paired | None
) -> _Passed:
    size, absolute = math.prod(node.shape), jnp.abs(a)
    none = jnp.zeros(a.shape[0], graph.dtype)

    def slack(num_terms: int, sizes: Array, constants: Array | None = None) -> Array:
        """For sums of so many terms, and for the constant, which those of all other steps are added to."""
        total = slack_factor(num_terms, graph.dtype) * _inner(absolute, sizes) + underflow(size, graph.dtype)
        if constants is None:
            return total
        return total + slack_factor(size + len(graph.nodes), graph.dtype) * _inner(absolute, constants)

    match node.layer:
        case AbstractLinear():
            layer, offset = node.layer, node.layer.offset()
            before = layer.transpose(a, graph.nodes[node.parents[0]].shape)
            if not layer.num_terms():  # coordinates change places
                return _Passed([before], none, none)
            sizes = layer.absolute(magnitude(*parents[0]))
            if offset is None:
                return _Passed([before], none, slack(layer.num_terms(), sizes))
            offset = jnp.broadcast_to(offset, node.shape)
            constants = jnp.abs(offset)
            return _Passed([before], _inner(a, offset), slack(layer.num_terms(), sizes + constants, constants))
        case Nonlinearity() | PairedDifference():
            assert around_node is not None
            low, high = around_node.lower_offset, around_node.upper_offset
            if isinstance(around_node, Lines):
                slopes = [(around_node.lower_slope, around_node.upper_slope)]
            else:
                slopes = list(zip(around_node.lower_slopes, around_node.upper_slopes, strict=True))
            positive, negative = jnp.maximum(a, 0.0), jnp.minimum(a, 0.0)
            coefficients, constants = [], magnitude(low, high)
            sizes = constants
            for at, (below, above) in zip(parents, slopes, strict=True):
                coefficients.append(positive * _with_rows(below, a) + negative * _with_rows(above, a))
                sizes = sizes + magnitude(below, above) * _with_rows(magnitude(*at), below)
            constant = _inner(positive, low) + _inner(negative, high)
            return _Passed(coefficients, constant, slack(len(parents), sizes, constants))
    assert isinstance(node.layer, Add)
    sizes = sum((magnitude(*at) for at in parents[1:]), magnitude(*parents[0]))
    return _Passed([a] * len(parents), none, slack(len(parents), sizes))


def _with_rows(values: Array, other: Array) -> Array:
    """Values of one node, with an axis for rows if the others have one and they lack it."""
    return values if values.ndim == other.ndim else values[None]


def _inner(a: Float[Array, "rows *dims"], values: Array) -> Float[Array, " rows"]:
    """Each row times values of one node, or times those of the same row."""
    flat = a.reshape(a.shape[0], -1)
    if values.ndim == a.ndim:
        return jnp.sum(flat * values.reshape(a.shape[0], -1), axis=1)
    return jnp.matmul(flat, values.ravel(), precision=jax.lax.Precision.HIGHEST)
