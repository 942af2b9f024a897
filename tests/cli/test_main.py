"""What users see: verdicts as exit codes, one line for what is wrong, and nothing lost when something stops a run."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ntk_robust.cli import main
from ntk_robust.studies import Study
from ntk_robust.theory import Check, Claim, Report, check_names

FAIL = Claim("x", 2.0, "<=", 1.0, 0.0, 0.0)
HOLD = Claim("x", 0.5, "<=", 1.0, 0.0, 0.0)
NOISY = Claim("x", 0.5, "<=", 1.0, 0.1, 0.01)


def made_check(name: str, claim: Claim, control: Claim = FAIL, run: Callable[..., Report] | None = None) -> Check:
    return Check(
        "Someone (2020)",
        "x is at most 1",
        run or (lambda size, key: Report((), (claim,))),
        lambda size, key: Report((), (control,)),
        name,
    )


def interrupt(size: str, key: Any) -> Report:
    raise KeyboardInterrupt


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the registry by a few instant checks, and the studies by an instant one."""

    def replace(*checks: Check) -> None:
        def study(dataset, *, size, key, progress) -> Study:
            with progress.task("inner", 3) as task:
                task.advance(3, loss=0.5)
            return Study("made_study", "Made", f"On {dataset.name}, {size}.", (), ())

        study.__name__ = "made_study"
        for command in ("_check", "_reproduce"):
            monkeypatch.setattr(f"ntk_robust.cli.{command}.select", lambda patterns: checks)
        monkeypatch.setattr("ntk_robust.cli._reproduce.kernel_convergence", study)
        monkeypatch.setattr("ntk_robust.cli._reproduce.training_displacement", study)

    return replace


def assert_one_line_error(capsys, *parts: str) -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("ntk-robust: error: ")
    for part in parts:
        assert part in line


def test_list_prints_the_names_one_a_line(capsys) -> None:
    assert main(["check", "--list"]) == 0
    assert capsys.readouterr().out.split("\n") == [*check_names(), ""]
    assert main(["check", "gao2019_shat", "--list"]) == 0
    assert capsys.readouterr().out == "gao2019_shattering\n"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ([HOLD, HOLD], 0),
        ([HOLD, FAIL], 1),
        ([NOISY, HOLD], 3),
        ([NOISY, FAIL], 1),
    ],
)
def test_the_exit_code_of_check_is_its_worst_verdict(offer, capsys, claims: list[Claim], code: int) -> None:
    offer(*(made_check(f"a{number}", claim) for number, claim in enumerate(claims)))
    assert main(["check"]) == code
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines() if not line.startswith(" ") and line] == [
        {"HOLD": "SUPPORTED", "FAIL": "VIOLATED", "NOISY": "INCONCLUSIVE"}[
            {id(HOLD): "HOLD", id(FAIL): "FAIL", id(NOISY): "NOISY"}[id(claim)]
        ]
        for claim in claims
    ]
    assert "checks ..." in printed.err


def test_a_control_that_is_not_violated_is_a_failure(offer) -> None:
    offer(made_check("blind", HOLD, control=HOLD))
    assert main(["check"]) == 1


def test_with_json_stdout_is_one_list_of_records(offer, capsys) -> None:
    offer(made_check("a", HOLD), made_check("b", NOISY))
    assert main(["check", "--json", "--seed", "7"]) == 3
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == ["a", "b"]
    for record in records:
        assert {"name", "citation", "statement", "verdict", "control_verdict", "claims"} <= set(record)
    assert records[0]["claims"][0]["measured"] == 0.5


def test_an_interrupted_check_prints_what_was_finished(offer, capsys) -> None:
    offer(made_check("a", HOLD), made_check("b", HOLD, run=interrupt))
    assert main(["check", "--json"]) == 130
    printed = capsys.readouterr()
    assert [record["name"] for record in json.loads(printed.out)] == ["a"]
    assert printed.err.splitlines()[-1] == (
        "ntk-robust: interrupted; the 1 of 2 checks that finished are printed above"
    )


def test_a_pattern_that_fits_nothing_is_misuse(capsys) -> None:
    assert main(["check", "gao1919"]) == 2
    assert_one_line_error(capsys, "'gao1919'", "gao2019_shattering")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["check", "gao2019_shat", "--seed", "-1"], ["--seed is -1"]),
        (["train", "--epsilon", "-0.1"], ["epsilon", "-0.1"]),
        (["train", "--width", "0"], ["width", "0"]),
        (["train", "--learning-rate", "nan"], ["--learning-rate is nan"]),
        (["train", "--attack-steps", "0"], ["num_steps", "0"]),
        (["train", "--num-train", "5000"], ["num_train is 5000", "1390"]),
        (["train", "--kernel-points", "600"], ["--kernel-points is 600", "500"]),
        (["train", "--probe-every", "0"], ["--probe-every 0"]),
        (["train", "--weight-radius", "-1"], ["radius", "-1"]),
        (["train", "--batch-size", "501"], ["--batch-size is 501", "500"]),
        (["train", "--method", "trades", "--method-parameter", "-2"], ["beta", "-2"]),
        (["train", "--method-parameter", "2"], ["--method-parameter is 2.0", "adversarial has none"]),
        (["train", "--method", "free", "--method-parameter", "2.5"], ["2.5", "whole number"]),
        (["train", "--momentum", "1"], ["--momentum is 1.0"]),
        (["train", "--switch-at", "5"], ["--switch-at is 5", "nothing to switch to"]),
        (["train", "--dynamics", "centered", "--switch-at", "500"], ["--switch-at is 500", "1 to 499"]),
        (["train", "--evaluation-steps", "-1"], ["--evaluation-steps is -1"]),
        (["kernel", "--num-hidden-layers", "0"], ["num_hidden_layers", "0"]),
        (["kernel", "--ridge", "-1"], ["--ridge is -1"]),
        (["kernel", "--data", "mnist"], ["NTK_ROBUST_DATA", "mnist/"]),
        (["kernel", "--data", "mnist", "--data-dir", "/nonexistent"], ["/nonexistent", "does not exist"]),
        (["reproduce", "--data", "cifar10", "--train-batches", "9"], ["NTK_ROBUST_DATA"]),
    ],
)
def test_wrong_values_get_one_line_with_the_value_and_leave_no_folder(
    arguments: list[str], parts: list[str], capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NTK_ROBUST_DATA", raising=False)
    assert main(arguments) == 2
    assert_one_line_error(capsys, *parts)
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NTK_ROBUST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="gao1919"):
        main(["check", "gao1919"])


