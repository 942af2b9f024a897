"""What the loss over a ball looks like at several input scales, with ascents on it."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import AbstractProgress, Contours, Figure, Series, SilentProgress, Table
from ntk_robust.data import Dataset
from ntk_robust.landscape import (
    CurvatureStatistics,
    LocalMaximum,
    TwoLayer,
    ascent_limit,
    curvature_statistics,
    local_maximum,
    projected_gradient_ascent,
    two_layer_of,
)
from ntk_robust.studies._study import Study
from ntk_robust.studies._two_classes import network, two_classes


class _Size(NamedTuple):
    scales: tuple[float, ...]
    width: int
    num_starts: int
    num_steps: int
    num_grid: int


_SIZES = {
    "quick": _Size(scales=(0.3, 1.0, 3.0, 10.0), width=200, num_starts=40, num_steps=3000, num_grid=41),
    "full": _Size(scales=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0), width=1000, num_starts=200, num_steps=6000, num_grid=81),
}
_RATIO = 0.5
_NUM_DRAWN, _DRAWN_STEPS = 6, 300
_NUM_ANGLES = 91
_SHARE = 0.03  # of the radius that a step moves at most, about
_ARRIVED = 1e-4


def landscape_slices(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Slices of the squared error through the ball and great circles through its maximum, at several input scales.

    One tanh network at initialization and one image; only the norm of the image changes, and the radius of the ball
    with it. The slice holds the best maximum that ascents from many starts found and the next best other one, or a
    random direction where there is none. Ascents start in the slice; they leave it, and their projections are drawn.

    Args:
        dataset: Integer-labelled images with the classes 3 and 8.
        size: "quick" takes a minute on small images.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of the network, the starts and the choice of the image.

    Returns:
        The study: a slice and great circles for each scale, and a table of what is found there.

    Raises:
        ValueError: For an unknown size.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    sizes = _SIZES[size]
    data_key, init_key, start_key = jr.split(key, 3)
    data = two_classes(dataset, 2, key=data_key)
    model = network(data.input_dim, sizes.width)
    net = two_layer_of(model, model.init(key=init_key, dtype=data.x_train.dtype))
    rng = np.random.default_rng(np.asarray(jr.key_data(start_key)))
    with (progress or SilentProgress()).task("landscape slices", len(sizes.scales)) as task:
        landscapes = []
        for scale in sizes.scales:
            x = scale * data.x_train[0]
            problem = _Problem(net, x, data.y_train[0], _RATIO * jnp.linalg.norm(x))
            landscapes.append(_Landscape.of(problem, scale, sizes, rng))
            task.advance(1)
    return _write_up(data, sizes, landscapes)


class _Landscape(NamedTuple):
    """One image at one scale.

    Attributes:
        scale: s.
        statistics: At the center.
        arrived: Share of ascents that came to a first-order point.
        num_limits: Distinct limits of the ascents.
        basins: Share of the arrived ascents for each limit, largest loss first.
        best: The certificate of the best one.
        axes: Orthonormal first and second axis of the slice.
        grid: Ticks of both axes over ε.
        losses: L on the grid, nan outside the ball.
        paths: Projections of ascents from starts in the slice, over ε.
        angles: Along great circles, in radians.
        circles: L on them: along the weakest direction, and three random ones.
    """

    scale: float
    statistics: CurvatureStatistics
    arrived: float
    num_limits: int
    basins: list[float]
    best: LocalMaximum
    axes: Float[np.ndarray, "2 d"]
    grid: Float[np.ndarray, " g"]
    losses: Float[np.ndarray, "g g"]
    paths: Float[np.ndarray, "k t 2"]
    angles: Float[np.ndarray, " a"]
    circles: Float[np.ndarray, "c a"]

    @classmethod
    def of(
        cls,
        problem: "_Problem",
        scale: float,
        sizes: _Size,
        rng: np.random.Generator,
    ) -> "_Landscape":
        """Search, certificate, slice and circles."""
        epsilon, dim = float(problem.epsilon), len(problem.x)

        def array(values: np.ndarray) -> Array:
            return jnp.asarray(values, problem.x.dtype)

        raw = rng.normal(size=(sizes.num_starts, dim + 2))
        starts = epsilon * (raw / np.linalg.norm(raw, axis=1, keepdims=True))[:, :dim]
        found = _search(problem, array(starts), jnp.asarray(sizes.num_steps))
        ends, end_losses, residuals = (np.asarray(part, float) for part in found)
        # An ascent that has not arrived has no limit yet; where none has, the one nearest to it stands for the best.
        arrived = residuals <= _ARRIVED
        shown = arrived | (residuals == residuals.min())
        limits, basins = _clustered(ends[shown], end_losses[shown], epsilon)
        best = limits[0]
        other = limits[1] if len(limits) > 1 else rng.normal(size=dim)
        first = best / np.linalg.norm(best)
        second = other - (other @ first) * first
        axes = np.stack([first, second / np.linalg.norm(second)])

        grid = np.linspace(-1.0, 1.0, sizes.num_grid)
        across, up = np.meshgrid(grid, grid)
        losses = np.asarray(_values(problem, array(epsilon * (across[..., None] * axes[0] + up[..., None] * axes[1]))))
        losses = np.where(across**2 + up**2 <= 1.0 + 1e-9, losses, np.nan)
        around = np.linspace(0.0, 2 * np.pi, _NUM_DRAWN, endpoint=False) + 0.3
        inside = 0.15 * epsilon * (np.cos(around)[:, None] * axes[0] + np.sin(around)[:, None] * axes[1])
        paths = np.asarray(_paths(problem, array(inside)), float) @ axes.T / epsilon

        certificate = _certificate(problem, array(best))
        tangents = rng.normal(size=(3, dim))
        tangents -= np.outer(tangents @ first, first)
        tangents = np.concatenate([np.asarray(certificate.direction, float)[None], tangents])
        tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
        angles = np.linspace(-np.pi, np.pi, _NUM_ANGLES)
        circles = np.cos(angles)[None, :, None] * best + epsilon * np.sin(angles)[None, :, None] * tangents[:, None]
        return cls(
            scale,
            curvature_statistics(problem.net, problem.x, problem.epsilon),
            float(arrived.mean()),
            len(limits) if arrived.any() else 0,
            basins,
            certificate,
            axes,
            grid,
            losses,
            paths,
            angles,
            np.asarray(_values(problem, array(circles))),
        )


class _Problem(NamedTuple):
    """½(f(x + δ) − y)² over |δ| ≤ ε."""

    net: TwoLayer
    x: Float[Array, " d"]
    label: Float[Array, ""]
    epsilon: Float[Array, ""]

    def loss(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        return 0.5 * (self.net(self.x + delta) - self.label) ** 2

    def step_size(self, starts: Float[Array, "n d"]) -> Float[Array, ""]:
        """A step that moves by a small share of the radius, as far as slopes and residuals at the starts tell."""
        slopes = jnp.linalg.norm(jax.vmap(jax.grad(self.net))(self.x[None] + starts), axis=1)
        residuals = jnp.abs(jax.vmap(self.net)(self.x[None] + starts) - self.label)
        return _SHARE * self.epsilon / (jnp.max(slopes) * jnp.max(residuals))

    def residual(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        """The share of the gradient that is tangent to the sphere."""
        gradient = jax.grad(self.loss)(delta)
        normal = delta / jnp.linalg.norm(delta)
        return jnp.linalg.norm(gradient - (gradient @ normal) * normal) / jnp.linalg.norm(gradient)


@eqx.filter_jit
def _search(problem: _Problem, starts: Float[Array, "n d"], num_steps: Array) -> tuple[Array, Array, Array]:
    """Ends of ascents, their losses and residuals."""
    step = problem.step_size(starts)

    def end(start: Float[Array, " d"]) -> Float[Array, " d"]:
        return ascent_limit(problem.loss, problem.epsilon, start, step_size=step, num_steps=num_steps)

    ends = jax.vmap(end)(starts)
    return ends, jax.vmap(problem.loss)(ends), jax.vmap(problem.residual)(ends)


@eqx.filter_jit
def _paths(problem: _Problem, starts: Float[Array, "n d"]) -> Float[Array, "n t d"]:
    step = problem.step_size(starts)

    def path(start: Float[Array, " d"]) -> Float[Array, "t d"]:
        return projected_gradient_ascent(
            problem.loss, problem.epsilon, start, step_size=step, num_steps=_DRAWN_STEPS
        ).deltas

    return jax.vmap(path)(starts)


@eqx.filter_jit
def _values(problem: _Problem, deltas: Float[Array, "a b d"]) -> Float[Array, "a b"]:
    return jax.lax.map(jax.vmap(problem.loss), deltas)


@eqx.filter_jit
def _certificate(problem: _Problem, delta: Float[Array, " d"]) -> LocalMaximum:
    return local_maximum(problem.loss, problem.epsilon, delta)


def _clustered(
    ends: Float[np.ndarray, "n d"], losses: Float[np.ndarray, " n"], epsilon: float
) -> tuple[list[np.ndarray], list[float]]:
    """Limits that differ by more than 5 % of the radius, largest loss first, and the share of starts of each."""
    limits: list[np.ndarray] = []
    counts: list[int] = []
    for end in ends[np.argsort(-losses)]:
        near = [i for i, limit in enumerate(limits) if np.linalg.norm(limit - end) < 0.05 * epsilon]
        if near:
            counts[near[0]] += 1
        else:
            limits.append(end)
            counts.append(1)
    return limits, [count / len(ends) for count in counts]


def _write_up(data: Dataset, sizes: _Size, landscapes: list[_Landscape]) -> Study:
    rows = [
        (
            each.scale,
            float(each.statistics.relative),
            float(each.best.margin),
            float(each.best.residual),
            each.arrived,
            each.num_limits,
            each.basins[0],
            each.basins[1] if len(each.basins) > 1 else 0.0,
        )
        for each in landscapes
    ]
    columns = (
        "input scale s",
        "ρ_0 = ε|H|/|g|",
        "margin κ of the best",
        "its KKT residual",
        "share of ascents that arrived",
        "distinct limits",
        "share of them at the best",
        "share at the second",
    )
    table = Table("landscapes", "What ascents from many starts find", columns, rows)
    figures = tuple(figure for each in landscapes for figure in (_slice(each), _circles(each)))
    counts = "; ".join(f"{each.num_limits} at s = {each.scale:g}" for each in landscapes)
    return Study(
        name="landscape_slices",
        title="Landscapes of the inner maximization at several input scales",
        text=(
            f"One tanh network of width {sizes.width} at initialization and one image of {data.name} at norm s√d, with "
            f"an l2 ball of {_RATIO:g} of its norm. Distinct limits of ascents that arrived, of {sizes.num_starts}: "
            f"{counts}. At small scales the loss over the ball is almost a function of one direction, and at "
            "large ones it has hills of its own."
        ),
        figures=figures,
        tables=(table,),
    )


def _slice(each: _Landscape) -> Figure:
    angles = np.linspace(0.0, 2 * np.pi, 181)
    paths = [Series(f"ascent {i + 1}", path[:, 0].tolist(), path[:, 1].tolist()) for i, path in enumerate(each.paths)]
    return Figure(
        name=f"slice_{each.scale:g}".replace(".", "_"),
        title=f"Loss in a plane through the center, s = {each.scale:g}",
        x_label="along the best maximum, over ε",
        y_label="across, over ε",
        series=(Series("sphere", np.cos(angles).tolist(), np.sin(angles).tolist(), style="dashed"), *paths),
        caption=(
            "Darker is a larger loss. Lines are projections of ascents that start near the center. "
            + ("The plane holds the two best maxima." if each.num_limits > 1 else "The second axis is random.")
        ),
        contours=Contours("loss", each.grid.tolist(), each.grid.tolist(), each.losses.tolist()),
    )


def _circles(each: _Landscape) -> Figure:
    names = ("weakest direction", "random 1", "random 2", "random 3")
    return Figure(
        name=f"circles_{each.scale:g}".replace(".", "_"),
        title=f"Loss on great circles through the best maximum, s = {each.scale:g}",
        x_label="angle from the best maximum (radians)",
        y_label="loss",
        series=tuple(
            Series(name, each.angles.tolist(), values.tolist())
            for name, values in zip(names, each.circles, strict=True)
        ),
        caption="The weakest direction is that of the largest curvature of the certificate.",
    )
