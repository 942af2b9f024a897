"""The fast gradient (sign) method."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective, count_zero
from ntk_robust.attacks._sets import AbstractPerturbationSet


class FGSM(AbstractAttack):
    r"""Fast gradient method: the exact maximizer of the linearized objective over the whole set.

    $x' = \arg\max_{x' ∈ B(x)} \langle \nabla \text{objective}(x_0), x' \rangle$, with $x_0 = x$ or a random point of
    the set. For an l∞ ball without a box this is the sign step x + ε sign(∇); the box and other norms follow from
    `argmax_linear`. The better of $x_0$ and $x'$ is kept.

    Attributes:
        random_start: Take the gradient at a random point of the set instead of x.

    References:
        Goodfellow, Shlens, Szegedy, Explaining and harnessing adversarial examples, 2015.
        Wong, Rice, Kolter, Fast is better than free, 2020 (random start).
    """

    random_start: bool = eqx.field(default=False, static=True)

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """The better of the start and one maximizing step; see `AbstractAttack`."""
        start = perturbations.sample(x, key=key) if self.random_start else x
        start_value, gradient = jax.value_and_grad(objective)(start)
        end = perturbations.argmax_linear(x, gradient)
        start_value = jnp.where(jnp.isnan(start_value), -jnp.inf, start_value)
        end_value = objective(end)
        improved = end_value > start_value
        value = jnp.where(improved, end_value, start_value)
        return AttackResult(
            x_adv=jnp.where(improved, end, start),
            value=value,
            values=jnp.stack([start_value, value]),
            zero_gradients=count_zero(gradient),
        )
