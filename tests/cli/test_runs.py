"""The commands that compute, from arguments to files."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ntk_robust.attacks import PGD
from ntk_robust.cli import _train, _train_setup, main
from ntk_robust.cli._arguments import Train
from ntk_robust.cli._common import examples
from ntk_robust.data import load_dataset
from ntk_robust.training import load_history

SMALL_RUN = ["--num-train", "30", "--num-test", "20", "--width", "16", "--num-hidden-layers", "1", "--attack", "fgsm"]
SMALL_RUN += ["--num-steps", "25", "--probe-every", "10", "--kernel-points", "8"]


def load_json(path: Path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_kernel_writes_the_matrices_that_numpy_reads_and_a_summary_that_agrees(capsys, tmp_path: Path) -> None:
    out = tmp_path / "kernel"
    arguments = ["--num-train", "40", "--num-test", "20", "--num-hidden-layers", "1", "--kernel", "analytic_nngp"]
    assert main(["kernel", "--out", str(out), "--seed", "5", *arguments]) == 0
    square, rectangle = np.load(out / "k_train_train.npy"), np.load(out / "k_test_train.npy")
    assert square.shape == (40, 40)
    assert rectangle.shape == (20, 40)
    assert square.dtype == np.float64
    np.testing.assert_array_equal(square, square.T)
    summary = load_json(out / "summary.json")
    # One hidden ReLU layer with w_std = sqrt(2): the diagonal is 2 |x|² / d.
    digits = load_dataset("digits")
    rows = np.asarray(digits.x_train)
    diagonals = 2 * (rows**2).sum(axis=1) / 64
    assert np.abs(np.diag(square)[:, None] - diagonals).min(axis=1).max() < 1e-14
    eigenvalues = np.linalg.eigvalsh(square)
    assert summary["largest_eigenvalue"] == pytest.approx(eigenvalues[-1], rel=1e-12)
    assert summary["smallest_eigenvalue"] == pytest.approx(eigenvalues[0], rel=1e-6)
    assert 0.5 < summary["regression_test_accuracy"] <= 1.0
    assert load_json(out / "run.json")["arguments"]["kernel"] == "analytic_nngp"
    assert "regression test accuracy" in capsys.readouterr().out
    assert main(["kernel", "--out", str(out), *arguments]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["empirical_ntk", "empirical_nngp"])
def test_empirical_kernels_are_near_the_analytic_ones(name: str, tmp_path: Path) -> None:
    matrices = []
    for kernel in (name, name.replace("empirical", "analytic")):
        out = tmp_path / kernel
        arguments = ["--num-train", "20", "--num-test", "10", "--kernel", kernel, "--width", "2048"]
        assert main(["kernel", "--out", str(out), *arguments]) == 0
        matrices.append(np.load(out / "k_train_train.npy"))
    empirical, analytic = matrices
    # The scale of the whole matrix is a product of averages over m = 2048: of two layers of squared ReLUs (relative
    # variance 5/m each) and of the outputs (2/m), 7.7 % in all; five times that still tells a factor of 2.
    assert np.linalg.norm(empirical - analytic) < 0.39 * np.linalg.norm(analytic)


@pytest.mark.slow
def test_train_writes_weights_history_and_report_that_agree(capsys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["train", "--out", str(out), "--seed", "2", *SMALL_RUN]) == 0
    saved = load_history(out)
    assert saved.probe_steps.tolist() == [0, 10, 20, 25]
    assert (saved.summary["num_steps"], saved.summary["finite"]) == (25, True)
    assert saved.summary["about"]["arguments"]["seed"] == 2
    losses = saved.history["surrogate_loss"]
    assert len(losses) == 25
    assert losses[-1] < losses[0]
    displacement = saved.probes["displacement"]
    assert displacement["total"][0] == 0.0
    np.testing.assert_allclose(np.linalg.norm(displacement["frobenius"], axis=1), displacement["total"], rtol=1e-12)
    assert all(later > 0 for later in saved.probes["kernel"]["kernel_drift"][1:])

    # The weights on disk, as a network written in numpy, have the accuracy that the history and the report say.
    part = examples(Train(seed=2, num_train=30, num_test=20))
    with np.load(out / "params.npz") as weights:
        assert sorted(array.shape for array in weights.values()) == [(10, 16), (16, 64)]
        features = np.maximum(np.asarray(part.x_train) @ weights["[0].weight"].T, 0.0)
        outputs = features @ weights["[1].weight"].T
    accuracy = np.mean(outputs.argmax(axis=1) == np.asarray(part.y_train))
    assert saved.probes["train"]["natural_accuracy"][-1] == pytest.approx(accuracy)
    results = load_json(out / "results.json")
    figures = [figure["name"] for figure in results["studies"][0]["figures"]]
    assert figures == ["loss", "accuracy", "displacement", "path", "linearization", "drift", "spectra"]
    table = results["studies"][0]["tables"][0]
    evaluation = {row[0]: dict(zip(table["columns"][1:], row[1:], strict=True)) for row in table["rows"]}
    assert evaluation["train"]["natural accuracy"] == pytest.approx(accuracy)
    test = evaluation["test"]
    assert test["stronger attack accuracy"] <= test["adversarial accuracy"] <= test["natural accuracy"]
    assert "adversarial accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_convolutional_network_is_trained_saved_and_then_attacked_and_certified(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "attack"
    options = ["--network", "convolutional", "--kernel-points", "0", "--width", "4", "--learning-rate", "0.1"]
    assert main(["train", "--out", str(run), *SMALL_RUN, *options]) == 0
    with np.load(run / "params.npz") as weights:
        assert sorted(array.shape for array in weights.values()) == [(4, 9), (10, 256)]
    arguments = ["--run", str(run), "--attack", "fgsm", "--radii", "0.0", "--num-examples", "20"]
    assert main(["attack", "--out", str(out), *arguments]) == 0
    row = load_json(out / "attack.json")["radii"][0]
    table = load_json(run / "results.json")["studies"][0]["tables"][0]
    accuracy = dict(zip(table["columns"], table["rows"][1], strict=True))["natural accuracy"]
    assert row["certified_accuracy"] == row["natural_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "trades", "--attack", "fgsm"], "needs a random start; give pgd or fgsm-rs"),
        (["--method", "free", "--attack", "none"], "--method free always perturbs"),
    ],
)
def test_methods_that_the_attack_does_not_fit_are_refused(capsys, tmp_path: Path, options: list[str], words: str):
    assert main(["train", "--out", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_natural_training_is_evaluated_under_the_stronger_attack_alone(tmp_path: Path) -> None:
    options = [*SMALL_RUN]
    options[options.index("fgsm")] = "none"
    assert main(["train", "--out", str(tmp_path), *options, "--kernel-points", "0", "--evaluation-steps", "3"]) == 0
    table = load_json(tmp_path / "results.json")["studies"][0]["tables"][0]
    assert table["columns"] == ["part", "natural accuracy", "stronger attack accuracy", "natural loss"]
    assert all(row[2] < row[1] for row in table["rows"])


def test_a_full_disk_is_not_called_a_lack_of_memory(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(command):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/history.zarr") from ValueError(
            "RESOURCE_EXHAUSTED"
        )

    monkeypatch.setattr(_train, "train", full)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "ntk-robust: error: /out/history.zarr: No space left on device\n"


def test_frozen_layers_of_a_convolutional_network_are_refused(capsys, tmp_path: Path) -> None:
    options = ["--network", "convolutional", "--trainable", "hidden"]
    assert main(["train", "--out", str(tmp_path), *options]) == 2
    assert "--trainable is hidden; a convolutional network takes all" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_overflows_is_reported_and_ends_with_code_1(capsys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["train", "--out", str(out), "--learning-rate", "1e300", *SMALL_RUN]) == 1
    assert "training stopped in step" in capsys.readouterr().err
    assert load_history(out).summary["finite"] is False
    assert "training stopped in step" in (out / "index.html").read_text()


@pytest.mark.slow
def test_an_interrupted_training_says_where_and_resumes_to_the_same_bits(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*SMALL_RUN, "--optimizer", "adam", "--learning-rate", "0.05", "--schedule", "cosine"]
    options += ["--weight-radius", "0.5", "--weight-set", "all"]
    options += ["--method", "trades"]
    options[options.index("fgsm")] = "fgsm-rs"  # trades needs a random start
    save = _train.save_history

    def interrupted(folder, result, **about):
        save(folder, result, **about)
        if result.num_steps == 20:
            raise KeyboardInterrupt

    out, whole = tmp_path / "out", tmp_path / "whole"
    monkeypatch.setattr(_train, "save_history", interrupted)
    assert main(["train", "--out", str(out), *options]) == 130
    monkeypatch.undo()
    said = f"ntk-robust: interrupted; 20 of 25 steps are in {out}; the same command with --resume goes on"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert load_history(out).summary["num_steps"] == 20
    assert load_json(out / "results.json")["complete"] is False
    names = ["checkpoints", "history.zarr", "index.html", "params.npz", "results.json", "run.json", "summary.json"]
    assert sorted(path.name for path in out.iterdir()) == names

    assert main(["train", "--out", str(out), *options]) == 2
    assert "go on with it by --resume" in capsys.readouterr().err
    assert main(["train", "--out", str(out), *options, "--resume"]) == 0
    assert main(["train", "--out", str(whole), *options]) == 0
    resumed, one_piece = load_history(out), load_history(whole)
    for name, values in one_piece.history.items():
        assert np.array_equal(resumed.history[name], values)
    with np.load(out / "params.npz") as found, np.load(whole / "params.npz") as expected:
        assert all(np.array_equal(found[name], expected[name]) for name in expected)

    def contents():
        return {str(path): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    before = contents()
    assert main(["train", "--out", str(out), *options, "--resume", "--epsilon", "0.2", "--seed", "1"]) == 2
    assert "--epsilon was 0.1 and is 0.2; --seed was 0 and is 1" in capsys.readouterr().err
    assert contents() == before
    # The same options and other code: only the fingerprint of the checkpoint sees it.
    monkeypatch.setattr(_train_setup, "attack_of", lambda command, num_steps: PGD(num_steps=2, relative_step=0.7))
    assert main(["train", "--out", str(out), *options, "--resume"]) == 2
    assert "attack differ" in capsys.readouterr().err
    assert contents() == before


@pytest.mark.slow
def test_a_run_anew_takes_the_place_of_one_whose_checkpoints_are_gone(tmp_path: Path) -> None:
    command = ["train", "--out", str(tmp_path), *SMALL_RUN, "--kernel-points", "0", "--evaluation-steps", "0"]
    assert main([*command, "--seed", "1"]) == 0
    shutil.rmtree(tmp_path / "checkpoints")
    before = load_history(tmp_path)
    assert main([*command, "--seed", "2"]) == 0
    after = load_history(tmp_path)
    assert after.summary["about"]["arguments"]["seed"] == 2
    assert not np.array_equal(after.history["surrogate_loss"], before.history["surrogate_loss"])


@pytest.mark.slow
def test_training_that_switches_to_its_centered_tangent_is_interrupted_resumed_and_attacked(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*SMALL_RUN, "--dynamics", "centered", "--switch-at", "13", "--schedule", "cosine"]
    save, out, whole = _train.save_history, tmp_path / "out", tmp_path / "whole"

    def interrupted(folder, result, **about):
        save(folder, result, **about)
        if result.num_steps == 23:
            raise KeyboardInterrupt

    monkeypatch.setattr(_train, "save_history", interrupted)
    assert main(["train", "--out", str(out), *options]) == 130
    monkeypatch.undo()
    assert "23 of 25 steps are in" in capsys.readouterr().err
    written = []
    monkeypatch.setattr(
        _train,
        "save_history",
        lambda at, result, **about: written.append(result.num_steps) or save(at, result, **about),
    )
    assert main(["train", "--out", str(out), *options, "--resume"]) == 0
    monkeypatch.undo()
    assert min(written) >= 23  # nothing that is there is taken back on the way
    assert main(["train", "--out", str(whole), *options]) == 0
    found, saved = load_history(out), load_history(whole)
    assert all(np.array_equal(found.history[name], values) for name, values in saved.history.items())
    assert saved.probe_steps.tolist() == [0, 10, 13, 13, 23, 25]
    # Up to the switch it is the run that does not switch; there the output is zero, so that every class is as likely.
    plain = tmp_path / "plain"
    assert main(["train", "--out", str(plain), *SMALL_RUN, "--schedule", "cosine"]) == 0
    losses, expected = saved.history["surrogate_loss"], load_history(plain).history["surrogate_loss"]
    assert np.array_equal(losses[:13], expected[:13])
    assert losses[13] == pytest.approx(np.log(10))
    assert losses[-1] < losses[13]
    drift = saved.probes["kernel"]["kernel_drift"]
    assert drift[0] == 0.0
    assert drift[1] > 0.0
    assert (drift[2:] == drift[2]).all()  # the kernel of a tangent does not move
    moved = saved.probes["displacement"]["total"]
    assert moved[2] == moved[3] < moved[-1]  # from the initialization, in both phases

    # What it trained, in numpy: the derivative of the network at the weights of the switch.
    part = examples(Train(num_train=30, num_test=20))
    xs, ys = np.asarray(part.x_test), np.asarray(part.y_test)
    with np.load(whole / "params_tangent.npz") as at, np.load(whole / "params.npz") as end:
        (v0, w0), (v1, w1) = ([np.asarray(each[name]) for name in ("[0].weight", "[1].weight")] for each in (at, end))
    scales = np.sqrt(2 / 64), np.sqrt(2 / 16)
    before = scales[0] * xs @ v0.T
    features, change = np.maximum(before, 0.0), (before > 0) * (scales[0] * xs @ (v1 - v0).T)
    outputs = scales[1] * (features @ (w1 - w0).T + change @ w0.T)
    accuracy = np.mean(outputs.argmax(axis=1) == ys)
    assert saved.probes["test"]["natural_accuracy"][-1] == pytest.approx(accuracy)
    text = load_json(whole / "results.json")["studies"][0]["text"]
    assert "from step 13 on is the tangent of the network at the weights after step 13 without its output" in text

    arguments = ["--run", str(whole), "--attack", "fgsm", "--radii", "0.0", "--num-examples", "20"]
    assert main(["attack", "--out", str(tmp_path / "attack"), *arguments]) == 0
    row = load_json(tmp_path / "attack" / "attack.json")["radii"][0]
    assert row["natural_accuracy"] == pytest.approx(accuracy)
    assert "no certificate is known for the tangent of a network" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_ctrl_c_ends_reproduce_in_one_line_and_leaves_a_valid_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ntk_robust.cli", "reproduce", "--out", str(out)]
    # Where tests run in the background SIGINT is ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        try:
            printed, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert first == "reproduce ...\n"
    # A shell shows 130 for both: the interpreter may choose to die of the signal itself.
    assert process.returncode in (130, -signal.SIGINT)
    assert printed == ""
    assert errors.splitlines()[-1].endswith(f"parts are in {out / 'index.html'}")
    assert "Traceback" not in errors
    assert load_json(out / "results.json")["pending"]
