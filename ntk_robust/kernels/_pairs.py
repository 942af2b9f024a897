r"""What a rotation-invariant kernel knows of two points: their norms and the cosine between them.

The cosine $u$ is carried as its complement $1 - |u|$ and its sign. Kernels of ReLU networks have a cusp at $u = ±1$:
they depend on $\sqrt{1 - |u|}$, so that a rounded cosine $1 - 10^{-7}$ costs half of the digits, while the complement,
taken from differences, keeps all.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_robust.kernels._polynomials import sqrt_of_distance

# Cosines of a matrix product are recomputed from differences above 1 - threshold: below, the rounding of the product
# moves the angle by less than about 1e-5 (float32) or 1e-14 (float64).
REPAIR_THRESHOLD = {"float32": 2e-3, "float64": 5e-3}
# Pairs around a point that a matrix product gives from it: not too far from it, in squared tangents of the angles, and
# not much closer to each other than to it, where the product would round.
_FARTHEST, _LEAST_APART = 0.02, 0.05
_ROUNDS_OF_ROWS = 3
# Partners of a row whose derivative is taken from differences; rows with more twins than this are rare.
_MAX_CLOSE_PARTNERS = 8
# Entries of the point that stands for the zero vector where norms and cosines must have derivatives: its square does
# not underflow, and nothing that is rounded sees it.
_NEARLY_ZERO = {"float32": 1e-15, "float64": 1e-60}
# Digits of a number that its tail keeps when it is cut in halves whose products are exact
_TAIL_BITS = {"float32": (np.uint32, 12), "float64": (np.uint64, 27)}
_HIGHEST = jax.lax.Precision.HIGHEST


class Pair(NamedTuple):
    """Two points up to rotation, or arrays of such pairs that broadcast against each other.

    Attributes:
        complement: $1 - |u|$ with the cosine $u$ of the angle between the points.
        acute: Whether $u ≥ 0$.
        norm_x: Norm of the first point.
        norm_z: Norm of the second point.
        gap: `norm_x² - norm_z²`, relatively accurate; None where the difference of the rounded norms has to do.
    """

    complement: Float[Array, "..."]
    acute: Bool[Array, "..."]
    norm_x: Float[Array, "..."]
    norm_z: Float[Array, "..."]
    gap: Float[Array, "..."] | None = None

    @property
    def cosine(self) -> Float[Array, "..."]:
        """$u$."""
        return jnp.where(self.acute, 1.0 - self.complement, self.complement - 1.0)

    @property
    def chord(self) -> Float[Array, "..."]:
        """$1 - u$, half of the squared chord between the directions."""
        return jnp.where(self.acute, self.complement, 2.0 - self.complement)

    @property
    def norm_gap(self) -> Float[Array, "..."]:
        """`norm_x - norm_z`, as accurate as `gap`."""
        if self.gap is None:
            return self.norm_x - self.norm_z
        return self.gap / _positive(self.norm_x + self.norm_z)

    def scaled(self, factor: float) -> "Pair":
        """Both points times a positive factor."""
        gap = None if self.gap is None else factor**2 * self.gap
        return self._replace(norm_x=factor * self.norm_x, norm_z=factor * self.norm_z, gap=gap)


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
        return self.points / _positive(self.lengths)[:, None]


def norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Euclidean norms, with derivative 0 at the zero vector."""
    return sqrt_of_distance(jnp.sum(x * x, axis=-1))


def rows(x: Float[Array, "n d"]) -> Rows:
    """Points and lengths."""
    return Rows(x, norm(x))


