r"""The smallest worst-case error within a ball of the kernel's space, and how it falls with the radius."""

from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust.expressiveness._cuts import Cuts, extended, make_cuts
from ntk_robust.expressiveness._expansion import Expanded, Expansion, make_expansion, norm_squared
from ntk_robust.expressiveness._programs import Groups, within_radius
from ntk_robust.expressiveness._sets import AbstractSets, Worst, default_key
from ntk_robust.kernels import AbstractKernel

_MAX_ROUNDS = 40
_PENALTY = 1.0


class Fit(Expanded):
    r"""The function of norm at most R with the smallest mean worst-case error, and how small it can be.

    Attributes:
        kernel: k.
        points: $x_j$ of $h = \sum_j \alpha_j k(·, x_j)$, of norm at most R.
        coefficients: $\alpha_j$.
        radius: R.
        norm: The norm of h, from above, or that of the function behind `error_upper`, if it is larger.
        error_lower: Certified lower bound of $\min_{\|h\| ≤ R} \frac1n \sum_i \sup_{B_i} |h - y|$: a value of the dual.
        error_attained: The largest mean error of this function that was found; no bound by itself.
        error_upper: Certified upper bound of the minimum, that of this function (of any that was tried, for
            `AttackedSets`, whose certificates seldom close); inf where the sets have none.
        dual_value: $\langle λ, y\rangle$ of the dual solution, with $\sum_j |λ_{ij}| ≤ 1/n$.
        dual_norm: $\sqrt{λ^\top K λ}$, from above. For every radius r, `dual_value - r * dual_norm` is a lower bound.
        num_constraints: Constraints of the last program.
        num_rounds: Rounds of constraint generation.
        converged: Whether the bounds met within the tolerance asked for; for `AttackedSets`, the lower one and
            `error_attained`.
    """

    radius: float
    norm: float
    error_lower: float
    error_attained: float
    error_upper: float
    dual_value: float
    dual_norm: float
    num_constraints: int
    num_rounds: int
    converged: bool


