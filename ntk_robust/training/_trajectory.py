"""A whole run kept: every weight, gradient and perturbed input, for checks of theorems."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet
from ntk_robust.training._fit import fit
from ntk_robust.training._loop import Step
from ntk_robust.training._methods import AbstractMethod
from ntk_robust.training._weight_sets import AbstractWeightSet


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


def adversarial_trajectory(
    apply_fn: Callable[..., Any],
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "n ..."],
    *,
    loss: Callable[..., Any],
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    method: AbstractMethod | None = None,
    trainable: PyTree[bool] | None = None,
    constraint: AbstractWeightSet | None = None,
    anchor: PyTree | None = None,
    batch_size: int | None = None,
    key: Key[Array, ""],
) -> Trajectory:
    """Everything that the loop of `fit` does in `num_steps` steps: the same program, with all of it written down.

    Takes memory of `num_steps` times (twice the weights and twice the batch): for small networks and short runs.

    Args:
        apply_fn: As for `fit`, and so are the others.
        params: W_0.
        xs: Inputs.
        ys: Targets.
        loss: Trained and attacked loss.
        attack: Inner maximization.
        perturbations: Set that it searches.
        optimizer: Any optax transformation; `optax.sgd(alpha)` is the theory's.
        num_steps: T.
        method: How a batch becomes a gradient.
        trainable: Mask of trained weights.
        constraint: Set to project on.
        anchor: Its center.
        batch_size: None for the full batch.
        key: Randomness.

    Raises:
        ValueError: As `fit`.
        FloatingPointError: If the run meets numbers that are not finite.
    """
    result = fit(
        apply_fn,
        params,
        xs,
        ys,
        loss=loss,
        attack=attack,
        perturbations=perturbations,
        optimizer=optimizer,
        num_steps=num_steps,
        method=method,
        trainable=trainable,
        constraint=constraint,
        anchor=anchor,
        batch_size=batch_size,
        record=_record_everything,
        throw=True,
        key=key,
    )
    history = result.history
    return Trajectory(
        params=jax.tree.map(
            lambda first, later: jnp.concatenate([first[None], later]),
            eqx.filter(params, eqx.is_array),
            history["params"],
        ),
        gradients=history["gradients"],
        xs=history["xs"],
        xs_adv=history["xs_adv"],
        ys=history["ys"],
        surrogate_loss=history["surrogate_loss"],
        projected=history["projected"],
    )


def _record_everything(step: Step) -> dict[str, PyTree]:
    return {
        "params": eqx.filter(step.next_params, eqx.is_array),
        "gradients": step.gradient,
        "xs": step.xs,
        "xs_adv": step.xs_adv,
        "ys": step.ys,
    }
