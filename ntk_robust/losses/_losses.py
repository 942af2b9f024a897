"""Losses ℓ(f, y) of one output and one target.

A loss is evaluated on one example; callers `vmap`. The shape of the output says what is meant: a scalar `f` is a
regression or a binary classifier with targets ±1, a vector of `k` logits is a classifier with an integer target.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num


class AbstractLoss(eqx.Module):
    """A loss ℓ(output, target) of one example, to be averaged over examples by the caller."""

    @property
    @abc.abstractmethod
    def lipschitz(self) -> float:
        """Constant G with |ℓ(f, y) - ℓ(f', y)| ≤ G ‖f - f'‖₂ for every admissible target; `inf` if there is none."""

    @abc.abstractmethod
    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Loss of one example.

        Args:
            output: Network output: a scalar, or `k` logits where the class says so.
            target: Scalar target of the same dtype as `output`, or an integer label where the class says so.

        Returns:
            A scalar in the dtype of `output`.

        Raises:
            ValueError: If the shapes or the kind of target do not fit the loss.
        """


class Squared(AbstractLoss):
    r"""Half the squared error $\frac12 \lVert f - y \rVert_2^2$, for a scalar output or a vector with a vector target.

    Not globally Lipschitz, so `lipschitz` is `inf`.
    """

    @property
    def lipschitz(self) -> float:
        """Infinite: the slope grows with the error."""
        return math.inf

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Half the squared Euclidean error; see `AbstractLoss`."""
        _check_same_shape(self, output, target)
        return jnp.sum((output - target) ** 2) / 2


class Absolute(AbstractLoss):
    r"""Absolute error $|f - y|$ of a scalar output; its subgradient at $f = y$ is taken to be 0."""

    @property
    def lipschitz(self) -> float:
        """One."""
        return 1.0

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Absolute error; see `AbstractLoss`."""
        _check_scalar(self, output, target)
        return jnp.abs(output - target)


class Huber(AbstractLoss):
    r"""Huber's loss of a scalar output: $\frac12 e^2$ for $|e| ≤ τ$, else $τ(|e| - \frac τ2)$, with $e = f - y$.

    Attributes:
        threshold: $τ > 0$ in output units, which is also the Lipschitz constant.
    """

    threshold: float = eqx.field(default=1.0, static=True)

    def __check_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"Huber's threshold is {self.threshold}; it must be positive and finite")

    @property
    def lipschitz(self) -> float:
        """The threshold τ."""
        return self.threshold

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Huber's loss; see `AbstractLoss`."""
        _check_scalar(self, output, target)
        error = jnp.abs(output - target)
        # The clipped part alone meets the square, so that an error of 1e300 does not overflow.
        quadratic = jnp.minimum(error, self.threshold)
        return quadratic**2 / 2 + self.threshold * (error - quadratic)


class Hinge(AbstractLoss):
    r"""Hinge loss $\max(0, 1 - y f)$ of a scalar output and a target $y = ±1$."""

    @property
    def lipschitz(self) -> float:
        """One, for targets ±1."""
        return 1.0

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Hinge loss; see `AbstractLoss`."""
        _check_scalar(self, output, target)
        return jnp.maximum(1 - target * output, 0)


class Logistic(AbstractLoss):
    r"""Logistic loss $\log(1 + e^{-y f})$ of a scalar output and a target $y = ±1$, in nats.

    Loss and gradient keep full relative precision for $y f ≫ 0$, where $1 - p$ would have been rounded to zero.
    """

    @property
    def lipschitz(self) -> float:
        """One, for targets ±1."""
        return 1.0

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Logistic loss; see `AbstractLoss`."""
        _check_scalar(self, output, target)
        return jax.nn.softplus(-target * output)


class CrossEntropy(AbstractLoss):
    r"""Cross-entropy $-\log \operatorname{softmax}(z)_y$ of `k` ≥ 2 logits and an integer label, in nats.

    Computed as $\operatorname{softplus}(\log \sum_{j≠y} e^{z_j - z_y})$. The usual $\log\sum_j e^{z_j} - z_y$ has a
    gradient of exactly zero in float32 as soon as the label leads by about 17, which stops an attack on a confident
    network; this form loses nothing before the exponential itself underflows, at a lead of about 87.

    The label is not checked against `k` here, because it may be traced: `attacks.evaluate` and training do that on the
    host. An index outside 0..k-1 is clamped by JAX.
    """

    @property
    def lipschitz(self) -> float:
        """√2, the largest Euclidean norm of softmax(z) - e_y."""
        return math.sqrt(2.0)

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Cross-entropy; see `AbstractLoss`."""
        return jax.nn.softplus(jax.nn.logsumexp(_leads(self, output, target)))


class Margin(AbstractLoss):
    r"""Signed margin of the attacker: $\max_{j≠y} z_j - z_y$ for logits, $-y f$ for a scalar output.

    An example is classified correctly when this is negative; a tie (zero) counts as fooled, so the result of an attack
    does not depend on how `argmax` breaks ties.
    """

    @property
    def lipschitz(self) -> float:
        """√2 (logits); for a scalar output with targets ±1 the constant is 1."""
        return math.sqrt(2.0)

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Margin, positive or zero when fooled; see `AbstractLoss`."""
        if output.ndim == 0:
            _check_scalar(self, output, target)
            return -target * output
        return jnp.max(_leads(self, output, target))


