r"""CROWN with slopes that are optimized instead of chosen (alpha-CROWN)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet
from ntk_robust.certify._crown import (
    Lines,
    Paired,
    backward,
    before_nonlinear,
    nonlinear,
    relax,
    relaxed,
    tighten,
)
from ntk_robust.certify._interval import AbstractBound
from ntk_robust.certify._network import Graph, Network, Nonlinearity, graph_of
from ntk_robust.certify._reach import Reach, reach
from ntk_robust.certify._relaxation import Slopes, tightest_slopes
from ntk_robust.certify._shapes import Interval, curvature_range, kink_slopes, slope_range

# Slopes of each activation's lines as a fraction of their range, for each quantity that is bounded with them.
_Shares = dict[int, dict[int, Slopes]]


class AlphaCrown(AbstractBound):
    r"""CROWN with the slopes of the lines optimized by gradient ascent on the bounds.

    Any slope between the smallest and the largest of the activation on its interval gives valid lines, so every step is
    a sound bound and the best one of each row is kept: never worse than `Crown`. Each row of the specification has
    slopes of its own; bounds before an activation share one set for each layer that is bounded, optimized for the same
    goal, the sum of the lower bounds of all rows. One step costs about three times `Crown`.

    Attributes:
        num_steps: Steps of the optimizer.
        optimizer: An optax transformation of the shares in [0, 1].

    Raises:
        ValueError: If `num_steps` is below 1.

    References:
        Xu et al., Fast and complete: enabling complete neural network verification with rapid and massively parallel
        incomplete verifiers, ICLR 2021.
    """

    num_steps: int = eqx.field(default=20, static=True)
    optimizer: optax.GradientTransformation = eqx.field(default_factory=lambda: _ADAM, static=True)

    def __check_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; give at least 1, or use Crown")

    def lower(
        self,
        network: Network,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        specification: Float[Array, "rows k"],
    ) -> Float[Array, " rows"]:
        """Lower bounds of the rows of $C f(x')$."""
        graph, around = graph_of(network), reach(perturbations, x)
        a = specification.reshape(-1, *graph.nodes[-1].shape)
        known = relaxed(graph, around).intervals
        start = _initial_shares(graph, known, a.shape[0])

        def bound(shares: _Shares) -> Array:
            return _bound(graph, around, known, shares, a)

        def total(shares: _Shares) -> tuple[Array, Array]:
            lower = bound(shares)
            return -jnp.sum(jnp.where(jnp.isfinite(lower), lower, 0.0)), lower

        def ascend(state: "_State", _: None) -> tuple["_State", None]:
            (_, lower), slope = jax.value_and_grad(total, has_aux=True)(state.shares)
            slope = jax.tree.map(lambda part: jnp.where(jnp.isfinite(part), part, 0.0), slope)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer step count
                updates, optimizer = self.optimizer.update(slope, state.optimizer, state.shares)
            shares = jax.tree.map(lambda share, update: jnp.clip(share + update, 0.0, 1.0), state.shares, updates)
            return _State(shares, optimizer, jnp.maximum(state.best, lower)), None

        lowest = jnp.full(a.shape[0], -jnp.inf, graph.dtype)
        state = _State(start, self.optimizer.init(start), lowest)  # pyright: ignore[reportArgumentType]
        state, _ = jax.lax.scan(ascend, state, None, length=self.num_steps)
        return jnp.maximum(state.best, bound(state.shares))


class _State(NamedTuple):
    shares: _Shares
    optimizer: optax.OptState
    best: Float[Array, " rows"]


_ADAM = optax.adam(0.1)


def _optimized(graph: Graph) -> list[int]:
    return [i for i in nonlinear(graph) if isinstance(graph.nodes[i].layer, Nonlinearity)]


def _targets(graph: Graph) -> list[int]:
    """Nodes bounded by going back through at least one activation: those before activations, and the output."""
    first = min(nonlinear(graph), default=len(graph.nodes))
    return [*(i for i in before_nonlinear(graph) if i > first), len(graph.nodes) - 1]


def _initial_shares(graph: Graph, intervals: list[Interval], num_rows: int) -> _Shares:
    """Those of the tightest slopes."""
    last = len(graph.nodes) - 1

    def shares(index: int, target: int) -> Slopes:
        layer = graph.nodes[index].layer
        assert isinstance(layer, Nonlinearity)
        at = intervals[graph.nodes[index].parents[0]]
        low, high = slope_range(layer.activation, *at)
        room = high - low
        found = [
            jnp.clip((slope - low) / jnp.where(room > 0.0, room, 1.0), 0.0, 1.0)
            for slope in tightest_slopes(layer.activation, *at)
        ]
        if target == last:
            found = [jnp.broadcast_to(part, (num_rows, *part.shape)) for part in found]
        return Slopes(*found)

    return {
        target: {index: shares(index, target) for index in _optimized(graph) if index <= target}
        for target in _targets(graph)
    }


def _bound(graph: Graph, around: Reach, known: list[Interval], shares: _Shares, a: Array) -> Array:
    """Lower bounds of the last node with these shares, the bounds before activations included."""
    intervals = list(known)
    last = len(graph.nodes) - 1

    def around_nodes(target: int) -> dict[int, Lines | Paired]:
        found = {}
        for index in nonlinear(graph):
            if index > target:
                break
            share = shares[target].get(index)
            found[index] = relax(
                graph, index, intervals, None if share is None else _slopes(graph, index, intervals, share)
            )
        return found

    for target in _targets(graph)[:-1]:
        intervals[target] = tighten(graph, target, around_nodes(target), intervals, around)
    return backward(graph, last, a, relaxations=around_nodes(last), intervals=intervals, around=around)


def _slopes(graph: Graph, index: int, intervals: list[Interval], share: Slopes) -> Slopes:
    """Slopes of these shares, but the chord where it is above a convex function or below a concave one.

    The chord is the envelope there: no other line is better anywhere.
    """
    layer = graph.nodes[index].layer
    assert isinstance(layer, Nonlinearity)
    sigma, at = layer.activation, intervals[graph.nodes[index].parents[0]]
    low, high = slope_range(sigma, *at)
    tightest = tightest_slopes(sigma, *at)
    kinked = kink_slopes(sigma)
    if kinked is None:
        bend = curvature_range(sigma, *at)
        convex, concave = bend.lower >= 0.0, bend.upper <= 0.0
    else:
        convex, concave = jnp.full(low.shape, kinked[0] <= kinked[1]), jnp.full(low.shape, kinked[0] >= kinked[1])
    if share.lower.ndim > low.ndim:
        low, high, convex, concave = (part[None] for part in (low, high, convex, concave))
        tightest = Slopes(*(part[None] for part in tightest))
    return Slopes(
        jnp.where(concave, tightest.lower, low + share.lower * (high - low)),
        jnp.where(convex, tightest.upper, low + share.upper * (high - low)),
    )
