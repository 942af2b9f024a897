r"""What a rotation-invariant kernel knows of two points: their norms and the cosine between them.

The cosine $u$ is carried as its complement $1 - |u|$ and its sign. Kernels of ReLU networks have a cusp at $u = ±1$:
they depend on $\sqrt{1 - |u|}$, so that a rounded cosine $1 - 10^{-7}$ costs half of the digits, while the complement,
taken from differences, keeps all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_robust.kernels._polynomials import sqrt_of_distance

# Cosines of a matrix product are recomputed from differences above 1 - threshold: below, the rounding of the product
# moves the angle by less than about 1e-5 (float32) or 1e-14 (float64).
_REPAIR_THRESHOLD = {"float32": 2e-3, "float64": 5e-3}
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
    """Points as directions and lengths.

    Attributes:
        direction: Unit vectors; the zero vector stays zero.
        length: Euclidean norms.
    """

    direction: Float[Array, "*batch d"]
    length: Float[Array, "*batch"]


def rows(x: Float[Array, "*batch d"]) -> Rows:
    """Directions and lengths, with derivative 0 at the zero vector."""
    length = sqrt_of_distance(jnp.sum(x * x, axis=-1))
    return Rows(x / jnp.where(length > 0.0, length, 1.0)[..., None], length)


def pair(x: Float[Array, " d"], z: Float[Array, " d"]) -> Pair:
    """The pair of two points, accurate at every angle and for unequal norms."""
    (a, length_x), (b, length_z) = rows(x), rows(z)
    u = jnp.vdot(a, b, precision=_HIGHEST)
    ratio = length_x / jnp.where(length_z > 0.0, length_z, 1.0)
    squared = jnp.where(length_x > 0.0, length_x * length_x, 1.0)
    return Pair(_complement(x, z * ratio, u, squared), u >= 0.0, length_x, length_z)


def norm_gap(x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
    r"""$\|x\| - \|z\|$ without cancellation, as $(x - z) · (x + z) / (\|x\| + \|z\|)$."""
    total = rows(x).length + rows(z).length
    return jnp.vdot(x - z, x + z, precision=_HIGHEST) / jnp.where(total > 0.0, total, 1.0)


def cross_pairs(x: Rows, z: Rows, same: Bool[Array, ""] | None = None) -> Pair:
    """All pairs of rows: one matrix product, and differences where it rounds too much.

    With `same` both sides hold the same points, and a row with itself has complement exactly 0.
    """
    complement, acute = _complements(x.direction, z.direction, jnp.asarray(False) if same is None else same)
    return Pair(complement, acute, x.length[:, None], z.length[None, :])


def self_pairs(x: Rows) -> Pair:
    """All pairs of rows of one matrix, exactly symmetric."""
    pairs = cross_pairs(x, x, jnp.asarray(True))
    n = x.length.shape[0]
    below = jnp.arange(n)[:, None] > jnp.arange(n)[None, :]
    return pairs._replace(
        complement=jnp.where(below, pairs.complement.T, pairs.complement),
        acute=jnp.where(below, pairs.acute.T, pairs.acute),
    )


def coincident_pairs(x: Rows) -> Pair:
    """Each point with itself."""
    return Pair(jnp.zeros_like(x.length), jnp.ones_like(x.length, dtype=bool), x.length, x.length)


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


@jax.custom_jvp
def _complements(a: Float[Array, "n1 d"], b: Float[Array, "n2 d"], same: Bool[Array, ""]) -> tuple[Array, Array]:
    """1 - |u| and u >= 0 for all pairs of unit rows; with `same`, exactly 0 for a row with itself."""
    u = jnp.matmul(a, b.T, precision=_HIGHEST)
    on_diagonal = same & (jnp.arange(a.shape[0])[:, None] == jnp.arange(b.shape[0])[None, :])
    complement = jnp.where(on_diagonal, 0.0, jnp.maximum(1.0 - jnp.abs(u), 0.0))
    close = (complement < _REPAIR_THRESHOLD.get(str(u.dtype), 0.0)) & ~on_diagonal
    complement = jax.lax.cond(jnp.any(close), _recompute, lambda _close, c, _u, _a, _b: c, close, complement, u, a, b)
    return complement, u >= 0.0


@_complements.defjvp
def _complements_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Any]) -> tuple:
    a, b, same = primals
    complement, acute = _complements(a, b, same)
    du = jnp.matmul(tangents[0], b.T, precision=_HIGHEST) + jnp.matmul(a, tangents[1].T, precision=_HIGHEST)
    return (complement, acute), (jnp.where(acute, -du, du), np.zeros(acute.shape, jax.dtypes.float0))


def _recompute(
    close: Bool[Array, "n1 n2"],
    complement: Float[Array, "n1 n2"],
    u: Float[Array, "n1 n2"],
    a: Float[Array, "n1 d"],
    b: Float[Array, "n2 d"],
) -> Float[Array, "n1 n2"]:
    """Complements with those of close pairs taken from differences, in rounds of one pair a row."""
    i = jnp.arange(close.shape[0])

    def one_a_row(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, values = state
        j = jnp.argmax(left, axis=1)
        exact = jax.vmap(_complement)(a, b[j], u[i, j], jnp.ones_like(u[:, 0]))
        values = values.at[i, j].set(jnp.where(left[i, j], exact, values[i, j]))
        return left.at[i, j].set(False), values

    return jax.lax.while_loop(lambda state: jnp.any(state[0]), one_a_row, (close, complement))[1]
