"""What an evaluation at several radii looks like: a study, and the examples as images."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ntk_robust._core import Figure, Series, Table
from ntk_robust.attacks import AutoAttackResult, Evaluation, Finding
from ntk_robust.certify import AccuracyBracket
from ntk_robust.data import Dataset
from ntk_robust.studies import Study

_NUM_SHOWN = 8
_INK = "#1f2430"


@dataclasses.dataclass(frozen=True)
class AtRadius:
    """One radius.

    Attributes:
        radius: In input units.
        evaluation: The attack's, with its audit; for AutoAttack that of its first attack.
        ensemble: What AutoAttack found, None for other attacks.
        bracket: With the certificate, or None where there is none.
    """

    radius: float
    evaluation: Evaluation
    ensemble: AutoAttackResult | None
    bracket: AccuracyBracket | None

    @property
    def is_right(self) -> np.ndarray:
        """Which examples are right with and without all attacks that ran."""
        is_right = np.asarray(self.evaluation.margins) < 0
        return is_right if self.ensemble is None else is_right & np.asarray(self.ensemble.is_right)

    @property
    def adversarial_accuracy(self) -> float:
        """Their fraction."""
        return float(np.mean(self.is_right))

    @property
    def x_adv(self) -> np.ndarray:
        """The ensemble's points where it has some that fool the network, else the attack's."""
        points = np.asarray(self.evaluation.x_adv)
        if self.ensemble is None:
            return points
        fell = ~np.asarray(self.ensemble.is_right).reshape((-1,) + (1,) * (points.ndim - 1))
        return np.where(fell, np.asarray(self.ensemble.x_adv), points)

    @property
    def findings(self) -> list[Finding]:
        """The audit's; of an ensemble's first attack only what the others have not made up for, and said to be its."""
        audit, controls = self.evaluation.audit, self.evaluation.controls
        if self.ensemble is None:
            return list(audit.findings)
        rivals = [] if controls is None else [accuracy for _, accuracy in controls.rival_accuracies]
        better = {
            "weaker-than-fgsm": audit.fgsm_accuracy,
            "margin-step-better": audit.fgsm_margin_accuracy,
            "rival-better": min(rivals, default=0.0),
        }
        accuracy = self.adversarial_accuracy
        findings = [
            dataclasses.replace(finding, message=f"Of APGD on the cross-entropy alone: {finding.message}")
            for finding in audit.findings
            if better.get(finding.name, -1.0) < accuracy
        ]
        after = list(self.ensemble.accuracy_after.items())
        if len(after) > 1 and after[-1][0] == "square" and after[-1][1] < after[-2][1]:
            message = (
                f"Square, which needs no gradients, brings the accuracy from {after[-2][1]:.2%} to {after[-1][1]:.2%} "
                "after all attacks that follow gradients: those are masked, or led astray."
            )
            findings.append(Finding("rival-better", "weakness", message))
        return findings

    def record(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        audit, controls = self.evaluation.audit, self.evaluation.controls
        certified = {} if self.bracket is None else {"certified_accuracy": self.bracket.certified_accuracy}
        return {
            "epsilon": self.radius,
            "natural_accuracy": self.evaluation.natural_accuracy,
            "adversarial_accuracy": self.adversarial_accuracy,
            **certified,
            "natural_loss": self.evaluation.natural_loss,
            "surrogate_loss": self.evaluation.surrogate_loss,
            "margins": self.evaluation.margins,
            "audit": {
                "sound": audit.is_sound,
                "findings": [dataclasses.asdict(finding) for finding in self.findings],
                "fgsm_accuracy": audit.fgsm_accuracy,
                "zero_gradient_fraction": audit.zero_gradient_fraction,
                "num_nearer": audit.num_nearer,
                "controls": None if controls is None else dataclasses.asdict(controls),
            },
        }

    def sentence(self) -> str:
        """One line for the terminal."""
        certified = "" if self.bracket is None else f", certified {self.bracket.certified_accuracy:.4g}"
        findings = [finding.name for finding in self.findings]
        noticed = f"; audit: {', '.join(findings)}" if findings else ""
        return (
            f"radius {self.radius:g}: natural {self.evaluation.natural_accuracy:.4g}, adversarial "
            f"{self.adversarial_accuracy:.4g}{certified}{noticed}"
        )


def minimum_radii(found: Sequence[AtRadius]) -> np.ndarray:
    """The smallest distance from each example at which any attack has shown a wrong point, `inf` where none has."""
    results = [result.evaluation for result in found] + [result.ensemble for result in found if result.ensemble]
    return np.min([np.asarray(result.minimum_radii) for result in results], axis=0)


def certified_radii(found: Sequence[AtRadius]) -> np.ndarray | None:
    """The largest of the radii at which each example is certified, 0 where none; None without certificates."""
    lower = [np.asarray(result.bracket.radius_lower) for result in found if result.bracket is not None]
    return np.max(lower, axis=0) if lower else None


def attack_record(found: Sequence[AtRadius], *, norm: str, attack: str, labels: Array) -> dict[str, Any]:
    """What attack.json holds: one record for each radius, and what is known of each example at all of them."""
    return {
        "attack": attack,
        "norm": norm,
        "radii": [result.record() for result in found],
        "examples": {
            "label": labels,
            "natural_margin": found[-1].evaluation.natural_margins,
            "minimum_radius": minimum_radii(found),
            "certified_radius": certified_radii(found),
        },
    }


def distances_sentence(found: Sequence[AtRadius], norm: str) -> str:
    """One line for the terminal: where half of the examples has fallen, at the latest and at the earliest."""
    upper, lower = minimum_radii(found), certified_radii(found)
    certified = "" if lower is None else f", at least {_quantile(lower, 0.5):.3g} (certified)"
    found_at = f"{_quantile(upper, 0.5):.3g} (found)"
    return f"distance to the nearest wrong point ({norm}): median at most {found_at}{certified}"


def _steps(label: str, radii: np.ndarray, largest: float) -> Series:
    """The fraction of examples whose radius is larger than the abscissa, as a curve with steps."""
    inside = np.unique(radii[radii < largest])
    ends = np.concatenate([[0.0], inside[inside > 0], [largest]])
    levels = [float(np.mean(radii > end)) for end in ends[:-1]]
    return Series(label, np.repeat(ends, 2)[1:-1].tolist(), np.repeat(levels, 2).tolist())


def attack_study(found: Sequence[AtRadius], *, name: str, norm: str, attack: str, certifies: bool) -> Study:
    """Accuracy against radius with both bounds, numbers, and the audit's findings."""
    radii = [result.radius for result in found]
    natural = found[-1].evaluation.natural_accuracy
    series = [
        Series("natural", [0.0, *radii], [natural] * (1 + len(radii)), style="dashed"),
        Series(f"adversarial ({attack})", radii, [result.adversarial_accuracy for result in found], style="points"),
    ]
    upper, lower = minimum_radii(found), certified_radii(found)
    if radii[-1] > 0:
        series.append(_steps("nearest wrong point found", upper, radii[-1]))
        if lower is not None:
            series.append(_steps("certified", lower, radii[-1]))
    accuracy = Figure(
        "accuracy",
        "Accuracy against radius",
        f"radius ({norm}, input units)",
        "fraction classified right",
        series,
        caption="The robust accuracy lies below the points and the steps of the nearest wrong points, "
        + ("and above those that are certified." if certifies else "and nothing is certified."),
    )
    losses = Figure(
        "losses",
        "Loss under attack",
        f"radius ({norm}, input units)",
        "mean loss that the attack maximizes",
        [Series("at the attack's points", radii, [result.evaluation.surrogate_loss for result in found])],
        caption="A lower bound of the robust loss.",
    )
    columns = ("radius", "natural accuracy", "adversarial accuracy", "certified accuracy", "FGSM accuracy", "audit")
    rows = [
        (
            result.radius,
            result.evaluation.natural_accuracy,
            result.adversarial_accuracy,
            None if result.bracket is None else result.bracket.certified_accuracy,
            result.evaluation.audit.fgsm_accuracy,
            "sound" if result.evaluation.audit.is_sound else "faulty",
        )
        for result in found
    ]
    findings = [
        (result.radius, finding.severity, finding.name, finding.message)
        for result in found
        for finding in result.findings
    ]
    tables = [Table("accuracies", "Both bounds", columns, rows)]
    if findings:
        tables.append(Table("findings", "Findings of the audit", ("radius", "severity", "name", "message"), findings))
    quantiles = {"10 %": 0.1, "median": 0.5, "90 %": 0.9}
    bounds = {"at most (a wrong point was found)": upper} | ({} if lower is None else {"at least (certified)": lower})
    rows = [(name, *(_quantile(values, level) for level in quantiles.values())) for name, values in bounds.items()]
    tables.append(Table("distances", "Distance to the nearest wrong point", ("bound", *quantiles), rows))
    text = f"{attack} in {norm} on {len(upper)} test examples, against {name}."
    return Study(name="attack", title="Accuracy under attack", text=text, figures=[accuracy, losses], tables=tables)


