"""How a batch becomes a gradient: the training methods that `fit` runs."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet


class Problem(eqx.Module):
    """What is trained against what.

    Attributes:
        predict: (trained weights, one example) -> output; frozen weights are already inside.
        loss: (output, target) -> scalar.
        attack: The inner maximization.
        perturbations: The set B(x) that it searches.
    """

    predict: Callable[..., Any]
    loss: Callable[..., Any]
    attack: AbstractAttack
    perturbations: AbstractPerturbationSet

    def outputs(self, params: PyTree, xs: Float[Array, "b *dims"]) -> Float[Array, "b ..."]:
        """Outputs for a batch."""
        return jax.vmap(self.predict, (None, 0))(params, xs)

    def losses(self, outputs: Float[Array, "b ..."], ys: Num[Array, "b ..."]) -> Float[Array, " b"]:
        """Losses of a batch."""
        return jax.vmap(self.loss)(outputs, ys)


class Batch(NamedTuple):
    """The examples of one step.

    Attributes:
        xs: Inputs.
        ys: Targets.
        step: Index t of the step.
        key: Randomness of this step.
    """

    xs: Float[Array, "b *dims"]
    ys: Num[Array, "b ..."]
    step: Int[Array, ""]
    key: Key[Array, ""]


class Gradient(NamedTuple):
    """What a method found at W_t.

    Attributes:
        objective: The number that the method descends on this batch.
        surrogate_loss: Mean loss at `xs_adv`, L_A(W_t) on this batch.
        gradient: Gradient of `objective` in the trained weights, perturbed inputs held fixed.
        xs_adv: The perturbed inputs.
        state: The method's own state for the next step.
    """

    objective: Float[Array, ""]
    surrogate_loss: Float[Array, ""]
    gradient: PyTree[Float[Array, "..."]]
    xs_adv: Float[Array, "b *dims"]
    state: PyTree


class AbstractMethod(eqx.Module):
    """A rule that turns a batch into a gradient."""

    def init(self, problem: Problem, params: PyTree, xs: Float[Array, "b *dims"]) -> PyTree:
        """State before the first step, for batches shaped like `xs`; none by default."""
        del problem, params, xs
        return ()

    @abc.abstractmethod
    def gradient(self, problem: Problem, params: PyTree, batch: Batch, state: PyTree) -> Gradient:
        """The gradient at the trained weights `params`."""


class Adversarial(AbstractMethod):
    r"""Adversarial training: descends $L_A(W) = \frac1n\sum_i \ell(f(W, A(W, x_i)), y_i)$ in the first argument of $f$.

    The perturbed inputs are constants of the gradient: $g = \nabla_W \frac1n\sum_i \ell(f(W, x_i'), y_i)$ at
    $x_i' = A(W, x_i)$. The attack maximizes the loss that is trained.

    References:
        Madry et al., ICLR 2018; Gao et al., NeurIPS 2019, definitions 3.2 and 3.3 (the gradient is in W alone).
    """

    def gradient(self, problem: Problem, params: PyTree, batch: Batch, state: PyTree) -> Gradient:
        """The gradient of the mean loss at the attacked batch."""
        xs_adv = perturb(problem, params, batch)

        def surrogate_loss(params: PyTree) -> Float[Array, ""]:
            return jnp.mean(problem.losses(problem.outputs(params, xs_adv), batch.ys))

        value, gradient = jax.value_and_grad(surrogate_loss)(params)
        return Gradient(value, value, gradient, xs_adv, state)


def perturb(problem: Problem, params: PyTree, batch: Batch) -> Float[Array, "b *dims"]:
    """The batch under the problem's attack on its loss; no gradient flows through the result."""

    def attack_one(x: Array, y: Array, key: Array) -> Array:
        def objective(x_adv: Array) -> Array:
            return problem.loss(problem.predict(params, x_adv), y)

        return problem.attack(objective, x, problem.perturbations, key=key).x_adv

    return lax.stop_gradient(jax.vmap(attack_one)(batch.xs, batch.ys, jr.split(batch.key, len(batch.xs))))