def off_zero(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """The points, with one beside the zero vector in its place and the derivative of the identity.

    There a kernel may be smooth, and norm and cosine, of which it is computed, are not.
    """
    is_zero = jnp.all(x == 0.0, axis=-1, keepdims=True)
    return x + jnp.where(is_zero, jnp.asarray(_NEARLY_ZERO.get(str(x.dtype), 0.0), x.dtype), jnp.zeros((), x.dtype))


def pair(x: Float[Array, " d"], z: Float[Array, " d"]) -> Pair:
    """The pair of two points, with its derivative accurate at every angle and for unequal norms."""
    return Pair(*_complement(x, z), norm(x), norm(z), _gap(x, z))


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
    complement, acute, gap = _complements(x.points, z.points, same)
    return Pair(complement, acute, x.lengths[:, None], z.lengths[None, :], gap)


def rejection(x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, " d"]:
    r"""What $z$ leaves orthogonal to $x$, $z - x \langle x, z \rangle / \|x\|^2$, accurate relative to itself.

    Near points leave a difference of about the size of the rounding of either term, so that none may be rounded: the
    factor is a sum of two numbers, and products are taken of halves of numbers, whose products are exact. Then it does
    not matter whether a compiler contracts products and sums, which would spoil the error terms of Dekker's product.
    """
    return _rejection(x, z)


@jax.custom_jvp
def _rejection(x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, " d"]:
    squared = _positive(jnp.vdot(x, x, precision=_HIGHEST))
    left, lost = z, jnp.zeros_like(z)
    for _ in range(2):  # the second factor is what rounding left of the first one
        factor = jnp.vdot(x, left + lost, precision=_HIGHEST) / squared
        if str(x.dtype) not in _TAIL_BITS:
            left = left - factor * x
            continue
        (head, tail), (head_x, tail_x) = _halves(factor), _halves(x)
        for product in (head * head_x, head * tail_x, tail * head_x):
            left, error = _difference(left, product)
            lost = lost + error
        lost = lost - tail * tail_x
    return left + lost


@_rejection.defjvp
def _rejection_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, z), (dx, dz) = primals, tangents
    across = _rejection(x, z)
    squared = _positive(jnp.vdot(x, x, precision=_HIGHEST))
    factor = jnp.vdot(x, z, precision=_HIGHEST) / squared
    turn = jnp.vdot(dx, across, precision=_HIGHEST) + jnp.vdot(x, dz - factor * dx, precision=_HIGHEST)
    return across, dz - factor * dx - x * (turn / squared)