def _quantile(values: np.ndarray, level: float) -> float:
    """The smallest value that at least this fraction does not exceed; infinities are values like others."""
    return float(np.quantile(values, level, method="inverted_cdf"))


def examples_svg(found: Sequence[AtRadius], apply_fn: Any, params: PyTree, dataset: Dataset) -> str:
    """A grid of the first examples that were right and are wrong, at the smallest radius where there are some."""
    for result in found:
        fallen = (np.asarray(result.evaluation.natural_margins) < 0) & ~result.is_right
        chosen = np.flatnonzero(fallen)[:_NUM_SHOWN]
        if len(chosen):
            points = result.x_adv[chosen]
            outputs = jax.jit(jax.vmap(apply_fn, (None, 0)))(params, jnp.asarray(points))
            names = [
                (dataset.class_names[label], dataset.class_names[other])
                for label, other in zip(
                    np.asarray(dataset.y_test)[chosen], np.argmax(np.asarray(outputs), axis=1), strict=True
                )
            ]
            return _grid(np.asarray(dataset.x_test)[chosen], points, names, dataset, f"radius {result.radius:g}")
    return ""


def _grid(clean: np.ndarray, points: np.ndarray, names: list[tuple[str, str]], dataset: Dataset, where: str) -> str:
    """Inputs, attacked inputs and their difference, one column for each example."""
    import matplotlib as mpl  # slow to import, and only this draws
    from matplotlib.figure import Figure as Canvas

    shape, (low, high) = dataset.image_shape, dataset.box
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "examples", "text.color": _INK, "font.size": 8}):
        canvas = Canvas(figsize=(1.1 * len(clean) + 0.6, 4.2), layout="constrained")
        axes = canvas.subplots(3, len(clean), squeeze=False)
        for column, (label, said) in enumerate(names):
            difference = points[column] - clean[column]
            rows = (
                ((clean[column] - low) / (high - low), label),
                ((points[column] - low) / (high - low), f"said to be\n{said}"),
                (difference / (2 * np.abs(difference).max()) + 0.5, "difference"),
            )
            for row, (pixels, title) in enumerate(rows):
                image = np.clip(pixels, 0, 1).reshape(shape)
                axes[row, column].imshow(image[:, :, 0] if shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1)
                axes[row, column].set_title(title, fontsize=8)
                axes[row, column].set_axis_off()
        canvas.suptitle(f"input and its class, attacked input at {where} and the predicted class", fontsize=9)
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
