"""Inner maximization problems of random two-layer networks, and many ascents of one at once."""

import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from ntk_robust.landscape import (
    Ascent,
    BallBounds,
    GlobalMaximum,
    LocalMaximum,
    TwoLayer,
    TwoMaxima,
    ascent_limit,
    ball_bounds,
    global_maximum,
    local_maximum,
    projected_gradient_ascent,
    two_maxima,
)
from ntk_robust.models import AbstractActivation, Monomial
from ntk_robust.theory._claim import summation_error

SQUARE = Monomial(2)  # pyright: ignore[reportCallIssue] - its smoothness is a property
_STEPS = 60
_CONVERGED = 1e-6
_LARGE = 100_000


class Case(NamedTuple):
    """Which problem.

    Attributes:
        activation: σ.
        dim: d; "digits" take their own 64.
        width: m.
        scale: s, the standard deviation of pre-activations at the center.
        ratio: τ = ε/|x|.
        data: Where the direction of x comes from, "gaussian" or "digits".
    """

    activation: AbstractActivation
    dim: int
    width: int
    scale: float
    ratio: float
    data: str = "gaussian"

    def __str__(self) -> str:
        name = type(self.activation).__name__.lower()
        return f"{name}, {self.data}, d={self.dim}, m={self.width}, s={self.scale:g}, τ={self.ratio:g}"


