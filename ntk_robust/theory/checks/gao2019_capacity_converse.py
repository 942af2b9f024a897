"""Classes whose capacity is too small for robust interpolation, with data sets on which they fail."""

import itertools
import math
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Key

from ntk_robust._core import Table
from ntk_robust.attacks import PGD, L2Ball
from ntk_robust.losses import Hinge
from ntk_robust.models import FullyConnected
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import exact_claim
from ntk_robust.theory._report import Report
from ntk_robust.training import fit

Point: TypeAlias = tuple[Fraction, ...]

# (d, pairs): a robust class shatters d points for each pair of data points; halfspaces shatter d + 1 in all.
_HALFSPACES = {"quick": ((3, 2), (4, 2), (8, 2)), "full": ((3, 2), (4, 2), (8, 2), (32, 2), (64, 2))}
_WIDTHS = {"quick": (3,), "full": (2, 3, 4, 6)}
_NUM_STEPS = {"quick": 300, "full": 3000}
_LINE_SPACING = 4.0  # of the points that the small network is trained on; δ = 1


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, _HALFSPACES[size], True, ("What is said of halfspaces is computed on fractions.",))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: a single pair, whose balls some halfspace separates whatever the labels."
    return _report(size, key, ((2, 1), (3, 1)), False, (note,))


def _report(
    size: Size, key: Key[Array, ""], cases: tuple[tuple[int, int], ...], train: bool, notes: tuple[str, ...]
) -> Report:
    conclusions, rows = [], []
    for d, pairs in cases:
        data = make_data(d, pairs)
        name = f"d = {d}, n = {2 * pairs}"
        conclusions += [
            exact_claim(f"data points at most 2δ apart, {name}", data.too_close(), "==", 0),
            exact_claim(f"points outside the ball of their label, {name}", data.uncovered(), "==", 0),
            exact_claim(f"points of two unlike hulls that coincide, {name}", data.common_points(), ">=", 1),
            exact_claim(f"data points that the best halfspace gets wrong, {name}", data.wrong(), "==", 0),
        ]
        rows.append(("halfspaces", d, 2 * pairs, pairs * d, d + 1))
    if train:
        for width, width_key in zip(_WIDTHS[size], jr.split(key, len(_WIDTHS[size])), strict=True):
            count = width + 3
            correct, attacked = small_network(width, count, _NUM_STEPS[size], width_key)
            conclusions += [
                exact_claim(
                    f"points right after training, width {width}, {count} points",
                    correct,
                    "<=",
                    count - 1,
                    "it has at most width + 1 zeros on a line, and would need one more",
                ),
                exact_claim(f"points right under attack, width {width}, {count} points", attacked, "<=", correct),
            ]
            rows.append((f"ReLU networks of width {width}, on a line", 2, count, count, width + 2))
    columns = ("class", "d", "data points", "points that a robust class shatters", "points that it manages at most")
    table = Table("capacity_converse", "Classes too small for robust interpolation", columns, rows)
    return Report((), tuple(conclusions), (table,), (), notes)


class Data(NamedTuple):
    """The construction of item D8 in coordinates times √d, which makes them rational, with labels that are a XOR.

    Attributes:
        points: The shattered points p_jk, one list for each pair.
        labels: Their labels.
        centers: The data x_j+ and x_j−, in this order.
        squared_delta: δ², in these coordinates d³.
    """

    points: list[list[Point]]
    labels: list[list[int]]
    centers: list[tuple[Point, Point]]
    squared_delta: int

    def too_close(self) -> int:
        """Pairs of data points at most 2δ apart."""
        every = [center for both in self.centers for center in both]
        return sum(_squared(a, b) <= 4 * self.squared_delta for a, b in itertools.combinations(every, 2))

    def uncovered(self) -> int:
        """Points p_jk outside the closed ball of radius δ around the data point of their pair that has their label."""
        return sum(
            _squared(point, both[0 if label == 1 else 1]) > self.squared_delta
            for points, labels, both in zip(self.points, self.labels, self.centers, strict=True)
            for point, label in zip(points, labels, strict=True)
        )

    def common_points(self) -> int:
        """Midpoints of two points labeled +1 that are midpoints of two labeled −1, among the first four points.

        One of them is enough: a halfspace that contains two points contains their midpoint, and its complement too.
        """
        flat = [
            (point, label)
            for points, labels in zip(self.points, self.labels, strict=True)
            for point, label in list(zip(points, labels, strict=True))[:2]
        ]
        middles = {
            sign: {
                tuple(x + z for x, z in zip(a, b, strict=True))
                for (a, first), (b, second) in itertools.combinations(flat, 2)
                if first == second == sign
            }
            for sign in (1, -1)
        }
        return len(middles[1] & middles[-1])

    def wrong(self) -> int:
        """Data points that an affine function through their labels, by least squares, gets wrong."""
        centers = np.array([[float(x) for x in center] for both in self.centers for center in both])
        labels = np.tile([1.0, -1.0], len(self.centers))
        rows = np.concatenate([centers / np.max(np.abs(centers)), np.ones((len(centers), 1))], axis=1)
        return int(np.sum(labels * (rows @ np.linalg.lstsq(rows, labels)[0]) <= 0.0))


