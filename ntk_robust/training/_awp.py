"""Adversarial weight perturbation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.training._methods import AbstractAttackedObjective, AbstractMethod, Batch, Gradient, Problem


class WeightPerturbed(AbstractMethod):
    r"""Adversarial weight perturbation (AWP): the gradient at weights moved uphill makes the step from the old ones.

    At the perturbed inputs of `base`, every layer moves along its gradient by a fraction of its own norm,
    $v^{(h)} = γ \|W^{(h)}\|_F\, g^{(h)} / \|g^{(h)}\|_F$ (one step of ascent), and the step is $\nabla J(W + v)$.
    Vectors (biases) are left alone, as in the authors' code. `objective` and `surrogate_loss` in the history are
    those at $W + v$.

    Attributes:
        base: Which objective is trained.
        gamma: $γ > 0$, relative to the norm of each layer.

    Raises:
        ValueError: If `gamma` is not positive.

    References:
        Wu, Xia, Wang, Adversarial weight perturbation helps robust generalization, NeurIPS 2020, equations 8 to 10.
    """

    base: AbstractAttackedObjective
    gamma: float | Float[Array, ""] = 0.01

    def __check_init__(self) -> None:
        if isinstance(self.gamma, float | int) and not self.gamma > 0:
            raise ValueError(f"WeightPerturbed has gamma {self.gamma}; give a positive fraction, such as 0.01")

    def gradient(self, problem: Problem, params: PyTree, batch: Batch, state: PyTree) -> Gradient:
        """The gradient of the base's objective at the moved weights."""
        xs_adv = self.base.attacked(problem, params, batch)
        uphill = self.base.gradient_at(problem, params, batch, xs_adv, state).gradient

        def move(layer: Array, slope: Array) -> Array:
            length = jnp.linalg.norm(slope.ravel())
            if layer.ndim < 2:
                return layer
            reach = self.gamma * jnp.linalg.norm(layer.ravel())
            return layer + jnp.where(length > 0, reach / jnp.where(length > 0, length, 1), 0) * slope

        return self.base.gradient_at(problem, jax.tree.map(move, params, uphill), batch, xs_adv, state)
