r"""Exact maxima of piecewise linear networks in one and two dimensions, by finding every piece.

A piecewise linear function on a segment is given by its values at its breakpoints, on a polygon by its values at the
corners of the cells on which it is affine. An affine layer changes values and no cell; an activation splits the cells
on which one of its arguments changes sign, where it can be interpolated linearly. So all layers are carried as values
at points, and the extrema are among these.

Everything runs on the host in float64, or in rational numbers: then breakpoints, values and extrema have no error at
all.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial, reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ntk_robust.certify._network import (
    AbstractLinear,
    AbstractReshape,
    Add,
    Affine,
    Graph,
    Network,
    Nonlinearity,
    PairedDifference,
    graph_of,
)
from ntk_robust.certify._shapes import kink_slopes
from ntk_robust.certify._structured import PerBlock, PerCoordinate

_MAX_PIECES = 1_000_000


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """A network on a segment or a polygon, cut into the pieces on which it is affine.

    Attributes:
        pieces: Corners of each piece: two parameters t of a segment, or the rows (x, y) of a convex polygon. Arrays of
            float64, or of `fractions.Fraction`.
        values: Outputs at these corners, one row each.
    """

    pieces: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    @property
    def maximum(self) -> np.ndarray:
        """Largest value of each output."""
        return np.max(np.concatenate(self.values), axis=0)

    @property
    def minimum(self) -> np.ndarray:
        """Smallest value of each output."""
        return np.min(np.concatenate(self.values), axis=0)


class _Cell(NamedTuple):
    """One piece: corners, and the values of every node at each."""

    corners: np.ndarray
    values: dict[int, np.ndarray]


def pieces_on_segment(network: Network, start: ArrayLike, end: ArrayLike, *, rational: bool = False) -> PiecewiseLinear:
    r"""The network at $(1 - t) a + t b$ for t in [0, 1]: every breakpoint, and the outputs there.

    Works for inputs of any size and shape. The number of pieces grows with the number of neurons that switch on the
    way, not exponentially.

    Args:
        network: With piecewise linear activations.
        start: $a$, one example.
        end: $b$, another.
        rational: Whether to compute with fractions instead of float64, without any error and slowly.

    Returns:
        The pieces, ordered in t.

    Raises:
        ValueError: If an activation is not piecewise linear, or a shape does not fit.
    """
    ends = [np.asarray(point, np.float64) for point in (start, end)]
    for point in ends:
        if point.shape != network.input_shape:
            raise ValueError(f"the network takes inputs of shape {network.input_shape} and got {point.shape}")
    number = _number(rational)
    points = np.stack([number(point.ravel()) for point in ends])
    return _enumerate(network, number(np.array([[0.0], [1.0]])), points, rational)


def pieces_on_polygon(network: Network, corners: ArrayLike, *, rational: bool = False) -> PiecewiseLinear:
    """The network on a convex polygon of the plane: every cell on which it is affine, and the outputs at its corners.

    Args:
        network: With piecewise linear activations and inputs of shape (2,).
        corners: Rows (x, y) in order around the polygon, either way; a box has four.
        rational: Whether to compute with fractions instead of float64, without any error and slowly.

    Returns:
        The cells.

    Raises:
        ValueError: If the inputs are not pairs, an activation is not piecewise linear, or the polygon is none or not
            convex.
    """
    polygon = np.asarray(corners, np.float64)
    if network.input_shape != (2,) or polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
        raise ValueError(
            f"cells are found in the plane: the network takes inputs of shape {network.input_shape} and the polygon "
            f"has shape {polygon.shape}; give (2,) and at least three rows of two"
        )
    sides = np.roll(polygon, -1, axis=0) - polygon
    turns = sides[:, 0] * np.roll(sides[:, 1], -1) - sides[:, 1] * np.roll(sides[:, 0], -1)
    if not (np.all(turns > 0) or np.all(turns < 0)):
        raise ValueError(f"the corners {polygon.tolist()} are not those of a strictly convex polygon in order")
    points = _number(rational)(polygon)
    return _enumerate(network, points, points, rational)


def _enumerate(network: Network, corners: np.ndarray, inputs: np.ndarray, rational: bool) -> PiecewiseLinear:
    graph = graph_of(network)
    layers = _on_host(graph, _number(rational))
    cells = [_Cell(corners, {0: inputs})]
    for index, node in enumerate(graph.nodes[1:], start=1):
        parents = node.parents
        if isinstance(node.layer, Nonlinearity):
            cells = [part for cell in cells for part in _split_all(cell, parents[0])]
        elif isinstance(node.layer, PairedDifference):
            for parent in parents[1:]:
                cells = [part for cell in cells for part in _split_all(cell, parent)]
        if len(cells) > _MAX_PIECES:
            raise ValueError(f"more than {_MAX_PIECES} pieces; enumerate a smaller network or a smaller set")
        for cell in cells:
            cell.values[index] = layers[index](*(cell.values[parent] for parent in parents))
    last = len(graph.nodes) - 1
    if corners.shape[1] == 1:
        cells = [_Cell(cell.corners[:, 0], cell.values) for cell in cells]
        cells.sort(key=lambda cell: cell.corners[0])
    return PiecewiseLinear(tuple(cell.corners for cell in cells), tuple(cell.values[last] for cell in cells))


def _split_all(cell: _Cell, node: int) -> list[_Cell]:
    """The cell cut wherever a coordinate of the node is 0 inside."""
    left, done = [cell], []
    while left:
        cell = left.pop()
        values = cell.values[node]
        crossed = np.flatnonzero(np.any(values > 0, axis=0) & np.any(values < 0, axis=0))
        if crossed.size:
            left += _split(cell, node, int(crossed[0]))
        else:
            done.append(cell)
    return done


def _split(cell: _Cell, node: int, coordinate: int) -> list[_Cell]:
    """The two parts of a cell on either side of the line on which a coordinate of a node is 0."""
    level = cell.values[node][:, coordinate]
    count = len(level)
    zero = level[0] * 0
    # the boundary once around: corners, and a point wherever an edge crosses
    points: list[tuple[int, int, Any]] = []
    for i in range(count):
        j = (i + 1) % count
        points.append((i, i, zero))
        if level[i] * level[j] < 0 and (count > 2 or i == 0):
            points.append((i, j, level[i] / (level[i] - level[j])))
    first, second, share = (np.array(part) for part in zip(*points, strict=True))
    on_line = first != second

    def at(values: np.ndarray) -> np.ndarray:
        moved = share.reshape(-1, *(1,) * (values.ndim - 1))
        return values[first] * (1 - moved) + values[second] * moved

    corners, values = at(cell.corners), {key: at(part) for key, part in cell.values.items()}
    # without rounding, so that no line cuts a cell twice
    values[node][on_line, coordinate] = zero
    height = values[node][:, coordinate]
    kept = [np.flatnonzero(side) for side in (height >= 0, height <= 0)]
    return [_Cell(corners[rows], {key: part[rows] for key, part in values.items()}) for rows in kept]


def _on_host(graph: Graph, number: Callable[[Any], np.ndarray]) -> dict[int, Callable[..., np.ndarray]]:
    """Each node as a function of its parents' values at the corners of one cell."""
    found: dict[int, Callable[..., np.ndarray]] = {}
    for index, node in enumerate(graph.nodes):
        match node.layer:
            case AbstractLinear():
                shape = graph.nodes[node.parents[0]].shape
                weight, bias = (number(part) for part in _matrix(node.layer, shape, graph))
                found[index] = lambda values, weight=weight, bias=bias: values @ weight.T + bias
            case Nonlinearity():
                found[index] = partial(_bend, _slopes(node.layer.activation, number))
            case PairedDifference():
                bend = partial(_bend, _slopes(node.layer.activation, number))
                found[index] = lambda _, plus, minus, bend=bend: bend(plus) - bend(minus)
            case Add():
                found[index] = lambda *values: reduce(np.add, values)
    return found


