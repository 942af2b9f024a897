r"""Building blocks in ReLU neurons: trapezoids, bumps that are 1 on a box, product gates.

Everything is exact in real arithmetic, and in floating point too where all numbers are small multiples of one power of
two and the transition width is a power of two; `ntk_robust.certify.dyadic_interval_bounds` says whether it was.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntk_robust.certify import Affine, Network, Nonlinearity, PerBlock, PerCoordinate
from ntk_robust.models import Relu

Layers = tuple[eqx.Module, ...]
RELU = Nonlinearity(Relu())


def affine(
    weight: ArrayLike, bias: Sequence[float] | ArrayLike | None = None, dtype: np.dtype | type = np.float64
) -> Affine:
    """A dense layer from numbers of the host."""
    row = None if bias is None else jnp.asarray(np.asarray(bias, dtype))
    return Affine(jnp.asarray(np.asarray(weight, dtype)), row)


def trapezoid(lower: float, upper: float, *, tau: float) -> Network:
    r"""The trapezoid $T_{a,b}$: 1 on $[a, b]$, 0 outside $[a - τ, b + τ]$, linear between; 4 ReLU neurons.

    Args:
        lower: $a$.
        upper: $b > a$.
        tau: Width of the two transitions.

    Returns:
        A scalar network of one input.

    Raises:
        ValueError: If the plateau is empty or the width is not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from ntk_robust.constructions import trapezoid
        >>> float(trapezoid(0.25, 0.5, tau=0.25)(jnp.asarray([0.625], jnp.result_type(float))))
        0.5
    """
    check_transition(tau)
    if not lower < upper:
        raise ValueError(f"the plateau [{lower}, {upper}] is empty; give lower < upper")
    dtype = jnp.result_type(float)
    kinks = affine(np.ones((4, 1)), -np.array([lower - tau, lower, upper, upper + tau]), dtype)
    return Network((kinks, RELU, affine(np.array([[1.0, -1.0, -1.0, 1.0]]) / tau, None, dtype)), (1,), scalar=True)


def exact_bumps(lower: Float[Array, "n d"], upper: Float[Array, "n d"], *, tau: float) -> Network:
    r"""Bumps $G_i = (1 - D_i/τ)_+$, $D_i$ the $\ell_1$ distance to the box $[a_i, b_i]$, which intervals see exactly.

    Each is 1 exactly on its box and 0 where any coordinate leaves it by τ or more. On a box inside its own, interval
    bounds give [1, 1]; on one that is τ away in some coordinate, [0, 0]. A bump has 2d + 1 neurons and 6d + 1 weights
    and biases.

    Args:
        lower: $a_i$, one row for each bump.
        upper: $b_i ≥ a_i$.
        tau: Width of the transition, a power of two for exact arithmetic.

    Returns:
        A network from d inputs to n outputs.

    Raises:
        ValueError: If shapes differ, a box is empty or the width is not positive.
    """
    return Network(exact_bump_layers(lower, upper, tau), (lower.shape[1],))


def trapezoid_bumps(lower: Float[Array, "n d"], upper: Float[Array, "n d"], *, tau: float) -> Network:
    r"""Bumps $\Gamma_i = (\sum_j T_{a_{ij}, b_{ij}}(x_j) - (d - 1))_+$, the same functions as `exact_bumps`.

    They are the blocks of the paper and differ as networks: 4d + 1 neurons each, and interval bounds see neither the
    plateau nor the zeros. Linear bounds are exact on a bump's own box.

    Args:
        lower: $a_i$, one row for each bump.
        upper: $b_i ≥ a_i$.
        tau: Width of the transition.

    Returns:
        A network from d inputs to n outputs.

    Raises:
        ValueError: If shapes differ, a box is empty or the width is not positive.
    """
    return Network(trapezoid_bump_layers(lower, upper, tau), (lower.shape[1],))


def exact_bump_layers(lower: ArrayLike, upper: ArrayLike, tau: float) -> Layers:
    """The layers of `exact_bumps`: two hinges for each coordinate, and one neuron."""
    low, high = _boxes(lower, upper, tau)
    ones = np.ones_like(low)
    hinges = _per_coordinate(np.stack([ones, -ones], axis=1), np.stack([-high, low], axis=1))
    return (hinges, RELU, _per_block(np.full((2,), -1.0 / tau), low, 1.0), RELU)


def trapezoid_bump_layers(lower: ArrayLike, upper: ArrayLike, tau: float) -> Layers:
    """The layers of `trapezoid_bumps`: four hinges for each coordinate, and one neuron."""
    low, high = _boxes(lower, upper, tau)
    ones = np.ones((len(low), 4, low.shape[1]), low.dtype)
    hinges = _per_coordinate(ones, -np.stack([low - tau, low, high, high + tau], axis=1))
    dim = low.shape[1]
    return (hinges, RELU, _per_block(np.array([1.0, -1.0, -1.0, 1.0]) / tau, low, 1.0 - dim), RELU)


def product_gate(*, bound: float, levels: int) -> Network:
    r"""The product gate $\pi(u, v) ≈ uv$ for $|u|, |v| ≤ B$ by Yarotsky's sawtooth, with error at most $B^2 4^{-q}$.

    $\pi(0, v) = 0$ exactly, and $\pi(u, v) = uv$ exactly wherever u is a multiple of $2B/2^q$: $\pi(1, v) = v$ if B is
    a power of two and $2^q ≥ 2B$. Depth q + 1, about 9 neurons a layer.

    Args:
        bound: $B$.
        levels: $q$, at least 1.

    Returns:
        A scalar network of the two inputs (u, v).

    Raises:
        ValueError: If the bound is not positive or there is no level.

    References:
        Yarotsky, Error bounds for approximations with deep ReLU networks, Neural Networks 94, 2017.
    """
    return Network(product_gate_layers(bound, levels, 1, jnp.result_type(float)), (2,), scalar=True)


def product_gate_layers(bound: float, levels: int, num_gates: int, dtype: np.dtype | type) -> Layers:
    r"""Gates side by side, from $(u_1, …, u_m, v_1, …, v_m)$ to m products.

    The state of one square is $(s, g)$, the sum so far and the sawtooth, both non-negative, so that ReLU passes them.
    """
    if not bound > 0.0 or levels < 1:
        raise ValueError(f"a product gate of bound {bound} and {levels} levels; give a positive bound and a level")
    eye = np.eye(num_gates)
    # |u + v|, |u|, |v| over 2B as sums of two ReLUs each
    pairs = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]) / (2.0 * bound)
    absolute = np.concatenate([np.kron(pairs, eye), -np.kron(pairs, eye)])
    # (s, g) <- (t, t); then s <- s - g' / 4^k with g' = 2 (g)_+ - 4 (g - 1/2)_+ on neurons (s, g, g - 1/2)
    squares = np.eye(3 * num_gates)
    folded = np.concatenate([squares, squares], axis=1)
    spread = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    layers: list[eqx.Module] = [affine(absolute, None, dtype), RELU]
    state = np.kron(np.array([[1.0], [1.0]]), folded)
    for level in range(1, levels + 1):
        bias = np.kron(np.array([0.0, 0.0, -0.5]), np.ones(3 * num_gates))
        layers += [affine(np.kron(spread, squares) @ state, bias, dtype), RELU]
        quarter = 4.0**-level
        state = np.kron(np.array([[1.0, -2.0 * quarter, 4.0 * quarter], [0.0, 2.0, -4.0]]), squares)
    total = 2.0 * bound**2 * np.kron(np.array([[1.0, -1.0, -1.0]]), eye)
    return (*layers, affine(total @ state[: 3 * num_gates], None, dtype))


def clip_layers(bound: float, dtype: np.dtype | type, num_outputs: int = 1) -> Layers:
    """Clips numbers to [-bound, bound]: $-M + (f + M)_+ - (f - M)_+$."""
    eye = np.eye(num_outputs)
    ends = np.repeat([bound, -bound], num_outputs)
    first = affine(np.concatenate([eye, eye]), ends, dtype)
    return (first, RELU, affine(np.concatenate([eye, -eye], axis=1), np.full(num_outputs, -bound), dtype))


def check_transition(tau: float) -> None:
    """Refuses a transition width that is not positive and finite.

    Raises:
        ValueError: With the width.
    """
    if not (np.isfinite(tau) and tau > 0.0):
        raise ValueError(f"the transition width tau is {tau}; give a positive number, a power of two for exact bounds")


def _boxes(lower: ArrayLike, upper: ArrayLike, tau: float) -> tuple[np.ndarray, np.ndarray]:
    check_transition(tau)
    low, high = np.asarray(lower), np.asarray(upper)
    if low.ndim != 2 or low.shape != high.shape or not low.size:
        raise ValueError(f"boxes have lower ends {low.shape} and upper ends {high.shape}; give two (n, d) arrays")
    if not np.all(low <= high):
        raise ValueError(f"{np.sum(np.any(low > high, axis=1))} of {len(low)} boxes are empty; give lower <= upper")
    return low, high


def _per_coordinate(scale: np.ndarray, shift: np.ndarray) -> PerCoordinate:
    return PerCoordinate(jnp.asarray(scale), jnp.asarray(shift))


def _per_block(column: np.ndarray, like: np.ndarray, bias: float) -> PerBlock:
    count, dim = like.shape
    weight = np.broadcast_to(column[None, :, None], (count, len(column), dim)).astype(like.dtype)
    return PerBlock(jnp.asarray(weight), jnp.full(count, bias, like.dtype))