def test_errors_that_are_not_the_users_keep_their_traceback(offer) -> None:
    def broken(size: str, key: Any) -> Report:
        raise RuntimeError("a bug")

    offer(made_check("a", HOLD, run=broken))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["check"])


def test_running_out_of_memory_says_what_to_do(offer, capsys) -> None:
    def greedy(size: str, key: Any) -> Report:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 80000000000 bytes.")

    offer(made_check("a", HOLD, run=greedy))
    assert main(["check"]) == 2
    assert "error: out of memory (RESOURCE_EXHAUSTED" in capsys.readouterr().err


def test_reproduce_writes_after_every_part_and_reports_all(offer, capsys, tmp_path: Path) -> None:
    seen = []

    def look(size: str, key: Any) -> Report:
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        seen.append((len(results["studies"]), [check["name"] for check in results["checks"]], results["pending"]))
        return Report((), (HOLD,))

    offer(made_check("a", HOLD), made_check("b", HOLD, run=look))
    assert main(["reproduce", "--out", str(tmp_path / "out"), "--seed", "3"]) == 0
    assert seen == [(2, ["a"], ["b"])]
    printed = capsys.readouterr()
    assert printed.out.startswith("SUPPORTED: report of 4 parts in ")
    assert "SUPPORTED      a" in printed.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["verdict"], results["complete"], results["pending"]) == ("SUPPORTED", True, [])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["command"], run["seed"], run["arguments"]["profile"]) == ("reproduce", 3, "quick")
    assert {"jax", "jaxlib", "neural-tangents"} <= set(run["versions"])
    assert run["default_float"] == "float64"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "On digits, quick." in page


@pytest.mark.parametrize(("claim", "code"), [(FAIL, 1), (NOISY, 3)])
def test_the_exit_code_of_reproduce_is_the_worst_verdict(offer, tmp_path: Path, claim: Claim, code: int) -> None:
    offer(made_check("a", HOLD), made_check("b", claim))
    assert main(["reproduce", "--out", str(tmp_path / "out")]) == code


def test_an_interrupted_reproduce_leaves_what_was_finished_and_says_where(offer, capsys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    offer(made_check("a", HOLD), made_check("b", HOLD, run=interrupt), made_check("c", HOLD))
    assert main(["reproduce", "--out", str(out)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"ntk-robust: interrupted; 3 of 5 parts are in {out / 'index.html'}"
    )
    results = json.loads((out / "results.json").read_text())
    assert [check["name"] for check in results["checks"]] == ["a"]
    assert (results["complete"], results["pending"], results["verdict"]) == (False, ["b", "c"], "INCONCLUSIVE")
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "results.json", "run.json"]
    offer(made_check("a", HOLD))
    assert main(["reproduce", "--out", str(out)]) == 0


def test_reproduce_refuses_folders_that_hold_other_things_and_files_and_places_it_cannot_write(
    offer, capsys, tmp_path: Path
) -> None:
    offer(made_check("a", HOLD))
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["reproduce", "--out", str(tmp_path)]) == 2
    assert_one_line_error(capsys, str(tmp_path), "'thesis.tex'", "empty or a new folder")
    assert main(["reproduce", "--out", str(tmp_path / "thesis.tex")]) == 2
    assert_one_line_error(capsys, "thesis.tex is a file")
    assert main(["reproduce", "--out", "/proc/report"]) == 2
    assert_one_line_error(capsys, "/proc/report")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_reported_with_the_file_that_did_not_fit(
    offer, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    offer(made_check("a", HOLD))
    monkeypatch.setattr(os, "fsync", full)
    assert main(["reproduce", "--out", str(tmp_path / "out")]) == 2
    assert_one_line_error(capsys, str(tmp_path / "out" / "run.json"), "No space left on device")
    assert list((tmp_path / "out").iterdir()) == []


def run_with_stdout(stdout: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ntk_robust.cli", "check", "--list"]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120)


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_with_stdout(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_device_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = run_with_stdout(full)
    assert done.returncode == 2
    assert done.stderr == "ntk-robust: error: standard output: No space left on device\n"


def test_doctor_names_versions_devices_precision_data_and_remedies(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NTK_ROBUST_DATA", raising=False)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("jax", "cpu 0", "float64", "neural-tangents", "set NTK_ROBUST_DATA", "embedded in scikit-learn"):
        assert part in printed
    assert "pip install 'ntk-robust[tpu]'" in printed
