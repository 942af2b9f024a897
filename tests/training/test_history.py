import errno
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import tensorstore

from ntk_robust.attacks import FGSM, LinfBall
from ntk_robust.losses import Squared
from ntk_robust.models import FullyConnected
from ntk_robust.training import DisplacementProbe, at_rate, fit, load_history, save_history
from ntk_robust.training import _history as module
from ntk_robust.training._description import described

XS, YS = jr.normal(jr.key(0), (6, 4)), jnp.sign(jr.normal(jr.key(1), (6,)))
PARAMS = {"hidden": jr.normal(jr.key(2), (5, 4)), "readout": jr.normal(jr.key(3), (5,))}


@pytest.fixture(scope="module")
def result():
    return fit(
        lambda params, x: params["readout"] @ jnp.tanh(params["hidden"] @ x),
        PARAMS,
        XS,
        YS,
        loss=Squared(),
        attack=FGSM(),
        perturbations=LinfBall(0.1),
        optimizer=optax.sgd(0.05),
        num_steps=5,
        probes={"moved": DisplacementProbe(PARAMS)},
        probe_every=2,
        record=lambda step: {"params": step.params},
        key=jr.key(4),
    )


def test_a_history_read_back_has_the_same_bits_and_says_what_made_it(result, tmp_path):
    saved = load_history(save_history(tmp_path / "run", result, about={"seed": 4}))
    for name in ("objective", "surrogate_loss", "gradient_norm", "step_length", "projected"):
        assert np.array_equal(saved.history[name], result.history[name])
        assert saved.history[name].dtype == result.history[name].dtype
    assert np.array_equal(saved.history["params.hidden"], result.history["params"]["hidden"])
    assert set(saved.probes["moved"]) == set(result.probes["moved"])
    for name, values in result.probes["moved"].items():
        assert np.array_equal(saved.probes["moved"][name], values)
    assert saved.probe_steps.tolist() == [0, 2, 4, 5]
    assert saved.summary["num_steps"] == 5
    assert saved.summary["about"] == {"seed": 4}
    assert saved.summary["run"]["versions"]["jax"] == jax.__version__
    assert saved.summary["last"]["objective"] == float(result.history["objective"][-1])


def test_the_arguments_of_a_run_are_kept_so_that_a_figure_can_be_traced_back(result, tmp_path):
    arguments = {
        "apply_fn": FullyConnected(4, 5, 1, "scalar").apply,
        "xs": XS,
        "loss": Squared(),
        "perturbations": LinfBall(0.25),
        "optimizer": at_rate(optax.sgd(0.5, momentum=0.75), jnp.asarray(0.125)),
        "num_steps": np.int64(5),
        "batch_size": None,
        "probes": {"moved": DisplacementProbe(PARAMS)},
        "record": lambda step: {},
        "key": jr.key(4),
    }
    kept = load_history(save_history(tmp_path, result, arguments=arguments)).summary["arguments"]
    assert list(kept) == list(arguments)
    assert (kept["num_steps"], kept["batch_size"], kept["perturbations"]["epsilon"]) == (5, None, 0.25)
    assert kept["apply_fn"]["of"]["width"] == 5
    assert kept["loss"]["class"].endswith("Squared")
    assert kept["key"]["words"] == jr.key_data(jr.key(4)).tolist()
    assert kept["xs"].startswith("float64[6, 4] sha256 ")
    # Another array of the same shape is told apart, and numbers inside a transformation are there.
    assert described(XS) != described(-XS)
    rates = json.dumps(kept["optimizer"])
    assert all(number in rates for number in ("0.5", "0.75", "0.125"))


def test_functions_that_enclose_themselves_or_nothing_yet_are_described():
    def inner():
        return inner, unset

    found = described(inner)
    assert found["function"].endswith("inner")
    assert list(found["encloses"]) == ["inner"]
    unset = 1
    assert described(inner)["encloses"]["unset"] == unset


