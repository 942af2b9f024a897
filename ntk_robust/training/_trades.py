"""TRADES."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.training._methods import AbstractAttackedObjective, Batch, Problem


class Trades(AbstractAttackedObjective):
    r"""Natural loss plus $β$ times how far the class probabilities move under attack.

    Descends $\frac1n\sum_i \ell(f(x_i), y_i) + β\,\mathrm{KL}(p(x_i) \,\|\, p(x_i'))$ with $p$ the softmax of the
    logits and $x_i'$ found by attacking the divergence itself; both probabilities are differentiated. The divergence
    is flat at $x$: the attack must start at random (`PGD(..., random_start=True)`), or it stays where it is.

    Attributes:
        beta: Weight $β \ge 0$ of the divergence, in units of the loss per nat.

    Raises:
        ValueError: For a negative weight, or a network with a scalar output.

    References:
        Zhang et al., Theoretically principled trade-off between robustness and accuracy, ICML 2019, equation 5.
    """

    beta: float | Float[Array, ""] = 6.0

    def __check_init__(self) -> None:
        if isinstance(self.beta, float | int) and not 0 <= self.beta < math.inf:
            raise ValueError(f"Trades has beta {self.beta}; give a finite weight of at least 0")

    def attacked(self, problem: Problem, params: PyTree, batch: Batch) -> Float[Array, "b *dims"]:
        """The batch under the attack on the divergence from the natural probabilities."""

        def divergence(x_adv: Array, x: Array, logits: Array) -> Array:
            del x
            return kl_divergence(logits, problem.predict(params, x_adv))

        return problem.perturb(divergence, batch.xs, problem.outputs(params, batch.xs), batch.key)

    def objective(
        self, problem: Problem, params: PyTree, batch: Batch, xs_adv: Float[Array, "b *dims"]
    ) -> tuple[Float[Array, ""], Float[Array, "b ..."]]:
        """Natural loss plus the weighted divergence."""
        natural, attacked = problem.outputs(params, batch.xs), problem.outputs(params, xs_adv)
        divergence = jnp.mean(jax.vmap(kl_divergence)(natural, attacked))
        return jnp.mean(problem.losses(natural, batch.ys)) + self.beta * divergence, attacked


def kl_divergence(logits: Float[Array, "..."], other: Float[Array, "..."]) -> Float[Array, ""]:
    r"""$\mathrm{KL}(p \| q)$ in nats, for the softmax probabilities of two vectors of logits.

    Raises:
        ValueError: For scalar outputs.
    """
    if logits.ndim != 1:
        raise ValueError(
            f"a divergence of class probabilities needs logits, got outputs of shape {logits.shape}; "
            "use a network with one output per class, or the method Adversarial()"
        )
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))
