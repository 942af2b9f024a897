"""Attacks compile many small programs that run once: compile them fast, not for speed."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