def make_data(d: int, pairs: int) -> Data:
    """Pairs of data points that force labels of d points each: + − + − … in even pairs, − + + − … in odd ones.

    In units of δ/d times √d: p_jk = c_j + d e_k and x_j± = c_j ± (d + 1/4) y_j, with the c_j more than 5δ apart on the
    first axis.
    """
    apart = 5 * d * (math.isqrt(d) + 1)
    points, labels, centers = [], [], []
    for j in range(pairs):
        y = [(1 if k % 2 == 0 else -1) * (-1 if j % 2 == 1 and k < 2 else 1) for k in range(d)]
        origin = [Fraction(apart * j if k == 0 else 0) for k in range(d)]
        points.append([tuple(c + (d if k == axis else 0) for k, c in enumerate(origin)) for axis in range(d)])
        labels.append(y)
        reach = Fraction(4 * d + 1, 4)
        centers.append(
            (
                tuple(c + reach * sign for c, sign in zip(origin, y, strict=True)),
                tuple(c - reach * sign for c, sign in zip(origin, y, strict=True)),
            )
        )
    return Data(points, labels, centers, d**3)


def _squared(a: Point, b: Point) -> Fraction:
    return sum(((x - z) ** 2 for x, z in zip(a, b, strict=True)), Fraction(0))


def small_network(width: int, count: int, num_steps: int, key: Key[Array, ""]) -> tuple[int, int]:
    """How many of `count` points on a line, labeled in turns, a trained network gets right, and on their balls.

    The points are four apart and the balls have radius 1; right on a ball means right at 33 points of the line in it.
    """
    init_key, run_key = jr.split(key)
    net = FullyConnected(2, width, 1, "scalar", b_std=1.0)
    places = _LINE_SPACING * (jnp.arange(float(count)) - (count - 1) / 2)
    xs, ys = jnp.stack([places, jnp.zeros(count)], axis=1), jnp.where(jnp.arange(count) % 2 == 0, 1.0, -1.0)
    result = fit(
        net.apply,
        net.init(key=init_key),
        xs,
        ys,
        loss=Hinge(),
        attack=PGD(num_steps=2, relative_step=1.0, random_start=False),
        perturbations=L2Ball(1.0),
        optimizer=optax.adam(0.03),
        num_steps=num_steps,
        throw=True,
        key=run_key,
    )
    around = jnp.stack([jnp.linspace(-1.0, 1.0, 33), jnp.zeros(33)], axis=1)
    outputs = jax.vmap(jax.vmap(lambda x: net.apply(result.params, x)))(xs[:, None] + around[None])
    right = np.asarray(ys[:, None] * outputs > 0)
    return int(np.sum(right[:, 16])), int(np.sum(np.all(right, axis=1)))


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), theorem 6.1 (form recalled), by contraposition; item D8 of "
        "docs/theory/gao2019"
    ),
    statement=(
        "A class whose VC dimension is below ⌊n/2⌋d fails to robustly interpolate some data set of n points: "
        "halfspaces get all four points of an explicit data set right, but no halfspace does so on their δ-balls, "
        "since the convex hulls of points that are forced to unlike labels meet; a ReLU network of width w fails on "
        "w + 3 points of a line."
    ),
    run=_run,
    control=_control,
)
