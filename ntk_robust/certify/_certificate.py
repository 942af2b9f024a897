"""Certified accuracy, and the two-sided statement that it makes with an attack's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from ntk_robust._core import with_fast_convolutions
from ntk_robust.attacks import AbstractPerturbationSet, Evaluation
from ntk_robust.certify._interval import AbstractBound
from ntk_robust.certify._network import Network


class Certificate(eqx.Module):
    """What is proven of a network on n perturbation sets.

    Attributes:
        margins: Lower bound over the whole set of the label's lead, minus the attacker's `Margin`:
            $z_y - max_{j≠y} z_j$ for logits, $y f$ for a scalar output, whatever the size of y. In output units; `-inf`
            where a bound overflowed.
        certified: Whether the margin is proven to be positive, so that no point of the set is classified wrongly.
    """

    margins: Float[Array, " n"]
    certified: Bool[Array, " n"]

    @property
    def certified_accuracy(self) -> float:
        """Fraction of the examples that is proven right on the whole set: a lower bound of the robust accuracy."""
        return float(np.mean(np.asarray(self.certified)))


class AccuracyBracket(eqx.Module):
    """Both sides of a robust accuracy: certified ≤ robust ≤ adversarial ≤ natural.

    Attributes:
        certified_accuracy: Proven right on the whole set.
        adversarial_accuracy: Right at x and at the attack's point.
        natural_accuracy: Right at x.
        gap: By how much the attack's margin exceeds the certified one, for each example, ≥ 0: where it is 0 both are
            exact.
        radius_lower: Proven lower bound of the distance from each example to the nearest wrong point, in input units: ε
            where certified, else 0.
        radius_upper: Upper bound of that distance, the evaluation's `minimum_radii`.
    """

    certified_accuracy: float
    adversarial_accuracy: float
    natural_accuracy: float
    gap: Float[Array, " n"]
    radius_lower: Float[Array, " n"]
    radius_upper: Float[Array, " n"]


def margin_specification(y: Int[Array, ""], num_classes: int, dtype: jnp.dtype | type) -> Float[Array, "others k"]:
    r"""Rows $e_y - e_j$ for all $j ≠ y$: the leads of a label over the other classes.

    Args:
        y: Label, which may be traced.
        num_classes: $k$.
        dtype: That of the network.

    Returns:
        A specification of k - 1 rows; all positive means classified right.

    Raises:
        ValueError: If there are fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"{num_classes} classes leave nothing to lead; give at least 2")
    others = jnp.arange(num_classes - 1, dtype=y.dtype)  # labels of data sets are int32 also where integers are int64
    others = others + (others >= y).astype(others.dtype)
    eye = jnp.eye(num_classes, dtype=dtype)
    return eye[y][None] - eye[others]


def certify_batch(
    method: AbstractBound,
    network: Network,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "..."],
    perturbations: AbstractPerturbationSet,
    *,
    batch_size: int | None = None,
) -> Certificate:
    """Certified margins of n examples, in one compiled program for each method and shape.

    Args:
        method: `IntervalBounds()`, `Zonotope()`, `Crown()` or `AlphaCrown()`.
        network: The network; new weights of the same shapes do not recompile.
        xs: Inputs, inside the box.
        ys: Integer labels for logits; floats other than 0 for a scalar output, of which the sign is the class.
        perturbations: The set; its `epsilon` may hold one radius for each example.
        batch_size: Examples at a time, None for all at once. Memory per example is, in `Crown`, twice the square of the
            widest layer for each layer.

    Returns:
        One margin for each example.

    Raises:
        ValueError: For an empty or misshapen batch, inputs that are not finite or outside the box, labels out of range
            or of the wrong kind, a radius for another number of examples, or a name in place of a method or a model in
            place of its network.
    """
    if not isinstance(method, AbstractBound):
        raise ValueError(f"method is {method!r}; give a bound, such as Crown()")
    if not isinstance(network, Network):
        raise ValueError(f"network is a {type(network).__name__}; give network_of(model, params)")
    _check_batch(network, xs, ys, perturbations)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size}; give a whole number of at least 1, or None")
    targets = ys.astype(network.dtype) if network.scalar else ys
    margins = _margins(method, network, xs, targets, perturbations, batch_size=batch_size)
    return Certificate(margins, margins > 0)


@eqx.filter_jit
def _margins(
    method: AbstractBound,
    network: Network,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, " n"],
    perturbations: AbstractPerturbationSet,
    *,
    batch_size: int | None,
) -> Float[Array, " n"]:
    def margin(example: tuple[Array, Array, Array]) -> Array:
        x, y, epsilon = example
        rows = y[None, None] if network.scalar else margin_specification(y, network.num_outputs, network.dtype)
        return jnp.min(method.lower(network, x, perturbations.with_epsilon(epsilon), rows))

    examples = (xs, ys, jnp.broadcast_to(perturbations.epsilon, (xs.shape[0],)))
    if batch_size is None or batch_size >= xs.shape[0]:
        return with_fast_convolutions(jax.vmap(margin))(examples)
    return with_fast_convolutions(lambda examples: jax.lax.map(margin, examples, batch_size=batch_size))(examples)


