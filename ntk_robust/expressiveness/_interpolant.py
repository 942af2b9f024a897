"""The function of smallest norm that is right on all perturbation sets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from ntk_robust.expressiveness._cuts import Cuts, extended, make_cuts
from ntk_robust.expressiveness._expansion import Expanded, make_expansion, norm_squared
from ntk_robust.expressiveness._programs import quadratic_program
from ntk_robust.expressiveness._sets import AbstractSets, default_key
from ntk_robust.kernels import AbstractKernel


class Interpolant(Expanded):
    r"""A robust interpolant of small norm, and how small the norm can be.

    Attributes:
        kernel: k.
        points: $x_j$ of $h = \sum_j \alpha_j k(·, x_j)$.
        coefficients: $\alpha_j$.
        norm_lower: Certified lower bound of the smallest norm, whatever the perturbation sets hide: a value of the
            dual on points of the sets.
        norm_attained: Norm of the best function that no point found contradicts: an estimate, which a better search
            can only raise. inf if there is none.
        norm_upper: Certified upper bound: the norm of a function that is certified on all of the sets; inf where the
            certificate of the sets does not close. It need not be the norm of this function.
        num_constraints: Points of the last program.
        num_rounds: Rounds of constraint generation.
        converged: Whether `norm_attained` met `norm_lower` within the tolerance asked for.
    """

    norm_lower: float
    norm_attained: float
    norm_upper: float
    num_constraints: int
    num_rounds: int
    converged: bool


def robust_interpolant(
    kernel: AbstractKernel,
    sets: AbstractSets,
    *,
    tolerance: float | None = None,
    relative_gap: float = 1e-2,
    max_rounds: int = 30,
    key: Key[Array, ""] | None = None,
) -> Interpolant:
    r"""The function of smallest norm with $y_i h(x') ≥ 1$, or $|h(x') - y| ≤ ε$, for all $x' ∈ B_i$.

    A semi-infinite quadratic program, by constraint generation: the program on the points found so far, then the worst
    points of its solution. For any multipliers $μ ≥ 0$ with signs σ and offsets b of the constraints,

    $$\|h\| ≥ \frac{\sum_j μ_j b_j}{\sqrt{\sum_{jk} μ_j σ_j K_{jk} σ_k μ_k}}$$

    for every h that satisfies them: the lower bound. Scaling h up by its smallest margin gives functions that are
    right everywhere, certified or as far as the search knows: the upper ones.

    Args:
        kernel: k.
        sets: The sets; for margins their targets are ±1.
        tolerance: ε; None asks for margins.
        relative_gap: When to stop: the norm attained over the lower bound, minus 1.
        max_rounds: Rounds at most.
        key: Randomness of a search; None where there is none.

    Raises:
        ValueError: If margins are asked for targets other than ±1, or a number is not positive.

    References:
        Gao et al. (2019), assumption 5.1 (recalled) and item D4 of docs/theory/gao2019.
    """
    return norm_curve(kernel, [sets], tolerance=tolerance, relative_gap=relative_gap, max_rounds=max_rounds, key=key)[0]


def norm_curve(
    kernel: AbstractKernel,
    sets: Sequence[AbstractSets],
    *,
    tolerance: float | None = None,
    relative_gap: float = 1e-2,
    max_rounds: int = 30,
    key: Key[Array, ""] | None = None,
) -> tuple[Interpolant, ...]:
    r"""`robust_interpolant` for growing sets of the same data: how the norm grows with the radius.

    Points of a set belong to all larger ones, so that each program begins with the constraints of the one before, and
    `norm_lower` never falls.

    Args:
        kernel: k.
        sets: Each contained in the next, with the same centers and targets.
        tolerance: See `robust_interpolant`.
        relative_gap: See `robust_interpolant`.
        max_rounds: For each of them.
        key: See `robust_interpolant`.

    Raises:
        ValueError: If there are no sets, margins are asked for targets other than ±1, sets have other targets than the
            first, or a number is not positive.
    """
    if not sets:
        raise ValueError("there are no sets; give at least one")
    points, targets = sets[0].centers()
    if any(not np.array_equal(targets, other.centers()[1]) for other in sets):
        raise ValueError("the sets have different targets; give sets of one data set, each contained in the next")
    if tolerance is None and not np.all(np.abs(targets) == 1.0):
        raise ValueError(
            f"margins are for targets of ±1 and one is {targets[np.abs(targets) != 1.0][0]}; give a tolerance for "
            "others"
        )
    if not relative_gap > 0.0 or max_rounds < 1 or (tolerance is not None and not tolerance > 0.0):
        raise ValueError(
            f"relative_gap is {relative_gap}, max_rounds {max_rounds} and tolerance {tolerance}; give positive numbers"
        )
    aims = _Aims(tolerance, relative_gap, max_rounds, default_key(key))
    numbers = np.arange(len(points))
    if tolerance is None:
        cuts = make_cuts(kernel, points, targets, np.ones(len(points)), numbers)
    else:
        signs, twice = np.repeat([1.0, -1.0], len(points)), np.tile(numbers, 2)
        cuts = make_cuts(kernel, points[twice], signs, signs * targets[twice] - aims.level, twice)
    found, floor = [], 0.0
    for each in sets:
        interpolant, cuts = _interpolant(kernel, each, cuts, floor, aims)
        found.append(interpolant)
        floor = interpolant.norm_lower
    return tuple(found)


class _Aims(NamedTuple):
    """What is asked for."""

    tolerance: float | None
    relative_gap: float
    max_rounds: int
    key: Key[Array, ""]

    @property
    def level(self) -> float:
        """The margin, or a little less than the tolerance: such a function is right although suprema have gaps."""
        return 1.0 if self.tolerance is None else self.tolerance * (1.0 - 0.5 * self.relative_gap)


def _interpolant(
    kernel: AbstractKernel, sets: AbstractSets, cuts: Cuts, lower: float, aims: _Aims
) -> tuple[Interpolant, Cuts]:
    """The interpolant, from constraints that the sets imply and a lower bound; and the last constraints."""
    tolerance, relative_gap = aims.tolerance, aims.relative_gap
    goal, small = ("margin" if tolerance is None else "error"), 0.05 * relative_gap * (tolerance or 1.0)
    attained, upper = np.inf, np.inf
    converged, rounds, h = False, 0, None
    for rounds in range(1, aims.max_rounds + 1):  # noqa: B007 - reported
        weights = quadratic_program(cuts.matrix, cuts.offsets)
        coefficients = weights * cuts.signs
        squared, hidden = norm_squared(cuts.gram, coefficients)
        promised = cuts.offsets if tolerance is None else cuts.offsets + (aims.level - tolerance)
        lower = max(lower, float(weights @ promised) / float(np.sqrt(squared + hidden)))
        candidate = make_expansion(kernel, cuts.points, coefficients, cuts.gram)
        worst = sets.worst(candidate, goal, small, aims.key)
        found = _norm_of_right(candidate.norm, float(np.max(worst.attained())), tolerance)
        upper = min(upper, _norm_of_right(candidate.norm, float(np.max(worst.upper)), tolerance))
        if h is None or found <= attained:
            h = candidate
        attained = min(attained, found)
        # a certified function is right at every point that anyone will find
        converged = min(attained, upper) <= lower * (1.0 + relative_gap)
        if converged:
            break
        bad = np.flatnonzero(worst.values > (-1.0 if tolerance is None else aims.level) + small)
        if len(bad) == 0:
            break
        active = np.flatnonzero(weights > 1e-8 * np.max(weights))
        points, sides, sets_of = worst.points[bad], worst.targets[bad], worst.sets[bad]
        if tolerance is None:
            new = make_cuts(kernel, points, sides, np.ones(len(bad)), sets_of)
        else:
            signs = np.where(sides >= candidate(points), 1.0, -1.0)
            new = make_cuts(kernel, points, signs, signs * sides - aims.level, sets_of)
        cuts = extended(kernel, cuts.kept(active), new)
    assert h is not None
    interpolant = Interpolant(
        kernel, h.points, h.coefficients, lower, attained, upper, len(cuts.signs), rounds, bool(converged)
    )
    return interpolant, cuts


def _norm_of_right(norm: float, worst: float, tolerance: float | None) -> float:
    """The norm of the function, or of its multiple, that is right where the worst value is this; inf if none is."""
    if tolerance is None:
        return norm / -worst if worst < 0.0 else float("inf")
    return norm if worst <= tolerance else float("inf")
