"""The Square attack: its schedule, its optimum where it is known, and gradients it does not need."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import PGD, Box, L1Ball, L2Ball, LinfBall, Square, attack_batch
from ntk_robust.attacks._square import square_sides
from ntk_robust.attacks._square_moves import moves, pyramid

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


def test_a_pyramid_is_the_sum_of_nested_rectangles():
    for tall, wide in ((5, 5), (7, 7), (1, 9), (4, 4)):
        expected = []
        turned = tall == 1
        for rows in ((wide if turned else tall) // 2, -(-(wide if turned else tall) // 2)):
            half, columns = np.zeros((rows, tall if turned else wide)), tall if turned else wide
            for k in range(max(rows // 2 + 1, columns // 2 + 1)):
                middle = rows // 2, columns // 2
                inside = tuple(slice(max(m - k, 0), m + k + 1) for m in middle)
                half[inside] += 1 / (k + 1) ** 2
            expected.append(half / np.linalg.norm(half))
        array = np.concatenate([expected[0], -expected[1]]) / 2**0.5
        np.testing.assert_allclose(pyramid(tall, wide), array.T if turned else array, atol=1e-15)


@pytest.mark.parametrize("shape", [(6, 7, 2), (1, 11, 1)])
def test_moves_in_the_l2_ball_spend_the_whole_radius_and_change_two_windows(shape, key):
    sides = square_sides(40, *shape[:2], 0.5)
    search = moves("l2", shape, jnp.asarray(0.7), sides)
    delta = search.start(key=key)
    change = jax.jit(lambda delta, number, key: search.change(delta, number, key=key))
    for number in range(40):
        assert float(jnp.linalg.norm(delta)) == pytest.approx(0.7, rel=1e-12)
        new = change(delta, jnp.asarray(number, jnp.int32), jr.fold_in(key, number))
        # Away from both windows only the scale may change; there are at most two windows.
        ratio = np.asarray(new) / np.where(np.asarray(delta) == 0, np.nan, np.asarray(delta))
        values, counts = np.unique(np.round(ratio[np.isfinite(ratio)], 9), return_counts=True)
        side = int(search.sides[int(search.levels[number])])
        window = min(side, shape[0]) * min(side, shape[1]) * shape[2]
        assert counts.max() >= np.isfinite(ratio).sum() - 2 * window, (values, counts)
        delta = new


@pytest.mark.slow
def test_square_climbs_in_the_l2_ball_faster_than_random_points_and_never_above_the_optimum(key):
    xs, directions = jnp.full((3, 64), 0.5), jr.normal(key, (3, 64))
    sets = L2Ball(0.3, BOX)
    found = attack_batch(Square(400, (8, 8, 1)), jnp.vdot, xs, directions, sets, key=key)
    optimum = 0.3 * np.linalg.norm(directions, axis=1)
    gains = np.asarray(found.value) - np.asarray(directions.sum(axis=1) / 2)
    points = jr.normal(jr.fold_in(key, 1), (401, 64))
    random = 0.3 * np.asarray(directions @ points.T / jnp.linalg.norm(points, axis=1)[None, :]).max(axis=1)
    assert (gains <= optimum + 1e-12).all()
    assert gains.mean() > random.mean() + 0.1 * optimum.mean()
    assert bool(jax.vmap(sets.contains)(xs, found.x_adv).all())


def test_settings_that_do_not_fit_give_one_clear_error(key):
    xs, ys = jnp.full((2, 9), 0.5), jnp.ones((2, 9))
    with pytest.raises(ValueError, match=r"\(2, 2, 1\) holds 4 coordinates, the example has 9"):
        attack_batch(Square(10, (2, 2, 1)), stepped, xs, ys, LinfBall(0.1), key=key)
    with pytest.raises(ValueError, match="Square is made for LinfBall and L2Ball, got L1Ball"):
        attack_batch(Square(10), stepped, xs, ys, L1Ball(0.1), key=key)
    with pytest.raises(ValueError, match="num_queries=0"):
        Square(0)
    with pytest.raises(ValueError, match=r"initial_fraction=1\.5"):
        Square(10, initial_fraction=1.5)
