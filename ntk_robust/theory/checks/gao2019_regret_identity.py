"""The one-step and T-step regret inequalities of projected adversarial training, and when they are equalities."""

from typing import NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ntk_robust._core import Table
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import UNIT_ROUNDOFF, Claim, exact_claim
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

_RESOLUTION = 1e-10
_NUM_RANDOM = 3


def _run(size: Size, key: Key[Array, ""]) -> Report:
    setting_key, run_key, comparator_key = jr.split(key, 3)
    setting = _setting(size, setting_key)
    attacks = adversaries(size)
    chosen = ("switching",) if size == "quick" else tuple(attacks)
    runs = {name: record_run(setting, attacks[name], key=run_key) for name in chosen}
    return _report(setting, runs, comparator_key, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    setting_key, run_key, comparator_key = jr.split(key, 3)
    setting = _setting(size, setting_key)
    run = record_run(setting, adversaries(size)["switching"], key=run_key, radius=setting.radius / 2)
    note = "Broken on purpose: the weights are projected on B(R/2), which does not hold the comparators of B(R)."
    return _report(setting, {"switching": run}, comparator_key, (note,))


def _setting(size: Size, key: Key[Array, ""]) -> Setting:
    if size == "quick":
        return make_setting(width=48, num_hidden_layers=2, num_train=12, scaled_radius=0.5, num_steps=40, key=key)
    return make_setting(width=128, num_hidden_layers=4, num_train=32, scaled_radius=2.0, num_steps=150, key=key)


def _report(setting: Setting, runs: dict[str, Trajectory], key: Key[Array, ""], notes: tuple[str, ...]) -> Report:
    conclusions, rows = [], []
    projections, interior = 0, 0
    for name, run in runs.items():
        projected = np.asarray(run.projected)
        projections, interior = projections + projected.sum(), interior + (~projected).sum()
        found = bookkeeping(setting, run, comparators(setting, run, key))
        conclusions += _claims(name, found, projected)
        rows.append((name, int(projected.sum()), *_extremes(found, projected)))
    conclusions.append(_pairing_claim(setting, runs, key))
    columns = (
        "attack",
        "projected steps",
        "largest residual",
        "largest |residual|, unprojected",
        "largest T-step residual",
    )
    return Report(
        hypotheses=(
            exact_claim("steps that end in a projection", projections, ">=", 1),
            exact_claim("steps that do not", interior, ">=", 1),
        ),
        conclusions=tuple(conclusions),
        tables=(Table("regret_identity", "Residuals relative to the size of their terms", columns, rows),),
        notes=(
            *notes,
            f"Comparators: {_NUM_RANDOM} random points of the boundary of B(R), and two along the run's own direction.",
        ),
    )


class Bookkeeping(NamedTuple):
    """Residuals of the regret inequalities, left side minus right side, relative to the size of their terms.

    Attributes:
        step: Of the one-step inequality; at most 0, and 0 in a step without projection.
        step_error: Bounds for their rounding.
        total: Of the T-step inequality.
        total_error: Bounds for their rounding.
    """

    step: Float[np.ndarray, "steps k"]
    step_error: Float[np.ndarray, "steps k"]
    total: Float[np.ndarray, " k"]
    total_error: Float[np.ndarray, " k"]


def bookkeeping(setting: Setting, run: Trajectory, comparators: Float[np.ndarray, "k weights"]) -> Bookkeeping:
    """The residuals of a run against comparators U, from the recorded weights and gradients."""
    alpha, weights, gradients = setting.step_size, flat_weights(run.params.hidden), flat_weights(run.gradients.hidden)
    offsets = weights[:, None] - comparators
    distances = np.sum(offsets**2, axis=-1)
    pairings = np.einsum("tw,tkw->tk", gradients, offsets[:-1])
    squares = np.sum(gradients**2, axis=-1)[:, None]
    lengths = np.sqrt(squares * distances[:-1])
    scales = distances[1:] + distances[:-1] + 2 * alpha * lengths + alpha**2 * squares
    step = (distances[1:] - distances[:-1] + 2 * alpha * pairings - alpha**2 * squares) / scales
    # Sums of as many terms as there are weights, with five roundings in each term; and the loop's own rounding of
    # W_{t+1}: of the step, of the radial scaling (a norm over as many weights), of the sum with W_t or W_0.
    count = weights.shape[1] + 5
    moved = np.linalg.norm(weights[1:] - weights[0], axis=-1)[:, None]
    sizes = np.linalg.norm(weights[1:], axis=-1)[:, None]
    stored = count * moved + 3 * sizes + 2 * alpha * np.sqrt(squares)
    step_error = UNIT_ROUNDOFF * (count + 2 * np.sqrt(distances[1:]) * stored / scales)

    total = distances[-1] - distances[0] + 2 * alpha * np.sum(pairings, axis=0) - alpha**2 * np.sum(squares, axis=0)
    total_scale = (
        distances[0] + distances[-1] + 2 * alpha * np.sum(lengths, axis=0) + alpha**2 * np.sum(squares, axis=0)
    )
    return Bookkeeping(step, step_error, total / total_scale, np.sum(step_error * scales, axis=0) / total_scale)


def comparators(setting: Setting, run: Trajectory, key: Key[Array, ""]) -> Float[np.ndarray, "k weights"]:
    """Points of the boundary of B(R): random ones, and those ahead of and behind the run."""
    weights = flat_weights(run.params.hidden)
    moved = weights[-1] - weights[0]
    random = np.asarray(jr.normal(key, (_NUM_RANDOM, len(moved))))
    return np.stack([on_boundary(setting, direction) for direction in (*random, moved, -moved)])


def _extremes(found: Bookkeeping, projected: Bool[np.ndarray, " steps"]) -> tuple[float, float, float]:
    """What the three claims look at."""
    free = np.max(np.abs(found.step[~projected]), initial=0.0)
    return float(np.max(found.step)), float(free), float(np.max(found.total))


def _claims(name: str, found: Bookkeeping, projected: Bool[np.ndarray, " steps"]) -> list[Claim]:
    error = float(np.max(found.step_error))
    steps, equalities, totals = _extremes(found, projected)
    note = "relative to the terms' sizes; uncertainty is the rounding bound"
    return [
        Claim(f"one-step residual, {name}", steps, "<=", 0.0, error, _RESOLUTION, note),
        Claim(f"|one-step residual| without projection, {name}", equalities, "==", 0.0, error, _RESOLUTION, note),
        Claim(
            f"T-step residual, {name}",
            totals,
            "<=",
            0.0,
            float(np.max(found.total_error)),
            len(found.step) * _RESOLUTION,
            f"{note}; the resolution is that of T steps",
        ),
    ]


def _pairing_claim(setting: Setting, runs: dict[str, Trajectory], key: Key[Array, ""]) -> Claim:
    """The loop's gradient against forward-mode derivatives at its own inputs, held fixed."""
    worst, error = 0.0, 0.0
    for run in runs.values():
        comparator = comparators(setting, run, key)[0]
        pairing = pair_with(setting, run, comparator)
        expected = np.mean(np.asarray(pairing.slope * pairing.derivative), axis=1)
        offsets = comparator - flat_weights(run.params.hidden)[:-1]
        gradients = flat_weights(run.gradients.hidden)
        found = np.sum(gradients * offsets, axis=1)
        lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(offsets, axis=1)
        worst = max(worst, float(np.max(np.abs(found - expected) / lengths)))
        error = max(error, 2 * output_error(setting) / float(np.min(lengths)))
    note = "<g_t, U − W_t> of the loop against forward-mode derivatives at fixed x', relative to |g_t||U − W_t|"
    return Claim("gradient in the first argument alone", worst, "==", 0.0, error, 1e-5, note)


CHECK = Check(
    citation="In the setting of Gao et al. (NeurIPS 2019), algorithm of section 3; item D1 of docs/theory/gao2019",
    statement=(
        "For every attack, every U in B(R) and every step of W_{t+1} = P(W_t − α g_t), g_t = ∇_W L_A(W_t) in the first "
        "argument: |W_{t+1} − U|² ≤ |W_t − U|² − 2α<g_t, W_t − U> + α²|g_t|², with equality if nothing is projected; "
        "summed, Σ<g_t, W_t − U> ≤ (|W_0 − U|² − |W_T − U|²)/(2α) + (α/2) Σ|g_t|²."
    ),
    run=_run,
    control=_control,
)
