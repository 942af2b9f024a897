"""What is here: versions, devices, precision, data."""

import importlib.util
import sys

import jax

from ntk_robust._core import package_version, provenance
from ntk_robust.cli._arguments import Doctor
from ntk_robust.cli._terminal import say
from ntk_robust.data import dataset_status

_OPTIONAL = (
    ("GPU", "jax-cuda13-plugin", "pip install 'ntk-robust[gpu]'"),
    ("TPU", "libtpu", "pip install 'ntk-robust[tpu]'"),
    ("comparison with torch attacks", "torch", "see benchmarks/README.md"),
)


def doctor(command: Doctor) -> int:
    """Prints the state of this installation; the code is 0 if the library can work."""
    record = provenance()
    _title("versions")
    _row("python", record["python"])
    for name, version in record["versions"].items():
        _row(name, version or "not installed")
    _row("git commit", record["git_commit"] or "not a checkout")

    _title("devices")
    for device in jax.local_devices():
        _row(f"{device.platform} {device.id}", device.device_kind)
    _row("platform", record["platform"])

    _title("precision")
    _row("commands", "float64 (train and kernel take --dtype float32)")
    _row("library", "follows its inputs; JAX's own default is float32 until jax_enable_x64 is set")
    _row("matmul precision", f"{record['matmul_precision']} (kernel matrices ask for the highest)")

    _title("reference kernels")
    works = _neural_tangents()

    _title("data sets")
    for status in dataset_status(command.data_dir):
        _row(status.name, f"{'found' if status.available else 'not found'}: {status.detail}")

    _title("optional parts")
    for part, distribution, remedy in _OPTIONAL:
        version = package_version(distribution)
        _row(part, f"{distribution} {version}" if version else f"needs {distribution}: {remedy}")
    return 0 if works else 1


def _neural_tangents() -> bool:
    from ntk_robust.kernels import load_neural_tangents

    try:
        module = load_neural_tangents()
    except ImportError as error:
        _row("neural-tangents", f"does not load: {' '.join(str(error).split())}")
        return False
    version = package_version("neural-tangents")
    _row("neural-tangents", f"{version} loads on jax {jax.__version__} ({module.__name__})")
    absent = [name for name in ("tensorflow", "tf2jax") if name not in sys.modules]
    installed = [name for name in absent if importlib.util.find_spec(name) is not None]
    note = f"installed and not imported: {', '.join(installed)}" if installed else "not installed, and not needed"
    _row("tensorflow, tf2jax", note if len(absent) == 2 else "imported by something else")
    return True


def _title(text: str) -> None:
    say(f"\n{text}")


def _row(name: str, value: str) -> None:
    say(f"  {name:<26} {value}")
