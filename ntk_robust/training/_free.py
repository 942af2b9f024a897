"""Free adversarial training."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.training._methods import AbstractMethod, Batch, Gradient, Problem


class Free(AbstractMethod):
    r"""Free adversarial training: one backward pass gives the step of the weights and the step of the perturbation.

    Every batch is seen `num_replays` times in turn. Each time, at $x' = x + δ$, the gradient in the weights is used for
    the step and the gradient in $x'$ moves $δ$: to the maximizer of the linearized loss over a set of the full radius
    around $x'$, projected back on $B(x)$ (the sign step of length ε for an l∞ ball). $δ$ starts at zero and is kept
    from one batch to the next. The problem's attack is not used.

    Attributes:
        num_replays: Steps per batch, m; the number of epochs shrinks by it if the number of steps is kept.

    Raises:
        ValueError: If `num_replays` is below 1.

    References:
        Shafahi et al., Adversarial training for free!, NeurIPS 2019, algorithm 1.
    """

    num_replays: int = eqx.field(default=8, static=True)  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        if self.num_replays < 1:
            raise ValueError(f"Free has num_replays {self.num_replays}; give a number of at least 1")

    def init(self, problem: Problem, params: PyTree, xs: Float[Array, "b *dims"]) -> PyTree:
        """Perturbations of zero."""
        del problem, params
        return jnp.zeros_like(xs)

    def gradient(self, problem: Problem, params: PyTree, batch: Batch, state: PyTree) -> Gradient:
        """Both gradients at the current perturbations, which then move."""

        def project(xs: Float[Array, "b *dims"], points: Float[Array, "b *dims"]) -> Float[Array, "b *dims"]:
            return problem.within_sets(lambda perturbations, x, point: perturbations.project(x, point), xs, points)

        xs_adv = project(batch.xs, batch.xs + state)

        def losses(params: PyTree, xs_adv: Float[Array, "b *dims"]) -> Float[Array, ""]:
            return jnp.mean(problem.losses(problem.outputs(params, xs_adv), batch.ys))

        value, (gradient, slopes) = jax.value_and_grad(losses, (0, 1))(params, xs_adv)
        ahead = problem.within_sets(
            lambda perturbations, x, slope: perturbations.argmax_linear(x, slope), xs_adv, slopes
        )
        moved = project(batch.xs, ahead)
        return Gradient(value, value, gradient, xs_adv, moved - batch.xs)
