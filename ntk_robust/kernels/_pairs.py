r"""What a rotation-invariant kernel knows of two points: their norms and the cosine between them.

The cosine $u$ is carried as its complement $1 - |u|$ and its sign. Kernels of ReLU networks have a cusp at $u = ±1$:
they depend on $\sqrt{1 - |u|}$, so that a rounded cosine $1 - 10^{-7}$ costs half of the digits, while the complement,
taken from differences, keeps all.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_robust.kernels._polynomials import sqrt_of_distance

# Cosines of a matrix product are recomputed from differences above 1 - threshold: below, the rounding of the product
# moves the angle by less than about 1e-5 (float32) or 1e-14 (float64).
REPAIR_THRESHOLD = {"float32": 2e-3, "float64": 5e-3}
# Partners of a row whose derivative is taken from differences; rows with more twins than this are rare.
_MAX_CLOSE_PARTNERS = 8
_HIGHEST = jax.lax.Precision.HIGHEST


class Pair(NamedTuple):
    """Two points up to rotation, or arrays of such pairs that broadcast against each other.

    Attributes:
        complement: $1 - |u|$ with the cosine $u$ of the angle between the points.
        acute: Whether $u ≥ 0$.
        norm_x: Norm of the first point.
        norm_z: Norm of the second point.
    """

    complement: Float[Array, "..."]
    acute: Bool[Array, "..."]
    norm_x: Float[Array, "..."]
    norm_z: Float[Array, "..."]

    @property
    def cosine(self) -> Float[Array, "..."]:
        """$u$."""
        return jnp.where(self.acute, 1.0 - self.complement, self.complement - 1.0)

    @property
    def chord(self) -> Float[Array, "..."]:
        """$1 - u$, half of the squared chord between the directions."""
        return jnp.where(self.acute, self.complement, 2.0 - self.complement)


class Rows(NamedTuple):
    """Points with their lengths.

    Attributes:
        points: One per row.
        lengths: Euclidean norms.
    """

    points: Float[Array, "n d"]
    lengths: Float[Array, " n"]

    @property
    def directions(self) -> Float[Array, "n d"]:
        """Unit vectors; the zero vector stays zero."""
        return self.points / jnp.where(self.lengths > 0.0, self.lengths, 1.0)[:, None]


def norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Euclidean norms, with derivative 0 at the zero vector."""
    return sqrt_of_distance(jnp.sum(x * x, axis=-1))


def rows(x: Float[Array, "n d"]) -> Rows:
    """Points and lengths."""
    return Rows(x, norm(x))


def pair(x: Float[Array, " d"], z: Float[Array, " d"]) -> Pair:
    """The pair of two points, accurate at every angle and for unequal norms."""
    length_x, length_z = norm(x), norm(z)
    product = length_x * length_z
    u = jnp.vdot(x, z, precision=_HIGHEST) / jnp.where(product > 0.0, product, 1.0)
    ratio = length_x / jnp.where(length_z > 0.0, length_z, 1.0)
    squared = jnp.where(length_x > 0.0, length_x * length_x, 1.0)
    return Pair(_complement(x, z * ratio, u, squared), u >= 0.0, length_x, length_z)


