"""Synthetic inputs lie where the theory wants them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.data import circle_points, gaussian_points, sphere_points, to_sphere_slice


def test_slice_rows_have_unit_norm_the_constant_last_and_the_direction_they_had(key: jax.Array) -> None:
    x = gaussian_points(6, 4, key=key)
    for constant in (0.0, 1 / math.sqrt(2), -0.3):
        z = to_sphere_slice(x, constant)
        np.testing.assert_allclose(np.sqrt((np.asarray(z) ** 2).sum(axis=1)), 1.0, rtol=1e-15)
        np.testing.assert_array_equal(z[:, -1], constant)
        cosines = (z[:, :-1] * x).sum(axis=1) / (jnp.linalg.norm(x, axis=1) * math.sqrt(1 - constant**2))
        np.testing.assert_allclose(cosines, 1.0, rtol=1e-14)


def test_slice_follows_the_dtype_and_refuses_rows_without_a_direction() -> None:
    x = jnp.ones((2, 3), jnp.float32)
    assert to_sphere_slice(x).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"row 1 of x has norm 0\.0"):
        to_sphere_slice(x.at[1].set(0))
    with pytest.raises(ValueError, match="row 0 of x has norm inf"):
        to_sphere_slice(x.at[0].set(jnp.inf))
    for constant in (1.0, -1.5, math.nan):
        with pytest.raises(ValueError, match="lies in"):
            to_sphere_slice(x, constant)


def test_circle_points_are_equally_spaced_on_the_sphere_with_alternating_labels() -> None:
    points, labels = circle_points(8)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, rtol=1e-15)
    gaps = np.linalg.norm(np.asarray(points) - np.roll(points, 1, axis=0), axis=1)
    np.testing.assert_allclose(gaps, 2 * math.sqrt(0.5) * math.sin(math.pi / 8), rtol=1e-14)
    assert labels.tolist() == [1, -1] * 4
    single = circle_points(4, 0.2, dtype=np.float32)
    assert single[0].dtype == single[1].dtype == jnp.float32
    np.testing.assert_array_equal(single[0][:, 2], jnp.float32(0.2))
    for wrong in (7, 0, -2):
        with pytest.raises(ValueError, match=f"num_points is {wrong}"):
            circle_points(wrong)


def test_sphere_points_have_unit_norm_and_the_moments_of_the_uniform_law(key: jax.Array) -> None:
    n, d = 4000, 3
    x = np.asarray(sphere_points(n, d, key=key))
    np.testing.assert_allclose((x**2).sum(axis=1), 1.0, rtol=1e-14)
    assert np.abs(x.mean(axis=0)).max() < 5 / math.sqrt(n * d)
    fourth = 3 / (d * (d + 2))
    spread = math.sqrt((105 / (d * (d + 2) * (d + 4) * (d + 6)) - fourth**2) / n)
    assert np.abs((x**4).mean(axis=0) - fourth).max() < 5 * spread


def test_gaussian_points_have_the_moments_of_the_normal_law_and_refuse_empty_shapes(key: jax.Array) -> None:
    n = 4000
    x = np.asarray(gaussian_points(n, 2, key=key))
    assert np.abs(x.mean(axis=0)).max() < 5 / math.sqrt(n)
    assert np.abs((x**2).mean(axis=0) - 1).max() < 5 * math.sqrt(2 / n)
    assert gaussian_points(2, 2, key=key, dtype=np.float32).dtype == jnp.float32
    with pytest.raises(ValueError, match="num_points is 0 and input_dim 3"):
        gaussian_points(0, 3, key=key)