def bracket_accuracy(evaluation: Evaluation, certificate: Certificate) -> AccuracyBracket:
    """An attack's evaluation and a certificate of the same network, examples and set, after checking that they agree.

    A sound certificate and an honest attack cannot contradict each other: for every example the certified margin is at
    most the margin at the attack's point, and no wrong point is nearer than a certified radius.

    Args:
        evaluation: From `attacks.evaluate`.
        certificate: From `certify_batch`.

    Returns:
        The accuracies in order, and for each example the gap and both bounds of its minimum radius.

    Raises:
        ValueError: If the two hold different numbers of examples.
        ArithmeticError: If a margin found by the attack is below the certified one, or a wrong point inside a certified
            set: one of the two is wrong, or they belong to different networks, examples or radii.
    """
    found, proven = -np.asarray(evaluation.margins), np.asarray(certificate.margins)
    if found.shape != proven.shape:
        raise ValueError(
            f"the evaluation holds {found.shape[0]} examples and the certificate {proven.shape[0]}; give both the same"
        )
    broken = np.flatnonzero(found < proven)
    ordered = certificate.certified_accuracy <= evaluation.adversarial_accuracy <= evaluation.natural_accuracy
    if broken.size or not ordered:
        worst = int(np.argmin(found - proven))
        raise ArithmeticError(
            f"on {broken.size} of {found.size} examples an attack went below the certified margin (example {worst}: "
            f"{found[worst]:.6g} found, at least {proven[worst]:.6g} certified); check that network, inputs, labels, "
            "dtype and radius are the same, and report it if they are"
        )
    radius_lower = np.where(certificate.certified, evaluation.epsilon, 0)
    radius_upper = np.asarray(evaluation.minimum_radii)
    refuted = np.flatnonzero(np.asarray(certificate.certified) & (radius_upper <= radius_lower))
    if refuted.size:
        first = refuted[0]
        raise ArithmeticError(
            f"on {refuted.size} of {found.size} examples there is a wrong point inside the certified radius (example "
            f"{first}: at distance {radius_upper[first]:.6g}, certified up to {radius_lower[first]:.6g}); check that "
            "network, inputs, labels, dtype and norm are the same, and report it if they are"
        )
    return AccuracyBracket(
        certified_accuracy=certificate.certified_accuracy,
        adversarial_accuracy=evaluation.adversarial_accuracy,
        natural_accuracy=evaluation.natural_accuracy,
        gap=jnp.asarray(found - proven),
        radius_lower=jnp.asarray(radius_lower),
        radius_upper=jnp.asarray(radius_upper),
    )


def _check_batch(
    network: Network, xs: Float[Array, "..."], ys: Num[Array, "..."], perturbations: AbstractPerturbationSet
) -> None:
    if xs.ndim != len(network.input_shape) + 1 or xs.shape[1:] != network.input_shape or xs.shape[0] == 0:
        raise ValueError(
            f"xs has shape {xs.shape} for a network on inputs of shape {network.input_shape}; give at least one "
            "example along a leading axis"
        )
    if xs.dtype != network.dtype:
        raise ValueError(f"the network's weights are {network.dtype} and the inputs {xs.dtype}; cast one of them")
    if not np.isfinite(np.asarray(xs)).all():
        raise ValueError("xs holds nan or infinity; clean the data before certifying")
    if ys.shape != xs.shape[:1]:
        raise ValueError(f"xs has {xs.shape[0]} examples and ys has shape {ys.shape}; give one label for each")
    if perturbations.epsilon.shape not in ((), xs.shape[:1]):
        raise ValueError(
            f"epsilon has shape {perturbations.epsilon.shape} for {xs.shape[0]} examples; give one radius, or one for "
            "each"
        )
    if perturbations.box is not None:
        perturbations.box.check(xs)
    labels = np.asarray(ys)
    if network.scalar:
        if not np.issubdtype(labels.dtype, np.floating) or not np.all(np.isfinite(labels) & (labels != 0)):
            raise ValueError("the network has a scalar output, whose labels are floats such as ±1, not 0 and not nan")
    elif not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= network.num_outputs:
        raise ValueError(
            f"labels of dtype {labels.dtype} run from {labels.min()} to {labels.max()}; the network has "
            f"{network.num_outputs} logits and takes integers 0..{network.num_outputs - 1}"
        )
