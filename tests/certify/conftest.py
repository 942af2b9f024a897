"""Bounds compile many small programs that run once: most modules compile them fast, not for speed."""

import jax
import pytest


@pytest.fixture(scope="module")
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
