"""Robust fitting on a circle of the sphere slice, where the robust loss is known up to a certified gap."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust.attacks import SphereSlice
from ntk_robust.data import circle_points
from ntk_robust.expressiveness import TangentKernel
from ntk_robust.losses import Absolute
from ntk_robust.models import AbstractActivation, PairedParams, PairedTwoLayerNet
from ntk_robust.theory.checks._adversaries import ArcAttack, arc_grid, gradient_steps
from ntk_robust.training import FrobeniusBall, Step, TrainingResult, fit

_FIT_POINTS = 9  # of each arc
_SUP_POINTS = 4097  # of each arc
_SUP_CHUNK = 241  # 4097 = 17 * 241


class CircleProblem(NamedTuple):
    """n points on a circle with alternating labels, arcs as perturbation sets, and a paired two-layer net.

    Attributes:
        net: The network, width m.
        params: W_0.
        xs: The points, of norm 1.
        ys: Labels ±1.
        arcs: B(x_i).
    """

    net: PairedTwoLayerNet
    params: PairedParams
    xs: Float[Array, "n 3"]
    ys: Float[Array, " n"]
    arcs: SphereSlice


def make_problem(
    num_train: int, width: int, activation: AbstractActivation, half_angle: float, *, key: Key[Array, ""]
) -> CircleProblem:
    """The problem with arcs of `half_angle` radians to each side."""
    xs, ys = circle_points(num_train)
    net = PairedTwoLayerNet(input_dim=3, width=width, activation=activation)
    chord = 2 * math.hypot(float(xs[0, 0]), float(xs[0, 1])) * math.sin(half_angle / 2)
    return CircleProblem(net, net.init(key=key), xs, ys, SphereSlice(chord))


class Comparator(NamedTuple):
    """A point U near W_0 that fits the arcs.

    Attributes:
        params: U.
        radius: R = |U − W_0|.
        robust_loss_lower: L_*(U) from below: the maximum over the grid.
        robust_loss_upper: L_*(U) from above: that plus h²/8 sup|f''|.
    """

    params: PairedParams
    radius: float
    robust_loss_lower: float
    robust_loss_upper: float


def kernel_fit(problem: CircleProblem, ridge: float) -> Comparator:
    """U = W_0 + V with V the ridge regression of the labels, on a grid of each arc, in the features ∇_W f(W_0, ·)."""
    grids = _grids(problem, _FIT_POINTS).reshape(-1, 3)
    tangent = TangentKernel(problem.net, problem.params)
    gram = np.asarray(tangent.gram(grids))
    targets = np.repeat(np.asarray(problem.ys), _FIT_POINTS)
    dual = np.linalg.solve(gram + ridge * np.eye(len(grids)), targets)
    params = tangent.displaced(grids, jnp.asarray(dual))
    moved = (params.plus - problem.params.plus, params.minus - problem.params.minus)
    radius = math.sqrt(sum(float(np.sum(np.asarray(part) ** 2)) for part in moved))
    lower, upper = robust_loss(problem, params)
    return Comparator(params, radius, lower, upper)


def _grids(problem: CircleProblem, num_points: int) -> Float[Array, "n points 3"]:
    return arc_grids(problem.xs, problem.arcs, num_points)


@functools.partial(jax.jit, static_argnames="num_points")
def arc_grids(xs: Float[Array, "n 3"], arcs: SphereSlice, num_points: int) -> Float[Array, "n points 3"]:
    """`arc_grid` of each."""
    return jax.vmap(lambda x: arc_grid(x, arcs, num_points))(xs)


def robust_loss(problem: CircleProblem, params: PairedParams) -> tuple[float, float]:
    r"""Certified lower and upper bounds for $L_*(W) = \frac1n \sum_i \max_{x' ∈ B(x_i)} |f(W, x') − y_i|$.

    Between two points of a grid of spacing h in the angle, ±(f − y) exceeds the larger of the two by at most
    $\frac{h^2}8 \sup|f''|$, and with $s$ the circle's radius and $v_r$ the first two coordinates of neuron r,
    $|f''| ≤ \frac1{\sqrt m} \sum_r (C_2 s^2 |v_r|^2 + C_1 s |v_r|)$.
    """
    outputs = _grid_outputs(problem, params)
    lower = float(np.mean(np.max(np.abs(outputs - np.asarray(problem.ys)[:, None]), axis=1)))
    return lower, lower + grid_gap(problem, params, _SUP_POINTS)


def grid_gap(problem: CircleProblem, params: PairedParams, num_points: int) -> float:
    """h²/8 sup|f''| for a grid of so many points of an arc."""
    circle = float(jnp.linalg.norm(problem.xs[0, :2]))
    spacing = 2 * float(problem.arcs.max_angle(problem.xs[0])) / (num_points - 1)
    neurons = np.concatenate([params.plus, params.minus])[:, :2]
    sizes = np.linalg.norm(neurons, axis=1)
    activation = problem.net.activation
    curvature = np.sum(activation.smoothness * (circle * sizes) ** 2 + activation.lipschitz * circle * sizes)
    return spacing**2 / 8 * float(curvature) / math.sqrt(problem.net.width)


def _grid_outputs(problem: CircleProblem, params: PairedParams) -> Float[np.ndarray, "n points"]:
    """f(W, ·), in float64 on the host: one program for each activation would cost more than the sums."""
    grids = np.asarray(_grids(problem, _SUP_POINTS))
    plus, minus = np.asarray(params.plus), np.asarray(params.minus)
    signs, activation = np.asarray(params.signs), problem.net.activation
    outputs = np.zeros(grids.shape[:2])
    for row, grid in enumerate(grids):
        for start in range(0, _SUP_POINTS, _SUP_CHUNK):
            points = grid[start : start + _SUP_CHUNK]
            raised, lowered = (np.asarray(activation(jnp.asarray(points @ part.T))) for part in (plus, minus))
            outputs[row, start : start + _SUP_CHUNK] = (raised - lowered) @ signs
    return outputs / math.sqrt(problem.net.width)


class RobustRecord(eqx.Module):
    """Records L_*(W_t) on a grid of each arc in every step.

    Attributes:
        problem: The problem.
        num_points: Points of the grid.
    """

    problem: CircleProblem
    num_points: int = eqx.field(static=True)

    def __call__(self, step: Step) -> dict[str, Array]:
        """The loss of the weights before the step."""
        grids = arc_grids(self.problem.xs, self.problem.arcs, self.num_points)
        outputs = jax.vmap(jax.vmap(lambda x: self.problem.net.apply(step.params, x)))(grids)
        return {"robust_loss": jnp.mean(jnp.max(jnp.abs(outputs - self.problem.ys[:, None]), axis=1))}


class ArcRun(NamedTuple):
    """A run of adversarial training on arcs.

    Attributes:
        surrogate_loss: L_A(W_t).
        robust_loss: L_*(W_t), on the grid.
    """

    surrogate_loss: Float[np.ndarray, " steps"]
    robust_loss: Float[np.ndarray, " steps"]


def train_on_arcs(
    problem: CircleProblem,
    attack: ArcAttack,
    *,
    step_size: float,
    num_steps: int,
    record: Callable[[Step], dict[str, Array]],
    key: Key[Array, ""],
    radius: float | None = None,
) -> TrainingResult:
    """The library's loop with the absolute error, projected on the ball of this radius around W_0 if one is given."""
    return fit(
        problem.net.apply,
        problem.params,
        problem.xs,
        problem.ys,
        loss=Absolute(),
        attack=attack,
        perturbations=problem.arcs,
        optimizer=gradient_steps(step_size),
        num_steps=num_steps,
        trainable=problem.net.trainable_mask(problem.params),
        constraint=None if radius is None else FrobeniusBall(radius),
        record=record,
        throw=True,
        key=key,
    )


def losses_on_arcs(
    problem: CircleProblem,
    attack: ArcAttack,
    *,
    step_size: float,
    num_steps: int,
    key: Key[Array, ""],
    radius: float | None = None,
) -> ArcRun:
    """`train_on_arcs` with L_* recorded on the grid of the attack."""
    record = RobustRecord(problem, attack.num_points)
    result = train_on_arcs(
        problem, attack, step_size=step_size, num_steps=num_steps, record=record, key=key, radius=radius
    )
    return ArcRun(*(np.asarray(result.history[name]) for name in ("surrogate_loss", "robust_loss")))


def mean_loss(problem: CircleProblem, params: PairedParams, xs: Float[Array, "n 3"]) -> Float[Array, ""]:
    """The mean absolute error at the inputs `xs`, one for each label."""
    outputs = jax.vmap(problem.net.apply, (None, 0))(params, xs)
    return jnp.mean(jax.vmap(Absolute())(outputs, problem.ys))
