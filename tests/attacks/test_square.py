"""The Square attack: its schedule, its optimum where it is known, and gradients it does not need."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import PGD, Box, L2Ball, LinfBall, Square, attack_batch
from ntk_robust.attacks._square import square_sides

BOX = Box(0.0, 1.0)


def test_the_squares_shrink_as_published():
    sides = square_sides(10_000, 28, 28, 0.8)
    areas = {1: 0.8, 10: 0.8, 11: 0.4, 50: 0.4, 51: 0.2, 200: 0.2, 501: 0.05, 8001: 0.8 / 512}
    for query, area in areas.items():
        assert sides[query - 1] == max(1, round((area * 784) ** 0.5)), query
    stretched = square_sides(500, 28, 28, 0.8)  # every twentieth
    np.testing.assert_array_equal(stretched, sides[19::20])


def stepped(x, direction):
    """A linear function that only sees eighths of its input: every gradient is zero."""
    return jnp.vdot(direction, jnp.round(x * 8) / 8)


def test_square_attacks_what_hides_its_gradient_from_pgd(key):
    xs = jr.uniform(key, (4, 12))
    directions = jr.normal(jr.fold_in(key, 1), (4, 12))
    sets = LinfBall(0.25, BOX)
    square = attack_batch(Square(400, (3, 4, 1)), stepped, xs, directions, sets, key=key)
    pgd = attack_batch(PGD(10, 0.25, random_start=False), stepped, xs, directions, sets, key=key)
    lower, upper = np.clip(np.asarray(xs) - 0.25, 0, 1), np.clip(np.asarray(xs) + 0.25, 0, 1)
    gains = np.maximum(*(np.asarray(directions) * np.round(bound * 8) / 8 for bound in (lower, upper)))
    np.testing.assert_allclose(square.value, gains.sum(axis=1), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(pgd.x_adv, xs)
    assert (np.diff(np.asarray(square.values), axis=1) >= 0).all()
    assert bool(jax.vmap(sets.contains)(xs, square.x_adv).all())


def test_intervals_replace_squares_in_a_vector(key):
    xs, directions = jnp.full((2, 9), 0.5), jr.normal(key, (2, 9))
    found = attack_batch(Square(300), stepped, xs, directions, LinfBall(0.25), key=key)
    np.testing.assert_allclose(found.value, np.sum(np.abs(directions) / 4 + directions / 2, axis=1), rtol=1e-12)


def test_settings_that_do_not_fit_give_one_clear_error(key):
    xs, ys = jnp.full((2, 9), 0.5), jnp.ones((2, 9))
    with pytest.raises(ValueError, match=r"\(2, 2, 1\) holds 4 coordinates, the example has 9"):
        attack_batch(Square(10, (2, 2, 1)), stepped, xs, ys, LinfBall(0.1), key=key)
    with pytest.raises(ValueError, match="Square is made for LinfBall, got L2Ball"):
        attack_batch(Square(10), stepped, xs, ys, L2Ball(0.1), key=key)
    with pytest.raises(ValueError, match="num_queries=0"):
        Square(0)
    with pytest.raises(ValueError, match=r"initial_fraction=1\.5"):
        Square(10, initial_fraction=1.5)
