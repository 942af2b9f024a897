"""Whether the perturbation sets of unlike points meet."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ntk_robust.attacks import AbstractPerturbationSet, L1Ball, L2Ball, LinfBall, SphereSlice


class Compatibility(eqx.Module):
    r"""Separation of data by class, in the norm of a perturbation set.

    Sets are *compatible* with data if the closures of $B(x_i)$ and $B(x_j)$ meet only where $y_i = y_j$.

    Attributes:
        classes: The labels, sorted.
        distances: Smallest distance between points of each two classes; of two different points on the diagonal.
        pairs: Rows of the two points at that distance, `pairs[a, b]` from class a and from class b.
        epsilon: Radius of the sets.
        broken: All pairs of rows $i < j$ of unlike labels whose sets meet.
        largest_epsilon: Supremum of the radii that are compatible with the data.
    """

    classes: Num[np.ndarray, " k"]
    distances: Float[np.ndarray, "k k"]
    pairs: Int[np.ndarray, "k k 2"]
    epsilon: float
    broken: Int[np.ndarray, "pairs 2"]
    largest_epsilon: float

    @property
    def compatible(self) -> bool:
        """Whether no pair is broken."""
        return len(self.broken) == 0


def compatibility(
    xs: Float[Array, "n d"], ys: Num[Array, " n"], perturbations: AbstractPerturbationSet
) -> Compatibility:
    r"""Smallest distances between classes, and the pairs of points on which no function can be robustly right.

    Two balls of radius ε meet if and only if their centers are at most 2ε apart; the box of valid inputs is convex and
    does not change that. Two caps of a sphere slice meet if their angles do: chords of $2 \arcsin$ of both add up.

    Args:
        xs: Inputs; on one sphere slice for a `SphereSlice`.
        ys: Labels.
        perturbations: The sets, of one radius.

    Raises:
        ValueError: If there are not two classes, or shapes disagree.
        TypeError: For a set of another kind.

    References:
        Gao et al. (2019), definition 3.1 (recalled); docs/theory/gao2019, section 1.
    """
    if not isinstance(perturbations, L1Ball | L2Ball | LinfBall | SphereSlice):
        raise TypeError(
            f"no rule for when two {type(perturbations).__name__}s meet; give an L1Ball, L2Ball, LinfBall or "
            "SphereSlice"
        )
    labels = np.asarray(ys)
    classes = np.unique(labels)
    if labels.shape != xs.shape[:1] or len(classes) < 2 or perturbations.epsilon.ndim != 0:
        raise ValueError(
            f"xs has shape {xs.shape}, ys {labels.shape} with {len(classes)} classes, epsilon shape"
            f" {perturbations.epsilon.shape}; give one label for each row, two classes or more, and one radius"
        )
    apart = np.array(_distances(perturbations, xs))
    np.fill_diagonal(apart, np.inf)
    epsilon = float(perturbations.epsilon)
    reach, largest = 2.0 * epsilon, 0.0
    count = len(classes)
    distances, pairs = np.full((count, count), np.inf), np.zeros((count, count, 2), int)
    members = [np.flatnonzero(labels == label) for label in classes]
    for a in range(count):
        for b in range(count):
            block = apart[np.ix_(members[a], members[b])]
            row, column = np.unravel_index(int(np.argmin(block)), block.shape)
            distances[a, b] = block[row, column]
            pairs[a, b] = members[a][row], members[b][column]
    closest = float(np.min(distances[~np.eye(count, dtype=bool)]))
    if isinstance(perturbations, SphereSlice):
        diameter = 2.0 * float(jnp.linalg.norm(xs[0, :-1]))

        def angle(chord: float) -> float:
            return 2.0 * float(np.arcsin(min(1.0, chord / diameter)))

        largest = diameter * float(np.sin(angle(closest) / 4.0))
        whole = min(2.0 * angle(epsilon), np.pi)
        reach = diameter * float(np.sin(whole / 2.0))
    else:
        largest = closest / 2.0
    unlike = labels[:, None] != labels[None, :]
    broken = np.argwhere(np.triu(unlike & (apart <= reach)))
    return Compatibility(classes, distances, pairs, epsilon, broken, largest)


@eqx.filter_jit
def _distances(perturbations: AbstractPerturbationSet, xs: Float[Array, "n d"]) -> Float[Array, "n n"]:
    return jax.lax.map(lambda x: jax.vmap(lambda z: perturbations.norm(z - x))(xs), xs)
