"""The kernel of a finite network at its initialization, and the weights that its functions are."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.kernels import AbstractKernel
from ntk_robust.models import PairedParams, PairedTwoLayerNet


class TangentKernel(AbstractKernel):
    r"""$K_m(x, z) = \langle \nabla_W f(W_0, x), \nabla_W f(W_0, z) \rangle$ of a paired two-layer network.

    Its functions are the linearized networks $\langle \nabla_W f(W_0, ·), W - W_0\rangle$, with norm at most
    $\|W - W_0\|_F$.

    Attributes:
        net: The network.
        params: $W_0$.
    """

    net: PairedTwoLayerNet
    params: PairedParams

    def __call__(self, x: Float[Array, " d"], z: Float[Array, " d"]) -> Float[Array, ""]:
        """One pair, for unequal halves as well."""
        return jnp.vdot(self._slopes(x), self._slopes(z)) * jnp.vdot(x, z) / self.net.width

    def gram(self, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None = None) -> Float[Array, "n1 n2"]:
        """All pairs, by one matrix product of slopes."""
        slopes = jax.vmap(self._slopes)(x1)
        if x2 is None:
            gram = (slopes @ slopes.T) * (x1 @ x1.T) / self.net.width
            return (gram + gram.T) / 2
        return (slopes @ jax.vmap(self._slopes)(x2).T) * (x1 @ x2.T) / self.net.width

    def _slopes(self, x: Float[Array, " d"]) -> Float[Array, " m"]:
        plus, minus = self.net.preactivations(self.params, x)
        return self.net.activation.derivative(jnp.concatenate([plus, minus]))

    def combination(
        self, xs: Float[Array, "n d"], points: Float[Array, "s d"], coefficients: Float[Array, " s"]
    ) -> Float[Array, " n"]:
        r"""$\sum_j \alpha_j K_m(x, x_j)$ at many x, from one sum over j for each neuron."""
        weighted = (jax.vmap(self._slopes)(points) * coefficients[:, None]).T @ points
        return jnp.sum(jax.vmap(self._slopes)(xs) * (xs @ weighted.T), axis=1) / self.net.width

    def displaced(self, points: Float[Array, "n d"], coefficients: Float[Array, " n"]) -> PairedParams:
        r"""The weights $W_0 + \sum_j \alpha_j \nabla_W f(W_0, x_j)$, which stand for $\sum_j \alpha_j K_m(x_j, ·)$."""
        slopes = jax.vmap(self._slopes)(points) * coefficients[:, None]
        signs = jnp.concatenate([self.params.signs, -self.params.signs]) / math.sqrt(self.net.width)
        moves = signs[:, None] * (slopes.T @ points)
        pairs = len(self.params.signs)
        return eqx.tree_at(
            lambda p: (p.plus, p.minus),
            self.params,
            (self.params.plus + moves[:pairs], self.params.minus + moves[pairs:]),
        )

    def lipschitz(self, largest_norm: float) -> float:
        r"""Bound of $\|\phi(x) - \phi(x')\| / \|x - x'\|$ for $\|x\|, \|x'\| ≤ R$: $C_1 + C_2 R \|W_0\|_{op}/\sqrt m$.

        Each neuron's part of φ moves by at most $C_1 \|δ\| + R C_2 |w_r · δ|$, and $\sum_r |w_r · δ|^2 ≤
        \|W_0\|_{op}^2 \|δ\|^2$.
        """
        neurons = np.concatenate([self.params.plus, self.params.minus])
        spread = float(np.linalg.norm(neurons, 2)) / math.sqrt(self.net.width) * (1.0 + 1e-9)
        return self.net.activation.lipschitz + self.net.activation.smoothness * largest_norm * spread

    def bend(self, largest_norm: float, *, third: float) -> float:
        r"""Bound of $\|\partial^2 \phi\|$ along unit vectors: $2 C_2 s_2 + C_3 R s_4$, $C_3 ≥ |\sigma^{(3)}|$.

        $s_2 = \|W_0\|_{op}/\sqrt m ≥ (\frac1m \sum_r (w_r·u)^2)^{1/2}$, and $s_4^2 = \max\|w_r\|^2 s_2^2$ is at least
        $\frac1m \sum_r (w_r·u)^4$.
        """
        neurons = np.concatenate([self.params.plus, self.params.minus])
        spread = float(np.linalg.norm(neurons, 2)) / math.sqrt(self.net.width) * (1.0 + 1e-9)
        fourth = spread * float(np.max(np.linalg.norm(neurons, axis=1)))
        return 2.0 * self.net.activation.smoothness * spread + third * largest_norm * fourth

    def arc_lipschitz(self, x: Float[Array, " 3"]) -> float:
        r"""Bound of $\|\phi(\theta) - \phi(\theta')\| / |\theta - \theta'|$ on the circle of x, φ the gradient in W.

        With $s$ the circle's radius and $v_r$ the first two coordinates of neuron r, differentiating
        $\sigma'(w_r · x) x$ along the circle gives two orthogonal parts (x is perpendicular to its tangent), so that
        $\|\phi'\|^2 ≤ \frac1m \sum_r s^2 (C_1^2 + C_2^2 |v_r|^2 |x|^2)$.
        """
        circle = float(jnp.linalg.norm(x[:-1]))
        neurons = np.concatenate([self.params.plus, self.params.minus])[:, :2]
        sizes = np.sum(neurons**2, axis=1) * float(x @ x)
        activation = self.net.activation
        squares = activation.lipschitz**2 + activation.smoothness**2 * sizes
        return circle * math.sqrt(float(np.mean(squares)))
