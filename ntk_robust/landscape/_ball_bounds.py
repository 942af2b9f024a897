"""What holds of a two-layer network everywhere in a ball: the constants of the theorems on ascent."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from ntk_robust.landscape._curvature_bound import curvature_bound
from ntk_robust.landscape._two_layer import TwoLayer


class BallBounds(eqx.Module):
    r"""Bounds of $f$, $g = \nabla f$ and $H = \nabla^2 f$ over $\Vertδ\Vert_2 \le ε$, up to rounding.

    Attributes:
        epsilon: $ε$.
        output: $f(x)$ at the center.
        slope: $\Vert g\Vert$ at the center.
        bends_up: At least the largest eigenvalue of $H$ in the ball, and at least 0.
        bends_down: At least the largest eigenvalue of $-H$ in the ball, and at least 0.
    """

    epsilon: Float[Array, ""]
    output: Float[Array, ""]
    slope: Float[Array, ""]
    bends_up: Float[Array, ""]
    bends_down: Float[Array, ""]

    @property
    def curvature(self) -> Float[Array, ""]:
        r"""Upper bound of $\sup\Vert H\Vert$."""
        return jnp.maximum(self.bends_up, self.bends_down)

    @property
    def slope_upper(self) -> Float[Array, ""]:
        r"""Upper bound of $\sup\Vert g\Vert$."""
        return self.slope + self.epsilon * self.curvature

    @property
    def slope_lower(self) -> Float[Array, ""]:
        r"""Lower bound of $\inf\Vert g\Vert$; where it is positive, $g$ has no zero in the ball."""
        return jnp.maximum(self.slope - self.epsilon * self.curvature, 0.0)

    @property
    def contraction(self) -> Float[Array, ""]:
        r"""$ρ \ge ε \sup\Vert H\Vert / \inf\Vert g\Vert$, infinite where $g$ may vanish.

        Below 1 the squared error has one or two local maxima over the ball, one for each side of the target, whatever
        the target is (item A6).
        """
        return jnp.where(self.slope_lower > 0, self.epsilon * self.curvature / self.slope_lower, jnp.inf)

    @property
    def has_at_most_two_maxima(self) -> Bool[Array, ""]:
        """Whether the contraction is below 1."""
        return self.contraction < 1

    def residual_upper(self, target: ArrayLike) -> Float[Array, ""]:
        r"""Upper bound of $\sup|f - y|$."""
        return jnp.abs(self.output - target) + self.epsilon * self.slope_upper

    def loss_upper(self, target: ArrayLike) -> Float[Array, ""]:
        r"""Upper bound of $\sup\frac12(f - y)^2$."""
        return 0.5 * self.residual_upper(target) ** 2

    def lipschitz(self, target: ArrayLike) -> Float[Array, ""]:
        r"""$Λ = \sup\Vert g\Vert^2 + \sup|f - y| \sup\Vert H\Vert$, for which $\nabla L$ is Lipschitz."""
        return self.slope_upper**2 + self.residual_upper(target) * self.curvature

    def steps_to_sphere(self, target: ArrayLike) -> Float[Array, ""]:
        r"""$N_0 = 2Λ(\sup L - L_0)/(r_0^2 \inf\Vert g\Vert^2)$: steps $1/Λ$ reach the sphere by $t = ⌈N_0⌉$."""
        start = self.output - target
        gained = self.loss_upper(target) - 0.5 * start**2
        return 2 * self.lipschitz(target) * gained / (start * self.slope_lower) ** 2


def ball_bounds(net: TwoLayer, x: Float[Array, " d"], epsilon: ArrayLike) -> BallBounds:
    r"""Bounds over a ball from intervals of the second derivatives (`curvature_bound`) and the mean value inequality.

    Args:
        net: The network.
        x: Center.
        epsilon: Radius of the l2 ball.

    Raises:
        ValueError: For an activation with a kink, which has no second derivative.

    References:
        docs/theory/deng2020.md, items A3 to A6.
    """
    epsilon = jnp.asarray(epsilon, x.dtype)
    output, gradient = jax.value_and_grad(net)(x)

    def bend(sign: Float[Array, ""]) -> Float[Array, ""]:
        bound = curvature_bound(net, x, epsilon, sign=sign)
        rounding = 64 * len(bound) * jnp.finfo(x.dtype).eps * jnp.linalg.norm(bound)
        return jnp.maximum(jnp.linalg.eigvalsh(bound)[-1] + rounding, 0.0)

    bends_up, bends_down = jax.vmap(bend)(jnp.asarray([1.0, -1.0], x.dtype))
    return BallBounds(epsilon, output, jnp.linalg.norm(gradient), bends_up, bends_down)
