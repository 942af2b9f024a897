"""Strict numerics and checked shapes for every test, and keys that do not depend on the order of tests."""

import zlib

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_HOOK = jaxtyping.install_import_hook("ntk_robust", "beartype.beartype")


@pytest.hookimpl(tryfirst=True)  # before the workers read the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m, -k or a node id asks for them; tests of one file share a worker."""
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
