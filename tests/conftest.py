"""Strict numerics and checked shapes for every test, and keys that do not depend on the order of tests."""

import zlib

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_HOOK = jaxtyping.install_import_hook("ntk_robust", "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m, -k or a node id asks for them."""
    if config.option.markexpr or config.option.keyword or any("::" in argument for argument in config.args):
        return
    skip = pytest.mark.skip(reason="slow: run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A key derived from the test's own id, so that tests stay independent of each other."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))
