"""APGD against a slow twin written from the paper, and where its own step sizes must help."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import APGD, PGD, Box, LinfBall, attack_batch
from ntk_robust.attacks._apgd import checkpoints
from ntk_robust.losses import DLR, Logistic


def test_the_checkpoints_for_a_hundred_steps_are_the_published_ones():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == []


def bowl(x, y):
    return -jnp.sum((x - y) ** 2 * jnp.asarray([1.0, 5.0, 0.2]))


def twin(x, centre, epsilon, num_steps):
    """Algorithm 1 of the paper in plain NumPy for the l∞ ball and the concave quadratic above, started at x."""
    weights = np.asarray([1.0, 5.0, 0.2])

    def f(point):
        return -np.sum((point - centre) ** 2 * weights)

    def move(point, step):
        moved = point + step * np.sign(-2 * weights * (point - centre))
        return np.clip(moved, x - epsilon, x + epsilon)

    step, points = 2 * epsilon, [x]
    best, best_value = x, f(x)
    points.append(move(x, step))
    if f(points[1]) > best_value:
        best, best_value = points[1], f(points[1])
    history = [best_value]
    marks, last_mark, increases = checkpoints(num_steps), 0, int(f(points[1]) > f(x))
    halved, value_at_mark = True, f(x)
    for k in range(1, num_steps + 1):
        if k in marks:
            few = increases < 0.75 * (k - last_mark)
            stuck = not halved and best_value == value_at_mark
            halved, value_at_mark, last_mark, increases = few or stuck, best_value, k, 0
            if halved:
                step /= 2
                points[-1] = best
        if k == num_steps:
            break
        target = move(points[-1], step)
        new = points[-1] + 0.75 * (target - points[-1]) + 0.25 * (points[-1] - points[-2])
        new = np.clip(new, x - epsilon, x + epsilon)
        increases += int(f(new) > f(points[-1]))
        points.append(new)
        if f(new) > best_value:
            best, best_value = new, f(new)
        history.append(best_value)
    return best, history


def test_apgd_follows_its_slow_twin_step_by_step(key):
    xs = jr.uniform(key, (4, 3))
    centres = xs + 0.3 * jr.normal(jr.fold_in(key, 1), (4, 3))
    found = attack_batch(APGD(30, random_start=False), bowl, xs, centres, LinfBall(0.3), key=key)
    for i in range(4):
        best, history = twin(np.asarray(xs[i]), np.asarray(centres[i]), 0.3, 30)
        np.testing.assert_allclose(found.values[i, 1:], history, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found.x_adv[i], best, rtol=0, atol=1e-9)


def test_apgd_settles_on_a_maximum_inside_where_a_fixed_step_cannot(key):
    xs = jr.uniform(key, (8, 3))
    centres = xs + 0.1 * jr.uniform(jr.fold_in(key, 1), (8, 3), minval=-1.0)
    apgd = attack_batch(APGD(100), bowl, xs, centres, LinfBall(0.3), key=key)
    pgd = attack_batch(PGD(100, 0.25), bowl, xs, centres, LinfBall(0.3), key=key)
    assert float(apgd.value.min()) > -1e-4
    assert float(apgd.value.mean()) > 10 * float(pgd.value.mean())


def test_apgd_reaches_the_exact_worst_case_of_a_linear_scalar_network(key):
    weights = jr.normal(key, (5,))
    xs = jr.uniform(jr.fold_in(key, 1), (6, 5))
    ys = jnp.asarray([1.0, -1.0] * 3)

    def objective(x, y):
        return Logistic()(jnp.vdot(weights, x), y)

    found = attack_batch(APGD(10), objective, xs, ys, LinfBall(0.1, Box(0.0, 1.0)), key=key)
    lowest, highest = jnp.clip(xs - 0.1, 0, 1), jnp.clip(xs + 0.1, 0, 1)
    worst = jnp.where((ys[:, None] * weights[None]) > 0, lowest, highest)
    np.testing.assert_allclose(found.value, np.log1p(np.exp(-np.asarray(ys) * np.asarray(worst @ weights))), rtol=1e-12)


@pytest.mark.slow
def test_scaling_the_logits_does_not_change_what_apgd_on_dlr_finds(key):
    matrix = jr.normal(key, (4, 5))
    xs = jr.uniform(jr.fold_in(key, 1), (3, 5))
    problems = [jnp.argmax(xs @ matrix.T, axis=1)] * 2
    scales = (1.0, 1024.0)
    found = [
        attack_batch(
            APGD(12), lambda x, y, scale=scale: DLR()(scale * jnp.tanh(matrix @ x), y), xs, ys, LinfBall(0.2), key=key
        )
        for scale, ys in zip(scales, problems, strict=True)
    ]
    np.testing.assert_allclose(found[0].x_adv, found[1].x_adv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_number_of_steps_that_is_none_is_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        APGD(num_steps)
