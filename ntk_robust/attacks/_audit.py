"""What can be checked about an attack's result without believing the attack."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

_MOSTLY = 0.5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the audit noticed.

    Attributes:
        name: Stable identifier, such as "stale-gradient".
        severity: "fault": the attack breaks its contract, so its numbers mean nothing (points outside the set are never
            counted as successes). "weakness": the numbers are true, but a stronger attack exists; the adversarial
            accuracy is a loose upper bound.
        message: What was found and what to do, in one or two sentences.
    """

    name: str
    severity: Literal["fault", "weakness"]
    message: str


@dataclasses.dataclass(frozen=True)
class Audit:
    """Measurements made by `evaluate` outside the attack, and the findings drawn from them.

    Attributes:
        num_examples: n.
        num_outside: Results outside B(x), up to rounding.
        max_excess: Largest distance by which a result leaves B(x), in input units.
        num_value_mismatches: Results whose reported value a fresh forward pass does not reproduce.
        num_not_monotone: Results whose history of best values decreases somewhere.
        num_not_finite: Results with a coordinate, value or output that is not finite.
        zero_gradient_fraction: Fraction of the examples at which the gradient of the loss at x is exactly zero.
        flat_fraction: Fraction of the examples with a positive radius at which the attack did not raise the loss.
        fgsm_accuracy: Adversarial accuracy under `FGSM()` with the same loss.
        fgsm_margin_accuracy: Adversarial accuracy under `FGSM()` with the margin as objective.
        fgsm_loss: Mean loss at the points of `FGSM()` with the same loss.
        num_replayed: Examples whose attack was repeated under observation.
        gradients_taken: Gradients taken per replayed example, on average.
        gradient_points: Different points at which they were taken, on average.
        num_stale: Replayed examples in which the attack keeps using gradients of points that it has left.
        num_moved_at_zero: Replayed examples in which the attack at radius 0 does not return the input, up to rounding.
        num_nearer: Examples right under the attack for which the attack of least norm has a wrong point inside the set.
        findings: What follows, the faults first; empty if nothing is wrong.
    """

    num_examples: int
    num_outside: int
    max_excess: float
    num_value_mismatches: int
    num_not_monotone: int
    num_not_finite: int
    zero_gradient_fraction: float
    flat_fraction: float
    fgsm_accuracy: float
    fgsm_margin_accuracy: float
    fgsm_loss: float
    num_replayed: int
    gradients_taken: float
    gradient_points: float
    num_stale: int
    num_moved_at_zero: int
    num_nearer: int
    findings: tuple[Finding, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the audit found no fault; weaknesses may remain."""
        return not any(finding.severity == "fault" for finding in self.findings)


def draw_findings(
    audit: Audit,
    *,
    adversarial_accuracy: float,
    surrogate_loss: float,
    tolerance: float,
    more: Iterable[Finding] = (),
) -> Audit:
    """The audit with its findings and `more` filled in."""
    n = audit.num_examples
    rules: list[tuple[bool, str, Literal["fault", "weakness"], str]] = [
        (
            audit.num_outside > 0,
            "outside-set",
            "fault",
            f"{audit.num_outside} of {n} results leave the perturbation set, by up to {audit.max_excess:.3g} input "
            "units. They are not counted as successes; the attack must project around the clean input.",
        ),
        (
            audit.num_stale > 0,
            "stale-gradient",
            "fault",
            f"In {audit.num_stale} of {audit.num_replayed} replayed examples steps were made with gradients of points "
            f"that the attack had left ({audit.gradients_taken:.3g} gradients at {audit.gradient_points:.3g} points on "
            "average). Take the gradient at the current iterate.",
        ),
        (
            audit.num_moved_at_zero > 0,
            "moves-at-radius-zero",
            "fault",
            f"In {audit.num_moved_at_zero} of {audit.num_replayed} replayed examples the result at radius 0 is not the "
            "input; the attack must project around it.",
        ),
        (
            audit.num_value_mismatches > 0,
            "value-mismatch",
            "fault",
            f"{audit.num_value_mismatches} of {n} reported values are not the loss at the returned point. The attack "
            "may return another iterate than the one it scored, or the network is not a pure function.",
        ),
        (
            audit.num_not_monotone > 0,
            "not-monotone",
            "fault",
            f"{audit.num_not_monotone} of {n} histories of best values decrease somewhere: the best iterate is lost.",
        ),
        (
            audit.num_not_finite > 0,
            "not-finite",
            "fault",
            f"{audit.num_not_finite} of {n} results hold nan or infinity; look at the network's outputs and gradients "
            "near those inputs.",
        ),
        (
            adversarial_accuracy > audit.fgsm_accuracy,
            "weaker-than-fgsm",
            "weakness",
            f"One FGSM step leaves {audit.fgsm_accuracy:.2%} of the examples right, the attack "
            f"{adversarial_accuracy:.2%}. Use more steps, other step sizes or restarts.",
        ),
        (
            surrogate_loss < audit.fgsm_loss - tolerance,
            "lower-loss-than-fgsm",
            "weakness",
            f"One FGSM step reaches a mean loss of {audit.fgsm_loss:.6g}, the attack only {surrogate_loss:.6g}.",
        ),
        (
            min(adversarial_accuracy, audit.fgsm_accuracy) > audit.fgsm_margin_accuracy,
            "margin-step-better",
            "weakness",
            f"One FGSM step on the margin leaves {audit.fgsm_margin_accuracy:.2%} right, the attack "
            f"{adversarial_accuracy:.2%}: the loss hides the gradient. Attack the margin instead.",
        ),
        (
            audit.num_nearer > 0,
            "nearest-better",
            "weakness",
            f"On {audit.num_nearer} of {n} examples the attack of least norm has a wrong point inside the set and the "
            "attack none. Use more steps or restarts, and count both attacks.",
        ),
        (
            audit.zero_gradient_fraction > 0,
            "zero-gradient",
            "weakness",
            f"The gradient of the loss is exactly zero at {audit.zero_gradient_fraction:.2%} of the inputs; a gradient "
            "attack cannot start there. Use a random start, the margin as objective, or a score-based attack.",
        ),
        (
            audit.flat_fraction > _MOSTLY,
            "flat-loss",
            "weakness",
            f"At {audit.flat_fraction:.2%} of the examples no point had a larger loss than the input: the loss is flat "
            "there, or its gradient misleads. Compare with Square, which needs no gradients.",
        ),
    ]
    found = [Finding(name, severity, message) for applies, name, severity, message in rules if applies]
    findings = sorted([*found, *more], key=lambda finding: finding.severity)  # faults come before weaknesses
    return dataclasses.replace(audit, findings=tuple(findings))
