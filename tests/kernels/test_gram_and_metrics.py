"""Tiles against the whole, and metrics against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import analytic_ntk, effective_rank, empirical_ntk, gram, kernel_alignment, kernel_drift
from ntk_robust.models import FullyConnected


def test_tiles_make_the_whole_matrix():
    kernel = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))
    x, z = (np.random.default_rng(0).normal(size=(n, 3)) for n in (11, 5))
    whole = np.asarray(kernel.gram(jnp.asarray(x)))
    for tile in (4, 100):
        found = gram(kernel, x, tile=tile)
        np.testing.assert_allclose(found, whole, rtol=1e-13, atol=1e-14)
        np.testing.assert_array_equal(found, found.T)
        np.testing.assert_array_equal(np.diagonal(found), np.diagonal(whole))
    np.testing.assert_allclose(gram(kernel, x, z, tile=4), kernel.gram(jnp.asarray(x), jnp.asarray(z)), rtol=1e-13)


def test_the_destination_changes_the_place_and_not_the_values():
    kernel = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))
    x, z = (np.random.default_rng(0).normal(size=(n, 3)) for n in (11, 5))
    for other in (None, z):
        whole = gram(kernel, x, other, tile=4)
        there = gram(kernel, x, other, tile=4, out=jax.devices()[0])
        assert isinstance(there, jax.Array)
        np.testing.assert_array_equal(there, whole)
        filled = np.full(whole.shape, np.nan)
        assert gram(kernel, x, other, tile=4, out=filled) is filled
        np.testing.assert_array_equal(filled, whole)
    with pytest.raises(ValueError, match="make them agree"):
        gram(kernel, x, out=np.empty((11, 11), np.float32))


def test_a_function_of_two_sets_can_be_tiled(key):
    model = FullyConnected(3, 4, 1, 2)
    params = model.init(key=key)
    x = np.random.default_rng(0).normal(size=(7, 3))
    kernel_fn = lambda a, b: empirical_ntk(model.apply, params, a, b)  # noqa: E731
    np.testing.assert_allclose(gram(kernel_fn, x, tile=3), kernel_fn(jnp.asarray(x), None), rtol=1e-12)


def test_progress_counts_every_tile_once():
    class Counting:
        def __init__(self):
            self.total, self.done = None, 0

        def task(self, description, total=None):
            self.total = total
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, steps=1, **_):
            self.done += steps

    counting = Counting()
    gram(analytic_ntk(FullyConnected(3, 1, 1, "scalar")), np.ones((7, 3)), tile=3, progress=counting)
    assert (counting.total, counting.done) == (6, 6)


def test_impossible_tilings_are_refused():
    kernel = analytic_ntk(FullyConnected(3, 1, 1, "scalar"))
    with pytest.raises(ValueError, match="tile is 0"):
        gram(kernel, np.ones((2, 3)), tile=0)
    with pytest.raises(ValueError, match="at least one each"):
        gram(kernel, np.ones((0, 3)))


def test_metrics_follow_their_definitions():
    rng = np.random.default_rng(1)
    a, b = (r @ r.T for r in rng.normal(size=(2, 6, 9)))
    k_1, k_2 = jnp.asarray(a), jnp.asarray(b)
    np.testing.assert_allclose(kernel_drift(k_2, k_1), np.sqrt(((b - a) ** 2).sum() / (a**2).sum()), rtol=1e-13)
    assert float(kernel_drift(k_1, k_1)) == 0.0
    np.testing.assert_allclose(kernel_alignment(k_1, 3.0 * k_1), 1.0, rtol=1e-13)
    center = np.eye(6) - 1 / 6
    ca, cb = center @ a @ center, center @ b @ center
    expected = (ca * cb).sum() / np.sqrt((ca**2).sum() * (cb**2).sum())
    np.testing.assert_allclose(kernel_alignment(k_1, k_2, centered=True), expected, rtol=1e-12)
    np.testing.assert_allclose(kernel_alignment(k_1 + 5.0, k_2, centered=True), expected, rtol=1e-11)
    values = np.linalg.eigvalsh(a)
    np.testing.assert_allclose(effective_rank(k_1), values.sum() ** 2 / (values**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(effective_rank(jnp.eye(4)), 4.0)
