"""What an evaluation at several radii looks like: a study, and the examples as images."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

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
        return [
            dataclasses.replace(finding, message=f"Of APGD on the cross-entropy alone: {finding.message}")
            for finding in audit.findings
            if better.get(finding.name, -1.0) < accuracy
        ]

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
            "audit": {
                "sound": audit.is_sound,
                "findings": [dataclasses.asdict(finding) for finding in self.findings],
                "fgsm_accuracy": audit.fgsm_accuracy,
                "zero_gradient_fraction": audit.zero_gradient_fraction,
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


def attack_study(
    found: Sequence[AtRadius], *, name: str, norm: str, attack: str, num_examples: int, certifies: bool
) -> Study:
    """Accuracy against radius with both bounds, numbers, and the audit's findings."""
    radii = [result.radius for result in found]
    series = [
        Series("natural", radii, [result.evaluation.natural_accuracy for result in found], style="dashed"),
        Series(f"adversarial ({attack})", radii, [result.adversarial_accuracy for result in found]),
    ]
    if certifies:
        brackets = [result.bracket for result in found if result.bracket is not None]
        series.append(Series("certified", radii, [bracket.certified_accuracy for bracket in brackets]))
    accuracy = Figure(
        "accuracy",
        "Accuracy against radius",
        f"radius ({norm}, input units)",
        "fraction classified right",
        series,
        caption="The robust accuracy lies below the adversarial"
        + (" and above the certified curve." if certifies else " curve; nothing is certified."),
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
    text = f"{attack} in {norm} on {num_examples} test examples, against {name}."
    return Study(name="attack", title="Accuracy under attack", text=text, figures=[accuracy, losses], tables=tables)


def examples_svg(found: Sequence[AtRadius], apply_fn: Any, params: PyTree, dataset: Dataset) -> str:
    """A grid of the first examples that were right and are wrong, at the smallest radius where there are some."""

    def classes(points: np.ndarray) -> np.ndarray:
        return np.argmax(np.asarray(jax.vmap(apply_fn, (None, 0))(params, jnp.asarray(points))), axis=1)

    for result in found:
        fallen = np.flatnonzero(~result.is_right)
        clean, labels = np.asarray(dataset.x_test)[fallen], np.asarray(dataset.y_test)[fallen]
        if not len(fallen):
            continue
        chosen = np.flatnonzero(classes(clean) == labels)[:_NUM_SHOWN]
        if len(chosen):
            points = result.x_adv[fallen[chosen]]
            names = [
                (dataset.class_names[label], dataset.class_names[other])
                for label, other in zip(labels[chosen], classes(points), strict=True)
            ]
            return _grid(clean[chosen], points, names, dataset, f"radius {result.radius:g}")
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