def test_the_arrays_are_plain_zarr(result, tmp_path):
    save_history(tmp_path, result)
    # The format's own description: C order, little endian, and groups above the arrays.
    described = json.loads((tmp_path / "history.zarr/history/objective/.zarray").read_text())
    assert (described["zarr_format"], described["shape"], described["dtype"]) == (2, [5], "<f8")
    assert json.loads((tmp_path / "history.zarr/history/.zgroup").read_text()) == {"zarr_format": 2}
    assert (tmp_path / "history.zarr/.zgroup").exists()
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(tmp_path / "history.zarr/history/objective")}}
    assert np.array_equal(tensorstore.open(spec).result().read().result(), result.history["objective"])


def test_a_newer_history_replaces_an_older_one_and_a_full_disk_leaves_it(result, tmp_path, monkeypatch):
    save_history(tmp_path, result, about={"which": "older"})
    save_history(tmp_path, result, about={"which": "newer"})
    assert load_history(tmp_path).summary["about"] == {"which": "newer"}

    def full(path, values):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "_write_array", full)
    with pytest.raises(OSError, match="No space left"):
        save_history(tmp_path, result, about={"which": "newest"})
    monkeypatch.undo()
    saved = load_history(tmp_path)
    assert saved.summary["about"] == {"which": "newer"}
    assert np.array_equal(saved.history["objective"], result.history["objective"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.zarr", "summary.json"]


class KillError(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_any_rename_leaves_one_whole_history(result, tmp_path, monkeypatch, renames):
    save_history(tmp_path, result, about={"which": "older"})
    rename, calls = Path.replace, []

    def killed(path, target):
        calls.append(path)
        if len(calls) > renames:
            raise KillError
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        # Nothing cleans up behind a process that is killed.
        patch.setattr(module.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KillError):
            save_history(tmp_path, result, about={"which": "newer"})
    saved = load_history(tmp_path)
    assert saved.summary["about"] == {"which": "older" if renames < 2 else "newer"}
    assert np.array_equal(saved.history["objective"], result.history["objective"])
    save_history(tmp_path, result, about={"which": "newest"})
    assert load_history(tmp_path).summary["about"] == {"which": "newest"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.zarr", "summary.json"]


def test_an_error_between_the_renames_puts_the_older_history_back(result, tmp_path, monkeypatch):
    save_history(tmp_path, result, about={"which": "older"})
    rename, calls = Path.replace, []

    def fails_once(path, target):
        calls.append(path)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fails_once)
    with pytest.raises(PermissionError):
        save_history(tmp_path, result, about={"which": "newer"})
    assert load_history(tmp_path).summary["about"] == {"which": "older"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.zarr", "summary.json"]


def test_a_full_disk_in_the_words_of_tensorstore_is_the_error_of_the_system(result, tmp_path, monkeypatch):
    def full(path, values):
        del values
        raise ValueError(
            f'RESOURCE_EXHAUSTED: Error writing local file "{path}/0": Failed writing: "{path}/0.__lock": Failed to '
            "write 6945450 bytes to file 4: No space left on device [os_error_code='28']"
        )

    monkeypatch.setattr(module, "_write_array", full)
    with pytest.raises(OSError, match="No space left") as raised:
        save_history(tmp_path, result)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "history.zarr"))
    assert list(tmp_path.iterdir()) == []


def test_what_tensorstore_itself_raises_when_files_may_not_grow_is_recognized(result, tmp_path):
    resource = pytest.importorskip("resource")  # not on every system
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (32, limits[1]))
        with pytest.raises(OSError, match="File too large") as raised:
            save_history(tmp_path, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_relative_folders_are_taken_from_the_working_directory(result, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_history("../hist", result)
    assert np.array_equal(load_history("../hist").history["objective"], result.history["objective"])
    assert (tmp_path / "hist/summary.json").exists()


def test_what_is_not_json_is_refused_before_anything_is_replaced(result, tmp_path):
    save_history(tmp_path, result, about={"which": "older"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="about cannot be written as JSON"):
        save_history(tmp_path, result, about={"which": object()})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_history_of_arrays_alone_is_refused(result, tmp_path):
    (save_history(tmp_path, result) / "history.zarr/.zattrs").unlink()
    with pytest.raises(ValueError, match=r"holds no history\.zarr"):
        load_history(tmp_path)


def test_a_folder_without_a_history_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no history\.zarr"):
        load_history(tmp_path)
