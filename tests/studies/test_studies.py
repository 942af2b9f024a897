import jax
import jax.random as jr
import numpy as np
import pytest

from ntk_robust._core import to_jsonable
from ntk_robust.data import load_dataset, subset
from ntk_robust.kernels import analytic_ntk
from ntk_robust.models import FullyConnected
from ntk_robust.studies import (
    _comparison,
    _kernel_convergence,
    _lazy_training,
    _perturbation_radius,
    _projection_radius,
    _training_displacement,
    kernel_convergence,
    lazy_training,
    perturbation_radius,
    projection_radius,
    training_displacement,
)
from ntk_robust.training import load_history


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.mark.slow
def test_kernel_convergence_reports_the_errors_of_explicit_jacobians(digits, monkeypatch):
    size = _kernel_convergence._Size(widths=(16, 64), depths=(1,), num_seeds=4, num_examples=5)
    monkeypatch.setitem(_kernel_convergence._SIZES, "quick", size)
    key = jr.key(0)
    study = kernel_convergence(digits, key=key)

    data_key, network_key = jr.split(key)
    xs = subset(digits, 5, 1, key=data_key).x_train
    network = FullyConnected(input_dim=64, width=64, num_hidden_layers=1, num_outputs="scalar")
    analytic = np.asarray(analytic_ntk(network).gram(xs))
    errors = []
    for seed_key in jr.split(jr.fold_in(network_key, 64), 4):
        gradients = jax.vmap(jax.grad(network.apply), (None, 0))(network.init(key=seed_key), xs)
        rows = np.concatenate([np.reshape(leaf, (5, -1)) for leaf in jax.tree.leaves(gradients)], axis=1)
        errors.append(np.linalg.norm(rows @ rows.T - analytic) / np.linalg.norm(analytic))
    (depth, width, mean, deviation) = study.tables[1].rows[1]
    assert (depth, width) == (1, 64)
    assert mean == pytest.approx(np.mean(errors), rel=1e-8)
    assert deviation == pytest.approx(np.std(errors, ddof=1), rel=1e-8)
    assert study.tables[0].rows[0][3] < study.tables[0].rows[0][2] < study.tables[0].rows[0][4]


@pytest.mark.slow
def test_training_displacement_reports_both_kinds_of_training_at_every_width(digits, monkeypatch, tmp_path):
    size = _training_displacement._Size(
        widths=(4, 8), num_seeds=2, num_train=20, num_test=10, num_kernel=3, num_steps=3
    )
    monkeypatch.setitem(_training_displacement._SIZES, "quick", size)
    study = training_displacement(digits, histories=tmp_path, key=jr.key(0))
    runs = study.tables[1]
    # Every number of the table can be traced back to the histories of its runs.
    assert study.histories == str(tmp_path)
    assert len(list(tmp_path.iterdir())) == 8
    for mode, width, displacement, *_ in runs.rows:
        saved = [load_history(tmp_path / f"{mode}_width{width}_seed{seed}") for seed in range(2)]
        assert np.mean([each.probes["movement"]["total"][-1] for each in saved]) == displacement
        assert [each.summary["arguments"]["num_steps"] for each in saved] == [3, 3]
        assert saved[0].summary["arguments"]["params"] != saved[1].summary["arguments"]["params"]
    assert [row[:2] for row in runs.rows] == [("natural", 4), ("natural", 8), ("adversarial", 4), ("adversarial", 8)]
    column = {name: np.array([row[i] for row in runs.rows]) for i, name in enumerate(runs.columns) if i > 1}
    assert (column["displacement"] > 0).all()
    assert (column["adversarial accuracy"] <= column["natural accuracy"]).all()
    # Relative and absolute displacement differ by the norm of the initial weights, about sqrt(number of weights).
    weights = np.array([64 * m + m * m + 10 * m for m in (4, 8, 4, 8)])
    np.testing.assert_allclose(column["displacement"] / column["relative displacement"], np.sqrt(weights), rtol=0.15)
    record = to_jsonable(study)
    assert {"name", "title", "text", "figures", "tables", "histories"} == set(record)
    assert len({figure["name"] for figure in record["figures"]}) == len(record["figures"]) == 4


def small(values):
    return _comparison.Size(values, 8, num_seeds=2, num_train=20, num_test=10, num_kernel=3, num_steps=20)


def columns(table):
    """By mode of training and name, along the setting."""
    modes = dict.fromkeys(row[0] for row in table.rows)
    return {
        mode: {name: [row[i] for row in table.rows if row[0] == mode] for i, name in enumerate(table.columns) if i}
        for mode in modes
    }


@pytest.mark.slow
def test_large_output_scales_make_both_kinds_of_training_lazy(digits, monkeypatch):
    monkeypatch.setitem(_lazy_training._SIZES, "quick", small((1.0, 100.0)))
    study = lazy_training(digits, key=jr.key(0))
    for found in columns(study.tables[0]).values():
        assert found["output scale α"] == [1.0, 100.0]
        rich, lazy = found["kernel drift"]
        assert lazy < 0.02 * rich  # the weights move by 1/α as much, and the kernel to first order as they do
        assert found["linearization error"][1] < 0.1 * found["linearization error"][0]
    exits = study.tables[1].rows
    assert [(row[0], row[3]) for row in exits if row[1] == 100.0] == [("natural", 0), ("adversarial", 0)]
    assert all(row[3] == 2 and int(row[2]) > 0 for row in exits if row[1] == 1.0)
    record = to_jsonable(study)
    assert len({figure["name"] for figure in record["figures"]}) == len(record["figures"]) == 5


@pytest.mark.slow
def test_radius_zero_is_natural_training_and_larger_radii_cost_loss(digits, monkeypatch, tmp_path):
    monkeypatch.setitem(_perturbation_radius._SIZES, "quick", small((0.0, 0.3)))
    study = perturbation_radius(digits, histories=tmp_path, key=jr.key(0))
    found = columns(study.tables[0])["adversarial"]
    assert study.histories == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir())[::2] == [
        "adversarial_epsilon0.3_seed0",
        "adversarial_epsilon0_seed0",
    ]
    assert found["natural accuracy"][0] == found["adversarial accuracy"][0]
    assert found["adversarial accuracy"][1] < found["natural accuracy"][1]
    assert found["surrogate loss"][0] < found["surrogate loss"][1]
    assert all(path >= moved for path, moved in zip(found["path length"], found["displacement"], strict=True))


@pytest.mark.slow
def test_projection_holds_every_layer_in_its_ball_until_the_ball_is_large(digits, monkeypatch):
    monkeypatch.setitem(_projection_radius._SIZES, "quick", small((0.5, 1000.0)))
    study = projection_radius(digits, key=jr.key(0))
    for found in columns(study.tables[0]).values():
        # Three layers at radius 1/2 each are at most sqrt(3)/2 away.
        assert found["displacement"][0] <= 0.5 * 3**0.5 * (1 + 1e-12)
        assert found["projected"][0] > 0.5
        assert found["projected"][1] == 0.0
    assert "up to r = 0.5 and no longer from 1000 on" in study.text
