"""The random changes that the Square attack tries: squares of one sign for l∞, moved mass for l2."""

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

_START_TILES = 5  # tiles of the first l2 perturbation along each side of the image


class AbstractMoves(eqx.Module):
    """Starts and changes of a perturbation, as an image (height, width, channels).

    Attributes:
        shape: Of the image.
        epsilon: Radius in input units.
    """

    shape: eqx.AbstractVar[tuple[int, int, int]]
    epsilon: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def start(self, *, key: PRNGKeyArray) -> Float[Array, "height width channels"]:
        """The first perturbation."""

    @abc.abstractmethod
    def change(
        self, delta: Float[Array, "height width channels"], number: Int[Array, ""], *, key: PRNGKeyArray
    ) -> Float[Array, "height width channels"]:
        """A random neighbour of `delta`, of the kind that query `number` may try."""


class LinfMoves(AbstractMoves):
    """Random vertical stripes of ±ε, then a random square with one random sign of ε per channel.

    Attributes:
        shape: Of the image.
        epsilon: Radius in input units.
        sides: Side of the square of each query.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    epsilon: Float[Array, ""]
    sides: Int[Array, " queries"]

    def start(self, *, key: PRNGKeyArray) -> Float[Array, "height width channels"]:
        """Stripes."""
        _, width, channels = self.shape
        stripes = self.epsilon * jr.rademacher(key, (1, width, channels), self.epsilon.dtype)
        return jnp.broadcast_to(stripes, self.shape)

    def change(
        self, delta: Float[Array, "height width channels"], number: Int[Array, ""], *, key: PRNGKeyArray
    ) -> Float[Array, "height width channels"]:
        """One square anew."""
        dtype, side = delta.dtype, self.sides[number]
        draws = jr.uniform(key, (2 + self.shape[2],), dtype)
        in_square = _window(self.shape, side, draws[:2])
        signs = jnp.where(draws[2:] < 0.5, -1, 1).astype(dtype)
        return jnp.where(in_square, self.epsilon * signs[None, None, :], delta)


class L2Moves(AbstractMoves):
    r"""Tiles of pyramids, then a pyramid in one random square, paid for by the mass of another one, which is erased.

    A pyramid is positive in one half of its square, negative in the other, highest in their middles. It is added to
    the direction of what was in its square, and the sum gets, in each channel, the length that brings the whole
    perturbation back to ε.

    Attributes:
        shape: Of the image.
        epsilon: Radius in input units.
        levels: For each query the row of `sides` and `pyramids` that it uses.
        sides: Different sides of squares, in order.
        pyramids: For each side its pyramid of Euclidean norm one, in the upper left corner of an array of zeros.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    epsilon: Float[Array, ""]
    levels: Int[Array, " queries"]
    sides: Int[Array, " levels"]
    pyramids: Float[Array, "levels tall wide"]

    def start(self, *, key: PRNGKeyArray) -> Float[Array, "height width channels"]:
        """Tiles of pyramids with random signs and orientations."""
        height, width, channels = self.shape
        tall, wide = max(height // _START_TILES, 1), max(width // _START_TILES, 1)
        tiles = height // tall, width // wide
        margins = (height - tiles[0] * tall) // 2, (width - tiles[1] * wide) // 2
        tile = pyramid(tall, wide).astype(self.epsilon.dtype)
        sign_key, turn_key = jr.split(key)
        signs = jr.rademacher(sign_key, (*tiles, channels), tile.dtype)
        kinds = jnp.broadcast_to(jnp.asarray(tile), (*tiles, tall, wide))
        if tall == wide:
            turned = jr.bernoulli(turn_key, shape=tiles)
            kinds = jnp.where(turned[:, :, None, None], kinds.transpose(0, 1, 3, 2), kinds)
        blocks = jnp.einsum("abij,abc->aibjc", kinds, signs)
        delta = jnp.zeros(self.shape, tile.dtype)
        delta = lax.dynamic_update_slice(
            delta, blocks.reshape(tiles[0] * tall, tiles[1] * wide, channels), (*margins, 0)
        )
        return delta * (self.epsilon / jnp.linalg.norm(delta.ravel()))

    def change(
        self, delta: Float[Array, "height width channels"], number: Int[Array, ""], *, key: PRNGKeyArray
    ) -> Float[Array, "height width channels"]:
        """One square anew, another one erased."""
        height, width, channels = self.shape
        level = self.levels[number]
        side = self.sides[level]
        draws = jr.uniform(key, (5 + channels,), delta.dtype)
        here, there = _window(self.shape, side, draws[:2]), _window(self.shape, side, draws[2:4])
        signs = jnp.where(draws[5:] < 0.5, -1, 1).astype(delta.dtype)
        bump = self.pyramids[level]
        if min(height, width) > 1:
            bump = jnp.where(draws[4] < 0.5, bump, bump.T)
        # Moved to its place: read from further up and left of an array that is zero there.
        tall, wide = bump.shape
        padded = jnp.pad(bump, ((height, 0), (width, 0)))
        top, left = _corner(self.shape, side, draws[:2])
        placed = lax.dynamic_slice(
            jnp.pad(padded, ((0, height - tall), (0, width - wide))), (height - top, width - left), (height, width)
        )

        def lengths(part: Array) -> Array:
            return jnp.sqrt(jnp.sum(part**2, axis=(0, 1), keepdims=True))

        before = lengths(jnp.where(here, delta, 0))
        new = placed[:, :, None] * signs[None, None, :] + jnp.where(here, delta, 0) / _not_zero(before)
        unspent = jnp.maximum(self.epsilon**2 - jnp.sum(delta**2), 0) / channels
        budget = jnp.sqrt(unspent + lengths(jnp.where(here | there, delta, 0)) ** 2)
        new = new * (budget / _not_zero(lengths(new)))
        moved = jnp.where(here, new, jnp.where(there, 0, delta))
        return moved * (self.epsilon / _not_zero(jnp.linalg.norm(moved.ravel())))


def moves(norm: str, shape: tuple[int, int, int], epsilon: Float[Array, ""], sides: np.ndarray) -> LinfMoves | L2Moves:
    """The moves for "linf" or "l2" with squares of these sides, one for each query."""
    if norm == "linf":
        return LinfMoves(shape, epsilon, jnp.asarray(sides))
    height, width, _ = shape
    # Three is the smallest side with two halves and a middle; the authors take odd ones.
    odd = np.maximum(sides, 3) // 2 * 2 + 1
    if min(height, width) > 1:
        odd = np.minimum(odd, min(height, width))  # a square, so that it can be turned
    different, levels = np.unique(odd, return_inverse=True)
    arrays = [pyramid(min(side, height), min(side, width)) for side in different.tolist()]
    tall, wide = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
    pyramids = np.stack([np.pad(a, ((0, tall - a.shape[0]), (0, wide - a.shape[1]))) for a in arrays])
    return L2Moves(
        shape,
        epsilon,
        jnp.asarray(levels.astype(np.int32)),
        jnp.asarray(different.astype(np.int32)),
        jnp.asarray(pyramids, epsilon.dtype),
    )


def pyramid(tall: int, wide: int) -> np.ndarray:
    """The change of one l2 query, of Euclidean norm one: positive above, negative below, in equal shares.

    A rectangle of one row is split into a left and a right half. In each half the value at Chebyshev distance r from
    its middle is $Σ_{k ≥ r} 1/(k + 1)²$, k up to the half's larger side over two.
    """
    if tall == 1 and wide > 1:
        return pyramid(wide, 1).T
    halves = []
    for rows in (tall // 2, tall - tall // 2):
        i, j = np.ogrid[:rows, :wide]
        distance = np.maximum(abs(i - rows // 2), abs(j - wide // 2))
        terms = 1.0 / np.arange(1, max(rows, wide) // 2 + 2) ** 2
        sums = np.append(np.cumsum(terms[::-1])[::-1], 0.0)  # of the terms from here on
        half = sums[np.minimum(distance, len(terms))]
        halves.append(half / max(np.linalg.norm(half), 1e-300))
    array = np.concatenate([halves[0], -halves[1]])
    return array / np.linalg.norm(array)


def _corner(
    shape: tuple[int, int, int], side: Int[Array, ""], draws: Float[Array, "2"]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Upper left corner of a random square that lies inside the image."""
    height, width, _ = shape
    tall, wide = jnp.minimum(side, height), jnp.minimum(side, width)
    top = jnp.floor(draws[0] * (height + 1 - tall).astype(draws.dtype)).astype(jnp.int32)
    left = jnp.floor(draws[1] * (width + 1 - wide).astype(draws.dtype)).astype(jnp.int32)
    return top, left


def _window(
    shape: tuple[int, int, int], side: Int[Array, ""], draws: Float[Array, "2"]
) -> Bool[Array, "height width 1"]:
    """Which pixels lie in that square."""
    height, width, _ = shape
    rows = jnp.arange(height, dtype=jnp.int32)[:, None, None]
    columns = jnp.arange(width, dtype=jnp.int32)[None, :, None]
    top, left = _corner(shape, side, draws)
    tall, wide = jnp.minimum(side, height), jnp.minimum(side, width)
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)


def _not_zero(length: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(length > 0, length, 1)
