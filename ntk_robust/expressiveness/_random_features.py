"""A function of the kernel's space as explicit weights near initialization."""

import math
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust.models import AbstractActivation, PairedParams, PairedTwoLayerNet

Draw: TypeAlias = Literal["sampled", "orthogonal", "leverage"]

_POOL = 16  # candidates for each neuron of a leverage-weighted draw


class FeatureNetwork(eqx.Module):
    r"""A network near its initialization that stands for $h = \sum_i \beta_i K(z_i, ·)$.

    Attributes:
        net: The network.
        start: $W_0$.
        params: W.
        importance: $p/q$ of each pair: 1 but for leverage-weighted draws.
    """

    net: PairedTwoLayerNet
    start: PairedParams
    params: PairedParams
    importance: Float[Array, " pairs"]

    def displacement(self) -> Float[Array, ""]:
        r"""$\|W - W_0\|_F$."""
        moved = jax.tree.map(lambda new, old: jnp.sum((new - old) ** 2), self.params, self.start)
        return jnp.sqrt(moved.plus + moved.minus)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(W, x)."""
        return self.net.apply(self.params, x)


def representer(
    activation: AbstractActivation,
    centers: Float[Array, "k d"],
    coefficients: Float[Array, " k"],
    weights: Float[Array, "m d"],
) -> Float[Array, "m d"]:
    r"""$c(w) = \sum_i \beta_i z_i \sigma'(w · z_i)$ for many w.

    With $w \sim N(0, I)$, $h(x) = E[c(w) · x\, \sigma'(w · x)]$ and $E\|c(w)\|^2 = \beta^\top K \beta = \|h\|^2$.

    Args:
        activation: σ.
        centers: $z_i$.
        coefficients: $\beta_i$.
        weights: w.
    """
    return (activation.derivative(weights @ centers.T) * coefficients[None]) @ centers


def random_feature_network(
    net: PairedTwoLayerNet,
    centers: Float[Array, "k d"],
    coefficients: Float[Array, " k"],
    *,
    key: Key[Array, ""],
    draw: Draw = "sampled",
    paired: bool = True,
) -> FeatureNetwork:
    r"""The network with neurons moved by $\pm \frac{a_r}{\sqrt m} c(w_r)$, so that it computes h up to $O(m^{-1/2})$.

    $f(W, x) = \frac2m \sum_{r ≤ m/2} c(w_r) · x\, \sigma'(w_r · x)$ plus an error of linearization, of which
    `linearization_bound` says how large; $\|W - W_0\|^2 = \frac2m \sum_r \|c(w_r)\|^2 \to \|h\|^2$ whatever m is.

    Args:
        net: The network; its width is m.
        centers: $z_i$ of $h = \sum_i \beta_i K(z_i, ·)$, K the analytic NTK of `net`.
        coefficients: $\beta_i$.
        key: Randomness of the initialization.
        draw: "sampled": $w_r \sim N(0, I)$, as training starts. "orthogonal": in blocks of orthogonal directions with
            the same marginals. "leverage": in proportion to $\|c(w)\|$ among 16 times as many candidates, and weighted
            by the inverse; no longer an initialization that knows nothing of h, but the best of this form.
        paired: Whether both neurons of a pair move, in opposite directions, which cancels even orders. Otherwise one of
            them moves twice as far: the same first order, errors of even orders, and $\|W - W_0\|^2 \to 2\|h\|^2$.

    Raises:
        ValueError: If `draw` is unknown or shapes disagree.

    References:
        Gao et al. (2019), theorem 5.1 (number recalled), item D6 of docs/theory/gao2019; Bach, JMLR 2017, for leverage.
    """
    if draw not in ("sampled", "orthogonal", "leverage"):
        raise ValueError(f"draw is {draw!r}; use 'sampled', 'orthogonal' or 'leverage'")
    if centers.shape != (len(coefficients), net.input_dim):
        raise ValueError(
            f"centers has shape {centers.shape} for {len(coefficients)} coefficients and inputs of dimension"
            f" {net.input_dim}; give one row for each coefficient"
        )
    pairs, dtype = net.width // 2, centers.dtype
    weight_key, choice_key, sign_key = jr.split(key, 3)
    importance = jnp.ones(pairs, dtype)
    if draw == "orthogonal":
        weights = _orthogonal(pairs, net.input_dim, weight_key, dtype)
    else:
        count = pairs if draw == "sampled" else _POOL * pairs
        weights = jr.normal(weight_key, (count, net.input_dim), dtype)
    if draw == "leverage":
        sizes = jnp.linalg.norm(representer(net.activation, centers, coefficients, weights), axis=1)
        chosen = jr.choice(choice_key, len(sizes), (pairs,), p=sizes / jnp.sum(sizes))
        weights, importance = weights[chosen], jnp.mean(sizes) / sizes[chosen]
    signs = jr.rademacher(sign_key, (pairs,), dtype)
    moves = (signs * importance / math.sqrt(net.width))[:, None] * representer(
        net.activation, centers, coefficients, weights
    )
    start = PairedParams(weights, weights, signs)
    moved = (
        PairedParams(weights + moves, weights - moves, signs)
        if paired
        else PairedParams(weights + 2.0 * moves, weights, signs)
    )
    return FeatureNetwork(net, start, moved, importance)


def _orthogonal(count: int, dim: int, key: Key[Array, ""], dtype: np.dtype) -> Float[Array, "m d"]:
    """Rows of N(0, I), orthogonal within blocks of `dim`."""
    direction_key, length_key = jr.split(key)
    blocks = -(-count // dim)
    bases, _ = jnp.linalg.qr(jr.normal(direction_key, (blocks, dim, dim), dtype))
    # QR fixes the signs of its factor
    flips = jr.rademacher(length_key, (blocks, 1, dim), dtype)
    lengths = jnp.linalg.norm(jr.normal(length_key, (blocks, dim, dim), dtype), axis=2, keepdims=True)
    return (jnp.swapaxes(bases * flips, 1, 2) * lengths).reshape(-1, dim)[:count]


def linearization_bound(
    net: PairedTwoLayerNet, coefficients: Float[Array, " k"], *, third: float | None = None
) -> float:
    r"""Upper bound of $|f(W, x) - \frac2m \sum_r c(w_r)·x\, \sigma'(w_r·x)|$ for unit x and unit centers.

    With $B = C_1 \sum|\beta_i| ≥ \|c(w)\|$: $\frac{C_2 B^2}{2\sqrt m}$, or $\frac{C_3 B^3}{6 m}$ if that is smaller.

    Args:
        net: The network.
        coefficients: $\beta_i$.
        third: $C_3 ≥ |\sigma'''|$, or None where it is not known.

    The pairs are sampled or orthogonal; the weights of a leverage-weighted draw would enter the bound.
    """
    largest = net.activation.lipschitz * float(np.sum(np.abs(coefficients)))
    second_order = net.activation.smoothness * largest**2 / (2.0 * math.sqrt(net.width))
    return second_order if third is None else min(second_order, third * largest**3 / (6.0 * net.width))
