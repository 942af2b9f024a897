"""MART: adversarial training that looks harder at misclassified examples."""

import math

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int, PyTree

from ntk_robust.training._methods import AbstractAttackedObjective, Batch, Problem
from ntk_robust.training._trades import kl_divergence


class Mart(AbstractAttackedObjective):
    r"""Boosted cross-entropy under attack, plus a divergence weighted by how unsure the natural prediction is.

    Descends $\frac1n\sum_i -\log p_{y_i}(x_i') - \log(1 - \max_{k≠y_i} p_k(x_i'))
    + λ\,\mathrm{KL}(p(x_i) \| p(x_i'))\,(1 - p_{y_i}(x_i))$, with $x_i'$ from the attack on the problem's loss.
    Logarithms are taken of sums of exponentials, never of a rounded probability, so that nothing is added to keep them
    finite.

    Attributes:
        weight: $λ \ge 0$, in units of the loss per nat.

    Raises:
        ValueError: For a negative weight, or a network with a scalar output.

    References:
        Wang et al., Improving adversarial robustness requires revisiting misclassified examples, ICLR 2020, section 3.
    """

    weight: float | Float[Array, ""] = 5.0

    def __check_init__(self) -> None:
        if isinstance(self.weight, float | int) and not 0 <= self.weight < math.inf:
            raise ValueError(f"Mart has weight {self.weight}; give a finite weight of at least 0")

    def objective(
        self, problem: Problem, params: PyTree, batch: Batch, xs_adv: Float[Array, "b *dims"]
    ) -> tuple[Float[Array, ""], Float[Array, "b ..."]]:
        """The boosted loss plus the weighted divergence."""
        natural, attacked = problem.outputs(params, batch.xs), problem.outputs(params, xs_adv)
        return jnp.mean(jax.vmap(self._one)(natural, attacked, batch.ys)), attacked

    def _one(self, natural: Float[Array, "..."], attacked: Float[Array, "..."], y: Int[Array, ""]) -> Float[Array, ""]:
        divergence = kl_divergence(natural, attacked)
        is_label = jnp.arange(len(natural), dtype=y.dtype) == y

        def log_sum(logits: Float[Array, " k"], chosen: Array) -> Float[Array, ""]:
            return logsumexp(jnp.where(chosen, logits, -jnp.inf))

        rival = jnp.argmax(jnp.where(is_label, -jnp.inf, attacked))
        all_but_rival = jnp.arange(len(attacked)) != rival
        total = logsumexp(attacked)
        boosted = (total - attacked[y]) + (total - log_sum(attacked, all_but_rival))
        unsure = jnp.exp(log_sum(natural, ~is_label) - logsumexp(natural))
        return boosted + self.weight * divergence * unsure