def _bend(slopes: tuple[Any, Any], values: np.ndarray) -> np.ndarray:
    """A piecewise linear activation, with one slope on the whole cell for each coordinate."""
    below, above = slopes
    # a cut leaves rounding at its corners: the side is that of the coordinate's largest value
    positive = np.max(values, axis=0) >= -np.min(values, axis=0)
    return values * np.where(positive, above, below)[None, :]


def _slopes(activation: Any, number: Callable[[Any], np.ndarray]) -> tuple[Any, Any]:
    slopes = kink_slopes(activation)
    if slopes is None:
        raise ValueError(
            f"{type(activation).__name__} is not piecewise linear, so there are no pieces to enumerate; use bounds"
        )
    below, above = number(np.array(slopes))
    return below, above


def _matrix(layer: AbstractLinear, shape: tuple[int, ...], graph: Graph) -> tuple[ArrayLike, ArrayLike]:
    """Weights and offset of a linear layer on flattened values."""
    size = int(np.prod(shape))
    if isinstance(layer, PerCoordinate | PerBlock):
        return layer.matrix(), np.asarray(layer.offset()).ravel()
    zero = layer(jnp.zeros(shape, graph.dtype))
    if isinstance(layer, Affine):
        return layer.weight, zero
    if isinstance(layer, AbstractReshape):
        return jnp.eye(size, dtype=graph.dtype), zero.ravel()
    eye = jnp.eye(size, dtype=graph.dtype).reshape(size, *shape)
    columns = jnp.stack([layer.linear(row).ravel() for row in eye])
    return columns.T, zero.ravel()


def _number(rational: bool) -> Callable[[Any], np.ndarray]:
    """Conversion of arrays of floats, which is exact either way."""
    if not rational:
        return lambda values: np.asarray(values, np.float64)

    def fractions(values: Any) -> np.ndarray:
        values = np.asarray(values, np.float64)
        found = np.empty(values.shape, object)
        found.ravel()[:] = [Fraction(float(value)) for value in values.ravel()]
        return found

    return fractions