def _halves(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Two numbers with half of the digits each and sum `x`."""
    integer, bits = _TAIL_BITS[str(x.dtype)]
    mask = np.invert(integer(2**bits - 1))
    head = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, integer) & mask, x.dtype)
    return head, x - head


def _difference(a: Float[Array, " d"], b: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """`a - b` rounded, and what rounding took (Knuth's sum, whose steps have no product to contract)."""
    rounded = a - b
    of_b = rounded - a
    return rounded, (a - (rounded - of_b)) - (b + of_b)


class Around(NamedTuple):
    """All pairs of rows, seen from a point that is close to many of them.

    Attributes:
        complement: $1 - |u|$.
        gap: Difference of the squared norms.
        is_known: Where both are relatively accurate.
    """

    complement: Float[Array, "n1 n2"]
    gap: Float[Array, "n1 n2"]
    is_known: Bool[Array, "n1 n2"]


def is_round_of_rows(done: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether the next round of repairs recomputes one partner of each row, or all pairs around one point.

    A few rounds of the first kind do for points that have a twin or two; then both kinds take turns, because a point
    may have partners that are much closer to each other than to it.
    """
    return (done < _ROUNDS_OF_ROWS) | (done % 2 == 0)


def pairs_around(centre: Float[Array, " d"], x: Float[Array, "n1 d"], z: Float[Array, "n2 d"]) -> Around:
    r"""Pairs of a cluster by one matrix product, where one difference for each pair would cost n1 n2 d slow operations.

    Let $t, s$, orthogonal to the centre, have the tangents of the angles between it and the two points as lengths. Then
    $\sin^2 = (\|t - s\|^2 + \|t\|^2 \|s\|^2 - \langle t, s \rangle^2) / ((1 + \|t\|^2)(1 + \|s\|^2))$. They are as
    accurate as `rejection`, so that the product rounds relative to $\|t\|^2 + \|s\|^2$ and not to 1.
    """
    squared = _positive(jnp.vdot(centre, centre, precision=_HIGHEST))

    def seen(points: Array) -> tuple[Array, Array, Array]:
        along = jnp.matmul(points, centre, precision=_HIGHEST) / jnp.sqrt(squared)
        across = jax.vmap(rejection, (None, 0))(centre, points)
        tangents = across / jnp.where(along != 0.0, along, 1.0)[:, None]
        sizes = jnp.where(along != 0.0, jnp.sum(tangents * tangents, axis=1), jnp.inf)
        return tangents, sizes, jax.vmap(_gap, (0, None))(points, centre)

    (t, tt, gap_x), (s, ss, gap_z) = seen(x), seen(z)
    inner = jnp.matmul(t, s.T, precision=_HIGHEST)
    far = tt[:, None] + ss[None, :]
    apart = far - 2.0 * inner
    is_known = (far <= _FARTHEST) & (apart >= _LEAST_APART * far)
    volume = jnp.where(is_known, tt[:, None] * ss[None, :] - inner * inner, 0.0)
    squares = (apart + jnp.maximum(volume, 0.0)) / ((1.0 + tt[:, None]) * (1.0 + ss[None, :]))
    squares = jnp.where(is_known & (squares > _least_sine(x.dtype) ** 2), squares, 0.0)
    return Around(squares / (1.0 + jnp.sqrt(1.0 - squares)), gap_x[:, None] - gap_z[None, :], is_known)


def _least_sine(dtype: Any) -> float:
    """What rounding may leave of parallel points: its direction, and a derivative with a cusp, would be noise."""
    return 1e3 * float(jnp.finfo(dtype).eps) ** 2


@jax.custom_jvp
def _complement(x: Float[Array, " d"], z: Float[Array, " d"]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    r"""1 - |u| and u >= 0, relatively accurate in the value and in the derivative.

    The sine is the length of what one point leaves orthogonal to the other; the complement follows as
    $\sin^2/(1 + |u|)$. Sines below a thousand squares of the machine epsilon are taken as 0.
    """
    length_x, length_z = norm(x), norm(z)
    u = jnp.vdot(x, z, precision=_HIGHEST) / _positive(length_x * length_z)
    sine = norm(rejection(x, z)) / _positive(length_z)
    real = (sine > _least_sine(x.dtype)) & (length_x > 0.0)
    return jnp.where(real, sine * sine, 0.0) / (1.0 + jnp.abs(u)), u >= 0.0


@_complement.defjvp
def _complement_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    (x, z), (dx, dz) = primals, tangents
    complement, acute = _complement(x, z)
    change = _change(x, z, acute, dx, dz)
    return (complement, acute), (change, np.zeros(acute.shape, jax.dtypes.float0))


def _change(x: Array, z: Array, acute: Array, dx: Array, dz: Array) -> Array:
    r"""By how much 1 - |u| changes: $\nabla_x u$ is what $z$ leaves orthogonal to $x$, over both norms."""
    turn = jnp.vdot(rejection(x, z), dx, precision=_HIGHEST) + jnp.vdot(rejection(z, x), dz, precision=_HIGHEST)
    return jnp.where(acute, -turn, turn) / _positive(norm(x) * norm(z))


@jax.custom_jvp
def _gap(x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
    r"""$\|x\|^2 - \|z\|^2$ without cancellation."""
    return jnp.vdot(x - z, x + z, precision=_HIGHEST)


@_gap.defjvp
def _gap_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, z), (dx, dz) = primals, tangents
    return _gap(x, z), 2.0 * (jnp.vdot(x, dx, precision=_HIGHEST) - jnp.vdot(z, dz, precision=_HIGHEST))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _complements(x: Float[Array, "n1 d"], z: Float[Array, "n2 d"], same: bool) -> tuple[Array, Array, Array]:
    """1 - |u|, u >= 0 and the gaps of all pairs of rows; with `same`, exactly 0 for a row with itself."""
    of_x, of_z = rows(x), rows(z)
    u = jnp.matmul(of_x.directions, of_z.directions.T, precision=_HIGHEST)
    rounded = jnp.maximum(1.0 - jnp.abs(u), 0.0)
    complement = jnp.where(jnp.eye(*u.shape, dtype=bool), 0.0, rounded) if same else rounded
    gap = (of_x.lengths[:, None] - of_z.lengths[None, :]) * (of_x.lengths[:, None] + of_z.lengths[None, :])
    i = jnp.arange(u.shape[0])

    def around(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, complement, gap = state
        found = pairs_around(x[jnp.argmax(jnp.sum(left, axis=1))], x, z)
        mended = left & found.is_known
        chosen = jnp.where(mended, found.complement, complement), jnp.where(mended, found.gap, gap)
        return left & ~mended, *chosen

    def mend(state: tuple[Array, tuple[Array, Array, Array]]) -> tuple[Array, tuple[Array, Array, Array]]:
        done, pairs = state
        left, complement, gap = jax.lax.cond(is_round_of_rows(done), lambda pairs: pairs, around, pairs)
        j = jnp.argmax(left, axis=1)
        exact, exact_gap = jax.vmap(lambda a, b: (_complement(a, b)[0], _gap(a, b)))(x, z[j])
        complement = complement.at[i, j].set(jnp.where(left[i, j], exact, complement[i, j]))
        gap = gap.at[i, j].set(jnp.where(left[i, j], exact_gap, gap[i, j]))
        return done + 1, (left.at[i, j].set(False), complement, gap)

    start = (jnp.zeros((), jnp.int32), (_is_close(complement, same), complement, gap))
    _, (_, complement, gap) = jax.lax.while_loop(lambda state: jnp.any(state[1][0]), mend, start)
    return complement, u >= 0.0, gap


@_complements.defjvp
def _complements_jvp(same: bool, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    (x, z), (dx, dz) = primals, tangents
    complement, acute, gap = _complements(x, z, same)
    of_x, of_z = rows(x), rows(z)
    (a, da), (b, db) = (_directions_jvp(points, tangent) for points, tangent in ((of_x, dx), (of_z, dz)))
    du = jnp.matmul(da, b.T, precision=_HIGHEST) + jnp.matmul(a, db.T, precision=_HIGHEST)
    change = jnp.where(acute, -du, du)
    close = _is_close(complement, same)
    i = jnp.arange(x.shape[0])

    def closest(closeness: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        j = jnp.argmax(closeness, axis=1)
        return closeness.at[i, j].set(0.0), (j, closeness[i, j] > 0.0)

    def from_differences(change: Array) -> Array:
        # of close pairs the product keeps only rounding, and the difference everything
        closeness = jax.lax.stop_gradient(jnp.where(close, 1.0 - complement, 0.0))
        partners, are_close = jax.lax.scan(closest, closeness, None, length=min(_MAX_CLOSE_PARTNERS, z.shape[0]))[1]
        exact = jax.lax.map(lambda j: jax.vmap(_change)(x, z[j], acute[i, j], dx, dz[j]), partners)
        # Overwritten, not corrected: in reverse mode a correction would be the difference of two roundings. A row with
        # fewer partners has its first column again, with a change of zero.
        at = (jnp.broadcast_to(i, partners.shape), partners)
        taken = jnp.zeros(change.shape, bool).at[at].max(are_close)
        return jnp.where(taken, 0.0, change).at[at].add(jnp.where(are_close, exact, 0.0))

    change = jax.lax.cond(jnp.any(close), from_differences, lambda change: change, change)
    gap_change = 2.0 * (jnp.sum(x * dx, axis=1)[:, None] - jnp.sum(z * dz, axis=1)[None, :])
    return (complement, acute, gap), (change, np.zeros(acute.shape, jax.dtypes.float0), gap_change)


def _directions_jvp(points: Rows, tangent: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Unit vectors and their tangents, orthogonal to them."""
    directions = points.directions
    along = jnp.sum(directions * tangent, axis=1, keepdims=True)
    return directions, (tangent - directions * along) / _positive(points.lengths)[:, None]


def _positive(v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 in place of 0: a divisor of what is 0 then."""
    return jnp.where(v > 0.0, v, 1.0)


def _is_close(complement: Float[Array, "n1 n2"], same: bool) -> Bool[Array, "n1 n2"]:
    close = complement < REPAIR_THRESHOLD.get(str(complement.dtype), 0.0)
    return close & ~jnp.eye(*close.shape, dtype=bool) if same else close
