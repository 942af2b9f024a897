"""What one experiment found: hypotheses, conclusions, and what they say together."""

import dataclasses
from collections.abc import Iterable

from ntk_robust._core import Figure, Table
from ntk_robust.theory._claim import Claim, Verdict


@dataclasses.dataclass(frozen=True)
class Report:
    """An experiment on a statement "if hypotheses then conclusions".

    Attributes:
        hypotheses: What the statement assumes, as measured; empty for an unconditional statement.
        conclusions: What it asserts, as measured; at least one.
        tables: Numbers worth reading beside the claims.
        figures: Figures, as data.
        notes: Sentences on scope, on what is only a trend, on what was seen.

    Raises:
        ValueError: Without conclusions, or where two claims share a name.
    """

    hypotheses: tuple[Claim, ...]
    conclusions: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.conclusions:
            raise ValueError("a report without conclusions says nothing; give at least one claim")
        names = [claim.name for claim in (*self.hypotheses, *self.conclusions)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"claims share the names {repeated}; a reader must be able to tell them apart")

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole statement.

        A hypothesis that is not met makes it NOT_APPLICABLE, whatever the conclusions say; one that is undecided makes
        it INCONCLUSIVE, since then neither support nor a violation could be blamed on the statement. Otherwise the
        worst conclusion decides.
        """
        assumed = worst(claim.verdict for claim in self.hypotheses)
        if assumed is Verdict.VIOLATED:
            return Verdict.NOT_APPLICABLE
        if assumed is Verdict.INCONCLUSIVE:
            return Verdict.INCONCLUSIVE
        return worst(claim.verdict for claim in self.conclusions)


_SEVERITY = (Verdict.VIOLATED, Verdict.INCONCLUSIVE, Verdict.SUPPORTED, Verdict.NOT_APPLICABLE)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on "all of these": VIOLATED before INCONCLUSIVE before SUPPORTED.

    NOT_APPLICABLE says nothing and counts only where there is nothing else; nothing at all is SUPPORTED.
    """
    found = set(verdicts)
    return next((verdict for verdict in _SEVERITY if verdict in found), Verdict.SUPPORTED)
