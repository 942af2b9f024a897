"""Interval bounds: every coordinate of every layer on its own."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet
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
from ntk_robust.certify._reach import Reach, reach, support
from ntk_robust.certify._relaxation import difference_range
from ntk_robust.certify._rounding import magnitude, slack_factor, underflow
from ntk_robust.certify._shapes import Interval, value_range


class Bounds(eqx.Module):
    """Two numbers for each row of a specification that the network does not leave on the whole set.

    Attributes:
        lower: At most the smallest value.
        upper: At least the largest.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


class AbstractBound(eqx.Module):
    r"""A way to enclose $C f(x')$ for all $x' ∈ B(x)$.

    Bounds hold for the exact function and for every evaluation of it in the network's dtype, whatever the order of its
    sums: at each layer they are widened by a bound of the rounding (`docs/certificates.md`). The set is everything that
    `perturbations.contains` accepts. Evaluations in less than the dtype's precision (TF32, bfloat16 passes) are not
    covered. A bound that overflows is infinite, never nan.
    """

    @abc.abstractmethod
    def lower(
        self,
        network: Network,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        specification: Float[Array, "rows k"],
    ) -> Float[Array, " rows"]:
        """Lower bounds of the rows of $C f(x')$; see `__call__`."""

    def __call__(
        self,
        network: Network,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        specification: Float[Array, "rows k"] | None = None,
    ) -> Bounds:
        r"""Bounds of one example; callers `jax.vmap` and `jax.jit`.

        Args:
            network: The network, weights included.
            x: Center of the set.
            perturbations: `LinfBall`, `L2Ball`, `L1Ball`, or `SphereSlice` (as the l2 ball around x in its last
                coordinate's plane).
            specification: $C$, one row for each number asked for, such as `margin_specification`; None asks for the
                outputs.

        Returns:
            Bounds, one pair for each row of $C$; shape () for a scalar network without specification.

        Raises:
            ValueError: If shapes or dtypes do not fit the network.
            TypeError: For a perturbation set or an activation of which nothing is known.
        """
        check_input(network, x)
        rows = identity_specification(network) if specification is None else specification
        check_specification(network, rows)
        found = self.lower(network, x, perturbations, jnp.concatenate([rows, -rows]))
        lower, upper = found[: rows.shape[0]], -found[rows.shape[0] :]
        if specification is None and network.scalar:
            return Bounds(lower[0], upper[0])
        return Bounds(lower, upper)


