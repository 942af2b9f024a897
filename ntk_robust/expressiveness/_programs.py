r"""The convex programs behind every fit, on finitely many constraints $\sigma_j h(x_j) ≥ b_j - t_{i(j)}$.

By the representer theorem $h = \sum_j \alpha_j k(·, x_j)$ with $\alpha_j = \sigma_j \mu_j$, $\mu ≥ 0$; the duals are
quadratic programs in μ with the matrix $Q_{jk} = \sigma_j \sigma_k K_{jk}$. They are solved by a primal-dual interior
point method, whose iterations do not depend on how badly conditioned K is (points of one perturbation set almost
coincide). Nothing rests on it having converged: whatever μ it returns, weak duality gives the lower bound and the
function with its coefficients the upper bound.
"""

from typing import NamedTuple

import numpy as np
import scipy  # loads its parts when they are first used
from jaxtyping import Float, Int

_MAX_ITERATIONS = 60
_TOLERANCE = 1e-11
_CENTER_LEAST = 1e-300
_CLOSE = 1e-5  # relative to the radius
_LARGEST_LOG_PENALTY = 60.0
_HIDDEN = 1e-13  # squared norms below this, relative to those of the points, are rounding
_MET = 1e-6  # a duality gap, relative to the largest offset


class Groups(NamedTuple):
    r"""Constraints $\sum_{j: i(j) = i} \mu_j ≤ c$ for each i.

    Attributes:
        owner: $i(j)$.
        cap: $c$.
        number: How many i there are.
    """

    owner: Int[np.ndarray, " n"]
    cap: float
    number: int

    def sums(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " groups"]:
        """The sum over each group."""
        return np.bincount(self.owner, values, self.number)


