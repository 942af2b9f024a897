"""Robust squared errors between an attack and a bound, where no enumeration reaches."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet, attack_batch
from ntk_robust.certify import AbstractBound, Network


class RiskBracket(eqx.Module):
    r"""Both sides of $\sup_{x' ∈ B(x)} (f(x') - t)^2$, for each of n points; means over random x bracket the risk.

    Attributes:
        lower: Squared error at the attack's point or at x, whichever is larger, in squared output units.
        upper: What the bound excludes to be exceeded.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


def robust_risk_bracket(
    network: Network,
    xs: Float[Array, "n d"],
    targets: Float[Array, " n"],
    *,
    perturbations: AbstractPerturbationSet,
    attack: AbstractAttack,
    method: AbstractBound,
    key: Key[Array, ""],
) -> RiskBracket:
    r"""Lower and upper ends of robust squared errors, for any dimension.

    Args:
        network: A scalar network.
        xs: Points x.
        targets: What f is compared with, $f^*(x)$ for the robust risk and $y_i$ for the adversarial training error.
        perturbations: The set around each point.
        attack: Search for a large error, the lower end; with restarts for the students of this package, whose gradients
            vanish on their cubes.
        method: Bound of the outputs on the set, the upper end.
        key: Randomness of the attack.

    Returns:
        One pair for each point.

    Raises:
        ValueError: If the network is not scalar, or shapes do not fit.
    """
    if not network.scalar or targets.shape != xs.shape[:1]:
        raise ValueError(
            f"a network of {network.num_outputs} outputs, {xs.shape[0]} points and {targets.shape} targets; give a "
            "scalar network and one target for each point"
        )
    found = attack_batch(attack, lambda x, t: jnp.square(network(x) - t), xs, targets, perturbations, key=key)
    here = jnp.square(jax.vmap(network)(xs) - targets)
    bounds = eqx.filter_jit(jax.vmap(lambda x: method(network, x, perturbations)))(xs)
    worst = jnp.maximum(jnp.square(bounds.lower - targets), jnp.square(bounds.upper - targets))
    return RiskBracket(jnp.maximum(found.value, here), worst)
