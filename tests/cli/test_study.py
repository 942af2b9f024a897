"""The command `study`: what it selects, what it writes, and what an interruption leaves."""

import inspect
import json
from pathlib import Path

import pytest

from ntk_robust import studies
from ntk_robust.cli import _study, main


@pytest.fixture
def quick_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies that take no time, and one that is interrupted."""

    def found(name: str):
        def run(dataset, *, size, key, progress):
            return studies.Study(name, name, f"{size} on {dataset.name}", (), ())

        return run

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    parts = {"first": found("first"), "second": found("second"), "third": interrupted}
    monkeypatch.setattr(_study, "STUDIES", parts)


def test_every_study_of_the_library_is_offered(capsys) -> None:
    assert main(["study", "--list"]) == 0
    offered = capsys.readouterr().out.split()
    assert sorted(offered) == sorted(name for name in studies.__all__ if name != "Study")
    assert main(["study", "per", "lazy", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["lazy_training", "perturbation_radius"]


def test_studies_that_train_keep_their_histories_beside_the_report_and_name_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trains(dataset, *, size, histories, key, progress):
        (Path(histories) / "run").mkdir(parents=True)
        return studies.Study("trains", "Trains", "", (), (), str(histories))

    def reads(dataset, *, size, key, progress):
        return studies.Study("reads", "Reads", "", (), ())

    monkeypatch.setattr(_study, "STUDIES", {"trains": trains, "reads": reads})
    assert main(["study", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["studies"]
    assert [entry["histories"] for entry in found] == ["histories/trains", None]
    assert (tmp_path / found[0]["histories"] / "run").is_dir()  # the folder may be moved with the report
    assert (tmp_path / "index.html").read_text().count("histories/trains") == 1


def test_every_study_that_trains_offers_to_keep_histories() -> None:
    offers = {name for name, study in _study.STUDIES.items() if "histories" in inspect.signature(study).parameters}
    assert set(_study.STUDIES) - offers == {"kernel_convergence", "landscape_slices"}  # these train nothing


def test_a_beginning_that_fits_no_study_is_misuse(capsys, tmp_path: Path) -> None:
    assert main(["study", "lazy", "paint", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no study begins with 'paint'" in error
    assert "lazy_training" in error
    assert not (tmp_path / "out").exists()


def test_the_report_holds_what_was_selected_and_what_made_it(quick_studies, tmp_path: Path) -> None:
    assert main(["study", "f", "s", "--out", str(tmp_path), "--seed", "3", "--dtype", "float32"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["name"] for entry in results["studies"]] == ["first", "second"]
    assert results["studies"][0]["text"] == "quick on digits"
    assert results["complete"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["seed"], run["arguments"]["dtype"]) == (3, "float32")
    assert "second" in (tmp_path / "index.html").read_text()


def test_an_interruption_keeps_the_finished_studies(quick_studies, capsys, tmp_path: Path) -> None:
    assert main(["study", "--out", str(tmp_path)]) == 130
    assert "2 of 3 studies are in" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["pending"] == ["third"]
    assert not results["complete"]