def quadratic_program(
    matrix: Float[np.ndarray, "n n"], linear: Float[np.ndarray, " n"], groups: Groups | None = None
) -> Float[np.ndarray, " n"]:
    r"""μ ≥ 0 that minimizes $\frac12 μ^\top Q μ - b^\top μ$, with caps on the sums of groups or without.

    Mehrotra's predictor-corrector method. The point returned is feasible (caps to rounding) and close to optimal; where
    a factorization fails the last iterate is returned.

    Args:
        matrix: Q, positive semi-definite.
        linear: b.
        groups: The caps.

    References:
        Nocedal and Wright, Numerical Optimization, 2nd ed., section 16.6.
    """
    n, count = len(linear), 0 if groups is None else groups.number
    scale = max(float(np.max(np.abs(linear))), 1e-300)
    size = max(float(np.mean(np.diag(matrix))), 1e-300)
    if groups is None:
        z = np.full(n, scale / (size * n))
    else:
        z = np.full(n, groups.cap / (2.0 * max(float(np.max(groups.sums(np.ones(n)))), 1.0)))
    slack = np.full(n, scale)
    room = np.empty(0) if groups is None else groups.cap - groups.sums(z)
    price = np.full(count, scale)
    shift = 1e-13 * size * np.eye(n)
    for _ in range(_MAX_ITERATIONS):
        product = matrix @ z
        dual_residual = product - linear - slack + _spread(price, groups)
        room_residual = np.empty(0) if groups is None else groups.sums(z) + room - groups.cap
        complementarity = (float(z @ slack) + float(room @ price)) / (n + count)
        objective = 1e-300 + abs(float(linear @ z)) + float(z @ product)
        if complementarity * (n + count) <= _TOLERANCE * objective and (
            float(np.max(np.abs(dual_residual))) <= 1e-9 * scale
        ):
            break
        system = matrix + shift
        system[np.diag_indices(n)] += slack / z
        if groups is not None:
            same = groups.owner[:, None] == groups.owner[None, :]
            system = system + np.where(same, (price / room)[groups.owner][:, None], 0.0)
        try:
            factor = scipy.linalg.cho_factor(system, lower=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            break
        residuals = _Residuals(factor, dual_residual, room_residual)
        dz, ds, droom, dprice = _newton(residuals, groups, (z, slack, room, price), -z * slack, -room * price)
        length = min(_longest(z, dz), _longest(slack, ds), _longest(room, droom), _longest(price, dprice))
        ahead = float((z + length * dz) @ (slack + length * ds) + (room + length * droom) @ (price + length * dprice))
        center = complementarity * min(1.0, (ahead / (n + count) / max(complementarity, _CENTER_LEAST)) ** 3)
        dz, ds, droom, dprice = _newton(
            residuals,
            groups,
            (z, slack, room, price),
            center - z * slack - dz * ds,
            center - room * price - droom * dprice,
        )
        length = min(_longest(z, dz), _longest(slack, ds), _longest(room, droom), _longest(price, dprice))
        if not np.isfinite(length) or not np.all(np.isfinite(dz)):
            break
        length *= 0.995
        z, slack, room, price = z + length * dz, slack + length * ds, room + length * droom, price + length * dprice
    if groups is not None:  # into the caps exactly
        z = z / np.maximum(1.0, groups.sums(z) / groups.cap)[groups.owner]
    return z


class _Residuals(NamedTuple):
    """A factorized Newton system and what is missing from feasibility."""

    factor: tuple
    dual: Float[np.ndarray, " n"]
    room: Float[np.ndarray, " groups"]


def _newton(
    residuals: _Residuals,
    groups: Groups | None,
    iterate: tuple[np.ndarray, ...],
    of_z: Float[np.ndarray, " n"],
    of_room: Float[np.ndarray, " groups"],
) -> tuple[np.ndarray, ...]:
    """The direction along which the products z s and w t change by `of_z` and `of_room`."""
    z, slack, room, price = iterate
    right = -residuals.dual + of_z / z
    if groups is not None:
        right = right - _spread((of_room + price * residuals.room) / room, groups)
    dz = scipy.linalg.cho_solve(residuals.factor, right, check_finite=False)
    ds = (of_z - slack * dz) / z
    if groups is None:
        return dz, ds, np.empty(0), np.empty(0)
    droom = -residuals.room - groups.sums(dz)
    return dz, ds, droom, (of_room - price * droom) / room


def _spread(price: Float[np.ndarray, " groups"], groups: Groups | None) -> Float[np.ndarray, " n"] | float:
    return 0.0 if groups is None else price[groups.owner]


def _longest(values: Float[np.ndarray, " n"], change: Float[np.ndarray, " n"]) -> float:
    """The longest step, at most 1, that keeps all values positive."""
    falling = change < 0
    return min(1.0, float(np.min(-values[falling] / change[falling]))) if np.any(falling) else 1.0


class Multipliers(NamedTuple):
    """A solution on finitely many constraints.

    Attributes:
        weights: μ.
        penalty: γ; the function has the coefficients γ σ_j μ_j.
    """

    weights: Float[np.ndarray, " n"]
    penalty: float


def within_radius(
    matrix: Float[np.ndarray, "n n"], linear: Float[np.ndarray, " n"], groups: Groups, radius: float, penalty: float
) -> Multipliers:
    r"""Multipliers of $\min_{\|h\| ≤ R} \sum_i c\, t_i$: those of the penalty γ at which the norm is R.

    The norm $γ\sqrt{μ^\top Q μ}$ grows with γ; the root is bracketed and found on logarithms. Where the norm stays
    below R however large γ, the constraints can be met with t = 0.

    Args:
        matrix: Q.
        linear: b.
        groups: The caps on μ.
        radius: R.
        penalty: Where to begin.
    """
    tried: dict[float, Multipliers] = {}
    size = float(np.max(np.diag(matrix)))

    def excess(log_penalty: float) -> float:
        gamma = float(np.exp(log_penalty))
        weights = quadratic_program(gamma * matrix, linear, groups)
        tried[log_penalty] = Multipliers(weights, gamma)
        norm = gamma * float(np.sqrt(max(weights @ matrix @ weights, 0.0)))
        difference = float(np.log(max(norm, 1e-300) / radius))
        return 0.0 if abs(difference) < _CLOSE else difference

    def settled(log_penalty: float) -> bool:
        """Whether the ball does not bind: primal and dual agree on these constraints, or no error is left on them."""
        weights, gamma = tried[log_penalty]
        product = matrix @ weights
        errors = np.zeros(groups.number)
        np.maximum.at(errors, groups.owner, linear - gamma * product)
        dual = float(weights @ linear) - radius * float(np.sqrt(max(weights @ product, 0.0)))
        least = groups.cap * float(np.sum(errors))
        return min(least, least - dual) <= _MET * float(np.max(np.abs(linear)))

    here = float(np.log(penalty))
    value, step = excess(here), 0.5
    while value != 0.0 and not (value < 0.0 and settled(here)):
        there = here - step if value > 0.0 else here + step
        if abs(there) > _LARGEST_LOG_PENALTY:
            return tried[here]
        other = excess(there)
        weights = tried[there].weights
        if float(weights @ matrix @ weights) <= _HIDDEN * size * float(np.sum(weights)) ** 2:
            return tried[here]
        if other * value <= 0.0:
            if other == 0.0:
                return tried[there]
            ends = min(here, there), max(here, there)
            root = float(scipy.optimize.brentq(excess, *ends, xtol=1e-9, maxiter=60, disp=False))  # pyright: ignore[reportArgumentType]
            return tried[root] if root in tried else tried[min(tried, key=lambda log: abs(log - root))]
        here, value, step = there, other, min(2.0 * step, 2.0)
    return tried[here]
