"""Both maxima of the squared error over a ball, where there are no others."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from ntk_robust.landscape._global_maximum import GlobalMaximum, global_maximum
from ntk_robust.landscape._two_layer import TwoLayer


class TwoMaxima(eqx.Module):
    r"""Where $f$ is largest and smallest over the ball: the candidates for the largest $\frac12(f - y)^2$.

    Attributes:
        highest: $δ_+$, fixed point of $δ \mapsto ε g / \Vert g\Vert$.
        lowest: $δ_-$, fixed point of $δ \mapsto -ε g / \Vert g\Vert$.
        highest_output: $f(x + δ_+)$.
        lowest_output: $f(x + δ_-)$.
        highest_certificate: What is certain of $δ_+$ as the maximum of $f$.
        lowest_certificate: What is certain of $δ_-$ as the maximum of $-f$.
    """

    highest: Float[Array, " d"]
    lowest: Float[Array, " d"]
    highest_output: Float[Array, ""]
    lowest_output: Float[Array, ""]
    highest_certificate: GlobalMaximum
    lowest_certificate: GlobalMaximum

    @property
    def certified(self) -> Bool[Array, ""]:
        """Whether both are certified, so that the larger of their losses is the largest of the ball up to the gaps."""
        return self.highest_certificate.certified & self.lowest_certificate.certified

    def basin(self, residual: ArrayLike) -> Float[Array, " d"]:
        r"""Where projected gradient ascent with step at most $1/Λ$ ends that starts with this residual $f - y \ne 0$.

        Holds where `ball_bounds` has a contraction below 1.
        """
        return jnp.where(jnp.asarray(residual) > 0, self.highest, self.lowest)

    def largest_loss(self, target: ArrayLike) -> Float[Array, ""]:
        r"""$\frac12(f - y)^2$ at the worse of both."""
        return 0.5 * jnp.maximum(self.highest_output - target, target - self.lowest_output) ** 2


def two_maxima(net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike, *, num_steps: int = 200) -> TwoMaxima:
    r"""Both fixed points by iteration from the center, with their certificates.

    The map contracts with the factor $ρ$ of `ball_bounds` where that is below 1; elsewhere the iteration is a search,
    and the certificates say what came of it.

    Args:
        net: The network.
        x: Center.
        epsilon: Radius of the l2 ball.
        num_steps: Iterations.

    References:
        docs/theory/deng2020.md, item A6.
    """
    epsilon = jnp.asarray(epsilon, x.dtype)

    def search(sign: Float[Array, ""]) -> tuple[Float[Array, " d"], Float[Array, ""], GlobalMaximum]:
        def step(_: Array, delta: Float[Array, " d"]) -> Float[Array, " d"]:
            gradient = jax.grad(net)(x + delta)
            return sign * epsilon * gradient / jnp.linalg.norm(gradient)

        delta = lax.fori_loop(0, num_steps, step, jnp.zeros_like(x))
        return delta, net(x + delta), global_maximum(net, x, epsilon, delta, sign=sign)

    found = jax.vmap(search)(jnp.asarray([1.0, -1.0], x.dtype))
    (highest, highest_output, highest_certificate), (lowest, lowest_output, lowest_certificate) = (
        jax.tree.map(lambda part, row=row: part[row], found) for row in (0, 1)
    )
    return TwoMaxima(highest, lowest, highest_output, lowest_output, highest_certificate, lowest_certificate)
