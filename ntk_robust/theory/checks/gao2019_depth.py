"""How the remainder of linearization grows with depth, radius and width of a ReLU network: trends, found by ascent."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim
from ntk_robust.theory._report import Report

_DEPTHS = {"quick": (1, 2, 4), "full": (1, 2, 3, 4, 6, 8)}
_WIDTHS = {"quick": (64, 128, 256), "full": (128, 256, 512)}  # the depths are tried at the middle one
_RADII = (1.0, 2.0, 4.0)
_NUM_STEPS = {"quick": 30, "full": 150}
_NUM_SEEDS = {"quick": 6, "full": 12}
_INPUT_DIM = 8
_DEPTH_OF_TRENDS = 2
_EXPONENT = 2.5


class Network(NamedTuple):
    """A deep ReLU net of Gao et al. at one input, in NumPy: one program for each depth would cost more than the sums.

    Attributes:
        entering: x^(0).
        hidden: W_0^(1..H).
        readout: a.
    """

    entering: Float[np.ndarray, " m"]
    hidden: Float[np.ndarray, "H m m"]
    readout: Float[np.ndarray, " m"]


def _run(size: Size, key: Key[Array, ""]) -> Report:
    note = (
        "Trends and no more: ascent finds lower bounds of suprema at moderate widths, and the rate of the paper in the "
        "depth, H^16 in all, cannot be reached by any computation."
    )
    return _report(size, key, 0.0, (note,))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: balls whose radius grows like H², so that the remainder's exponent grows by 8/3."
    return _report(size, key, 2.0, (note,))


def _report(size: Size, key: Key[Array, ""], growth: float, notes: tuple[str, ...]) -> Report:
    depths, widths, count, radius = _DEPTHS[size], _WIDTHS[size], _NUM_SEEDS[size], _RADII[-1]
    width, seeds = widths[1], [int(word) for word in jr.bits(key, (count,), np.uint32)]

    def found(depth: int, width: int, radius: float, moving: str) -> list[float]:
        networks = (make_network(depth, width, np.random.default_rng(seed)) for seed in seeds)
        return [largest_remainder(network, radius, _layers(moving, depth), _NUM_STEPS[size]) for network in networks]

    by_depth = {
        moving: np.array([found(depth, width, radius * depth**growth, moving) for depth in depths]).T
        for moving in ("all layers", "first layer", "last layer")
    }
    conclusions = [
        _trend(f"exponent of the remainder in the depth H, {moving}", depths, values, _EXPONENT, 1.0)
        for moving, values in by_depth.items()
    ]
    if growth == 0.0:
        by_radius = np.array([found(_DEPTH_OF_TRENDS, width, r, "all layers") for r in _RADII]).T
        by_width = np.array([found(_DEPTH_OF_TRENDS, m, radius, "all layers") for m in widths]).T
        conclusions += [
            _trend(f"exponent of the remainder in R, H = {_DEPTH_OF_TRENDS}", _RADII, by_radius, 4 / 3, 0.5),
            _trend(f"exponent of the remainder in m, H = {_DEPTH_OF_TRENDS}", widths, by_width, -1 / 6, 0.5),
        ]
    rows = [
        (moving, depth, width, float(np.mean(column)), float(np.min(column)), float(np.max(column)))
        for moving, values in by_depth.items()
        for depth, column in zip(depths, values.T, strict=True)
    ]
    places = list(map(float, depths))
    means = {moving: np.mean(values, axis=0) for moving, values in by_depth.items()}
    reference = means["all layers"][0] * np.array(places) ** _EXPONENT
    figure = Figure(
        name="depth",
        title="Largest remainder of linearization found in B(R)",
        x_label="hidden layers H",
        y_label="remainder",
        series=(
            *(
                Series(moving, places, means[moving].tolist(), values.min(axis=0).tolist(), values.max(axis=0).tolist())
                for moving, values in by_depth.items()
            ),
            Series("H^(5/2)", places, reference.tolist(), style="dashed"),
        ),
        x_scale="log",
        y_scale="log",
        caption="Lower bounds of suprema; the dashed line has the exponent of the upper bound, and starts with them.",
    )
    columns = ("layers that move", "H", "m", "mean", "smallest", "largest")
    table = Table("depth", "Remainders found by ascent over B(R)", columns, rows)
    return Report((), tuple(conclusions), (table,), (figure,), notes)


def _layers(moving: str, depth: int) -> slice:
    return {"all layers": slice(None), "first layer": slice(0, 1), "last layer": slice(depth - 1, None)}[moving]


def _trend(
    name: str, x: Sequence[float | int], values: Float[np.ndarray, "seeds n"], at_most: float, res: float
) -> Claim:
    fit = slope_fit(np.array(x, float), values, confidence=0.95)
    half_width = max(fit.upper - fit.slope, fit.slope - fit.lower)
    note = f"a trend; interval over {len(values)} seeds at 95%"
    return Claim(name, fit.slope, "<=", at_most, half_width, res, note)


def make_network(depth: int, width: int, rng: np.random.Generator) -> Network:
    """The net at a random input of norm 1, with the law of `DeepReluNet.init`."""
    x = rng.normal(size=_INPUT_DIM)
    std = math.sqrt(2.0 / width)
    embedded = std * rng.normal(size=(width, _INPUT_DIM)) @ (x / np.linalg.norm(x))
    return Network(np.maximum(embedded, 0.0), std * rng.normal(size=(depth, width, width)), rng.normal(size=width))


def forward(network: Network, hidden: Float[np.ndarray, "H m m"]) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """What enters each layer, its preactivations, and the output."""
    inputs, before = [network.entering], []
    for layer in hidden:
        before.append(layer @ inputs[-1])
        inputs.append(np.maximum(before[-1], 0.0))
    return inputs[:-1], before, float(network.readout @ inputs[-1])


def backward(network: Network, hidden: Float[np.ndarray, "H m m"], before: list[np.ndarray]) -> list[np.ndarray]:
    """Derivatives of the output in the preactivations of each layer."""
    slopes = [network.readout * (before[-1] > 0)]
    for layer, z in zip(hidden[:0:-1], before[-2::-1], strict=True):
        slopes.append((layer.T @ slopes[-1]) * (z > 0))
    return slopes[::-1]


def largest_remainder(network: Network, scaled_radius: float, moving: slice, num_steps: int) -> float:
    """The largest |f(W) − f(W_0) − <∇f(W_0), W − W_0>| met by ascent over B(R), some layers moving.

    Ascent begins across the kinks of the neurons next to them, where flips pay; where nothing flips there is no
    gradient to follow.
    """
    width = len(network.entering)
    radius = scaled_radius / math.sqrt(width)
    start_inputs, start_before, start = forward(network, network.hidden)
    start_slopes = backward(network, network.hidden, start_before)
    shift = np.zeros_like(network.hidden)
    count, indices = width // 8, range(*moving.indices(len(network.hidden)))
    for h in indices:
        last = h == len(network.hidden) - 1
        rises = network.readout if last else network.hidden[h + 1].T @ start_slopes[h + 1]
        cost = np.where(rises > 0, np.abs(start_before[h]), np.inf)
        chosen = np.argsort(cost)[:count]
        push = np.zeros(width)
        push[chosen] = -np.sign(start_before[h][chosen]) * radius / math.sqrt(count)
        shift[h] = np.outer(push, start_inputs[h] / np.linalg.norm(start_inputs[h]))
    largest = 0.0
    for _ in range(num_steps):
        for h in indices:
            shift[h] *= radius / max(float(np.linalg.norm(shift[h])), 1e-30)
        hidden = network.hidden + shift
        inputs, before, output = forward(network, hidden)
        linear = sum(float(start_slopes[h] @ (shift[h] @ start_inputs[h])) for h in indices)
        remainder = output - start - linear
        largest = max(largest, abs(remainder))
        slopes = backward(network, hidden, before)
        for h in indices:
            upward = np.outer(slopes[h], inputs[h]) - np.outer(start_slopes[h], start_inputs[h])
            length = max(float(np.linalg.norm(upward)), 1e-30)
            shift[h] += 0.5 * radius / length * math.copysign(1.0, remainder) * upward
    return largest


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), the proof of theorem 4.1 (recalled: remainder at most of order "
        "R^{4/3} H^{5/2} m^{-1/6}); item D5 of docs/theory/gao2019"
    ),
    statement=(
        "Over B(R) the remainder of linearization of the deep ReLU net grows no faster than H^{5/2} with the depth, "
        "R^{4/3} with the radius and m^{-1/6} with the width, for all layers together and for the first or the last "
        "alone, as far as ascent over B(R) finds it: trends, one-sided."
    ),
    run=_run,
    control=_control,
)
