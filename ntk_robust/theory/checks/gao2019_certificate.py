"""The a-posteriori certificate of adversarial training on a deep ReLU network: every term is computed."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim, summation_error
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._regret import (
    Setting,
    adversaries,
    flat_weights,
    make_setting,
    on_boundary,
    output_error,
    pair_with,
    record_run,
)
from ntk_robust.training import Trajectory

# Of a loss of size 1. The rounding bound grows about tenfold with each layer, and full size goes down to depth 6.
_RESOLUTION = {"quick": 1e-8, "full": 1e-3}


def _run(size: Size, key: Key[Array, ""]) -> Report:
    setting_key, run_key, comparator_key = jr.split(key, 3)
    settings = _settings(size, setting_key)
    runs = (  # one at a time: each holds the weights and gradients of all steps
        (f"{name}, H={setting.net.num_hidden_layers}", setting, record_run(setting, attack, key=run_key))
        for setting in settings
        for name, attack in adversaries(size).items()
    )
    return _report(runs, _RESOLUTION[size], comparator_key, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    setting_key, run_key, comparator_key = jr.split(key, 3)
    setting = _settings(size, setting_key)[0]
    run = record_run(setting, adversaries(size)["random"], key=run_key, step_size=-setting.step_size)
    note = "Broken on purpose: steps along the gradient instead of against it."
    runs = [(f"random, H={setting.net.num_hidden_layers}", setting, run)]
    return _report(runs, _RESOLUTION[size], comparator_key, (note,))


def _settings(size: Size, key: Key[Array, ""]) -> list[Setting]:
    if size == "quick":
        return [make_setting(width=48, num_hidden_layers=2, num_train=12, scaled_radius=1.0, num_steps=40, key=key)]
    return [
        make_setting(width=128, num_hidden_layers=depth, num_train=32, scaled_radius=2.0, num_steps=150, key=key)
        for depth in (1, 2, 3, 4, 5, 6)
    ]


class Certificate(NamedTuple):
    """The two sides of the inequality for one run and one comparator U, in units of the loss.

    Attributes:
        surrogate: Left side: the mean of L_A(W_t) over the steps.
        comparator: Mean of ℓ_t(U), the loss of U at the inputs that the attack chose against W_t; at most L_*(U).
        radius: (|W_0 − U|² − |W_T − U|²) / (2 α T), at most |W_0 − U|²/(2 α T).
        step: (α / 2) mean |g_t|².
        linearization: −mean s_i^t r_i^t(U).
        uncertainty: Bound for the rounding of both sides together.
        largest_remainder: The largest |r_i^t(U)| met.
    """

    surrogate: float
    comparator: float
    radius: float
    step: float
    linearization: float
    uncertainty: float
    largest_remainder: float

    @property
    def bound(self) -> float:
        """The right side."""
        return self.comparator + self.radius + self.step + self.linearization


def certify(setting: Setting, run: Trajectory, comparator: Float[np.ndarray, " weights"]) -> Certificate:
    """All terms, from the recorded weights, inputs and gradients."""
    alpha, steps = setting.step_size, setting.num_steps
    weights, gradients = flat_weights(run.params.hidden), flat_weights(run.gradients.hidden)
    pairing = pair_with(setting, run, comparator)
    first, last = (float(np.sum((weights[end] - comparator) ** 2)) for end in (0, -1))
    squares = np.sum(gradients**2, axis=1)
    remainder = np.asarray(pairing.remainder)
    # The loop's W_{t+1} is rounded by about a unit in the last place of |W|, which moves |W_{t+1} − U|² by twice that.
    largest = float(np.max(np.sqrt(np.sum((weights - comparator) ** 2, axis=1))))
    storing = summation_error(4, 2 * largest * float(np.max(np.linalg.norm(weights, axis=1)))) / (2 * alpha)
    radial = summation_error(weights.shape[1] + 3, largest * setting.radius * setting.net.num_hidden_layers) / alpha
    summing = summation_error(
        weights.shape[1] + 3, (first + last) / (2 * alpha * steps) + alpha * float(np.mean(squares))
    )
    return Certificate(
        surrogate=float(np.mean(run.surrogate_loss)),
        comparator=float(np.mean(pairing.loss)),
        radius=(first - last) / (2 * alpha * steps),
        step=alpha / 2 * float(np.mean(squares)),
        linearization=-float(np.mean(np.asarray(pairing.slope) * remainder)),
        uncertainty=5 * output_error(setting) + storing + radial + summing,
        largest_remainder=float(np.max(np.abs(remainder))),
    )


def _report(
    runs: Iterable[tuple[str, Setting, Trajectory]], resolution: float, key: Key[Array, ""], notes: tuple[str, ...]
) -> Report:
    conclusions, rows, figures = [], [], []
    outside = 0
    for name, setting, run in runs:
        if not figures:
            figures.append(_figure(name, setting, run))
        weights = flat_weights(run.params.hidden)
        outside += np.sum(_layer_distances(setting, weights) > setting.radius * (1 + 1e-12))
        random, ahead = np.asarray(jr.normal(key, (weights.shape[1],))), weights[-1] - weights[0]
        for which, comparator in (
            ("random boundary point", on_boundary(setting, random)),
            ("boundary point ahead", on_boundary(setting, ahead)),
            ("W_T", weights[-1]),
        ):
            found = certify(setting, run, comparator)
            conclusions.append(
                Claim(
                    f"mean L_A against its bound, {name}, U = {which}",
                    found.surrogate,
                    "<=",
                    found.bound,
                    found.uncertainty,
                    resolution,
                    "uncertainty is the rounding bound of both sides",
                )
            )
            rows.append(
                (
                    f"{name}, {which}",
                    *(found.surrogate, found.bound, found.bound - found.surrogate),
                    *(found.comparator, found.radius, found.step, found.linearization),
                    *(found.largest_remainder, _largest_layer_gradient(setting, run)),
                )
            )
    columns = (
        *("attack, depth, U", "mean L_A", "bound", "slack", "mean ℓ_t(U)", "radius term", "step term"),
        *("linearization term", "largest |r|", "C_g"),
    )
    caption = (
        "The bound is the sum of the four terms that follow it. C_g is the largest layer gradient divided by √m, as in "
        "the step term's bound α G² H m C_g²/2; the largest |r| is what the theorem's supremum over B(R) must cover."
    )
    return Report(
        hypotheses=(exact_claim("weights outside B(R), comparators included", outside, "==", 0),),
        conclusions=tuple(conclusions),
        tables=(Table("certificate", "The certificate and its terms, in units of the loss", columns, rows, caption),),
        figures=tuple(figures),
        notes=(
            *notes,
            "ℓ_t(U) ≤ L_*(U), so the bound holds with the robust loss of U in place of the mean of ℓ_t(U).",
        ),
    )


def _layer_distances(setting: Setting, weights: Float[np.ndarray, "steps weights"]) -> Float[np.ndarray, "steps H"]:
    layers = (weights - weights[0]).reshape(len(weights), setting.net.num_hidden_layers, -1)
    return np.linalg.norm(layers, axis=2)


def _largest_layer_gradient(setting: Setting, run: Trajectory) -> float:
    layers = [np.asarray(layer) for layer in run.gradients.hidden]
    largest = max(float(np.max(np.linalg.norm(layer.reshape(len(layer), -1), axis=1))) for layer in layers)
    return largest / math.sqrt(setting.net.width)


def _figure(name: str, setting: Setting, run: Trajectory) -> Figure:
    steps = np.arange(float(setting.num_steps)).tolist()
    final = pair_with(setting, run, flat_weights(run.params.hidden)[-1])
    return Figure(
        name="certificate",
        title=f"Adversarial training of a deep ReLU network on digits ({name})",
        x_label="step t",
        y_label="loss |f − y|",
        series=(
            Series("L_A(W_t)", steps, np.asarray(run.surrogate_loss).tolist()),
            Series(
                "ℓ_t(W_T): the final weights at the inputs of step t",
                steps,
                np.asarray(final.loss).tolist(),
                style="dashed",
            ),
        ),
        caption="The regret of the run against its own end is what the certificate bounds.",
    )


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), Thm 4.1 (number recalled); item D2 of docs/theory/gao2019",
    statement=(
        "On every run of projected adversarial training with a convex loss, any network and attack, and for every U in "
        "B(R): mean L_A(W_t) ≤ mean ℓ_t(U) + (|W_0 − U|² − |W_T − U|²)/(2αT) + (α/2) mean|g_t|² − mean s_i^t r_i^t(U), "
        "with r_i^t(U) what linearization at W_t misses of f(U, x_i^t), s_i^t the slope of the loss, ℓ_t(U) ≤ L_*(U)."
    ),
    run=_run,
    control=_control,
)