class IntervalBounds(AbstractBound):
    r"""Interval bound propagation: $W [l, u] + b = W m + b ± |W| r$ with the middle m and the radius r, layer by layer.

    The first affine layer and the product of specification and last affine layer are exact for the set (in exact
    arithmetic); everything between forgets how coordinates depend on each other.

    References:
        Gowal et al., On the effectiveness of interval bound propagation for training verifiably robust models, 2018.
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
        intervals = propagate(graph, around)
        node, last = graph.nodes[-1], len(graph.nodes) - 1
        a = specification.reshape(-1, *node.shape)
        if isinstance(node.layer, AbstractLinear):
            return _through_last(node, a, intervals[node.parents[0]], graph, around)
        return concretize(a, intervals[last], graph)


def propagate(graph: Graph, around: Reach) -> list[Interval]:
    """Interval of every node."""
    intervals = [Interval(around.lower, around.upper)]
    for node in graph.nodes[1:]:
        intervals.append(step(graph, node, [intervals[parent] for parent in node.parents], around))
    return intervals


def step(graph: Graph, node: Node, parents: list[Interval], around: Reach) -> Interval:
    """Interval of one node from those of its parents."""
    match node.layer:
        case AbstractLinear() if node.parents == (0,) and around.norm != "linf":
            return _first_layer(node.layer, node, graph, around)
        case AbstractLinear():
            return linear_interval(node.layer, parents[0])
        case Nonlinearity():
            return value_range(node.layer.activation, *parents[0])
        case PairedDifference():
            moved, plus, minus = parents
            return difference_range(node.layer.activation, moved, plus, minus)
    assert isinstance(node.layer, Add)
    lower = sum((parent.lower for parent in parents[1:]), parents[0].lower)
    upper = sum((parent.upper for parent in parents[1:]), parents[0].upper)
    sizes = sum((magnitude(*parent) for parent in parents[1:]), magnitude(*parents[0]))
    slack = slack_factor(len(parents), graph.dtype) * sizes
    return Interval(lower - slack, upper + slack)


def linear_interval(layer: AbstractLinear, before: Interval) -> Interval:
    r"""$M m + b ± |M| ((1 + g) r + g |m|) + g |b|$, where g bounds the rounding."""
    dtype, num_terms = before.lower.dtype, layer.num_terms()
    g = slack_factor(num_terms, dtype) if num_terms else 0.0
    middle, radius = _ball(before)
    center = layer(middle)
    spread = layer.absolute((1.0 + g) * radius + g * jnp.abs(middle))
    if num_terms:
        spread = spread + underflow(num_terms, dtype)
    offset = layer.offset()
    if offset is not None:
        spread = spread + jnp.broadcast_to(g * jnp.abs(offset), spread.shape)
    return Interval(center - spread, center + spread)


def concretize(a: Float[Array, "rows *dims"], at: Interval, graph: Graph) -> Float[Array, " rows"]:
    """Smallest value of each linear function on a product of intervals."""
    size = at.lower.size
    g = slack_factor(size, graph.dtype)
    middle, radius = (part.ravel() for part in _ball(at))
    flat = a.reshape(a.shape[0], size)
    highest = jax.lax.Precision.HIGHEST
    spread = jnp.matmul(jnp.abs(flat), (1.0 + g) * radius + g * jnp.abs(middle), precision=highest)
    return finite_or(jnp.matmul(flat, middle, precision=highest) - spread - underflow(size, graph.dtype), -jnp.inf)


def concretize_input(a: Float[Array, "rows *dims"], around: Reach, graph: Graph) -> Float[Array, " rows"]:
    """Smallest value of each linear function of the input on the set."""
    size = around.x.size
    g = slack_factor(size, graph.dtype)
    flat = a.reshape(a.shape[0], size)
    highest = jax.lax.Precision.HIGHEST
    center = jnp.matmul(flat, around.x.ravel(), precision=highest)
    sizes = jnp.matmul(jnp.abs(flat), magnitude(around.lower, around.upper).ravel(), precision=highest)
    down = jax.vmap(lambda row: support(around, -row))(flat)
    return finite_or(center - down - g * sizes - underflow(size, graph.dtype), -jnp.inf)


def finite_or(values: Array, otherwise: float) -> Array:
    """What is not a number bounds nothing."""
    return jnp.where(jnp.isnan(values), otherwise, values)


def identity_specification(network: Network) -> Float[Array, "k k"]:
    """Asks for the outputs themselves."""
    return jnp.eye(network.num_outputs, dtype=network.dtype)


def check_input(network: Network, x: Float[Array, "*dims"]) -> None:
    """Refuses an example that the network does not take.

    Raises:
        ValueError: With both shapes or dtypes.
    """
    if x.shape != network.input_shape:
        raise ValueError(
            f"the network takes one example of shape {network.input_shape} and got {x.shape}; use jax.vmap over a batch"
        )
    if x.dtype != network.dtype:
        raise ValueError(f"the network's weights are {network.dtype} and the input {x.dtype}; cast one of them")


def check_specification(network: Network, specification: Float[Array, "rows k"]) -> None:
    """Refuses a specification that does not fit the outputs.

    Raises:
        ValueError: With both shapes or dtypes.
    """
    if specification.shape[1] != network.num_outputs or specification.dtype != network.dtype:
        raise ValueError(
            f"the specification has shape {specification.shape} and dtype {specification.dtype} for a network of "
            f"{network.num_outputs} outputs in {network.dtype}; give one column for each output, in that dtype"
        )


def _ball(at: Interval) -> Interval:
    """Middle and radius with both ends inside."""
    middle = 0.5 * at.lower + 0.5 * at.upper
    radius = jnp.maximum(at.upper - middle, middle - at.lower)
    return Interval(middle, radius * (1.0 + 2.0 * float(jnp.finfo(middle.dtype).eps)))


def _first_layer(layer: AbstractLinear, node: Node, graph: Graph, around: Reach) -> Interval:
    """The layer that sees the input: exact for balls that are no boxes."""
    shape = graph.nodes[0].shape
    size = around.x.size
    rows = jnp.eye(math.prod(node.shape), dtype=graph.dtype).reshape(-1, *node.shape)
    weights = layer.transpose(rows, shape)
    up, down = (jax.vmap(lambda row, s=s: support(around, s * row))(weights).reshape(node.shape) for s in (1.0, -1.0))
    box = linear_interval(layer, Interval(around.lower, around.upper))
    g = slack_factor(max(size, layer.num_terms()), graph.dtype)
    reached = layer.absolute(magnitude(around.lower, around.upper))
    offset = layer.offset()
    if offset is not None:
        reached = reached + jnp.broadcast_to(jnp.abs(offset), reached.shape)
    slack = g * reached + underflow(size, graph.dtype)
    center = layer(around.x)
    return Interval(jnp.maximum(center - down - slack, box.lower), jnp.minimum(center + up + slack, box.upper))


def _through_last(node: Node, a: Array, before: Interval, graph: Graph, around: Reach) -> Array:
    """Specification and last affine layer as one: rows of C M on the interval before it."""
    layer = node.layer
    assert isinstance(layer, AbstractLinear)
    rows = layer.transpose(a, before.lower.shape)
    flat = a.reshape(a.shape[0], -1)
    highest = jax.lax.Precision.HIGHEST
    g = slack_factor(max(layer.num_terms(), flat.shape[1]) + 2, graph.dtype)
    sizes = layer.absolute(magnitude(*before)).ravel()
    value = concretize_input(rows, around, graph) if node.parents == (0,) else concretize(rows, before, graph)
    offset = layer.offset()
    if offset is not None:
        offset = jnp.broadcast_to(offset, node.shape).ravel()
        value = value + jnp.matmul(flat, offset, precision=highest)
        sizes = sizes + jnp.abs(offset)
    slack = g * jnp.matmul(jnp.abs(flat), sizes, precision=highest)
    return finite_or(value - slack - underflow(flat.shape[1], graph.dtype), -jnp.inf)
