"""How neural-tangents is imported: without tensorflow, in any order, in threads, and with one clear error otherwise."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSTALLED = Path(importlib.metadata.distribution("neural-tangents").locate_file("neural_tangents"))


def run(script, *first_on_path):
    """What a fresh process prints, as JSON."""
    paths = [*map(str, first_on_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    completed = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


FRESH = """
import json, sys, threading, warnings
warnings.simplefilter("error")
import ntk_robust.kernels  # before jax
import jax, jax.core, jax.interpreters.ad, jax.extend.core, jax.numpy, jax.scipy.linalg, jax.experimental.ode
def jax_as_it_is():
    return {
        (module, name): id(value)
        for module in list(sys.modules) if module.partition(".")[0] == "jax" and sys.modules[module] is not None
        for name, value in vars(sys.modules[module]).items()
        if not isinstance(value, type(sys))  # the import system itself sets sub-modules
    }
before, modules = jax_as_it_is(), set(sys.modules)
loaded = []
sys.setswitchinterval(1e-6)  # threads meet inside the import
together = threading.Barrier(8)
def load():
    together.wait()
    loaded.append(ntk_robust.kernels.load_neural_tangents())
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
after = jax_as_it_is()
import neural_tangents
from neural_tangents import stax
import neural_tangents.stax as again
try:
    neural_tangents.experimental.empirical_ntk_fn_tf
except AttributeError as error:
    left_out = str(error)
print(json.dumps({
    "one module": len(loaded) == 8 and all(module is neural_tangents for module in loaded),
    "one stax": stax is again is neural_tangents.stax,
    "written to jax": [" ".join(key) for key in before if after.get(key) != before[key]],
    "heavy": sorted({"tensorflow", "tf2jax"} & {name.partition(".")[0] for name in sys.modules}),
    "jax.core stays without": not hasattr(jax.core, "Jaxpr") and "jax.util" not in sys.modules,
    "version": neural_tangents.__version__,
    "left out": left_out,
    "finders": sum("neural" in type(finder).__module__ for finder in sys.meta_path),
    "kernel": stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))[2](jax.numpy.eye(2), None, "nngp").tolist(),
}))
"""


def test_a_fresh_process_loads_one_module_in_threads_and_writes_nothing_to_jax():
    got = run(FRESH)
    assert got["one module"]
    assert got["one stax"]
    assert got["written to jax"] == []
    assert got["heavy"] == []
    assert got["jax.core stays without"]
    assert got["version"] == "0.6.5"
    assert "tensorflow models" in got["left out"]
    assert got["finders"] == 1
    # E[relu(u)relu(v)] of unit inputs at a right angle, of variance 1/2: sin(pi/2) / (2 pi) / 2
    assert got["kernel"][0][1] == pytest.approx(1 / (4 * 3.141592653589793), rel=1e-6)


REFUSALS = """
import json, sys, types, warnings
import jax, jax.extend.core
from ntk_robust.kernels import load_neural_tangents
def refusal():
    try:
        load_neural_tangents()
    except ImportError as error:
        return str(error)
answers = {}

older, newer, without, broken = PATHS
for name, folder in (("older", older), ("unknown", without), ("broken", broken)):
    sys.path.insert(0, folder)
    sys.path_importer_cache.clear()
    answers[name] = refusal()
    sys.path.remove(folder)

lost = jax.extend.core.Var
del jax.extend.core.Var
answers["lost"] = refusal()
jax.extend.core.Var = lost

foreign = sys.modules["neural_tangents"] = types.ModuleType("neural_tangents")
answers["foreign"] = refusal()
del sys.modules["neural_tangents"]

answers["clean"] = not [name for name in sys.modules if name.partition(".")[0] == "neural_tangents"]
answers["finders"] = sum("neural" in type(finder).__module__ for finder in sys.meta_path)

try:
    import neural_tangents
except ImportError as error:
    answers["bare"] = str(error)
answers["leftovers"] = [name for name in sys.modules if name.partition(".")[0] == "neural_tangents"]
sys.path.insert(0, newer)
sys.path_importer_cache.clear()
jax.__version__ = "0.99.1"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    module = load_neural_tangents()
    load_neural_tangents()
answers["warnings"] = [str(warning.message) for warning in caught]
import neural_tangents
answers["loads after all"] = module is neural_tangents and module.__version__
answers["loaders"] = sorted({
    type(part.__loader__).__name__ for name, part in list(sys.modules.items())
    if name.partition(".")[0] == "neural_tangents"
})
answers["kernel"] = module.stax.Dense(1)[2](jax.numpy.eye(2), None, "nngp").tolist()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Answers to installations that do not fit, all from one process, which must come out of each unharmed."""
    root = tmp_path_factory.mktemp("installations")

    def copy(name, edits):
        target = root / name / "neural_tangents"
        shutil.copytree(INSTALLED, target, ignore=shutil.ignore_patterns("__pycache__"))
        for file, pattern, replacement in edits:
            text = (target / file).read_text()
            assert re.search(pattern, text)
            (target / file).write_text(re.sub(pattern, replacement, text))
        return str(target.parent)

    version = r"__version__ = '0.6.5'"
    paths = [
        copy("older", [("__init__.py", version, "__version__ = '0.6.2'")]),
        copy("newer", [("__init__.py", version, "__version__ = '0.7.0'")]),
        copy("without", [("__init__.py", version, "")]),
        copy("broken", [("__init__.py", version, "__version__ = '0.8'"), ("_src/empirical.py", "_eqn_vjp_fn", "_vjp")]),
    ]
    return run(f"PATHS = {paths!r}\n{REFUSALS}")


def test_an_older_release_is_refused_with_the_reason_why_pip_chose_it(refusals):
    assert "0.6.2" in refusals["older"]
    assert "tensorflow" in refusals["older"]
    assert "pip install --no-deps neural-tangents==0.6.5" in refusals["older"]


def test_a_release_without_a_version_is_refused(refusals):
    assert "unknown version" in refusals["unknown"]


def test_a_newer_release_without_a_function_that_is_replaced_is_one_error_that_names_it(refusals):
    assert "_eqn_vjp_fn" in refusals["broken"]
    assert "0.8" in refusals["broken"]


def test_a_name_that_jax_has_lost_is_one_error_that_names_it_and_the_versions_that_work(refusals):
    assert "jax.extend.core.Var" in refusals["lost"]
    assert "0.10.2 to 0.12" in refusals["lost"]


def test_a_module_that_something_else_imported_is_refused(refusals):
    assert "before anything imports it" in refusals["foreign"]


def test_a_refusal_leaves_the_process_as_it_was(refusals):
    assert refusals["clean"]
    assert refusals["finders"] == 0


def test_newer_versions_load_with_one_warning_even_after_a_failed_bare_import(refusals):
    assert refusals["bare"]
    assert refusals["leftovers"]  # or there was nothing to clean up
    assert refusals["loaders"] == ["_AdaptedSource", "_ExperimentalStub"]  # none of what was left is still in use
    assert len(refusals["warnings"]) == 1
    assert "0.7.0" in refusals["warnings"][0]
    assert "0.99.1" in refusals["warnings"][0]
    assert refusals["loads after all"] == "0.7.0"
    assert refusals["kernel"] == [[0.5, 0.0], [0.0, 0.5]]


def test_loading_twice_in_a_process_that_has_used_jax_gives_the_same_module():
    from ntk_robust.kernels import load_neural_tangents

    first = load_neural_tangents()
    import neural_tangents

    assert first is load_neural_tangents() is neural_tangents
    assert not {"tensorflow", "tf2jax"} & {name.partition(".")[0] for name in sys.modules}
