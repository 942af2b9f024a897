"""A ReLU network of about n (d + 1) weights that robustly interpolates, and one of 2n + d that only interpolates."""

from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_robust._core import Table
from ntk_robust.data import load_dataset, subset
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim, summation_error
from ntk_robust.theory._report import Report

_GRAY_LEVELS = 16  # digits in units of a gray level are integers
_NUM_TRAIN = {"quick": 200, "full": 1390}


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, 0.49, ("δ is 0.49 of the smallest distance of two points.",))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    return _report(
        size, key, 0.75, ("Broken on purpose: δ is 0.75 of the smallest distance of points of unlike label.",)
    )


def _report(size: Size, key: Key[Array, ""], share: float, notes: tuple[str, ...]) -> Report:
    data_key, label_key, direction_key = jr.split(key, 3)
    digits = subset(load_dataset("digits"), _NUM_TRAIN[size], 10, key=data_key)
    xs = np.rint(np.asarray(digits.x_train) * _GRAY_LEVELS).astype(int)
    labels = np.asarray(jr.rademacher(label_key, (len(xs),), int))
    squared = _squared_distances(xs)
    unlike = np.where(labels[:, None] != labels[None, :], squared, np.iinfo(int).max)
    closest = np.min(squared + np.diag(np.full(len(xs), np.iinfo(int).max)))
    delta = share * np.sqrt(closest if share < 0.5 else np.min(unlike))

    net = nearest_neighbor_network(xs, labels, largest_norm=float(np.max(np.linalg.norm(xs, axis=1)) + delta))
    distances = np.sqrt(np.min(unlike, axis=1))
    margins = distances * (distances - 2 * delta)
    rivals = xs[np.argmin(unlike, axis=1)]
    attacked = xs + (delta / distances)[:, None] * (rivals - xs)
    outputs = labels * net(attacked)
    error = net.rounding(attacked)
    direction = np.asarray(jr.normal(direction_key, (xs.shape[1],)))
    radii = memorizer_radii(xs, labels, direction)
    memorizer = memorizer_network(xs, labels, direction)
    # beyond its radius, along the direction that is all it sees
    past = (np.minimum(radii * (1 + 1e-6), delta))[:, None] * (direction / np.linalg.norm(direction))
    broken = np.minimum(labels * memorizer(xs + past), labels * memorizer(xs - past)) < 0
    num, dim = xs.shape
    conclusions = (
        exact_claim("points on which the network has its label", np.sum(labels * net(xs.astype(float)) > 0), "==", num),
        exact_claim("points certified on their closed δ-ball", np.sum(margins > 0), "==", num, "D (D − 2δ) > 0"),
        Claim(
            "smallest margin at δ towards the nearest rival",
            float(np.min(outputs)),
            ">=",
            float(np.min(margins)),
            error,
            1e-6,
            "in squared gray levels; the prediction is the certificate, the uncertainty the rounding bound",
        ),
        exact_claim("smallest margin at δ towards the nearest rival is positive", np.min(outputs) - error, ">=", 0),
        exact_claim("weights and biases that are not zero", net.num_parameters, "<=", num * (dim + 1) + 6 * num),
        exact_claim(
            "points that the memorizer interpolates", np.sum(labels * memorizer(xs.astype(float)) > 0.5), "==", num
        ),
        exact_claim("points on which the memorizer is robust at δ", np.sum(radii >= delta), "<=", num // 100),
        exact_claim("points that its attack leaves right at δ", num - np.sum(broken), "==", np.sum(radii >= delta)),
    )
    rows = [
        (
            "nearest neighbor",
            net.num_parameters,
            num,
            int(np.sum(distances > 2 * delta)),
            float(np.median(distances)) / 2,
        ),
        ("memorizer", 2 * num + dim, int(np.sum(radii > 0)), int(np.sum(radii >= delta)), float(np.median(radii))),
    ]
    columns = ("network", "parameters", "interpolated", "robust at δ", "median robust radius")
    caption = f"{num} digits with random labels in dimension {dim}, in gray levels; δ = {delta:.2f}."
    table = Table("nearest_neighbor_network", "Two networks that interpolate", columns, rows, caption)
    return Report((), conclusions, (table,), (), notes)


def _squared_distances(xs: Int[np.ndarray, "n d"]) -> Int[np.ndarray, "n n"]:
    norms = np.sum(xs * xs, axis=1)
    return norms[:, None] + norms[None, :] - 2 * xs @ xs.T


class Network(NamedTuple):
    """A feed-forward network: relu(A x + b) for all layers but the last, which is affine with one output.

    Attributes:
        weights: Matrices A.
        biases: Vectors b.
    """

    weights: tuple[Float[np.ndarray, "_ _"], ...]
    biases: tuple[Float[np.ndarray, " _"], ...]

    def __call__(self, xs: Float[np.ndarray, "batch d"]) -> Float[np.ndarray, " batch"]:
        """Outputs for a batch."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            xs = np.maximum(xs @ weight.T + bias, 0)
        return (xs @ self.weights[-1].T + self.biases[-1])[:, 0]

    def rounding(self, xs: Float[np.ndarray, "batch d"]) -> float:
        """Bound for the rounding of the outputs: the first layer's sums; later layers add and subtract two numbers."""
        size = np.abs(xs) @ np.abs(self.weights[0]).T + np.abs(self.biases[0])
        return summation_error(xs.shape[1] + 2 + 3 * len(self.weights), 2 * float(np.max(size)))

    @property
    def num_parameters(self) -> int:
        """Weights and biases that are not zero."""
        return sum(int(np.count_nonzero(part)) for part in (*self.weights, *self.biases))


def nearest_neighbor_network(xs: Int[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], largest_norm: float) -> Network:
    """The ReLU network of max_{y_i = 1}(2 x_i·x − |x_i|²) − max_{y_i = −1}(2 x_i·x − |x_i|²), for |x| ≤ `largest_norm`.

    The first layer computes every term plus a constant C that makes it positive; C cancels in the difference. Each
    class is then a binary tree of max(a, b) = relu(a − b) + relu(b), which keeps values positive.
    """
    order = np.argsort(-labels, kind="stable")
    members, sizes = xs[order].astype(float), [int(np.sum(labels == 1)), int(np.sum(labels == -1))]
    norms = np.linalg.norm(members, axis=1)
    shift = float(np.ceil(np.max(norms**2 + 2 * norms * largest_norm)))
    weights, biases = [2 * members], [shift - np.rint(norms**2)]
    combine = np.eye(len(members))
    while max(sizes) > 1:
        choose = _block_diagonal([_choices(size) for size in sizes])
        weights.append(choose @ combine)
        biases.append(np.zeros(len(choose)))
        combine = _block_diagonal([_sums(size) for size in sizes])
        sizes = [(size + 1) // 2 for size in sizes]
    weights.append(np.array([[1.0, -1.0]]) @ combine)
    biases.append(np.zeros(1))
    return Network(tuple(weights), tuple(biases))


def _choices(size: int) -> Float[np.ndarray, "units size"]:
    """Rows a − b and b for each pair (a, b), and a alone for an odd last one."""
    rows = np.zeros((2 * (size // 2) + size % 2, size))
    for pair in range(size // 2):
        rows[2 * pair, [2 * pair, 2 * pair + 1]] = 1, -1
        rows[2 * pair + 1, 2 * pair + 1] = 1
    if size % 2:
        rows[-1, -1] = 1
    return rows


def _sums(size: int) -> Float[np.ndarray, "half units"]:
    """Adds what `_choices` took apart."""
    rows = np.zeros(((size + 1) // 2, 2 * (size // 2) + size % 2))
    for pair in range(size // 2):
        rows[pair, [2 * pair, 2 * pair + 1]] = 1
    if size % 2:
        rows[-1, -1] = 1
    return rows


def _block_diagonal(blocks: list[Float[np.ndarray, "_ _"]]) -> Float[np.ndarray, "_ _"]:
    first, second = blocks
    upper = np.hstack([first, np.zeros((first.shape[0], second.shape[1]))])
    return np.vstack([upper, np.hstack([np.zeros((second.shape[0], first.shape[1])), second])])


def memorizer_network(
    xs: Int[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], direction: Float[np.ndarray, " d"]
) -> Network:
    r"""The memorizer of Zhang et al.: $\sum_j w_j \max(u · x - b_j, 0)$ through all labels, with $2n + d$ parameters.

    On the line it is the spline through the labels, from 0 far before the first point on; its kinks are all points but
    the last. A first unit holds u·x, shifted to be positive.
    """
    unit = direction / np.linalg.norm(direction)
    order = np.argsort(xs @ unit)
    places, values = (xs @ unit)[order], labels[order].astype(float)
    before = places[0] - 10.0 * np.ptp(places)
    kinks = np.concatenate([[before], places[:-1]])
    slopes = np.diff(np.concatenate([[0.0], values])) / (places - kinks)
    shift = 10.0 * (np.max(np.abs(places)) + np.ptp(places))
    weights = (unit[None], np.ones((len(xs), 1)), np.diff(slopes, prepend=0.0)[None])
    return Network(weights, (np.array([shift]), -(kinks + shift), np.zeros(1)))


def memorizer_radii(
    xs: Int[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], direction: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " n"]:
    """Exact robust radii of the memorizer with 2n + d parameters, 0 where it does not interpolate.

    The memorizer is the piecewise linear spline through the labels, on the projections on one direction: n kinks, n
    slopes, and the direction. It depends on x through the projection alone and changes its sign half way between
    neighbors of unlike label, so that a point's radius is the smallest such distance on the line.
    """
    places = xs @ direction / np.linalg.norm(direction)
    order = np.argsort(places)
    sorted_places, sorted_labels = places[order], labels[order]
    changes = np.flatnonzero(sorted_labels[1:] != sorted_labels[:-1])
    zeros = (sorted_places[changes] + sorted_places[changes + 1]) / 2
    radii = np.min(np.abs(places[:, None] - zeros[None, :]), axis=1)
    values = np.interp(places, sorted_places, sorted_labels)
    return np.where(values * labels > 0, radii, 0.0)


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), remark after theorem 6.1 (recalled), and of Zhang et al. "
        "(ICLR 2017) for the memorizer; item D8 of docs/theory/gao2019"
    ),
    statement=(
        "For points more than 2δ apart under any labels, the 1-nearest-neighbor rule is a ReLU network with "
        "n(d + 1) + O(n) weights and is correct on every closed δ-ball, with margin at least D(D − 2δ) for a nearest "
        "rival at distance D; a network with 2n + d weights that interpolates the points is robust at δ on almost none."
    ),
    run=_run,
    control=_control,
)