class ErrorCurve(eqx.Module):
    r"""The smallest error as a function of the radius, between two certified curves.

    The smallest error E(R) is convex and non-increasing. Each dual solution is a line below it; between the radii
    of two fits convex combinations of their functions are above it.

    Attributes:
        fits: One for each radius, in increasing order.
    """

    fits: tuple[Fit, ...]

    def _attained(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Norms of the functions in increasing order, and the smallest error up to each."""
        norms = np.array([fit.norm for fit in self.fits])
        order = np.argsort(norms, kind="stable")
        return norms[order], np.minimum.accumulate([self.fits[i].error_upper for i in order])

    def lower(self, radius: float) -> float:
        """Certified lower bound of E at a radius: the highest of the dual lines, at least 0."""
        return max([0.0, *(fit.dual_value - radius * fit.dual_norm for fit in self.fits)])

    def upper(self, radius: float) -> float:
        """Certified upper bound of E at a radius; inf below the smallest norm of a fit."""
        norms, errors = self._attained()
        last = int(np.searchsorted(norms, radius, side="right")) - 1
        if last < 0:
            return float("inf")
        if last == len(norms) - 1 or not np.isfinite(errors[last]):
            return float(errors[last])
        return float(np.interp(radius, norms[last : last + 2], errors[last : last + 2]))

    def smallest_radius(self, error: float) -> tuple[float, float]:
        r"""Lower and upper bound of the smallest R with E(R) ≤ `error`.

        The upper one is inf where no fit gets so low, the lower one 0 where no dual line says more.
        """
        lines = [(fit.dual_value - error) / fit.dual_norm for fit in self.fits if fit.dual_norm > 0.0]
        norms, errors = self._attained()
        reached = np.flatnonzero(errors <= error)
        if len(reached) == 0:
            upper = float("inf")
        elif reached[0] == 0 or not np.isfinite(errors[reached[0] - 1]):
            upper = float(norms[reached[0]])
        else:
            first = reached[0]
            share = (errors[first - 1] - error) / (errors[first - 1] - errors[first])
            upper = float(norms[first - 1] + share * (norms[first] - norms[first - 1]))
        return max([0.0, *lines]), upper


def best_fit(
    kernel: AbstractKernel,
    sets: AbstractSets,
    radius: float,
    *,
    relative_gap: float = 1e-2,
    absolute_gap: float = 1e-6,
    max_rounds: int = _MAX_ROUNDS,
    key: Key[Array, ""] | None = None,
) -> Fit:
    r"""The function in the ball of radius R of the kernel's space with the smallest mean worst-case error.

    $$\min_{\|h\|_H ≤ R} \frac1n \sum_i \sup_{x' ∈ B_i} |h(x') - y(x')|
      = \max_λ \Big\{ \sum_j λ_j y(x_j) - R \sqrt{λ^\top K λ} : \sum_{j ∈ B_i} |λ_j| ≤ \tfrac1n \Big\},$$

    with λ of finite support. With one set it is the best approximation of y in the sup norm; with perturbation sets of
    data, the smallest robust loss $L^{lin}(R)$ of a linearized network. Constraints are generated where the current
    function is worst, so that thousands of points cost little; only those that matter enter the program. Any λ gives a
    lower bound, so the certificates do not depend on how well the program was solved.

    Args:
        kernel: k.
        sets: The sets and their targets; their class says whether suprema are certified.
        radius: R, positive.
        relative_gap: When to stop: upper minus lower bound, relative to the upper one.
        absolute_gap: The same, in output units.
        max_rounds: Rounds of constraint generation at most.
        key: Randomness of a search; None where there is none.

    Raises:
        ValueError: If a number is not positive.

    References:
        Gao et al. (2019); item D4 of docs/theory/gao2019.
    """
    return error_curve(
        kernel,
        sets,
        [radius],
        relative_gap=relative_gap,
        absolute_gap=absolute_gap,
        max_rounds=max_rounds,
        key=key,
    ).fits[0]


def error_curve(
    kernel: AbstractKernel,
    sets: AbstractSets,
    radii: "list[float] | Float[np.ndarray, ' k']",
    *,
    relative_gap: float = 1e-2,
    absolute_gap: float = 1e-6,
    max_rounds: int = _MAX_ROUNDS,
    key: Key[Array, ""] | None = None,
) -> ErrorCurve:
    r"""`best_fit` for several radii, which share their constraints.

    Args:
        kernel: k.
        sets: The sets and their targets.
        radii: The radii R.
        relative_gap: See `best_fit`.
        absolute_gap: See `best_fit`.
        max_rounds: For each radius.
        key: See `best_fit`.

    Raises:
        ValueError: If a number is not positive.
    """
    radii = sorted(float(radius) for radius in radii)
    if not radii or min(radii) <= 0.0 or not relative_gap > 0.0 or not absolute_gap > 0.0 or max_rounds < 1:
        raise ValueError(
            f"radii are {radii}, relative_gap {relative_gap}, absolute_gap {absolute_gap}, max_rounds {max_rounds}; "
            "give positive numbers"
        )
    points, targets = sets.centers()
    both = np.concatenate([points, points]), np.concatenate([targets, targets])
    signs = np.repeat([1.0, -1.0], len(points))
    cuts = make_cuts(kernel, both[0], signs, signs * both[1], np.tile(np.arange(len(points)), 2))
    penalty, fits, best = _PENALTY, [], None
    for radius in radii:
        cuts, penalty, best, fit = _fit(
            kernel,
            sets,
            radius=radius,
            cuts=cuts,
            penalty=penalty,
            best=best,
            gaps=(relative_gap, absolute_gap),
            max_rounds=max_rounds,
            key=default_key(key),
        )
        fits.append(fit)
    return ErrorCurve(tuple(fits))


def _fit(
    kernel: AbstractKernel,
    sets: AbstractSets,
    *,
    radius: float,
    cuts: Cuts,
    penalty: float,
    best: "_Best | None",
    gaps: tuple[float, float],
    max_rounds: int,
    key: Key[Array, ""],
) -> tuple[Cuts, float, "_Best", Fit]:
    # what was feasible in a smaller ball is feasible here, and the function 0 in all of them
    if best is None:
        nothing = make_expansion(kernel, cuts.points, np.zeros(len(cuts.points)), cuts.gram)
        worst = sets.worst(nothing, "error", gaps[1], key)
        levels = np.zeros(sets.num_sets)
        best = _Best(nothing, *_errors(worst, levels), nothing.norm)
        new = _violated(kernel, nothing, worst, levels, gaps[1])
        cuts = cuts if new is None else extended(kernel, cuts, new)
    best_dual = (-np.inf, 0.0, 0.0)
    new, converged, rounds = None, False, 0
    for rounds in range(1, max_rounds + 1):  # noqa: B007 - reported
        groups = Groups(cuts.sets, 1.0 / sets.num_sets, sets.num_sets)
        found = within_radius(cuts.matrix, cuts.offsets, groups, radius, penalty)
        penalty = found.penalty
        squared, hidden = norm_squared(cuts.gram, found.weights * cuts.signs)
        value, length = float(found.weights @ cuts.offsets), float(np.sqrt(squared + hidden))
        best_dual = max(best_dual, (value - radius * length, value, length))
        coefficients = found.penalty * found.weights * cuts.signs
        squared, hidden = norm_squared(cuts.gram, coefficients)
        # into the ball, where the norm from above leaves it
        coefficients = coefficients * min(1.0, radius / max(float(np.sqrt(squared + hidden)), 1e-300))
        h = make_expansion(kernel, cuts.points, coefficients, cuts.gram)
        errors = cuts.offsets - cuts.signs * (cuts.gram @ coefficients)
        levels = _levels(cuts, errors, sets.num_sets)
        target = max(gaps[1], gaps[0] * max(best_dual[0], 0.0))
        converged = best.meets(sets, best_dual[0], gaps)
        if converged:
            break
        # far from the goal, suprema need not be known to a fraction of it, unless nothing else is left to learn
        fine = 0.2 * target
        coarse = max(fine, 0.05 * (best.reached(sets) - max(best_dual[0], 0.0))) if sets.closes else fine
        for accuracy in dict.fromkeys((coarse, fine)):
            worst = sets.worst(h, "error", accuracy, key)
            best = best.or_better(sets, h, worst, levels)
            converged = best.meets(sets, best_dual[0], gaps)
            new = None if converged else _violated(kernel, h, worst, levels, 0.1 * target)
            if converged or new is not None:
                break
        if new is None:
            break
        active = np.flatnonzero(found.weights > 1e-7 * groups.cap)
        if len(active) == 0:
            active = np.arange(len(cuts.signs))
        cuts = extended(kernel, cuts.kept(active), new)
    fit = Fit(
        radius=radius,
        kernel=kernel,
        points=best.h.points,
        coefficients=best.h.coefficients,
        norm=min(max(best.h.norm, best.norm), radius),
        error_lower=max(best_dual[0], 0.0),
        error_attained=best.attained,
        error_upper=best.upper,
        dual_value=best_dual[1],
        dual_norm=best_dual[2],
        num_constraints=len(cuts.signs),
        num_rounds=rounds,
        converged=bool(converged),
    )
    return cuts, penalty, best, fit


class _Best(NamedTuple):
    """What has been reached: a function, its error as far as it is known, and the smallest certified error.

    Attributes:
        h: The function.
        attained: The largest mean error of it that was found.
        upper: The smallest certified error.
        norm: The norm of the function that has it.
    """

    h: Expansion
    attained: float
    upper: float
    norm: float

    def reached(self, sets: AbstractSets) -> float:
        """The certified error, or the one attained where certificates cannot be asked to close."""
        return self.upper if sets.closes else self.attained

    def meets(self, sets: AbstractSets, lower: float, gaps: tuple[float, float]) -> bool:
        """Whether what has been reached is within the gaps, relative and absolute, of a lower bound."""
        reached = self.reached(sets)
        return reached - lower <= max(gaps[1], gaps[0] * reached)

    def or_better(self, sets: AbstractSets, h: Expansion, worst: Worst, levels: Float[np.ndarray, " n"]) -> "_Best":
        """This, or another function that is better, by its certificate where certificates close."""
        attained, upper = _errors(worst, levels)
        ahead = (upper, attained) < (self.upper, self.attained) if sets.closes else attained < self.attained
        certified = (upper, h.norm) if upper < self.upper else (self.upper, self.norm)
        return _Best(h, attained, *certified) if ahead else _Best(self.h, self.attained, *certified)


def _errors(worst: Worst, levels: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The mean over sets of the largest values found, now or among the constraints, and of the upper bounds."""
    return float(np.mean(np.maximum(worst.attained(), levels))), float(np.mean(worst.upper))


def _levels(cuts: Cuts, errors: Float[np.ndarray, " n"], count: int) -> Float[np.ndarray, " sets"]:
    """The largest error at the constraints of each set."""
    levels = np.zeros(count)
    np.maximum.at(levels, cuts.sets, errors)
    return levels


def _violated(
    kernel: AbstractKernel, h: Expansion, worst: Worst, levels: Float[np.ndarray, " n"], tolerance: float
) -> Cuts | None:
    """The points that are worse than all constraints of their set."""
    above = worst.values - levels[worst.sets]
    bad = np.flatnonzero(above > tolerance)
    if len(bad) == 0:
        bad = np.flatnonzero(above > 10.0 * h.error)
    if len(bad) == 0:
        return None
    points, targets = worst.points[bad], worst.targets[bad]
    signs = np.where(targets >= h(points), 1.0, -1.0)
    return make_cuts(kernel, points, signs, signs * targets, worst.sets[bad])