def norm_gap(x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
    r"""$\|x\| - \|z\|$ without cancellation, as $(x - z) · (x + z) / (\|x\| + \|z\|)$."""
    total = norm(x) + norm(z)
    return jnp.vdot(x - z, x + z, precision=_HIGHEST) / jnp.where(total > 0.0, total, 1.0)


def coincident_pairs(x: Rows) -> Pair:
    """Each point with itself."""
    return Pair(jnp.zeros_like(x.lengths), jnp.ones_like(x.lengths, dtype=bool), x.lengths, x.lengths)


def rounded_pairs(x: Rows, z: Rows, cosines: Float[Array, "n1 n2"]) -> Pair:
    """All pairs of rows from the matrix of their cosines, as accurate as those."""
    complement = jnp.maximum(1.0 - jnp.abs(cosines), 0.0)
    return Pair(complement, cosines >= 0.0, x.lengths[:, None], z.lengths[None, :])


def cross_pairs(x: Rows, z: Rows, same: bool = False) -> Pair:
    """All pairs of rows: one matrix product, and differences where it rounds too much, also in the derivative.

    With `same` both sides hold the same points, and a row with itself has complement exactly 0.
    """
    complement, acute = _complements(x.directions, z.directions, same)
    return Pair(complement, acute, x.lengths[:, None], z.lengths[None, :])


def _complement(
    x: Float[Array, " d"], z: Float[Array, " d"], u: Float[Array, ""], squared: Float[Array, ""]
) -> Float[Array, ""]:
    r"""1 - |u| of two points with equal norms, of which `squared` is the square, from their difference.

    The sine is the length of what the difference leaves orthogonal to `x`; the complement follows as
    $\sin^2/(1 + |u|)$. Nothing here subtracts nearly equal numbers that carry rounding errors. Sines below an eighth of
    the machine epsilon are taken as 0: compilers contract products and sums, so that even equal points leave a
    difference of about its square, whose direction, and with it the derivative of a kernel with a cusp, would be noise.
    """
    difference = z - jnp.where(u >= 0.0, x, -x)
    across = difference - x * (jnp.vdot(difference, x, precision=_HIGHEST) / squared)
    sine_squared = jnp.sum(across * across) / squared
    noise = (jnp.finfo(x.dtype).eps / 8.0) ** 2
    return jnp.where(sine_squared > noise, sine_squared, 0.0) / (1.0 + jnp.abs(u))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _complements(a: Float[Array, "n1 d"], b: Float[Array, "n2 d"], same: bool) -> tuple[Array, Array]:
    """1 - |u| and u >= 0 for all pairs of unit rows; with `same`, exactly 0 for a row with itself."""
    u = jnp.matmul(a, b.T, precision=_HIGHEST)
    rounded = jnp.maximum(1.0 - jnp.abs(u), 0.0)
    complement = jnp.where(jnp.eye(*u.shape, dtype=bool), 0.0, rounded) if same else rounded
    i = jnp.arange(u.shape[0])

    def one_a_row(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, values = state
        j = jnp.argmax(left, axis=1)
        exact = jax.vmap(_complement)(a, b[j], u[i, j], jnp.ones_like(u[:, 0]))
        values = values.at[i, j].set(jnp.where(left[i, j], exact, values[i, j]))
        return left.at[i, j].set(False), values

    state = (_is_close(complement, same), complement)
    return jax.lax.while_loop(lambda state: jnp.any(state[0]), one_a_row, state)[1], u >= 0.0


@_complements.defjvp
def _complements_jvp(same: bool, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    a, b = primals
    da, db = tangents
    complement, acute = _complements(a, b, same)
    du = jnp.matmul(da, b.T, precision=_HIGHEST) + jnp.matmul(a, db.T, precision=_HIGHEST)
    change = jnp.where(acute, -du, du)
    close = _is_close(complement, same)
    i = jnp.arange(a.shape[0])

    def from_differences(change: Array) -> Array:
        # Tangents of unit vectors are orthogonal to them, so that da·b = da·(b - a): of close pairs the product keeps
        # only rounding, and the difference everything.
        closeness = jnp.where(close, 1.0 - complement, 0.0)
        for _ in range(min(_MAX_CLOSE_PARTNERS, b.shape[0])):
            j = jnp.argmax(closeness, axis=1)
            sign = jnp.where(acute[i, j], 1.0, -1.0)[:, None].astype(a.dtype)
            exact = jnp.sum((b[j] - sign * a) * (db[j] - sign * da), axis=1)
            exact = jnp.where(closeness[i, j] > 0.0, exact, change[i, j])
            change = change.at[i, j].set(exact, unique_indices=True)
            closeness = closeness.at[i, j].set(0.0)
        return change

    change = jax.lax.cond(jnp.any(close), from_differences, lambda change: change, change)
    return (complement, acute), (change, np.zeros(acute.shape, jax.dtypes.float0))


def _is_close(complement: Float[Array, "n1 n2"], same: bool) -> Bool[Array, "n1 n2"]:
    close = complement < REPAIR_THRESHOLD.get(str(complement.dtype), 0.0)
    return close & ~jnp.eye(*close.shape, dtype=bool) if same else close
