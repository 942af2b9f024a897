"""The regret certificate of adversarial training against a comparator, term by term, while training runs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ntk_robust.training._fit import TrainingResult
from ntk_robust.training._loop import Step


class RegretRecord(eqx.Module):
    r"""What a comparator $U$ does at the perturbed inputs of every step: the `record` of `fit` for `RegretCertificate`.

    Costs one evaluation of the network at $U$ and one directional derivative per step.

    Attributes:
        apply_fn: (weights, one example) -> output, as given to `fit`.
        loss: (output, target) -> scalar, convex in the output, as given to `fit`.
        comparator: $U$, weights like those of the run: fixed before it, equal to them where they are frozen, and within
            the constraint if there is one.
    """

    apply_fn: Callable[..., Any]
    loss: Callable[..., Any]
    comparator: PyTree

    def __call__(self, step: Step) -> dict[str, Array]:
        """The terms of one step."""
        moving, still = eqx.partition(step.params, eqx.is_inexact_array)
        goal = eqx.filter(self.comparator, eqx.is_inexact_array)

        def outputs(weights: PyTree) -> Array:
            return jax.vmap(self.apply_fn, (None, 0))(eqx.combine(weights, still), step.xs_adv)

        now, change = jax.jvp(outputs, (moving,), (optax.tree.sub(goal, moving),))
        at_goal = outputs(goal)
        slopes = jax.vmap(jax.grad(self.loss))(now, step.ys)
        per_example = (slopes * (at_goal - now - change)).reshape(len(step.ys), -1)

        def distance_squared(weights: PyTree) -> Array:
            return optax.tree.norm(optax.tree.sub(eqx.filter(weights, eqx.is_inexact_array), goal), squared=True)

        return {
            "comparator_loss": jnp.mean(jax.vmap(self.loss)(at_goal, step.ys)),
            "linearization_term": -jnp.mean(jnp.sum(per_example, axis=1)),
            "distance_squared": distance_squared(step.params),
            "next_distance_squared": distance_squared(step.next_params),
        }


class RegretCertificate(eqx.Module):
    r"""A bound on the mean, and so on the smallest, surrogate loss so far, after every number $T$ of steps.

    For gradient descent at a constant rate $α$, projected or not, a loss that is convex in the output, and any attack:

    $\frac1T \sum_{t<T} L_A(W_t) \le \frac1T \sum_{t<T} \ell_t(U) + \frac{\|W_0 - U\|^2 - \|W_T - U\|^2}{2αT} +
    \frac{α}{2T} \sum_{t<T} \|g_t\|^2 - \frac1T \sum_{t<T} \frac1n \sum_i s_i^t r_i^t(U)$

    with the loss's slopes $s_i^t$ and $r_i^t(U) = f(U, x_i^t) - f(W_t, x_i^t) - \langle \nabla_W f(W_t, x_i^t), U -
    W_t \rangle$: an exact inequality on every run, up to rounding. $\ell_t(U)$ is the comparator's mean loss at the
    inputs that the attack on $W_t$ found, at most its robust loss.

    Attributes:
        mean_loss: The left side, for $T = 1, 2, …$
        comparator_term: Mean of $\ell_t(U)$.
        radius_term: What the distance to the comparator costs.
        step_term: What the length of the steps costs.
        linearization_term: What the network's curvature costs; it may be negative.

    References:
        Gao et al., NeurIPS 2019, proof of theorem 4.1; docs/theory/gao2019.md, D2.
    """

    mean_loss: Float[Array, " steps"]
    comparator_term: Float[Array, " steps"]
    radius_term: Float[Array, " steps"]
    step_term: Float[Array, " steps"]
    linearization_term: Float[Array, " steps"]

    @property
    def bound(self) -> Float[Array, " steps"]:
        """The right side."""
        return self.comparator_term + self.radius_term + self.step_term + self.linearization_term

    @staticmethod
    def of(result: TrainingResult, *, learning_rate: float | Float[Array, ""]) -> "RegretCertificate":
        """The certificate of a run of `fit` with `record=RegretRecord(...)`.

        Args:
            result: A run of the method `Adversarial` with `optax.sgd(learning_rate)`, without momentum or schedule.
            learning_rate: $α$.

        Raises:
            ValueError: If the run recorded something else, took no step, or a step is not α times its gradient long
                (at most so where it was projected).
        """
        history = result.history
        needed = {"comparator_loss", "linearization_term", "distance_squared", "next_distance_squared"}
        if not needed <= set(history):
            raise ValueError(f"the run recorded {sorted(history)}; give fit record=RegretRecord(...)")
        if result.num_steps == 0:
            raise ValueError(f"the run took no step: {result.message}")
        kept = {name: history[name][: result.num_steps] for name in (*needed, "surrogate_loss", "gradient_norm")}
        taken, expected = history["step_length"][: result.num_steps], learning_rate * kept["gradient_norm"]
        rounding = 1e3 * float(jnp.finfo(taken.dtype).eps) * expected
        shorter_is_fine = history["projected"][: result.num_steps]
        wrong = (taken > expected + rounding) | (~shorter_is_fine & (taken < expected - rounding))
        if jnp.any(wrong):
            step = int(jnp.argmax(wrong))
            raise ValueError(
                f"step {step} has length {float(taken[step]):.6g}, and learning_rate={learning_rate} times its "
                f"gradient {float(expected[step]):.6g}; the certificate is for optax.sgd(learning_rate), without "
                "momentum or schedule"
            )
        steps = jnp.arange(1, result.num_steps + 1, dtype=kept["surrogate_loss"].dtype)

        def mean(values: Array) -> Array:
            return jnp.cumsum(values) / steps

        gain = kept["distance_squared"][0] - kept["next_distance_squared"]
        return RegretCertificate(
            mean_loss=mean(kept["surrogate_loss"]),
            comparator_term=mean(kept["comparator_loss"]),
            radius_term=gain / (2.0 * learning_rate * steps),
            step_term=0.5 * learning_rate * mean(kept["gradient_norm"] ** 2),
            linearization_term=mean(kept["linearization_term"]),
        )
