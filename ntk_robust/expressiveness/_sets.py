"""What a function of the kernel's space is measured on: the perturbation sets of data, or a whole domain.

Each says where a function is worst (as far as it knows), which becomes a constraint of the convex program, and what
bounds its worst value from above, which becomes the certificate.
"""

import abc
import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num

from ntk_robust.attacks import PGD, AbstractAttack, AbstractPerturbationSet, SphereSlice, attack_batch
from ntk_robust.certify import rkhs_distance_bound
from ntk_robust.expressiveness._certificates import euclidean_radius, zonal_bounds
from ntk_robust.expressiveness._expansion import Expansion, cross_gram, pad_rows
from ntk_robust.expressiveness._tangent import TangentKernel
from ntk_robust.kernels import AbstractKernel, KernelPredictor, ZonalKernel

Goal: TypeAlias = Literal["error", "margin"]

_CHUNKS = 48  # pieces of a finite set, each of which may give a constraint in one round
_ARC_CELLS = 32
_MAX_CELLS = 200_000
_FOURIER_POINTS = 256
_FOURIER_ERROR = 2e-13  # of values relative to k(x, x): a tenth of what an expansion allows its kernel
_MAX_HALVINGS = 40
_BLOCK = 4096


class Worst(NamedTuple):
    """Where a function is bad, and how bad it can be at most.

    What is measured is |h − target| ("error") or −target h ("margin").

    Attributes:
        points: Candidates for constraints, several for a set.
        sets: The number of the set of each.
        targets: The target at each.
        values: What is measured at each, attained.
        upper: Upper bound of the supremum over each set, inf where there is no certificate.
    """

    points: Float[np.ndarray, "k d"]
    sets: Int[np.ndarray, " k"]
    targets: Float[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]
    upper: Float[np.ndarray, " n"]

    def attained(self) -> Float[np.ndarray, " n"]:
        """The largest value found in each set."""
        found = np.full(len(self.upper), -np.inf)
        np.maximum.at(found, self.sets, self.values)
        return found


