"""`ntk-robust attack`: what it writes agrees with NumPy, both bounds keep their order, and misuse gets one line."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust._core import to_jsonable
from ntk_robust.attacks import PGD, Audit, AutoAttackResult, Evaluation, Finding, Square
from ntk_robust.certify import Certificate
from ntk_robust.cli import _attack, main
from ntk_robust.cli._arguments import Attack, Train
from ntk_robust.cli._attack_report import AtRadius, _steps, minimum_radii
from ntk_robust.cli._common import examples


def load_json(path: Path):
    return json.loads(path.read_text())


@pytest.fixture
def saved_run(tmp_path: Path) -> Path:
    """What `train` would have left, written by hand: random features and a fitted readout."""
    run = tmp_path / "run"
    run.mkdir()
    command = Train(seed=3, num_train=30, num_test=20, width=64, num_hidden_layers=1, out=run)
    part = examples(command)
    (run / "run.json").write_text(json.dumps({"command": "train", "arguments": to_jsonable(command)}))
    rng = np.random.default_rng(0)
    first = rng.normal(size=(64, 64))
    features = np.maximum(np.asarray(part.x_train) @ first.T, 0.0)
    readout = np.linalg.solve(features.T @ features + np.eye(64), features.T @ np.eye(10)[np.asarray(part.y_train)])
    weights = {"[0].weight": first, "[1].weight": readout.T}
    np.savez(run / "params.npz", **weights)
    return run


@pytest.mark.slow
def test_a_saved_network_is_evaluated_on_its_own_test_examples(saved_run: Path, capsys, tmp_path: Path) -> None:
    out = tmp_path / "attack"
    arguments = ["--run", str(saved_run), "--attack", "fgsm", "--radii", "0.0", "0.02", "--certificate", "interval"]
    assert main(["attack", "--out", str(out), *arguments]) == 0
    part = examples(Train(seed=3, num_train=30, num_test=20))
    with np.load(saved_run / "params.npz") as weights:
        features = np.maximum(np.asarray(part.x_test) @ weights["[0].weight"].T, 0.0)
        outputs = features @ weights["[1].weight"].T  # scales do not change the class
    accuracy = np.mean(outputs.argmax(axis=1) == np.asarray(part.y_test))
    assert accuracy > 0.4
    written = load_json(out / "attack.json")
    rows = written["radii"]
    assert [row["epsilon"] for row in rows] == [0.0, 0.02]
    known = {name: np.asarray(column, float) for name, column in written["examples"].items()}
    right = outputs.argmax(axis=1) == np.asarray(part.y_test)
    np.testing.assert_array_equal(known["natural_margin"] < 0, right)
    np.testing.assert_array_equal(known["minimum_radius"] > 0, right)
    assert (known["certified_radius"] < np.where(right, known["minimum_radius"], 1.0)).all()
    assert np.isfinite(known["minimum_radius"]).all()  # in the box of all inputs FAB finds a point for each
    assert np.mean(known["minimum_radius"] > 0.02) <= rows[1]["adversarial_accuracy"]
    for row in rows:
        assert row["natural_accuracy"] == pytest.approx(accuracy)
        assert row["certified_accuracy"] <= row["adversarial_accuracy"] <= row["natural_accuracy"]
        assert row["audit"]["sound"] is True
        np.testing.assert_array_equal(np.mean(np.asarray(row["margins"]) < 0), row["adversarial_accuracy"])
        assert 0 <= dict(row["audit"]["controls"]["rival_accuracies"])["Square"] <= row["natural_accuracy"]
    assert rows[0]["certified_accuracy"] == rows[0]["natural_accuracy"]  # at radius 0 only rounding is left
    study = load_json(out / "results.json")["studies"][0]
    labels = [series["label"] for series in study["figures"][0]["series"]]
    assert labels == ["natural", "adversarial (fgsm)", "nearest wrong point found", "certified"]
    assert rows[0]["audit"]["controls"]["radii"] == []  # growing begins at the largest radius
    assert rows[1]["audit"]["controls"]["radii"][0] == 0.04
    printed = capsys.readouterr().out
    assert "radius 0.02: natural" in printed
    assert "distance to the nearest wrong point (linf): median at most 0 (found)" in printed  # half are wrong


@pytest.mark.slow
def test_a_certificate_that_an_attack_refutes_stops_the_command(
    saved_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def lie(method, network, xs, *arguments, **options):
        return Certificate(jnp.full(len(xs), 99.0), jnp.ones(len(xs), bool))

    monkeypatch.setattr(_attack, "certify_batch", lie)
    arguments = ["--run", str(saved_run), "--attack", "fgsm", "--radii", "0.02", "--no-controls", "--no-minimum-radii"]
    assert main(["attack", "--out", str(tmp_path / "attack"), *arguments]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "went below the certified margin" in line


@pytest.mark.slow
def test_a_kernel_regression_is_attacked_and_certified_in_this_order(tmp_path: Path) -> None:
    out = tmp_path / "attack"
    small = ["--num-train", "40", "--num-test", "30", "--num-examples", "12", "--num-steps", "4", "--no-controls"]
    arguments = ["--out", str(out), *small, "--num-hidden-layers", "1", "--norm", "l2", "--radii", "0.0", "0.05", "3.0"]
    assert main(["attack", *arguments]) == 0
    rows = load_json(out / "attack.json")["radii"]
    for row in rows:
        assert row["certified_accuracy"] <= row["adversarial_accuracy"] <= row["natural_accuracy"]
        assert row["audit"]["sound"] is True
    assert rows[0]["certified_accuracy"] == rows[0]["natural_accuracy"] > 0.5
    assert rows[1]["certified_accuracy"] > 0.3
    assert rows[2]["adversarial_accuracy"] < 0.3
    assert "said to be" in (out / "examples.svg").read_text()
    assert 'src="examples.svg"' in (out / "index.html").read_text()


@pytest.mark.slow
def test_the_ensemble_keeps_the_order(saved_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "attack"
    arguments = ["--run", str(saved_run), "--attack", "auto", "--norm", "l2", "--radii", "2.0", "--num-steps", "8"]
    assert main(["attack", "--out", str(out), *arguments]) == 0
    (row,) = load_json(out / "attack.json")["radii"]
    assert row["certified_accuracy"] <= row["adversarial_accuracy"] < row["natural_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--radii", "-0.1"], "give one or more finite numbers of at least 0"),
        (["--radii", "0.2", "0.1"], "give them in increasing order"),
        (["--num-examples", "0"], "--num-examples is 0"),
        (["--attack", "carlini-wagner"], "add --norm l2"),
        (["--attack", "auto", "--loss", "margin"], "--attack auto has an objective of its own"),
        (["--ridge", "-1.0"], "--ridge is -1.0"),
        (["--run", "nowhere"], "run.json: No such file"),
        (["--num-train", "100000"], "num_train"),
        (["--seed", "-1"], "--seed is -1"),
        (["--run", "somewhere", "--kernel", "analytic_nngp"], "--kernel describes a kernel regression"),
    ],
)
def test_misuse_ends_in_one_line_and_code_2(arguments, message: str, capsys, tmp_path: Path) -> None:
    assert main(["attack", "--out", str(tmp_path / "attack"), *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("ntk-robust: error: ")
    assert message in line
    assert printed.out == ""


def test_an_unknown_attack_is_refused_with_the_known_ones(capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["attack", "--attack", "magic"])
    assert refused.value.code == 2
    assert "deep-fool" in capsys.readouterr().err


def test_folders_of_other_commands_and_weights_of_other_networks_are_refused(
    saved_run: Path, capsys, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "kernel"}))
    assert main(["attack", "--run", str(tmp_path), "--out", str(tmp_path / "attack")]) == 2
    assert "holds the results of 'kernel'" in capsys.readouterr().err
    np.savez(saved_run / "params.npz", **{"[0].weight": np.zeros((64, 64))})
    assert main(["attack", "--run", str(saved_run), "--out", str(tmp_path / "attack")]) == 2
    assert "does not hold the weights of the network" in capsys.readouterr().err


def test_broken_folders_are_refused_with_the_path(saved_run: Path, capsys, tmp_path: Path) -> None:
    def refusal() -> str:
        assert main(["attack", "--run", str(saved_run), "--out", str(tmp_path / "attack")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    record = load_json(saved_run / "run.json")
    weights = saved_run / "params.npz"
    np.savez(weights, **{"[0].weight": np.full((64, 64), np.nan)})
    assert f"{weights} holds weights that are not finite ([0].weight)" in refusal()
    weights.write_text("garbage")
    assert f"{weights} holds no weights" in refusal()
    for written, said in {
        "not json": "is not JSON",
        "[]": "holds the results of []",
        '{"command": "train"}': "is not what this version of `train` writes (KeyError('arguments'))",
        json.dumps(record | {"arguments": record["arguments"] | {"old": 3}}): "unexpected keyword argument 'old'",
    }.items():
        (saved_run / "run.json").write_text(written)
        line = refusal()
        assert str(saved_run / "run.json") in line
        assert said in line


def test_each_attack_has_its_own_budget_where_none_is_given() -> None:
    part = examples(Train(seed=3, num_train=30, num_test=20))
    budgets = {
        name: getattr(_attack._strategy(Attack(attack=name), part), "num_queries" if name == "square" else "num_steps")
        for name in ("pgd", "auto", "fab", "square", "carlini-wagner")
    }
    assert budgets == {"pgd": 40, "auto": 100, "fab": 100, "square": 5000, "carlini-wagner": 200}
    square = _attack._strategy(Attack(attack="square", num_steps=7), part)
    assert isinstance(square, Square)
    assert square.num_queries == 7
    pgd = _attack._strategy(Attack(num_steps=10), part)
    assert isinstance(pgd, PGD)
    assert pgd.relative_step == 0.25


def test_an_ensemble_is_held_to_certificates_example_by_example() -> None:
    ensemble = AutoAttackResult(1.0, 0.5, {}, np.asarray([True, False]), jnp.zeros((2, 3)), jnp.ones(2))
    _attack._check_order(Certificate(jnp.ones(2), jnp.asarray([True, False])), ensemble)
    with pytest.raises(ArithmeticError, match="the first is example 1"):  # both accuracies are 0.5
        _attack._check_order(Certificate(jnp.ones(2), jnp.asarray([False, True])), ensemble)


def test_findings_about_the_first_attack_are_held_against_the_ensemble() -> None:
    numbers = {field.name: 0 for field in dataclasses.fields(Audit) if field.type is int}
    numbers |= {field.name: 0.0 for field in dataclasses.fields(Audit) if field.type is float}
    names = ("weaker-than-fgsm", "margin-step-better", "flat-loss")
    audit = Audit(
        **numbers | {"fgsm_accuracy": 0.5, "fgsm_margin_accuracy": 0.0},  # pyright: ignore[reportArgumentType]
        findings=tuple(Finding(name, "weakness", "Something.") for name in names),
    )
    points = jnp.zeros((2, 3))
    margins, unknown = jnp.asarray([-1.0, -1.0]), jnp.asarray([np.inf, np.inf])
    evaluation = Evaluation(1.0, 1.0, 0.0, 0.0, margins, margins, jnp.full(2, 0.1), unknown, audit, points)
    ensemble = AutoAttackResult(
        1.0, 0.5, {"apgd-ce": 1.0, "square": 0.5}, np.asarray([True, False]), points + 1, jnp.asarray([np.inf, 0.08])
    )
    result = AtRadius(0.1, evaluation, ensemble, None)
    assert result.adversarial_accuracy == 0.5
    np.testing.assert_array_equal(result.x_adv[:, 0], [0.0, 1.0])
    # FGSM is no stronger than the ensemble, its step on the margin is.
    *first, masked = result.findings
    assert [finding.name for finding in first] == ["margin-step-better", "flat-loss"]
    assert all(finding.message == "Of APGD on the cross-entropy alone: Something." for finding in first)
    # Square, the last of the ensemble, turned what gradients did not.
    assert masked.name == "rival-better"
    assert "from 100.00% to 50.00%" in masked.message
    alone = AtRadius(0.1, evaluation, None, None)
    assert [finding.name for finding in alone.findings] == list(names)
    # Distances are known from all attacks and radii together.
    np.testing.assert_array_equal(minimum_radii([result, alone]), [np.inf, 0.08])


def test_a_wrong_point_within_a_radius_certified_elsewhere_stops_the_command() -> None:
    _attack._check_radii(np.asarray([0.0, 0.3, np.inf]), np.asarray([0.0, 0.2, 0.2]))
    _attack._check_radii(np.asarray([0.0]), None)
    with pytest.raises(ArithmeticError, match=r"1 examples have .* \(example 1: at distance 0.1\)"):
        _attack._check_radii(np.asarray([0.0, 0.1]), np.asarray([0.0, 0.2]))


def test_the_curve_of_distances_steps_down_where_they_lie() -> None:
    drawn = _steps("found", np.asarray([0.0, 0.02, 0.05, np.inf]), 0.1)
    assert drawn.x == [0.0, 0.02, 0.02, 0.05, 0.05, 0.1]
    assert drawn.y == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