class Problem(NamedTuple):
    """L(δ) = ½(f(x + δ) − y)² over |δ| ≤ ε.

    Attributes:
        net: f.
        x: The center.
        epsilon: ε.
        target: y.
    """

    net: TwoLayer
    x: Float[Array, " d"]
    epsilon: Float[Array, ""]
    target: Float[Array, ""]

    def loss(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        """L."""
        return 0.5 * self.residual(delta) ** 2

    def residual(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x + δ) − y."""
        return self.net(self.x + delta) - self.target

    def aimed(self, bounds: BallBounds, offset: float) -> "Problem":
        """The same with y so that r_0 = offset ε|g(0)|: below 1 the ball reaches both sides of y."""
        return self._replace(target=bounds.output - offset * self.epsilon * bounds.slope)

    def affordable(self, starts: int, steps: int) -> tuple[int, int]:
        """As many ascents and steps as a network of this size allows."""
        return (starts, steps) if self.net.weights.size < _LARGE else (min(starts, 20), min(steps, 600))

    @property
    def rounding(self) -> float:
        """Bound for the rounding of one evaluation of f in the ball, for outputs of the activation up to 1 + |z|."""
        net, lipschitz = self.net, self.net.activation.lipschitz
        sizes, readout = np.linalg.norm(np.asarray(net.weights), axis=1), np.abs(np.asarray(net.readout))
        reach = sizes * float(jnp.linalg.norm(self.x) + self.epsilon)
        outputs = 1 + np.abs(np.asarray(net.weights @ self.x)) + float(self.epsilon) * sizes
        of_inner = (lipschitz if math.isfinite(lipschitz) else 1.0) * float(readout @ reach)
        of_outer = float(readout @ outputs + abs(self.target))
        return summation_error(net.weights.shape[1] + 2, of_inner) + summation_error(len(sizes) + 8, of_outer)


def generator(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy's, seeded by the key: drawing costs no compilation."""
    return np.random.default_rng(np.asarray(jr.key_data(key)))


def make_problem(case: Case, rng: np.random.Generator) -> Problem:
    """Weights of variance 1/d, signs over √m, and a point of norm s√d; y = 0 until it is aimed."""
    weights = rng.normal(size=(case.width, case.dim)) / math.sqrt(case.dim)
    signs = rng.choice((-1.0, 1.0), case.width) / math.sqrt(case.width)
    direction = rng.normal(size=case.dim)
    if case.data == "digits":
        direction = _digits()[rng.integers(len(_digits()))]
    x = case.scale * math.sqrt(case.dim) * direction / np.linalg.norm(direction)
    return problem_of(weights, signs, x, case.ratio * float(np.linalg.norm(x)), case.activation)


def problem_of(
    weights: Float[np.ndarray, "m d"],
    readout: Float[np.ndarray, " m"],
    x: Float[np.ndarray, " d"],
    epsilon: float,
    activation: AbstractActivation,
) -> Problem:
    """The problem of a network without biases, with y = 0."""
    net = TwoLayer(
        jnp.asarray(weights), jnp.asarray(np.zeros(len(weights))), jnp.asarray(readout), jnp.asarray(0.0), activation
    )
    return Problem(net, jnp.asarray(x), jnp.asarray(epsilon), jnp.asarray(0.0))


@functools.cache
def _digits() -> Float[np.ndarray, "n d"]:
    from ntk_robust.data import load_dataset  # noqa: PLC0415 - only full sizes need scikit-learn

    return np.asarray(load_dataset("digits").x_train, np.float64)


def starts_in_ball(problem: Problem, count: int, rng: np.random.Generator) -> Float[Array, "n d"]:
    """Uniform points of the ball."""
    dim = problem.x.shape[0]
    raw = rng.normal(size=(count, dim + 2))
    return jnp.asarray(float(problem.epsilon) * (raw / np.linalg.norm(raw, axis=1, keepdims=True))[:, :dim])


@eqx.filter_jit
def bounds_of(problem: Problem) -> BallBounds:
    """Of f over the ball."""
    return ball_bounds(problem.net, problem.x, problem.epsilon)


@eqx.filter_jit
def maxima_of(problem: Problem) -> TwoMaxima:
    """Both fixed points with their certificates."""
    return two_maxima(problem.net, problem.x, problem.epsilon)


@eqx.filter_jit
def trajectories(problem: Problem, starts: Float[Array, "n d"], step_size: Float[Array, ""]) -> Ascent:
    """One ascent of 60 steps from each start."""

    def ascend(start: Float[Array, " d"]) -> Ascent:
        return projected_gradient_ascent(problem.loss, problem.epsilon, start, step_size=step_size, num_steps=_STEPS)

    return jax.vmap(ascend)(starts)


class Limits(NamedTuple):
    """Where ascents ended.

    Attributes:
        deltas: Their last points.
        residuals: f − y there.
        start_residuals: f − y where they began.
    """

    deltas: Float[np.ndarray, "n d"]
    residuals: Float[np.ndarray, " n"]
    start_residuals: Float[np.ndarray, " n"]

    @property
    def losses(self) -> Float[np.ndarray, " n"]:
        """L at the last points."""
        return 0.5 * self.residuals**2


def limits(problem: Problem, starts: Float[Array, "n d"], step_size: ArrayLike, num_steps: int) -> Limits:
    """The last points alone; another step size or number of steps compiles nothing."""
    found = _limits(problem, starts, jnp.asarray(step_size, float), jnp.asarray(num_steps))
    return Limits(*(np.asarray(part) for part in found))


@eqx.filter_jit
def _limits(problem: Problem, starts: Array, step_size: Array, num_steps: Array) -> tuple[Array, Array, Array]:
    def ascend(start: Float[Array, " d"]) -> Float[Array, " d"]:
        return ascent_limit(problem.loss, problem.epsilon, start, step_size=step_size, num_steps=num_steps)

    deltas = jax.vmap(ascend)(starts)
    return deltas, jax.vmap(problem.residual)(deltas), jax.vmap(problem.residual)(starts)


@eqx.filter_jit
def local_certificates(problem: Problem, deltas: Float[Array, "n d"]) -> LocalMaximum:
    """What two derivatives of L say of each point."""
    return jax.lax.map(lambda delta: local_maximum(problem.loss, problem.epsilon, delta), deltas)


@eqx.filter_jit
def global_certificate(problem: Problem, delta: Float[Array, " d"], sign: Float[Array, ""]) -> GlobalMaximum:
    """Of a point as the maximum of ±f."""
    return global_maximum(problem.net, problem.x, problem.epsilon, delta, sign=sign)


def converged(problem: Problem, deltas: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "k d"]:
    """The points where the first-order condition holds: a part of at most 1e-6 of the gradient is tangent."""
    residuals = np.asarray(local_certificates(problem, jnp.asarray(deltas)).residual)
    return deltas[residuals < _CONVERGED]


def distinct(points: Float[np.ndarray, "n d"], tolerance: float) -> Float[np.ndarray, "k d"]:
    """One representative of each group of points closer than the tolerance."""
    found: list[np.ndarray] = []
    for point in points:
        if all(np.linalg.norm(point - other) > tolerance for other in found):
            found.append(point)
    return np.stack(found) if found else points[:0]
