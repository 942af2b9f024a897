"""What the checks of Shi et al. share: networks on the host, certified values on cubes, students on a line."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust.certify import (
    Affine,
    DyadicBounds,
    Network,
    Nonlinearity,
    Parallel,
    PerBlock,
    PerCoordinate,
    dyadic_interval_bounds,
)
from ntk_robust.constructions import Breakpoints, clipped
from ntk_robust.models import Relu

# Rounding of a few sums of at most a hundred numbers of size at most 1/τ ≤ 2^12, with room.
ROUNDING = 1e-9
_LARGEST_ARRAY = 4_000_000
_WORTH_COMPILING = 5_000_000


def on_host(network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """The scalar network on batches in NumPy: no compilation, and code that shares nothing with the library's."""
    widest = max(int(np.size(leaf)) for leaf in jax.tree.leaves(network))
    rows = max(1, _LARGEST_ARRAY // widest)

    def values(xs: np.ndarray) -> np.ndarray:
        parts = [_forward(network.layers, xs[start : start + rows])[:, 0] for start in range(0, len(xs), rows)]
        return np.concatenate(parts)

    return values


def _forward(layers: Sequence[eqx.Module], h: np.ndarray) -> np.ndarray:
    for layer in layers:
        match layer:
            case Affine():
                h = h @ np.asarray(layer.weight).T + (0.0 if layer.bias is None else np.asarray(layer.bias))
            case PerCoordinate():
                h = np.asarray(layer.scale) * h[:, None, None, :] + np.asarray(layer.shift)
            case PerBlock():
                weight = np.asarray(layer.weight)
                h = h.reshape(len(h), len(weight), -1)
                h = np.einsum("nbk,bk->nb", h, weight.reshape(len(weight), -1)) + np.asarray(layer.bias)
            case Nonlinearity():
                h = np.maximum(h, 0.0)
            case Parallel():
                h = sum((_forward(branch, h) for branch in layer.branches[1:]), _forward(layer.branches[0], h))
            case _:
                raise TypeError(f"a {type(layer).__name__} has no form on the host")
    return h


def enclosures(network: Network, xs: Float[Array, "n d"], radius: Float[Array, ""]) -> DyadicBounds:
    """Interval bounds without slack on the cubes around the points, one after the other."""
    return (_compiled_well if len(xs) * xs.size > _WORTH_COMPILING else _compiled_fast)(network, xs, radius)


def _enclosures(network: Network, xs: Float[Array, "n d"], radius: Float[Array, ""]) -> DyadicBounds:
    return jax.lax.map(lambda x: dyadic_interval_bounds(network, x - radius, x + radius), xs)


# Exact arithmetic has the same bits however it is compiled, and small programs compile longer than they run.
_compiled_well = jax.jit(_enclosures)
_compiled_fast = jax.jit(
    _enclosures, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


class Layout(NamedTuple):
    """A radius and a transition that a separation allows, in dyadic numbers."""

    epsilon: float
    tau: float


def layout(separation: float, *, transitions: int = 1) -> Layout:
    r"""The widest dyadic layout with $2ε + kτ$ = separation for k transitions, τ about a sixth of it."""
    tau = 2.0 ** np.floor(np.log2(separation / 4.0))
    return Layout(float(0.5 * (separation - transitions * tau)), float(tau))


def lattice_points(num_points: int, input_dim: int, step: float, key: Key[Array, ""]) -> Float[np.ndarray, "n d"]:
    """Different random points of the lattice of the unit cube with this step, which is then the least distance."""
    per_axis = round(1.0 / step)
    chosen = host_rng(key).permutation(per_axis**input_dim)[:num_points]
    return np.stack(np.unravel_index(chosen, (per_axis,) * input_dim), axis=1) * step


def random_teacher(input_dim: int, key: Key[Array, ""], *, bits: int = 8) -> Network:
    """A random network of one hidden layer with dyadic weights, clipped to [-1, 1]."""
    rng = host_rng(key)

    def layer(fan_out: int, fan_in: int) -> Affine:
        weight = rng.normal(size=(fan_out, fan_in)) * np.sqrt(2.0 / fan_in)
        return affine_layer(
            *(np.round(part * 2.0**bits) / 2.0**bits for part in (weight, rng.normal(size=fan_out) / 2))
        )

    layers = (layer(16, input_dim), relu_layer(), layer(1, 16))
    return clipped(Network(layers, (input_dim,), scalar=True), 1.0)


def bumps(points: np.ndarray, xs: np.ndarray, epsilon: float, tau: float) -> np.ndarray:
    """G_i at points, from the definition, one row for each point."""
    values = np.empty((len(points), len(xs)))
    for i, x in enumerate(xs):
        values[:, i] = np.maximum(0.0, 1.0 - np.sum(np.maximum(np.abs(points - x) - epsilon, 0.0), axis=1) / tau)
    return values


def student_on_line(
    teacher: Breakpoints, xs: np.ndarray, ys: np.ndarray, *, epsilon: float, tau: float, bound: float
) -> Breakpoints:
    """The clip-gate student in one dimension, from its formula: breakpoints of f_T, u, l, and where they cross."""
    ends = teacher.points[[0, -1]]
    kinks = np.concatenate([xs + side * (epsilon + width) for side in (-1.0, 1.0) for width in (0.0, tau)])
    points = np.unique(np.concatenate([teacher.points, np.clip(kinks, *ends)]))
    taught = teacher(points)
    # only the bumps of the neighbors on both sides can be positive
    order = np.argsort(xs)
    after = np.searchsorted(xs[order], points)
    upper, lower = np.full_like(points, bound), np.full_like(points, -bound)
    for near in (after - 1, after):
        i = order[np.clip(near, 0, len(xs) - 1)]
        g = np.maximum(0.0, 1.0 - np.maximum(np.abs(points - xs[i]) - epsilon, 0.0) / tau)
        g = np.where((near >= 0) & (near < len(xs)), g, 0.0)
        upper, lower = upper + g * (ys[i] - bound), lower + g * (ys[i] + bound)
    cuts = [points]
    for edge in (upper, lower):
        gap = taught - edge
        crossed = np.flatnonzero(gap[:-1] * gap[1:] < 0.0)
        share = gap[crossed] / (gap[crossed] - gap[crossed + 1])
        cuts.append(points[crossed] + share * (points[crossed + 1] - points[crossed]))
    dense = np.unique(np.concatenate(cuts))
    high, low = np.interp(dense, points, upper), np.interp(dense, points, lower)
    return Breakpoints(dense, np.maximum(np.minimum(teacher(dense), high), low))


def host_rng(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy's generator, seeded by a key: many shapes without a program for each."""
    return np.random.default_rng(np.asarray(jr.key_data(key)))


def as_array(values: np.ndarray) -> Array:
    """On the device, in float64."""
    return jnp.asarray(values, jnp.float64)


def affine_layer(weight: np.ndarray | list[list[float]], bias: np.ndarray | list[float] | None = None) -> Affine:
    """A dense layer in float64."""
    return Affine(as_array(np.asarray(weight)), None if bias is None else as_array(np.asarray(bias)))


def relu_layer() -> Nonlinearity:
    """A ReLU."""
    return Nonlinearity(Relu())
