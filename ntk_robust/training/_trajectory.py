"""A whole run kept: every weight, gradient and perturbed input, for checks of theorems."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PyTree

from ntk_robust.training._fit import TrainingResult
from ntk_robust.training._loop import Step


class Trajectory(eqx.Module):
    """Every quantity of a run of T steps, stacked along the steps.

    Attributes:
        params: Weights W_0, ..., W_T, frozen ones included: a leading axis of T + 1.
        gradients: Gradients g_0, ..., g_{T-1} in the trained weights; None at frozen ones.
        xs: The batches.
        xs_adv: The batches as the attack left them.
        ys: Their targets.
        surrogate_loss: L_A(W_t) on the batch of step t.
        projected: Whether step t ended in a projection.
    """

    params: PyTree[Float[Array, "steps_and_one ..."]]
    gradients: PyTree[Float[Array, "steps ..."]]
    xs: Float[Array, "steps b *dims"]
    xs_adv: Float[Array, "steps b *dims"]
    ys: Num[Array, "steps b ..."]
    surrogate_loss: Float[Array, " steps"]
    projected: Bool[Array, " steps"]

    @staticmethod
    def of(result: TrainingResult) -> "Trajectory":
        """The trajectory of a run of `fit` that was given `record=record_trajectory`.

        Raises:
            ValueError: If the run recorded something else, or stopped before its end.
        """
        history = result.history
        if not {"params", "gradients", "xs", "xs_adv", "ys"} <= set(history):
            raise ValueError(f"the run recorded {sorted(history)}; give fit record=record_trajectory")
        if not result.finite:
            raise ValueError(f"the run has no last weights: {result.message}")
        return Trajectory(
            params=jax.tree.map(
                lambda first, later: jnp.concatenate([first[None], later]),
                eqx.filter(result.params_0, eqx.is_array),
                history["params"],
            ),
            gradients=history["gradients"],
            xs=history["xs"],
            xs_adv=history["xs_adv"],
            ys=history["ys"],
            surrogate_loss=history["surrogate_loss"],
            projected=history["projected"],
        )


def record_trajectory(step: Step) -> dict[str, PyTree]:
    """Everything about a step, for `fit(..., record=record_trajectory)` and `Trajectory.of` its result.

    Takes memory of the number of steps times (twice the weights and twice the batch): for small networks and short
    runs.

    Args:
        step: A step as the loop took it.

    Returns:
        Weights after the step, gradient, batch, perturbed batch and targets.
    """
    return {
        "params": eqx.filter(step.next_params, eqx.is_array),
        "gradients": step.gradient,
        "xs": step.xs,
        "xs_adv": step.xs_adv,
        "ys": step.ys,
    }
