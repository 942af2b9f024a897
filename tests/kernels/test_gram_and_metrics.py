"""Tiles against the whole, and metrics against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.kernels import (
    analytic_ntk,
    bures_distance,
    effective_rank,
    eigenspace_overlap,
    empirical_ntk,
    gram,
    kernel_alignment,
    kernel_angle,
    kernel_distance,
    kernel_drift,
    kernel_velocity,
    top_mass,
)
from ntk_robust.kernels._checks import whole_number
from ntk_robust.models import FullyConnected


def _linear(a, b):
    return a @ (a if b is None else b).T


@pytest.mark.slow
def test_tiles_make_the_whole_matrix():
    kernel = analytic_ntk(FullyConnected(3, 1, 2, "scalar"))
    x, z = (np.random.default_rng(0).normal(size=(n, 3)) for n in (11, 5))
    whole = np.asarray(kernel.gram(jnp.asarray(x)))
    found = gram(kernel, x, tile=4)
    np.testing.assert_allclose(found, whole, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diagonal(found), np.diagonal(whole))
    np.testing.assert_allclose(gram(_linear, x, tile=100), x @ x.T, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(gram(kernel, x, z, tile=4), kernel.gram(jnp.asarray(x), jnp.asarray(z)), rtol=1e-13)


def test_the_destination_changes_the_place_and_not_the_values():
    kernel = _linear
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
    gram(_linear, np.ones((7, 3)), tile=3, progress=counting)
    assert (counting.total, counting.done) == (6, 6)


def test_impossible_tilings_are_refused():
    kernel = _linear
    with pytest.raises(ValueError, match="tile is 0"):
        gram(kernel, np.ones((2, 3)), tile=0)
    with pytest.raises(ValueError, match=r"tile is 2.5; give a whole number"):
        whole_number("tile", 2.5)  # the type checker of the tests stops it before
    with pytest.raises(ValueError, match="at least one row"):
        gram(kernel, np.ones((0, 3)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (np.nan, "row 1500 of x2 holds nan"),
        (-np.inf, "row 1500 of x2 holds -inf"),
        (1e30, "row 1500 of x2 has entries up to 1e[+]30, whose squares overflow float32; rescale"),
    ],
)
def test_rows_that_would_make_no_number_are_refused_before_anything_is_computed(entry, message, tmp_path):
    x = np.ones((1600, 2), np.float32)
    damaged = x.copy()
    damaged[1500, 1] = entry

    def never(a, b):
        raise AssertionError("computed")

    for out in (None, tmp_path / "new"):
        with pytest.raises(ValueError, match=message):
            gram(never, x, damaged, out=out, kernel_name="never")
    assert not (tmp_path / "new").exists()


def test_a_store_that_is_open_can_be_filled_and_other_destinations_are_refused_in_a_sentence():
    x = np.random.default_rng(0).normal(size=(7, 3))
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr", "kvstore": {"driver": "memory"}}
    store = tensorstore.open(spec, create=True, shape=(7, 7), dtype=tensorstore.float64).result()
    assert gram(_linear, x, tile=3, out=store) is store
    np.testing.assert_array_equal(store.read().result(), gram(_linear, x, tile=3))
    with pytest.raises(ValueError, match=r"out is float64\(7, 7\) and the matrix float64\(6, 6\); make them agree"):
        gram(_linear, x[:6], out=store)
    locked = np.zeros((7, 7))
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        gram(_linear, x, out=locked)
    with pytest.raises(
        ValueError, match="out is a JAX array of shape \\(7, 7\\), which cannot be filled; give a device"
    ):
        gram(_linear, x, out=jnp.zeros((7, 7)))
    for other in (5, [jax.devices()[0]]):
        with pytest.raises(ValueError, match="give a device for a JAX array there, the path of a folder"):
            gram(_linear, x, out=other)


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
    np.testing.assert_allclose(top_mass(k_1, 2), np.sort(values)[-2:].sum() / values.sum(), rtol=1e-12)
    np.testing.assert_allclose(top_mass(k_1, 6), 1.0, rtol=1e-12)
    with pytest.raises(ValueError, match="num is 7 for 6"):
        top_mass(k_1, 7)


def test_distances_follow_from_the_alignment_and_keep_their_digits_where_it_has_none():
    rng = np.random.default_rng(2)
    k_1, k_2, step = (jnp.asarray(r @ r.T) for r in rng.normal(size=(3, 6, 9)))
    for centered in (False, True):
        alignment = kernel_alignment(k_1, k_2, centered=centered)
        np.testing.assert_allclose(
            kernel_distance(k_1, k_2, centered=centered), np.sqrt(2 * (1 - alignment)), rtol=1e-12
        )
        np.testing.assert_allclose(kernel_angle(k_1, k_2, centered=centered), np.arccos(alignment), rtol=1e-12)
    assert float(kernel_distance(k_1, 3.0 * k_1)) < 1e-15
    # across the direction of k_1 a small step turns it by its relative length; the arc cosine would be 0 or 1e-8
    across = step - k_1 * jnp.sum(step * k_1) / jnp.sum(k_1 * k_1)
    turn = 1e-9 * float(jnp.linalg.norm(across) / jnp.linalg.norm(k_1))
    np.testing.assert_allclose(kernel_angle(k_1, k_1 + 1e-9 * across), turn, rtol=1e-5)
    np.testing.assert_allclose(kernel_distance(k_1, k_1 + 1e-9 * across), turn, rtol=1e-5)


def test_velocity_is_the_slope_of_the_path_and_sees_which_step_was_long():
    k = jnp.asarray(np.eye(3) + 1.0)
    times = jnp.asarray([0.0, 1.0, 3.0])
    path = jnp.stack([k, 1.5 * k, 3.0 * k])
    np.testing.assert_allclose(kernel_velocity(path, times), [0.5, 0.5], rtol=1e-14)
    np.testing.assert_allclose(kernel_velocity(path, jnp.asarray([0.0, 1.0, 2.0])), [0.5, 1.0], rtol=1e-14)


def test_the_bures_distance_is_that_of_the_best_rotated_features():
    rng = np.random.default_rng(3)
    diagonal_1, diagonal_2 = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.25])
    expected = np.linalg.norm(np.sqrt(diagonal_1) - np.sqrt(diagonal_2))  # commuting matrices
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    k_1, k_2 = (jnp.asarray((basis * diagonal) @ basis.T) for diagonal in (diagonal_1, diagonal_2))
    np.testing.assert_allclose(bures_distance(k_1, k_2), expected, rtol=1e-7)
    phi, psi = rng.normal(size=(2, 5, 7))
    left, _, right = np.linalg.svd(psi.T @ phi)
    best = np.linalg.norm(phi - psi @ left @ right)
    a, b = jnp.asarray(phi @ phi.T), jnp.asarray(psi @ psi.T)
    np.testing.assert_allclose(bures_distance(a, b), best, rtol=1e-9)
    np.testing.assert_allclose(bures_distance(b, a), best, rtol=1e-9)
    assert float(bures_distance(a, a)) < 1e-7


def test_overlaps_are_cosines_of_principal_angles():
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    turned = basis.copy()  # the second leading direction turned by 0.3 towards the fourth
    turned[:, 1] = np.cos(0.3) * basis[:, 1] + np.sin(0.3) * basis[:, 3]
    turned[:, 3] = np.cos(0.3) * basis[:, 3] - np.sin(0.3) * basis[:, 1]
    k_1, k_2 = (jnp.asarray((u * [5.0, 4.0, 3.0, 2.0, 1.0]) @ u.T) for u in (basis, turned))
    np.testing.assert_allclose(eigenspace_overlap(k_1, k_2, 2), [1.0, np.cos(0.3)], rtol=1e-12)
    np.testing.assert_allclose(eigenspace_overlap(k_1, k_2, 4), 1.0, rtol=1e-12)
    np.testing.assert_allclose(eigenspace_overlap(k_1, 7.0 * k_1, 3), 1.0, rtol=1e-12)
    with pytest.raises(ValueError, match="num is 0 for 5"):
        eigenspace_overlap(k_1, k_2, 0)