class AbstractSets(eqx.Module):
    """n sets of inputs with targets, on each of which a function counts by its worst point.

    Attributes:
        closes: Whether upper bounds of suprema come as close to the values found as is asked for.
    """

    closes: ClassVar[bool]

    @property
    @abc.abstractmethod
    def num_sets(self) -> int:
        """How many sets there are, n."""

    @abc.abstractmethod
    def centers(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """One point of each set and its target: the first constraints."""

    @abc.abstractmethod
    def worst(self, h: Expansion, goal: Goal, gap: float, key: Key[Array, ""]) -> Worst:
        """The worst points of h that are known, and upper bounds within `gap` of them where that can be had."""


class PointSets(AbstractSets):
    r"""Finite sets: the worst point is known exactly, up to rounding.

    With one set this is the approximation of a function on a grid. What is found holds on the grid, and is not
    certified between its points.

    Attributes:
        points: All points, one row of them for each set.
        targets: The target at each point.

    Raises:
        ValueError: If shapes disagree or the points are not in float64.
    """

    closes: ClassVar[bool] = True
    points: Float[Array, "n j d"] = eqx.field(converter=jnp.asarray)
    targets: Float[Array, "n j"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self) -> None:
        if self.points.shape[:2] != self.targets.shape:
            raise ValueError(
                f"points has shape {self.points.shape} and targets {self.targets.shape}; give one target for each point"
            )
        check_float64(self.points)

    @property
    def num_sets(self) -> int:
        """How many sets there are, n."""
        return self.points.shape[0]

    def centers(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """The middle one of each row."""
        middle = self.points.shape[1] // 2
        return np.asarray(self.points[:, middle]), np.asarray(self.targets[:, middle])

    def worst(self, h: Expansion, goal: Goal, gap: float, key: Key[Array, ""]) -> Worst:
        """The worst of each piece of each row; see `AbstractSets`."""
        del gap, key
        n, count, dim = self.points.shape
        points, targets = np.asarray(self.points).reshape(-1, dim), np.asarray(self.targets).ravel()
        values = measured(h(points), targets, goal).reshape(n, count)
        pieces = np.array_split(np.arange(count), min(count, max(1, _CHUNKS // n)))
        rows = np.concatenate([np.arange(n) * count + piece[np.argmax(values[:, piece], axis=1)] for piece in pieces])
        sets = np.tile(np.arange(n), len(pieces))
        return Worst(points[rows], sets, targets[rows], values.ravel()[rows], np.max(values, axis=1) + h.error)


class AttackedSets(AbstractSets):
    r"""Perturbation sets of data, searched by an attack.

    The certificate is the value at $x_i$ and $\|h\| \sup\|k_{x'} - k_{x_i}\|$, with a Lipschitz constant for a
    `TangentKernel`; for a `ZonalKernel` the best of that, the angle (`certify.rkhs_bounds`) and second derivatives
    (`certify.local_kernel_bounds`, with the terms that have a cusp in the set apart). It closes for small sets only,
    and where the kernel's geometry is not known the upper bounds are infinite.

    Attributes:
        xs: Inputs, in float64.
        targets: One number for each.
        perturbations: The sets.
        attack: The search.

    Raises:
        ValueError: If shapes disagree or the inputs are not in float64.
    """

    closes: ClassVar[bool] = False
    xs: Float[Array, "n d"] = eqx.field(converter=jnp.asarray)
    targets: Float[Array, " n"] = eqx.field(converter=jnp.asarray)
    perturbations: AbstractPerturbationSet
    attack: AbstractAttack = PGD(num_steps=20, relative_step=0.2, random_start=False)

    def __check_init__(self) -> None:
        if self.xs.shape[:1] != self.targets.shape:
            raise ValueError(f"xs has shape {self.xs.shape} and targets {self.targets.shape}; give one target for each")
        check_float64(self.xs)

    @property
    def num_sets(self) -> int:
        """How many sets there are, n."""
        return self.xs.shape[0]

    def centers(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """The inputs."""
        return np.asarray(self.xs), np.asarray(self.targets)

    def worst(self, h: Expansion, goal: Goal, gap: float, key: Key[Array, ""]) -> Worst:
        """What the attack finds; see `AbstractSets`."""
        del gap
        objective = _Objective(h.kernel, h.points, h.coefficients, goal)
        found = np.asarray(
            attack_batch(self.attack, objective, self.xs, self.targets, self.perturbations, key=key).x_adv
        )
        targets = np.asarray(self.targets)
        values = measured(h(found), targets, goal)
        return Worst(found, np.arange(len(found)), targets, values, self._upper(h, goal))

    def _upper(self, h: Expansion, goal: Goal) -> Float[np.ndarray, " n"]:
        targets = np.asarray(self.targets)
        if isinstance(h.kernel, ZonalKernel):
            lower, upper = zonal_bounds(h.kernel, h.points, h.coefficients, self.xs, self.perturbations)
            lower, upper = np.asarray(lower) - h.error, np.asarray(upper) + h.error
            return (
                np.maximum(upper - targets, targets - lower)
                if goal == "error"
                else np.maximum(-targets * lower, -targets * upper)
            )
        if isinstance(h.kernel, TangentKernel):
            far = np.asarray(jax.vmap(lambda x: euclidean_radius(self.perturbations, x))(self.xs))
            far = far * h.kernel.lipschitz(float(np.max(np.linalg.norm(self.xs, axis=1) + far)))
        elif isinstance(self.perturbations, SphereSlice):
            far = np.asarray(_distances(h.kernel, self.xs, self.perturbations))
        else:
            return np.full(len(targets), np.inf)
        size = 1.0 if goal == "error" else np.abs(targets)
        return measured(h(np.asarray(self.xs)), targets, goal) + size * h.norm * far + h.error

    def with_epsilon(self, epsilon: ArrayLike) -> "AttackedSets":
        """The same with another radius."""
        return eqx.tree_at(lambda sets: sets.perturbations, self, self.perturbations.with_epsilon(epsilon))


class ArcSets(AbstractSets):
    r"""Arcs of a circle in $R^3$, or all of it, with suprema certified by branch and bound.

    On an arc of half width w around x, $|h(x') - h(x)| ≤ \|h\| \sup_{x'} \|k_{x'} - k_x\|$. For the kernels of
    `analytic_ntk` the supremum is at the ends of the arc, for a `TangentKernel` it is bounded by w times a Lipschitz
    constant. Arcs that can exceed the largest value found are halved until none exceeds it by more than the gap.

    Attributes:
        xs: Centers, in float64, all on one circle $(s \cos φ, s \sin φ, c)$.
        perturbations: Caps of the sphere slice: arcs.
        targets: One number for each arc, or a function of an input.
        target_lipschitz: Lipschitz constant of that function in the angle φ, per radian; 0 for numbers.

    Raises:
        ValueError: If the centers are not in $R^3$ and on one circle, not in float64, or targets do not match.
    """

    closes: ClassVar[bool] = True
    xs: Float[Array, "n 3"] = eqx.field(converter=jnp.asarray)
    perturbations: SphereSlice
    targets: Float[Array, " n"] | Callable[[Float[Array, " 3"]], Float[Array, ""]]
    target_lipschitz: float = 0.0

    def __check_init__(self) -> None:
        if self.xs.ndim != 2 or self.xs.shape[1] != 3 or np.ptp(np.linalg.norm(self.xs[:, :2], axis=1)) > 1e-12:
            raise ValueError(
                f"xs has shape {self.xs.shape}; give rows of three coordinates that lie on one circle around the third "
                "axis, such as those of circle_points"
            )
        check_float64(self.xs)
        if not callable(self.targets) and self.targets.shape != self.xs.shape[:1]:
            raise ValueError(f"{len(self.xs)} arcs and targets of shape {self.targets.shape}; give one for each")
        if callable(self.targets) and not 0.0 < self.target_lipschitz < math.inf:
            raise ValueError(
                f"target_lipschitz is {self.target_lipschitz}; a target function needs a finite positive bound of its "
                "slope per radian"
            )

    @property
    def num_sets(self) -> int:
        """How many sets there are, n."""
        return self.xs.shape[0]

    def centers(self) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """The centers."""
        xs = np.asarray(self.xs)
        return xs, self._targets(xs, np.arange(len(xs)))

    def worst(self, h: Expansion, goal: Goal, gap: float, key: Key[Array, ""]) -> Worst:
        """The worst of several pieces of each arc and certified bounds; see `AbstractSets`."""
        del key
        xs = np.asarray(self.xs)
        circle, constant = float(np.linalg.norm(xs[0, :2])), float(xs[0, 2])
        start, outputs = np.arctan2(xs[:, 1], xs[:, 0]), _outputs_on_circle(h, circle, constant)
        half = float(self.perturbations.max_angle(self.xs[0]))
        count = max(3, _ARC_CELLS // max(1, len(xs) // 4)) * max(1, round(2 * half))
        width = half / count
        middles = (2 * np.arange(count) + 1 - count) * width
        # the ends are where functions like to be worst, and no middle of a cell
        angles = (start[:, None] + np.concatenate([[-half], middles, [half]])).ravel()
        sets = np.repeat(np.arange(len(xs)), count + 2)
        widths = np.tile(np.concatenate([[0.0], np.full(count, width), [0.0]]), len(xs))
        piece = np.arange(len(angles))
        best_value, best_angle = np.full(len(angles), -np.inf), angles.copy()
        record, ceiling = np.full(len(xs), -np.inf), np.full(len(xs), -np.inf)
        reach = _distances_of_arcs(h.kernel, xs[0], circle, width / 2.0 ** np.arange(_MAX_HALVINGS))
        spent = 0
        for level in range(_MAX_HALVINGS):
            values = measured(outputs(angles), self._targets(_on_circle(circle, constant, angles), sets), goal)
            spent += len(angles)
            better = values > best_value[piece]
            # several cells of a piece: the last of the best wins
            order = np.argsort(values)
            best_angle[piece[order][better[order]]] = angles[order][better[order]]
            np.maximum.at(best_value, piece, values)
            np.maximum.at(record, sets, values)
            rise = np.where(widths > 0, h.norm * reach[level] + self.target_lipschitz * widths, 0.0)
            if goal == "margin":
                rise = rise * self._size(sets)
            bound = values + rise
            ripe = (bound <= record[sets] + gap) | (spent > _MAX_CELLS)
            np.maximum.at(ceiling, sets[ripe], bound[ripe])
            if np.all(ripe) or level == _MAX_HALVINGS - 1:
                np.maximum.at(ceiling, sets[~ripe], bound[~ripe])
                break
            angles, widths = angles[~ripe], widths[~ripe]
            sets, piece = sets[~ripe], piece[~ripe]
            angles = np.concatenate([angles - widths / 2, angles + widths / 2])
            sets, piece = np.tile(sets, 2), np.tile(piece, 2)
            widths = np.tile(widths / 2, 2)
        # a piece counts where its neighbors are no worse
        rows = best_value.reshape(len(xs), count + 2)
        around = np.pad(rows, ((0, 0), (1, 1)), constant_values=-np.inf)
        peaks = np.flatnonzero((rows >= around[:, :-2]) & (rows >= around[:, 2:]))
        points = _on_circle(circle, constant, best_angle[peaks])
        owners = peaks // (count + 2)
        upper = np.maximum(ceiling, record) + h.error
        return Worst(points, owners, self._targets(points, owners), best_value[peaks], upper)

    def _targets(self, points: Float[np.ndarray, "k 3"], sets: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        if callable(self.targets):
            return target_values(self.targets, points)
        return np.asarray(self.targets)[sets]

    def _size(self, sets: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        assert not callable(self.targets)
        return np.abs(np.asarray(self.targets))[sets]


def whole_circle(
    target: Callable[[Float[Array, " 3"]], Float[Array, ""]], lipschitz: float, constant: float
) -> ArcSets:
    r"""The circle $(\sqrt{1-c^2} \cos φ, \sqrt{1-c^2} \sin φ, c)$ as one set, with a function to approximate on it.

    Args:
        target: The function of a point of the circle, in JAX.
        lipschitz: Its Lipschitz constant in φ, per radian.
        constant: c, in (-1, 1); 0 for the circle through the origin's plane, where kernels without biases are not
            universal.

    Raises:
        ValueError: If the constant is out of range.
    """
    if not -1.0 < constant < 1.0:
        raise ValueError(f"constant is {constant}; give a last coordinate between -1 and 1")
    radius = math.sqrt(1.0 - constant**2)
    return ArcSets(jnp.array([[radius, 0.0, constant]]), SphereSlice(2.0 * radius), target, lipschitz)


def check_float64(points: Float[Array, "..."]) -> None:
    """Refuses other dtypes.

    Raises:
        ValueError: Quoting the dtype.
    """
    if points.dtype != np.float64:
        raise ValueError(
            f"points are in {points.dtype}; certificates need float64: jax.config.update('jax_enable_x64', True) "
            "before the data are made"
        )


class _Objective(eqx.Module):
    """What an attack maximizes; new coefficients do not recompile it."""

    kernel: AbstractKernel
    points: Float[Array, "s d"]
    coefficients: Float[Array, " s"]
    goal: Goal = eqx.field(static=True)

    def __call__(self, x: Float[Array, " d"], y: Num[Array, ""]) -> Float[Array, ""]:
        if isinstance(self.kernel, TangentKernel):
            value = self.kernel.combination(x[None], self.points, self.coefficients)[0]
        else:  # gradients in closed form, all examples together
            value = KernelPredictor(self.kernel, self.points, self.coefficients)(x)
        return jnp.abs(value - y) if self.goal == "error" else -y * value


def target_values(
    target: Callable[[Float[Array, " d"]], Float[Array, ""]], points: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, " k"]:
    """A target function at many points."""
    blocks = [points[start : start + _BLOCK] for start in range(0, len(points), _BLOCK)]
    return np.concatenate([np.asarray(_at(target, pad_rows(block)))[: len(block)] for block in blocks])


@eqx.filter_jit
def _at(target: Callable[[Float[Array, " d"]], Float[Array, ""]], points: Float[Array, "k d"]) -> Float[Array, " k"]:
    return jax.vmap(target)(points)


@eqx.filter_jit
def _distances(
    kernel: AbstractKernel, xs: Float[Array, "n d"], perturbations: AbstractPerturbationSet
) -> Float[Array, " n"]:
    return jax.vmap(lambda x: rkhs_distance_bound(kernel, x, perturbations))(xs)


def profile_series(
    kernel: AbstractKernel, dim: int, radius: float, constant: float
) -> Float[np.ndarray, " degrees"] | None:
    r"""Cosine coefficients $\hat g_l$ of a kernel along a great circle of a sphere slice, or None.

    There a kernel of norms and cosines is a function of the difference of two angles, for smooth activations an
    analytic one: its series from 256 values is then exact to rounding (it is compared with as many others);
    None where it is not.

    Args:
        kernel: k.
        dim: Dimension of the inputs.
        radius: Of the slice.
        constant: Its last coordinate.
    """
    if isinstance(kernel, TangentKernel):
        return None
    turns = np.arange(2 * _FOURIER_POINTS) * math.pi / _FOURIER_POINTS
    points = np.zeros((len(turns), dim))
    points[:, 0], points[:, 1], points[:, -1] = radius * np.cos(turns), radius * np.sin(turns), constant
    profile = cross_gram(kernel, points, points[:1])[:, 0]
    series = np.real(np.fft.rfft(profile[::2])) / (_FOURIER_POINTS / 2)
    series[0] /= 2.0
    degree = int(np.max(np.flatnonzero(np.abs(series) > _FOURIER_ERROR / 100 * profile[0]), initial=0)) + 1
    series = series[:degree]
    missed = np.max(np.abs(np.cos(np.outer(turns[1::2], np.arange(degree))) @ series - profile[1::2]))
    return series if missed <= _FOURIER_ERROR * profile[0] else None


def _outputs_on_circle(
    h: Expansion, circle: float, constant: float
) -> Callable[[Float[np.ndarray, " k"]], Float[np.ndarray, " k"]]:
    """The function h of the angle: a trigonometric polynomial where the kernel has a short series, else evaluated."""
    series = profile_series(h.kernel, 3, circle, constant)
    if series is None:
        return lambda angles: h(_on_circle(circle, constant, angles))
    centers = np.asarray(h.points)
    phases = np.exp(-1j * np.outer(np.arange(len(series)), np.arctan2(centers[:, 1], centers[:, 0])))
    coefficients = series * (phases @ np.asarray(h.coefficients))

    def by_series(angles: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        unit, total = np.exp(1j * angles), np.zeros(len(angles), complex)
        for coefficient in coefficients[::-1]:
            total = total * unit + coefficient
        return np.real(total)

    return by_series


def _distances_of_arcs(
    kernel: AbstractKernel, x: Float[np.ndarray, " 3"], circle: float, widths: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Upper bounds of |k_x' − k_x| for points of the circle within so many radians.

    A `TangentKernel`'s by its Lipschitz constant. For others the distance at the end of the arc, where it is largest
    because they have power series with non-negative coefficients in the cosine (or it is the diameter of the sphere of
    the k_x, beyond a right angle), with what rounding can hide.
    """
    if isinstance(kernel, TangentKernel):
        return kernel.arc_lipschitz(jnp.asarray(x)) * widths
    ends = _on_circle(circle, float(x[2]), np.arctan2(x[1], x[0]) + np.minimum(widths, math.pi))
    values = cross_gram(kernel, x[None], np.concatenate([x[None], ends]))[0]
    squared = 2.0 * (values[0] - values[1:]) + 64.0 * float(np.finfo(np.float64).eps) * values[0]
    acute = ends @ x >= 0.0
    return np.sqrt(np.where(acute, np.maximum(squared, 0.0), 4.0 * values[0]))


def _on_circle(circle: float, constant: float, angles: Float[np.ndarray, " k"]) -> Float[np.ndarray, "k 3"]:
    return np.stack([circle * np.cos(angles), circle * np.sin(angles), np.full_like(angles, constant)], axis=1)


def measured(values: Float[np.ndarray, " k"], targets: Float[np.ndarray, " k"], goal: Goal) -> Float[np.ndarray, " k"]:
    """What is bad about values: |h − target|, or −target h."""
    return np.abs(values - targets) if goal == "error" else -targets * values


def default_key(key: Key[Array, ""] | None) -> Key[Array, ""]:
    """The key, or a fixed one: searches without randomness ignore it."""
    return jr.key(0) if key is None else key
