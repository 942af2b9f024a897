"""How a batch becomes a gradient: what every training method has in common, and plain adversarial training."""

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
        perturbations: The set B(x) that it searches; its `epsilon` may hold one radius for each example of the batch.
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

    def perturb(
        self,
        objective: Callable[[Array, Array, Array], Array],
        xs: Float[Array, "b *dims"],
        targets: PyTree[Array],
        key: Key[Array, ""],
    ) -> Float[Array, "b *dims"]:
        """The batch under the attack on `objective(x_adv, x, target)`; no gradient flows through the result."""

        def attack_one(perturbations: AbstractPerturbationSet, x: Array, target: Array, key: Array) -> Array:
            return self.attack(lambda x_adv: objective(x_adv, x, target), x, perturbations, key=key).x_adv

        return lax.stop_gradient(self.within_sets(attack_one, xs, targets, jr.split(key, len(xs))))

    def within_sets(self, function: Callable[..., Array], *rows: PyTree[Array]) -> Array:
        """`function(set, *row)` for each row of a batch, each with the set of its own radius."""
        radii = self.perturbations.epsilon

        def one(epsilon: Array, *row: PyTree[Array]) -> Array:
            return function(self.perturbations.with_epsilon(epsilon), *row)

        return jax.vmap(one, (0 if jnp.ndim(radii) else None, *(0 for _ in rows)))(radii, *rows)

    def attacked(
        self, params: PyTree, xs: Float[Array, "b *dims"], ys: Num[Array, "b ..."], key: Key[Array, ""]
    ) -> Float[Array, "b *dims"]:
        """The batch under the attack on the loss at `params`."""

        def loss(x_adv: Array, x: Array, y: Array) -> Array:
            del x
            return self.loss(self.predict(params, x_adv), y)

        return self.perturb(loss, xs, ys, key)


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

    @property
    def num_replays(self) -> int:
        """How many steps in turn see the same batch."""
        return 1

    def init(self, problem: Problem, params: PyTree, xs: Float[Array, "b *dims"]) -> PyTree:
        """State before the first step, for batches shaped like `xs`; none by default."""
        del problem, params, xs
        return ()

    @abc.abstractmethod
    def gradient(self, problem: Problem, params: PyTree, batch: Batch, state: PyTree) -> Gradient:
        """The gradient at the trained weights `params`."""


class AbstractAttackedObjective(AbstractMethod):
    """A method that attacks the batch and descends an objective at the result, which is a constant of the gradient."""

    def attacked(self, problem: Problem, params: PyTree, batch: Batch) -> Float[Array, "b *dims"]:
        """The perturbed batch; by default the attack maximizes the loss."""
        return problem.attacked(params, batch.xs, batch.ys, batch.key)

    @abc.abstractmethod
    def objective(
        self, problem: Problem, params: PyTree, batch: Batch, xs_adv: Float[Array, "b *dims"]
    ) -> tuple[Float[Array, ""], Float[Array, "b ..."]]:
        """The number to descend, and the outputs at `xs_adv`."""

    def gradient(self, problem: Problem, params: PyTree, batch: Batch, state: PyTree) -> Gradient:
        """Attacks, then differentiates the objective in the weights alone."""
        return self.gradient_at(problem, params, batch, self.attacked(problem, params, batch), state)

    def gradient_at(
        self, problem: Problem, params: PyTree, batch: Batch, xs_adv: Float[Array, "b *dims"], state: PyTree
    ) -> Gradient:
        """The gradient at given perturbed inputs."""

        def objective(params: PyTree) -> tuple[Float[Array, ""], Float[Array, "b ..."]]:
            return self.objective(problem, params, batch, xs_adv)

        (value, outputs), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        surrogate_loss = jnp.mean(problem.losses(outputs, batch.ys))
        return Gradient(value, surrogate_loss, gradient, xs_adv, state)


class Adversarial(AbstractAttackedObjective):
    r"""Adversarial training: descends $L_A(W) = \frac1n\sum_i \ell(f(W, A(W, x_i)), y_i)$ in the first argument of $f$.

    The perturbed inputs are constants of the gradient: $g = \nabla_W \frac1n\sum_i \ell(f(W, x_i'), y_i)$ at
    $x_i' = A(W, x_i)$. The attack maximizes the loss that is trained. With `attacks.Identity` this is natural training,
    with `attacks.PGD(num_steps=1, relative_step=1.25)` the fast training of Wong et al.

    References:
        Madry et al., ICLR 2018; Wong, Rice, Kolter, ICLR 2020; Gao et al., NeurIPS 2019, definitions 3.2 and 3.3 (the
        gradient is in W alone).
    """

    def objective(
        self, problem: Problem, params: PyTree, batch: Batch, xs_adv: Float[Array, "b *dims"]
    ) -> tuple[Float[Array, ""], Float[Array, "b ..."]]:
        """Mean loss at the perturbed inputs."""
        outputs = problem.outputs(params, xs_adv)
        return jnp.mean(problem.losses(outputs, batch.ys)), outputs
