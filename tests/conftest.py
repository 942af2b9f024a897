"""Strict numerics and checked shapes for every test, and keys that do not depend on the order of tests."""

import os
import zlib
from importlib.metadata import version

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _flags_of_fast_compilation() -> str:
    """Flags without which compiling small programs is two thirds of the time of these tests.

    LLVM leaves its optimizations out; XLA keeps its own. An unknown flag ends the process, so that only releases that
    were tried get any.
    """
    release = tuple(int(part) for part in version("jaxlib").split(".")[:2])
    flags = ["backend_optimization_level=0", "llvm_disable_expensive_passes=true", "cpu_parallel_codegen_split_count=1"]
    if release < (0, 11):
        flags.append("cpu_use_fusion_emitters=false")
    return " ".join(f"--xla_{flag}" for flag in flags) if release < (0, 13) else ""


# XLA reads them when it compiles for the first time. XLA_FLAGS= in the environment tests what users run.
os.environ.setdefault("XLA_FLAGS", _flags_of_fast_compilation())

_HOOK = jaxtyping.install_import_hook("ntk_robust", "beartype.beartype")


@pytest.hookimpl(tryfirst=True)  # before the workers read the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m, -k or a node id asks for them; tests of one file share a worker.

    A test with a group of its own is long, and what it shares with its file is little: these begin, so that no worker
    is left with one of them at the end.
    """
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(config.rootpath))))
    if config.option.markexpr or config.option.keyword or any("::" in argument for argument in config.args):
        return
    skip = pytest.mark.skip(reason="slow: run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A key derived from the test's own id, so that tests stay independent of each other."""
    name, _, _ = request.node.nodeid.partition("@")  # a worker adds the group
    return jax.random.key(zlib.crc32(name.encode()))
