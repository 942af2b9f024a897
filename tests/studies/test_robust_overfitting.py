"""The study of robust overfitting on a toy size, and its parts."""

import jax.random as jr
import numpy as np
import pytest

from ntk_robust._core import to_jsonable
from ntk_robust.data import load_dataset, subset
from ntk_robust.studies import _robust_overfitting, robust_overfitting
from ntk_robust.training import load_history


def test_noise_moves_the_asked_fraction_of_training_labels_and_no_test_label():
    data = subset(load_dataset("digits"), 40, 20, key=jr.key(0))
    noisy = _robust_overfitting._with_noise(data, 0.25, jr.key(1))
    assert np.sum(np.asarray(noisy.y_train) != np.asarray(data.y_train)) == 10
    assert set(np.asarray(noisy.y_train).tolist()) <= set(range(10))
    np.testing.assert_array_equal(noisy.y_test, data.y_test)
    np.testing.assert_array_equal(_robust_overfitting._with_noise(data, 0.0, jr.key(1)).y_train, data.y_train)


@pytest.mark.slow
def test_the_study_compares_the_three_rules_for_clean_and_noisy_labels(monkeypatch, tmp_path):
    monkeypatch.setitem(_robust_overfitting._SIZES, "quick", _robust_overfitting._Size(8, 2, 20, 20, 12, 3))
    study = robust_overfitting(load_dataset("digits"), histories=tmp_path, key=jr.key(0))
    kept = [load_history(tmp_path / f"noise{noise}_seed{seed}") for noise in ("0", "0.2") for seed in range(2)]
    measured = [[row["test_adversarial_accuracy"] for row in each.summary["about"]["measured"]] for each in kept]
    rules, runs = study.tables
    assert [row[:2] for row in rules.rows] == [
        (noise, rule) for noise in (0.0, 0.2) for rule in _robust_overfitting._RULES
    ]
    assert len(runs.rows) == 12
    by_name = [dict(zip(runs.columns, row, strict=True)) for row in runs.rows]
    steps = study.figures[0].series[0].x
    assert steps == [4.0, 8.0, 12.0]
    for row in by_name:
        assert row["steps"] in steps
        assert row["test adversarial accuracy"] <= row["test natural accuracy"]
    last = [row["test adversarial accuracy"] for row in by_name if row["weights"] == "last"]
    assert last == [rows[-1] for rows in measured]
    assert all(row["steps"] == 12.0 for row in by_name if row["weights"] != "early stopping")
    assert to_jsonable(study)["name"] == "robust_overfitting"
