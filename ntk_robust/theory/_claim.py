"""One number against one prediction: the verdict compares an interval, never a point."""

import dataclasses
import enum
import math
from typing import Literal, SupportsFloat, TypeAlias

Relation: TypeAlias = Literal["<=", ">=", "==", "in"]

VACUOUS_BELOW = 1e-3
UNIT_ROUNDOFF = 2.0**-53


class Verdict(enum.StrEnum):
    """What an experiment says of a statement; never "proved"."""

    SUPPORTED = "SUPPORTED"
    VIOLATED = "VIOLATED"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_APPLICABLE = "NOT_APPLICABLE"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A measured number, what is predicted of it, and how well it is known.

    The true value lies in I = [measured − uncertainty, measured + uncertainty]; the prediction is a set P: a half line
    for "<=" and ">=", a point for "==", an interval for "in". With r the resolution, the largest departure from P
    that the claim is willing to overlook,

    - VIOLATED: I and P are disjoint;
    - SUPPORTED: uncertainty ≤ r, and I lies in P widened by r. Noise cannot buy this: a larger uncertainty than r never
      supports, however it falls;
    - INCONCLUSIVE: everything else, and a measurement that is not a number.

    Attributes:
        name: What was measured, in a few words.
        measured: The value found.
        relation: How it must lie to the prediction.
        predicted: A number, or (lower, upper) for "in".
        uncertainty: Half width of I in the unit of `measured`: a rounding bound, a certified gap, or standard errors
            times their factor. Zero only where the arithmetic is exact.
        resolution: r ≥ 0 in the same unit.
        note: Where the uncertainty comes from, or what is to be read from the number.

    Raises:
        ValueError: For an unknown relation, a prediction that does not fit it or is not finite, or a negative
            uncertainty or resolution.
    """

    name: str
    measured: float
    relation: Relation
    predicted: float | tuple[float, float]
    uncertainty: float
    resolution: float
    note: str = ""

    def __post_init__(self) -> None:
        if self.relation not in ("<=", ">=", "==", "in"):
            raise ValueError(f"claim {self.name!r}: relation is {self.relation!r}; use '<=', '>=', '==' or 'in'")
        if isinstance(self.predicted, tuple) != (self.relation == "in"):
            raise ValueError(
                f"claim {self.name!r}: predicted is {self.predicted!r} with relation {self.relation!r}; 'in' takes"
                " (lower, upper), the others take one number"
            )
        ends = self.predicted if isinstance(self.predicted, tuple) else (self.predicted,)
        if not all(math.isfinite(end) for end in ends) or list(ends) != sorted(ends):
            raise ValueError(
                f"claim {self.name!r}: predicted is {self.predicted!r}; give finite numbers, the lower end first"
            )
        if self.uncertainty < 0 or not self.resolution >= 0:
            raise ValueError(
                f"claim {self.name!r}: uncertainty {self.uncertainty!r} and resolution {self.resolution!r} must not be"
                " negative"
            )

    @property
    def allowed(self) -> tuple[float, float]:
        """The ends of P, infinite on an open side."""
        if isinstance(self.predicted, tuple):
            return self.predicted
        lower = -math.inf if self.relation == "<=" else self.predicted
        upper = math.inf if self.relation == ">=" else self.predicted
        return lower, upper

    @property
    def verdict(self) -> Verdict:
        """The interval's verdict; see the class."""
        if math.isnan(self.measured) or math.isnan(self.uncertainty):
            return Verdict.INCONCLUSIVE
        lower, upper = self.allowed
        low, high = self.measured - self.uncertainty, self.measured + self.uncertainty
        if low > upper or high < lower:
            return Verdict.VIOLATED
        within = lower - self.resolution <= low and high <= upper + self.resolution
        return Verdict.SUPPORTED if within and self.uncertainty <= self.resolution else Verdict.INCONCLUSIVE

    @property
    def tightness(self) -> float | None:
        """How much of a bound is used: 1 is attained, 1e-6 says nothing; above 1 it is broken.

        None for "==" and "in", and where the two numbers are not positive, since a quotient then has no meaning.
        """
        if isinstance(self.predicted, tuple) or self.relation == "==":
            return None
        used, bound = (self.measured, self.predicted) if self.relation == "<=" else (self.predicted, self.measured)
        return used / bound if used >= 0 and bound > 0 and math.isfinite(bound) else None

    @property
    def vacuous(self) -> bool:
        """Whether the bound is more than a thousand times what was measured: supported, and worth little."""
        return self.tightness is not None and self.tightness < VACUOUS_BELOW


def exact_claim(
    name: str,
    measured: SupportsFloat,
    relation: Relation,
    predicted: SupportsFloat | tuple[SupportsFloat, SupportsFloat],
    note: str = "",
) -> Claim:
    """A claim on integers, or on rational or otherwise exact arithmetic: no uncertainty, and nothing is overlooked."""
    bound = (float(predicted[0]), float(predicted[1])) if isinstance(predicted, tuple) else float(predicted)
    return Claim(name, float(measured), relation, bound, 0.0, 0.0, note)


def summation_error(num_terms: int, magnitude: float) -> float:
    r"""Upper bound for the rounding error of a float64 sum or inner product.

    In any order of summation, $|fl(Σ t_i) − Σ t_i| ≤ γ_n Σ|t_i|$ with $γ_n = n u / (1 − n u)$, $u = 2^{-53}$; products
    cost one more rounding each, so an inner product of length n has n + 1 terms here.

    Args:
        num_terms: n, with one more for each rounding that a term itself carries.
        magnitude: $Σ|t_i|$, in the unit of the sum.

    References:
        N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2.
    """
    gamma = num_terms * UNIT_ROUNDOFF / (1 - num_terms * UNIT_ROUNDOFF)
    return gamma * magnitude