class DLR(AbstractLoss):
    r"""Difference of logits ratio $\frac{\max_{j≠y} z_j - z_y}{z_{(1)} - z_{(3)}}$ of `k` ≥ 3 logits.

    $z_{(1)} ≥ z_{(2)} ≥ z_{(3)}$ are the largest logits. Invariant to shifts and positive scalings of the logits, so it
    does not fade on a confident network. Positive exactly when the margin is. Not Lipschitz, since the denominator can
    vanish; it is kept above 1e-12.

    For two logits or a scalar output there is no third value: attack the `Margin`.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness, 2020, equation 6.
    """

    @property
    def lipschitz(self) -> float:
        """Infinite."""
        return math.inf

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """DLR, positive when fooled; see `AbstractLoss`."""
        lead = jnp.max(_leads(self, output, target))
        _check_num_logits(self, output, 3)
        largest, _ = jax.lax.top_k(output, 3)
        return lead / (largest[0] - largest[2] + 1e-12)


class TargetedDLR(AbstractLoss):
    r"""Targeted difference of logits ratio $\frac{z_t - z_y}{z_{(1)} - (z_{(3)} + z_{(4)}) / 2}$ of `k` ≥ 4 logits.

    The target is the pair (y, t) of the label and the class that the attack aims at, an integer vector of length 2.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness, 2020, equation 7.
    """

    @property
    def lipschitz(self) -> float:
        """Infinite."""
        return math.inf

    def __call__(self, output: Float[Array, "..."], target: Num[Array, "..."]) -> Float[Array, ""]:
        """Targeted DLR, positive when class t beats the label; see `AbstractLoss`."""
        if target.shape != (2,) or not jnp.issubdtype(target.dtype, jnp.integer):
            raise ValueError(
                f"TargetedDLR needs the pair (label, aimed class) as integers, got a target of shape {target.shape} "
                f"and dtype {target.dtype}"
            )
        _check_num_logits(self, output, 4)
        largest, _ = jax.lax.top_k(output, 4)
        scale = largest[0] - (largest[2] + largest[3]) / 2 + 1e-12
        return (output[target[1]] - output[target[0]]) / scale


def _check_num_logits(loss: AbstractLoss, output: Float[Array, "..."], smallest: int) -> None:
    if output.ndim != 1 or output.shape[0] < smallest:
        raise ValueError(
            f"{type(loss).__name__} needs at least {smallest} logits in a vector, not an output of shape "
            f"{output.shape}; with fewer use Margin"
        )


def _leads(loss: AbstractLoss, output: Float[Array, "..."], label: Num[Array, "..."]) -> Float[Array, " k"]:
    """By how much each logit exceeds the label's, with minus infinity at the label itself."""
    name = type(loss).__name__
    if output.ndim != 1 or output.shape[0] < 2:
        raise ValueError(
            f"{name} needs a vector of at least two logits, got an output of shape {output.shape}; for one scalar "
            "output with targets ±1 use Logistic, Hinge or Margin"
        )
    if label.shape != () or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"{name} needs one integer label for {output.shape[0]} logits, got a target of shape {label.shape} and "
            f"dtype {label.dtype}"
        )
    is_label = jnp.arange(output.shape[0], dtype=label.dtype) == label
    return jnp.where(is_label, -jnp.inf, output - output[label])


def _check_scalar(loss: AbstractLoss, output: Float[Array, "..."], target: Num[Array, "..."]) -> None:
    if output.shape != ():
        raise ValueError(
            f"{type(loss).__name__} is defined for one scalar output, got shape {output.shape}; for logits use "
            "CrossEntropy or Margin"
        )
    _check_same_shape(loss, output, target)


def _check_same_shape(loss: AbstractLoss, output: Float[Array, "..."], target: Num[Array, "..."]) -> None:
    if output.shape != target.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(
            f"{type(loss).__name__} compares an output of shape {output.shape} with a target of shape {target.shape} "
            f"and dtype {target.dtype}; the target must be floating and have the output's shape"
        )
