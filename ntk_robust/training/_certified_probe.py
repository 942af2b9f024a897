"""What no attack can exceed: certified upper bounds of the robust loss while training runs."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from ntk_robust.attacks import AbstractPerturbationSet
from ntk_robust.certify import AbstractBound, IntervalBounds, Network, margin_specification, network_of
from ntk_robust.losses import DLR, AbstractLoss, CrossEntropy, Margin, Squared
from ntk_robust.models import AbstractModel

_AT_A_TIME = 32  # examples; linear bounds keep a matrix for each layer of each of them


class CertifiedProbe(eqx.Module):
    r"""A certificate of the weights: "robust_loss_upper" and "certified_accuracy".

    The first is an upper bound of $L_*(W) = \frac1n \sum_i \max_{x' \in B(x_i)} \ell(f(W, x'), y_i)$, whatever the
    attack, the second a lower bound of the robust accuracy, so that natural ≤ surrogate ≤ robust ≤ certified holds for
    losses and the reverse for accuracies. Bounds enclose every evaluation of the network; the loss itself is rounded as
    always. Interval bounds cost about two evaluations of the network and are loose for wide networks in NTK
    parameterization; `Crown()` costs about as many evaluations as the hidden layers have neurons and is far tighter.

    From an output in $[l, u]$ a loss that is convex in a scalar output is largest at an end. From leads of the label
    over the other classes that are at least $m_j$ the cross-entropy is largest where all are $m_j$ at once. For the
    squared error of vectors every coordinate is at its farther end.

    Attributes:
        model: The network, of a kind that `certify.network_of` knows.
        loss: A loss of `ntk_robust.losses` for a scalar output; for several `CrossEntropy` or `Margin` with integer
            labels, or `Squared` with vectors.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        xs: Examples.
        ys: Their targets, as the loss takes them.
        method: How bounds go through the network.

    Raises:
        ValueError: For a loss of which no worst case is known from bounds of the outputs.
        TypeError: For a model of which no chain of layers is known.
    """

    model: AbstractModel
    loss: AbstractLoss
    perturbations: AbstractPerturbationSet
    xs: Float[Array, "n *dims"]
    ys: Num[Array, "n ..."]
    method: AbstractBound = IntervalBounds()

    def __check_init__(self) -> None:
        several = jnp.issubdtype(self.ys.dtype, jnp.integer) or self.ys.ndim > 1
        known = (CrossEntropy, Margin, Squared) if several else AbstractLoss
        if not isinstance(self.loss, known) or isinstance(self.loss, DLR):
            raise ValueError(
                f"no worst case of {type(self.loss).__name__} is known from bounds of the outputs; give CrossEntropy, "
                "Margin or Squared for several outputs, a loss that is convex in the output for a scalar one"
            )

    def __call__(self, params: PyTree) -> dict[str, Array]:
        """Bounds at `params`."""
        network = network_of(self.model, params)

        def example(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            x, y, epsilon = row
            return self._worst(network, x, y, self.perturbations.with_epsilon(epsilon))

        radii = jnp.broadcast_to(self.perturbations.epsilon, (len(self.xs),))
        losses, leads = jax.lax.map(example, (self.xs, self.ys, radii), batch_size=min(len(self.xs), _AT_A_TIME))
        return {
            "robust_loss_upper": jnp.mean(losses),
            "certified_accuracy": jnp.mean(leads > 0, dtype=self.xs.dtype),
        }

    def _worst(
        self, network: Network, x: Float[Array, "*dims"], y: Num[Array, "..."], ball: AbstractPerturbationSet
    ) -> "_Worst":
        """At least the largest loss on the set, and at most the smallest lead of the right class."""
        if network.scalar:
            found = self.method(network, x, ball)
            ends = jnp.stack([found.lower, found.upper])
            return _Worst(jnp.max(jax.vmap(self.loss, (0, None))(ends, y)), jnp.min(y * ends))
        label = y if y.ndim == 0 else jnp.argmax(y)
        leads = self.method(network, x, ball, margin_specification(label, network.num_outputs, network.dtype)).lower
        if y.ndim == 0:
            others = jnp.arange(network.num_outputs - 1, dtype=label.dtype)
            others = others + (others >= label).astype(label.dtype)
            worst = jnp.zeros(network.num_outputs, network.dtype).at[others].set(-leads)
        else:
            found = self.method(network, x, ball)
            worst = jnp.where(found.upper - y > y - found.lower, found.upper, found.lower)
        return _Worst(self.loss(worst, y), jnp.min(leads))


class _Worst(NamedTuple):
    loss: Float[Array, ""]
    lead: Float[Array, ""]
