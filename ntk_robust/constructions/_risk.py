r"""Robust risks of piecewise linear functions: exact on a line, and what every robust interpolant must pay.

On a line everything reduces to breakpoints. The largest and the smallest value of a piecewise linear function on
$[x - ε, x + ε]$ are piecewise linear in x again: between the breakpoints of $f(x ± ε)$ the maximum is that of three
linear functions, the two ends and the largest breakpoint inside. Against a polynomial target the squared error is then
a polynomial on each piece.
"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial

from ntk_robust.certify import Network, pieces_on_segment

# Exact up to degree 5, and squares of quadratics have 4.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)


@dataclasses.dataclass(frozen=True)
class Breakpoints:
    """A continuous piecewise linear function on an interval of the line.

    Attributes:
        points: Breakpoints, increasing; the first and the last are the ends of the interval.
        values: The function there.
    """

    points: Float[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]

    def __call__(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Values at points of the interval."""
        return np.interp(x, self.points, self.values)


def breakpoints(network: Network, lower: float, upper: float) -> Breakpoints:
    """A scalar ReLU network of one input on [lower, upper], by `ntk_robust.certify.pieces_on_segment`.

    Raises:
        ValueError: If the network is not scalar with one input, or an activation is not piecewise linear.
    """
    if not network.scalar or network.input_shape != (1,):
        raise ValueError(f"the network takes {network.input_shape}; breakpoints need one input and one output")
    found = pieces_on_segment(network, np.array([lower]), np.array([upper]))
    ts = np.array([piece[0] for piece in found.pieces] + [found.pieces[-1][1]])
    values = np.array([piece[0, 0] for piece in found.values] + [found.values[-1][1, 0]])
    return Breakpoints(lower + (upper - lower) * ts, values)


def window_extrema(function: Breakpoints, epsilon: float) -> tuple[Breakpoints, Breakpoints]:
    r"""Largest and smallest value on $[x - ε, x + ε]$ as functions of x, exactly up to rounding.

    Args:
        function: On $[a, b]$.
        epsilon: Half width of the window.

    Returns:
        Maximum and minimum, both on $[a + ε, b - ε]$.

    Raises:
        ValueError: If the window is wider than the interval.
    """
    first, last = function.points[0] + epsilon, function.points[-1] - epsilon
    if not first < last:
        raise ValueError(f"a window of half width {epsilon} does not fit into [{first - epsilon}, {last + epsilon}]")
    highest = _window_maximum(function, epsilon, first, last)
    lowest = _window_maximum(Breakpoints(function.points, -function.values), epsilon, first, last)
    return highest, Breakpoints(lowest.points, -lowest.values)


def robust_risk(function: Breakpoints, target: Polynomial, *, epsilon: float) -> float:
    r"""$\int_0^1 \sup_{|x' - x| ≤ ε} (f(x') - f^*(x))^2 dx$, exactly up to rounding for targets of degree at most 2.

    Args:
        function: $f$ on at least $[-ε, 1 + ε]$.
        target: $f^*$.
        epsilon: Radius; 0 gives the standard risk.

    Returns:
        The risk, in squared output units.

    Raises:
        ValueError: If the function is not known on the whole interval or the target has a higher degree.
    """
    if target.degree() > 2:
        raise ValueError(f"the target has degree {target.degree()}; the pieces are split exactly up to degree 2")
    if function.points[0] > -epsilon or function.points[-1] < 1.0 + epsilon:
        raise ValueError(
            f"the function is known on [{function.points[0]}, {function.points[-1]}]; give [-epsilon, 1 + epsilon]"
        )
    highest, lowest = (function, function) if epsilon == 0.0 else window_extrema(function, epsilon)
    points = np.unique(np.concatenate([highest.points, lowest.points, [0.0, 1.0]]))
    points = points[(points >= 0.0) & (points <= 1.0)]
    return float(np.sum(_worst_squares(points, highest(points), lowest(points), target)))


def interpolation_bound(xs: Float[Array, " n"], ys: Float[Array, " n"], target: Polynomial, *, radius: float) -> float:
    r"""$\mathrm{LB}(a) = \int_0^1 \max_{i: |x - x_i| ≤ a} (y_i - f^*(x))^2 dx$, exactly up to rounding, degree ≤ 2.

    Every f with $f = y_i$ on $B(x_i, ε)$ has a robust risk of at least LB(2ε); every f with $f(x_i) = y_i$ one of at
    least LB(ε).

    Args:
        xs: $x_i$ in [0, 1].
        ys: $y_i$.
        target: $f^*$.
        radius: $a$.

    Returns:
        The bound, in squared output units.
    """
    centers, values = np.asarray(xs), np.asarray(ys)
    points = np.unique(np.concatenate([centers - radius, centers + radius, [0.0, 1.0]]))
    points = points[(points >= 0.0) & (points <= 1.0)]
    middle = 0.5 * (points[1:] + points[:-1])
    order = np.argsort(centers)
    start = np.searchsorted(centers[order], middle - radius)
    end = np.searchsorted(centers[order], middle + radius)
    reached = start < end
    high = _range_maximum(values[order], start, end)
    low = -_range_maximum(-values[order], start, end)
    squares = _between(points[:-1], points[1:], (high, high), (low, low), target)
    return float(np.sum(squares[reached]))


