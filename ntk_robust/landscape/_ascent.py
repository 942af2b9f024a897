"""Projected gradient ascent as a trajectory to look at."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntk_robust.attacks import L2Ball


class Ascent(eqx.Module):
    r"""Where projected gradient ascent went, and how near to a stationary point it was; entry t is before step t.

    Attributes:
        deltas: $δ_0, …, δ_T$.
        values: $L(δ_t)$.
        relative_norms: $\Vertδ_t\Vert/ε$; 1 is the sphere.
        residuals: $\min_{λ \ge 0}\Vert\nabla L(δ_t) - λδ_t\Vert / \Vert\nabla L(δ_t)\Vert$ on the sphere, 1 inside: the
            part of the gradient that could still be followed. Zero means that the first-order condition holds.
        alignments: Cosine of $δ_t$ and the gradient; nan at 0.
        step_lengths: $\Vertδ_{t+1} - δ_t\Vert$, one less.
    """

    deltas: Float[Array, "steps d"]
    values: Float[Array, " steps"]
    relative_norms: Float[Array, " steps"]
    residuals: Float[Array, " steps"]
    alignments: Float[Array, " steps"]
    step_lengths: Float[Array, " steps-1"]

    @property
    def first_on_sphere(self) -> Int[Array, ""]:
        """The first t with δ_t on the sphere up to rounding; T + 1 if there is none."""
        on_sphere = self.relative_norms >= _on_sphere(self.relative_norms.dtype)
        return jnp.where(jnp.any(on_sphere), jnp.argmax(on_sphere), len(on_sphere))


def projected_gradient_ascent(
    loss_fn: Callable[[Float[Array, " d"]], Float[Array, ""]],
    epsilon: ArrayLike,
    start: Float[Array, " d"],
    *,
    step_size: ArrayLike,
    num_steps: int,
) -> Ascent:
    r"""$δ_{t+1} = P(δ_t + η \nabla L(δ_t))$ with the projection $P$ on the ball of radius $ε$.

    The step is a multiple of the raw gradient, as the theory has it; `attacks.PGD` normalizes the gradient and is
    another iteration.

    Args:
        loss_fn: $δ \mapsto L(δ)$.
        epsilon: Radius $ε > 0$ of the l2 ball.
        start: $δ_0$, in the ball.
        step_size: $η$.
        num_steps: $T$.

    Returns:
        The trajectory.

    Raises:
        ValueError: If `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; give at least one step")
    ball = L2Ball(jnp.asarray(epsilon, start.dtype))

    def step(delta: Float[Array, " d"], _: None) -> tuple[Float[Array, " d"], tuple[Array, ...]]:
        value, gradient = jax.value_and_grad(loss_fn)(delta)
        return _moved(ball, delta, step_size * gradient), (delta, value, gradient)

    _, (deltas, values, gradients) = lax.scan(step, start, None, length=num_steps + 1)
    norms, lengths = jnp.linalg.norm(deltas, axis=1), jnp.linalg.norm(gradients, axis=1)
    alignments = jnp.sum(deltas * gradients, axis=1) / (norms * lengths)
    on_sphere = norms / ball.epsilon >= _on_sphere(start.dtype)
    followed = jnp.maximum(jnp.where(on_sphere, alignments, 0.0), 0.0)
    # sin of the angle from its tangent part: 1 - cos² would lose half of the digits.
    directions = deltas / jnp.where(norms == 0, 1.0, norms)[:, None]
    tangent = gradients - jnp.sum(directions * gradients, axis=1)[:, None] * directions
    sines = jnp.linalg.norm(tangent, axis=1) / lengths
    return Ascent(
        deltas=deltas,
        values=values,
        relative_norms=norms / ball.epsilon,
        residuals=jnp.where(on_sphere & (followed > 0), sines, 1.0),
        alignments=alignments,
        step_lengths=jnp.linalg.norm(jnp.diff(deltas, axis=0), axis=1),
    )


def ascent_limit(
    loss_fn: Callable[[Float[Array, " d"]], Float[Array, ""]],
    epsilon: ArrayLike,
    start: Float[Array, " d"],
    *,
    step_size: ArrayLike,
    num_steps: int | Int[Array, ""],
) -> Float[Array, " d"]:
    r"""The last point $δ_T$ of `projected_gradient_ascent` alone, without keeping the others.

    Args:
        loss_fn: $δ \mapsto L(δ)$.
        epsilon: Radius $ε > 0$ of the l2 ball.
        start: $δ_0$, in the ball.
        step_size: $η$.
        num_steps: $T$, which may be traced.
    """
    ball, gradient_fn = L2Ball(jnp.asarray(epsilon, start.dtype)), jax.grad(loss_fn)
    return lax.fori_loop(0, num_steps, lambda _, delta: _moved(ball, delta, step_size * gradient_fn(delta)), start)


def _moved(ball: L2Ball, delta: Float[Array, " d"], step: Float[Array, " d"]) -> Float[Array, " d"]:
    return ball.project(jnp.zeros_like(delta), delta + step)


def _on_sphere(dtype: jnp.dtype) -> float:
    return 1.0 - 64 * float(jnp.finfo(dtype).eps)
