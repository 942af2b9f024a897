r"""Activation functions with the constants that the theory asks of them.

$C_1 = \sup|\sigma'|$ is `lipschitz`, $C_2$, the Lipschitz constant of $\sigma'$, is `smoothness`.
"""

# An equinox AbstractVar may be filled by a class constant or a property, which pyright cannot say.
# pyright: reportIncompatibleVariableOverride=false

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SQRT_2 = math.sqrt(2.0)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


class AbstractActivation(eqx.Module):
    r"""A scalar function $\sigma$, applied elementwise, with its derivative and constants.

    Attributes:
        lipschitz: $C_1 = \sup|\sigma'|$, `inf` where unbounded.
        smoothness: $C_2$, the Lipschitz constant of $\sigma'$, `inf` where there is none.
    """

    lipschitz: eqx.AbstractVar[float]
    smoothness: eqx.AbstractVar[float]

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\sigma(z)$."""

    @abc.abstractmethod
    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\sigma'(z)$, the value that automatic differentiation takes at a kink."""


class Identity(AbstractActivation):
    r"""$\sigma(z) = z$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = 0.0

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$z$."""
        return z

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """1."""
        return jnp.ones_like(z)


class Relu(AbstractActivation):
    r"""$\sigma(z) = \max(z, 0)$, with $\sigma'(0) = 0$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = math.inf

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\max(z, 0)$."""
        return jax.nn.relu(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """1 where z > 0, else 0."""
        return (z > 0).astype(z.dtype)


class LeakyRelu(AbstractActivation):
    r"""$\sigma(z) = z$ for $z > 0$, else `slope` times $z$, with $\sigma'(0)$ the slope."""

    slope: float = eqx.field(default=0.01, static=True)

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$z$ or `slope` times $z$."""
        return jnp.where(z > 0, z, self.slope * z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """1 where z > 0, else the slope."""
        return jnp.where(z > 0, jnp.ones_like(z), jnp.full_like(z, self.slope))

    @property
    def lipschitz(self) -> float:
        """The larger of 1 and the slope's size."""
        return max(1.0, abs(self.slope))

    @property
    def smoothness(self) -> float:
        """Infinite, but for slope 1."""
        return 0.0 if self.slope == 1.0 else math.inf


class Abs(AbstractActivation):
    r"""$\sigma(z) = |z|$, with $\sigma'(0) = 0$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = math.inf

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$|z|$."""
        return z * jnp.sign(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The sign of z."""
        return jnp.sign(z)


class Erf(AbstractActivation):
    r"""$\sigma(z) = \mathrm{erf}(z)$."""

    lipschitz: ClassVar[float] = 2.0 / math.sqrt(math.pi)
    smoothness: ClassVar[float] = (
        4.0 / math.sqrt(math.pi) * math.sqrt(0.5) * math.exp(-0.5)
    )  # |σ''| = 4|z|exp(-z²)/√π, at z² = 1/2

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\mathrm{erf}(z)$."""
        return jax.lax.erf(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$2 e^{-z^2} / \sqrt\pi$."""
        return self.lipschitz * jnp.exp(-z * z)


class Gelu(AbstractActivation):
    r"""$\sigma(z) = z \Phi(z)$ with the standard normal distribution function $\Phi$ (no approximation)."""

    # σ'(z) = Φ(z) + zφ(z) is largest at z = √2; |σ''(z)| = φ(z)|2 - z²| at 0.
    lipschitz: ClassVar[float] = 0.5 * (1.0 + math.erf(1.0)) + _SQRT_2 * _INV_SQRT_2PI * math.exp(-1.0)
    smoothness: ClassVar[float] = 2.0 * _INV_SQRT_2PI

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$z \Phi(z)$."""
        return z * _normal_cdf(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\Phi(z) + z \varphi(z)$."""
        return _normal_cdf(z) + z * (_INV_SQRT_2PI * jnp.exp(-0.5 * z * z))


class Softplus(AbstractActivation):
    r"""$\sigma(z) = \log(1 + e^z)$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = 0.25

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\log(1 + e^z)$."""
        return jax.nn.softplus(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$1 / (1 + e^{-z})$."""
        return jax.nn.sigmoid(z)


class Tanh(AbstractActivation):
    r"""$\sigma(z) = \tanh z$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = 4.0 / (3.0 * math.sqrt(3.0))  # |σ''| = 2|t|(1 - t²) with t = tanh z, at t² = 1/3

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\tanh z$."""
        return jnp.tanh(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$1 - \tanh^2 z$, as $1 / \cosh^2 z$ so that nothing cancels."""
        decay = jnp.exp(-2.0 * jnp.abs(z))
        return 4.0 * decay / (1.0 + decay) ** 2


class Monomial(AbstractActivation):
    r"""$\sigma(z) = z^k$ with $k$ = `degree`."""

    degree: int = eqx.field(default=2, static=True)

    def __check_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"Monomial has degree {self.degree}; give an integer of at least 1")

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$z^k$."""
        return jax.lax.integer_pow(z, self.degree)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$k z^{k-1}$."""
        return self.degree * jax.lax.integer_pow(z, self.degree - 1)

    @property
    def lipschitz(self) -> float:
        """1 for degree 1, else infinite."""
        return 1.0 if self.degree == 1 else math.inf

    @property
    def smoothness(self) -> float:
        """0 and 2 for degrees 1 and 2, else infinite."""
        return {1: 0.0, 2: 2.0}.get(self.degree, math.inf)


class QuadraticRelu(AbstractActivation):
    r"""$\sigma(z) = \max(z, 0)^2$."""

    lipschitz: ClassVar[float] = math.inf
    smoothness: ClassVar[float] = 2.0

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\max(z, 0)^2$."""
        return jnp.square(jax.nn.relu(z))

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$2 \max(z, 0)$."""
        return 2.0 * jax.nn.relu(z)


class Sin(AbstractActivation):
    r"""$\sigma(z) = \sin z$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = 1.0

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\sin z$."""
        return jnp.sin(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\cos z$."""
        return jnp.cos(z)


class Cos(AbstractActivation):
    r"""$\sigma(z) = \cos z$."""

    lipschitz: ClassVar[float] = 1.0
    smoothness: ClassVar[float] = 1.0

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$\cos z$."""
        return jnp.cos(z)

    def derivative(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""$-\sin z$."""
        return -jnp.sin(z)


def _normal_cdf(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Φ by the complementary error function, accurate in the lower tail."""
    return 0.5 * jax.lax.erfc(z * (-1.0 / _SQRT_2))
