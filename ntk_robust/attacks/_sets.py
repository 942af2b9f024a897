"""Perturbation sets B(x): where an adversary may move an input."""

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray


def as_numbers(value: ArrayLike) -> Array:
    """An array of floats, so that a new radius does not mean a new compilation; floating arrays keep their dtype."""
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.result_type(float))


def is_concrete(*values: object) -> bool:
    """Whether the numbers can be looked at, that is, we are not inside a transformation."""
    return not any(isinstance(value, Tracer) for value in values)


class Box(eqx.Module):
    """The valid inputs: lower ≤ x ≤ upper in every coordinate.

    Attributes:
        lower: Smallest valid value in input units, one number or one per coordinate.
        upper: Largest valid value, likewise.

    Raises:
        ValueError: If a bound is not finite or lower ≥ upper anywhere.
    """

    lower: Float[Array, "..."] = eqx.field(converter=as_numbers)
    upper: Float[Array, "..."] = eqx.field(converter=as_numbers)

    def __check_init__(self) -> None:
        if not is_concrete(self.lower, self.upper):
            return
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower < upper).all()):
            raise ValueError(
                f"the box needs finite bounds with lower < upper in every coordinate, got lower={lower}, upper={upper}"
            )

    def clip(self, point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Nearest valid input (in every norm)."""
        return jnp.clip(point, self.lower.astype(point.dtype), self.upper.astype(point.dtype))

    def room(self, x: Float[Array, "*dims"]) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
        """How far each coordinate of `x` can go down (≤ 0) and up (≥ 0) inside the box."""
        down = jnp.minimum(self.lower.astype(x.dtype) - x, 0)
        up = jnp.maximum(self.upper.astype(x.dtype) - x, 0)
        return down, up

    def check(self, xs: Float[Array, "n *dims"]) -> None:
        """Refuses batches with inputs outside, up to rounding; what is traced is not looked at.

        Raises:
            ValueError: Quoting how many, or the shapes if the box has another one than the inputs.
        """
        for bound in (self.lower, self.upper):
            sizes = zip(bound.shape[::-1], xs.shape[:0:-1], strict=False)
            if bound.ndim >= xs.ndim or any(size not in (1, own) for size, own in sizes):
                raise ValueError(
                    f"the box has bounds of shape {bound.shape} for inputs of shape {xs.shape[1:]}; give one number, "
                    "or one for each coordinate"
                )
        if not is_concrete(xs, self.lower, self.upper):
            return
        values, lower, upper = np.asarray(xs), np.asarray(self.lower), np.asarray(self.upper)
        # A pixel of 255 / 255 in another precision may miss the bound by a rounding.
        slack = 4 * np.finfo(values.dtype).eps * max(np.abs(lower).max(), np.abs(upper).max())
        outside = ((values < lower - slack) | (values > upper + slack)).reshape(len(values), -1).any(axis=1)
        if outside.any():
            raise ValueError(
                f"{int(outside.sum())} of {len(values)} inputs leave the valid box [{lower.min():g}, {upper.max():g}]: "
                f"they span [{values.min():g}, {values.max():g}]; rescale the inputs, or give the box that they live in"
            )

    def excess(self, point: Float[Array, "*dims"]) -> Float[Array, ""]:
        """By how much the worst coordinate leaves the box, 0 inside."""
        return jnp.max(jnp.abs(point - self.clip(point)), initial=0)


class AbstractPerturbationSet(eqx.Module):
    """The set B(x) of inputs that an adversary may put in place of x.

    A set works on one example of any shape (norms are over all its coordinates); callers `vmap`. A radius per example
    is a vector `epsilon` with the set mapped along it: `jax.vmap(method, (0, ...))`.

    Attributes:
        epsilon: Radius in input units, ≥ 0.
        box: The valid inputs, or None when every input is valid. `x` itself must be valid.
    """

    epsilon: eqx.AbstractVar[Float[Array, "..."]]
    box: eqx.AbstractVar[Box | None]

    @abc.abstractmethod
    def project(self, x: Float[Array, "*dims"], point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Point of B(x) with the smallest Euclidean distance to `point`."""

    @abc.abstractmethod
    def argmax_linear(self, x: Float[Array, "*dims"], direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Point x' of B(x) with the largest <direction, x'>; coordinates on which nothing depends stay put."""

    @abc.abstractmethod
    def norm(self, delta: Float[Array, "*dims"]) -> Float[Array, ""]:
        """Size of a perturbation in the norm that `epsilon` bounds."""

    @abc.abstractmethod
    def sample(self, x: Float[Array, "*dims"], *, key: PRNGKeyArray) -> Float[Array, "*dims"]:
        """Random point of B(x); each class says with which distribution."""

    def ascent(self, direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The step of length one in which ascent methods follow a gradient; zero where that is zero.

        The Euclidean unit vector, so that with the Euclidean `project` the stationary points of projected ascent are
        those of the problem. A step that heeds the box or maximizes over an l1 ball would add others.
        """
        return unit(direction)

    def excess(self, x: Float[Array, "*dims"], x_adv: Float[Array, "*dims"]) -> Float[Array, ""]:
        """By how much `x_adv` leaves B(x), in input units; 0 inside, `nan` if a coordinate is not a number."""
        excess = jnp.maximum(self.norm(x_adv - x) - self.epsilon.astype(x.dtype), 0)
        return excess if self.box is None else jnp.maximum(excess, self.box.excess(x_adv))

    def rounding(self, x: Float[Array, "*dims"]) -> Float[Array, ""]:
        """Excess that floating point may cause: half a unit in the last place per coordinate of x, and 8 ulp of ε."""
        ulp = jnp.finfo(x.dtype).eps
        return ulp * (self.norm(x) + 8 * self.epsilon.astype(x.dtype))

    def contains(
        self, x: Float[Array, "*dims"], x_adv: Float[Array, "*dims"], *, atol: float | None = None
    ) -> Bool[Array, ""]:
        """Whether `x_adv` lies in B(x) up to an absolute tolerance.

        Args:
            x: Centre.
            x_adv: Candidate; a coordinate that is not a number is outside.
            atol: Tolerance in input units; None means `rounding(x)`, what floating point may cause.
        """
        return self.excess(x, x_adv) <= (self.rounding(x) if atol is None else atol)

    def with_epsilon(self, epsilon: ArrayLike) -> "AbstractPerturbationSet":
        """The same kind of set with another radius.

        Raises:
            ValueError: If the radius is negative or not finite.
        """
        epsilon = as_numbers(epsilon)
        check_epsilon(epsilon)
        return eqx.tree_at(lambda perturbations: perturbations.epsilon, self, epsilon)


def check_epsilon(epsilon: Float[Array, "..."]) -> None:
    """Refuses radii that are negative, infinite or not numbers.

    Raises:
        ValueError: Quoting the radius.
    """
    if is_concrete(epsilon) and not (np.isfinite(np.asarray(epsilon)).all() and (np.asarray(epsilon) >= 0).all()):
        raise ValueError(
            f"epsilon={np.asarray(epsilon)} is no radius; give a finite number of input units, zero or more"
        )


def reflect_into_box(x: Float[Array, "*dims"], delta: Float[Array, "*dims"], box: Box) -> Float[Array, "*dims"]:
    """The perturbation with each coordinate's sign flipped where that, and only that, keeps it inside the box."""
    down, up = box.room(x)
    outside = (delta < down) | (delta > up)
    flipped_inside = (-delta >= down) & (-delta <= up)
    return jnp.where(outside & flipped_inside, -delta, delta)


def unit(direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The direction with Euclidean norm one, also where its squares would under- or overflow; zero stays zero."""
    largest = jnp.max(jnp.abs(direction), initial=0)
    scaled = direction / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(jnp.linalg.norm(scaled.ravel()), 1)


class LinfBall(AbstractPerturbationSet):
    """l∞ ball ∩ box: every coordinate moves by at most ε and stays valid. Every method is exact.

    Attributes:
        epsilon: Radius in input units, one number or one per example (under `vmap`).
        box: The valid inputs, or None.

    Raises:
        ValueError: If the radius is negative or not finite.
    """

    epsilon: Float[Array, "..."] = eqx.field(converter=as_numbers)
    box: Box | None = None

    def __check_init__(self) -> None:
        check_epsilon(self.epsilon)

    def _bounds(self, x: Float[Array, "*dims"]) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
        epsilon = self.epsilon.astype(x.dtype)
        if self.box is None:
            return x - epsilon, x + epsilon
        return self.box.clip(x - epsilon), self.box.clip(x + epsilon)

    def project(self, x: Float[Array, "*dims"], point: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Nearest point, exact: each coordinate is clipped."""
        return jnp.clip(point, *self._bounds(x))

    def argmax_linear(self, x: Float[Array, "*dims"], direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Exact maximizer, a corner; coordinates with direction 0 keep the value of x."""
        lower, upper = self._bounds(x)
        return jnp.where(direction > 0, upper, jnp.where(direction < 0, lower, x))

    def ascent(self, direction: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Sign of the direction: every coordinate moves by one."""
        return jnp.sign(direction)

    def norm(self, delta: Float[Array, "*dims"]) -> Float[Array, ""]:
        """Largest absolute coordinate."""
        return jnp.max(jnp.abs(delta), initial=0)

    def sample(self, x: Float[Array, "*dims"], *, key: PRNGKeyArray) -> Float[Array, "*dims"]:
        """Uniform in ball ∩ box, exactly: the set is a product of intervals."""
        lower, upper = self._bounds(x)
        # A convex combination rounded can leave the interval by an ulp.
        return jnp.clip(lower + (upper - lower) * jr.uniform(key, x.shape, x.dtype), lower, upper)
