"""The best of several runs of another attack."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ntk_robust._core import check_count
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Objective
from ntk_robust.attacks._sets import AbstractPerturbationSet


class _Best(NamedTuple):
    x_adv: Float[Array, "*dims"]
    value: Float[Array, ""]
    zero_gradients: Int[Array, ""]


class Restarts(AbstractAttack):
    """The best of `num_restarts` runs of an attack with independent randomness, e.g. `Restarts(PGD(num_steps=40), 5)`.

    The runs follow one another, so memory does not grow with their number. `values` joins the runs' histories.

    Attributes:
        attack: The attack to repeat; pointless for one without randomness.
        num_restarts: How often it runs in all.

    Raises:
        ValueError: If `num_restarts` is not a whole number ≥ 1.
    """

    attack: AbstractAttack
    num_restarts: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_count("num_restarts", self.num_restarts)

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: PRNGKeyArray,
    ) -> AttackResult:
        """Best result of all runs; see `AbstractAttack`."""

        def run(best: _Best, run_key: PRNGKeyArray) -> tuple[_Best, Float[Array, " values"]]:
            found = self.attack(objective, x, perturbations, key=run_key)
            improved = found.value > best.value
            best = _Best(
                x_adv=jnp.where(improved, found.x_adv, best.x_adv),
                value=jnp.where(improved, found.value, best.value),
                zero_gradients=best.zero_gradients + found.zero_gradients,
            )
            return best, found.values

        nothing = _Best(x, jnp.asarray(-jnp.inf, jax.eval_shape(objective, x).dtype), jnp.zeros((), jnp.int32))
        best, values = lax.scan(run, nothing, jr.split(key, self.num_restarts))
        return AttackResult(best.x_adv, best.value, lax.cummax(values.ravel()), best.zero_gradients)