def union_volume(radius: float, overhang: float, input_dim: int) -> float:
    r"""$V(a, c) = \sum_k \binom{d}{k} (2a)^{d-k} (2c)^k / k!$, the volume of $\{x : D^{(a)}(x) ≤ c\}$.

    Args:
        radius: $a$, half the side of the cube.
        overhang: $c$, how far in the $\ell_1$ distance.
        input_dim: $d$.
    """
    d, a, c = input_dim, radius, overhang
    return sum(math.comb(d, k) * (2 * a) ** (d - k) * (2 * c) ** k / math.factorial(k) for k in range(d + 1))


def _window_maximum(function: Breakpoints, epsilon: float, first: float, last: float) -> Breakpoints:
    """Upper envelope of both ends of the window and of the breakpoints inside."""
    inner = function.points
    cuts = np.unique(np.concatenate([inner - epsilon, inner + epsilon, [first, last]]))
    cuts = cuts[(cuts >= first) & (cuts <= last)]
    left, right = cuts[:-1], cuts[1:]
    middle = 0.5 * (left + right)
    # breakpoints strictly inside the window, the same ones for the whole piece
    start, end = np.searchsorted(inner, middle - epsilon), np.searchsorted(inner, middle + epsilon)
    inside = _range_maximum(function.values, start, end)
    lines = [
        (function(left - epsilon), function(right - epsilon)),
        (function(left + epsilon), function(right + epsilon)),
        (inside, inside),
    ]
    shares = [np.zeros_like(left), np.ones_like(left)]
    for i, (a, b) in enumerate(lines):
        for c, d in lines[i + 1 :]:
            with np.errstate(invalid="ignore", divide="ignore"):
                crossing = (a - c) / ((a - c) - (b - d))
            shares.append(np.where((crossing > 0.0) & (crossing < 1.0), crossing, 0.0))
    share = np.stack(shares)
    points = left[None, :] + share * (right - left)[None, :]
    values = np.max(np.stack([a[None, :] * (1.0 - share) + b[None, :] * share for a, b in lines]), axis=0)
    points[1], values[1] = right, np.max(np.stack([b for _, b in lines]), axis=0)
    flat, kept = np.unique(points.ravel(), return_index=True)
    return Breakpoints(flat, values.ravel()[kept])


def _range_maximum(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Maxima of values[start:end], -inf (as a very small number) where that is empty, by doubling."""
    lowest = float(np.min(values))
    found = np.full(len(start), lowest)
    lengths = end - start
    level, table = 0, values
    while 2**level <= max(int(np.max(lengths, initial=0)), 1):
        use = (lengths >= 2**level) & (lengths < 2 ** (level + 1))
        if np.any(use):
            found[use] = np.maximum(table[start[use]], table[end[use] - 2**level])
        step = 2**level
        if len(table) <= step:
            break
        table = np.maximum(table[:-step], table[step:])
        level += 1
    return found


def _worst_squares(points: np.ndarray, highest: np.ndarray, lowest: np.ndarray, target: Polynomial) -> np.ndarray:
    """Integrals of max((h - f)^2, (l - f)^2) between points, h and l linear there."""
    ends = ((highest[:-1], highest[1:]), (lowest[:-1], lowest[1:]))
    return _between(points[:-1], points[1:], *ends, target)


def _between(
    left: np.ndarray,
    right: np.ndarray,
    highest: tuple[np.ndarray, np.ndarray],
    lowest: tuple[np.ndarray, np.ndarray],
    target: Polynomial,
) -> np.ndarray:
    """The same on pieces of their own, split where both errors are equal: h + l = 2 f."""
    width = right - left

    def at(ends: tuple[np.ndarray, np.ndarray], share: np.ndarray | float) -> np.ndarray:
        return ends[0] * (1.0 - share) + ends[1] * share

    def both(share: float) -> np.ndarray:
        return at(highest, share) + at(lowest, share) - 2.0 * target(left + share * width)

    # a quadratic in t on each piece from three values
    at_left, at_middle, at_right = both(0.0), both(0.5), both(1.0)
    a = 2.0 * (at_left + at_right - 2.0 * at_middle)
    b = at_right - at_left - a
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(b * b - 4.0 * a * at_left, 0.0))
        q = -0.5 * (b + np.where(b >= 0.0, root, -root))
        cuts = np.stack([q / a, at_left / q])
    cuts = np.sort(np.where(np.isfinite(cuts) & (cuts > 0.0) & (cuts < 1.0), cuts, 0.0), axis=0)
    edges = np.concatenate([np.zeros((1, len(left))), cuts, np.ones((1, len(left)))])
    total = np.zeros(len(left))
    for low, high in itertools.pairwise(edges):
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            share = 0.5 * (low + high) + 0.5 * (high - low) * node
            f = target(left + width * share)
            worst = np.maximum(np.square(at(highest, share) - f), np.square(at(lowest, share) - f))
            total += 0.5 * weight * (high - low) * width * worst
    return total
