"""A statement of the literature as an experiment with a negative control."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
from jaxtyping import Array, Key

from ntk_robust._core import to_jsonable
from ntk_robust.theory._claim import Claim, Verdict
from ntk_robust.theory._report import Report

Size: TypeAlias = Literal["quick", "full"]
Experiment: TypeAlias = Callable[[Size, Key[Array, ""]], Report]


@dataclasses.dataclass(frozen=True)
class Check:
    """A statement and the experiment that could refute it.

    Attributes:
        citation: Where the statement comes from, with its number, and the page of docs/theory that derives it.
        statement: The statement itself, with its quantifiers and constants.
        run: `run(size, key)`, the experiment. "quick" takes seconds, "full" as long as it needs.
        control: `control(size, key)`: the same experiment where the statement is false. Its report must come out
            VIOLATED, or the check has no power; the hypothesis that it breaks on purpose is named in its notes, not
            in its hypotheses.
        name: The stem of the file that holds the check; the registry fills it in.

    Raises:
        ValueError: If citation or statement is empty.
    """

    citation: str
    statement: str
    run: Experiment
    control: Experiment
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("citation", "statement"):
            if not getattr(self, field).strip():
                raise ValueError(
                    f"check {self.name!r} has an empty {field}; say where the claim comes from and what it is"
                )


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What a check and its control found.

    Attributes:
        name: The check's name.
        citation: Its citation.
        statement: Its statement.
        verdict: The verdict of `report`, except that support does not count without a control that fails: SUPPORTED
            with a control other than VIOLATED is INCONCLUSIVE.
        control_verdict: The verdict of `control_report`; VIOLATED when the check works.
        report: The experiment.
        control_report: The negative control.
        seconds: Wall time of both, compilation included.
    """

    name: str
    citation: str
    statement: str
    verdict: Verdict
    control_verdict: Verdict
    report: Report
    control_report: Report
    seconds: float

    def record(self) -> dict[str, Any]:
        """The result in JSON types: name, citation, statement, verdicts, claims of run and control, tables, notes."""
        return {
            "name": self.name,
            "citation": self.citation,
            "statement": self.statement,
            "verdict": self.verdict.value,
            "control_verdict": self.control_verdict.value,
            "seconds": self.seconds,
            "claims": _claim_records(self.report),
            "control_claims": _claim_records(self.control_report),
            "tables": to_jsonable(self.report.tables),
            "figures": to_jsonable(self.report.figures),
            "notes": list(self.report.notes),
            "control_notes": list(self.control_report.notes),
        }


def run_check(check: Check, size: Size, key: Key[Array, ""]) -> CheckResult:
    """The result of a check and of its control, both in float64 and from one key.

    64-bit types are switched on for the duration of the call only; the caller's setting comes back.

    Args:
        check: What to run.
        size: "quick" or "full".
        key: Seeds both; equal keys give equal reports.

    Raises:
        ValueError: If `size` is neither.
    """
    if size not in ("quick", "full"):
        raise ValueError(f"size is {size!r}; use 'quick' or 'full'")
    started = time.perf_counter()
    with jax.enable_x64(True):
        report = check.run(size, key)
        control_report = check.control(size, key)
    seconds = time.perf_counter() - started
    verdict, control_verdict = report.verdict, control_report.verdict
    if verdict is Verdict.SUPPORTED and control_verdict is not Verdict.VIOLATED:
        verdict = Verdict.INCONCLUSIVE
    return CheckResult(
        name=check.name,
        citation=check.citation,
        statement=check.statement,
        verdict=verdict,
        control_verdict=control_verdict,
        report=report,
        control_report=control_report,
        seconds=seconds,
    )


def _claim_records(report: Report) -> list[dict[str, Any]]:
    roles = (("hypothesis", report.hypotheses), ("conclusion", report.conclusions))
    return [_claim_record(role, claim) for role, claims in roles for claim in claims]


def _claim_record(role: str, claim: Claim) -> dict[str, Any]:
    derived = {"role": role, "verdict": claim.verdict, "tightness": claim.tightness, "vacuous": claim.vacuous}
    return to_jsonable({**dataclasses.asdict(claim), **derived})
