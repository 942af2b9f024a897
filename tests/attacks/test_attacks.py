"""One protocol for all attacks on all sets, and the closed form optimum on linear functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    Box,
    CarliniWagner,
    DeepFool,
    Identity,
    L1Ball,
    L2Ball,
    LinfBall,
    Restarts,
    SphereSlice,
    Square,
    attack_batch,
)

BOX = Box(0.0, 1.0)
SETS = {
    "linf-box": LinfBall(0.2, BOX),
    "l2-box": L2Ball(0.4, BOX),
    "l1-box": L1Ball(0.6, BOX),
    "sphere": SphereSlice(0.3),
}
ATTACKS = {
    "identity": Identity(),
    "fgsm": FGSM(),
    "fgsm-random": FGSM(random_start=True),
    "pgd": PGD(5, 0.3, random_start=False),
    "restarts": Restarts(PGD(3, 0.5), 2),
    "apgd": APGD(6),
    "square": Square(10),
    "fab": FAB(4),
    "pgd-momentum": PGD(5, 0.3, momentum=0.9),
    "deep-fool": DeepFool(4),
    "carlini-wagner": CarliniWagner(5, 2),
}
REFUSED = {("fab", "sphere"), ("deep-fool", "sphere")}  # by tests of their own
REFUSED |= {("square", name) for name in ("l1-box", "sphere")}
REFUSED |= {("carlini-wagner", name) for name in ("linf-box", "l1-box", "sphere")}
NUM = 6
DIM = 5


def wavy(x, y):
    """Smooth, not concave, with a target that matters."""
    phases = jnp.arange(1.0, DIM + 1).astype(x.dtype)
    return jnp.sum(jnp.sin(3 * x + phases)) * y + jnp.sum(x**2)


def linear(x, direction):
    return jnp.vdot(direction, x)


def batch(dtype=jnp.float64):
    rng = np.random.default_rng(3)
    xs = rng.uniform(size=(NUM, DIM))
    xs[::2, 1] = 0.0
    return jnp.asarray(xs, dtype), jnp.asarray(rng.choice([-1.0, 1.0], NUM), dtype)


def pairs():
    """All attacks on all sets; what other pairs cover is marked slow, since each pair compiles its own program."""
    for attack_name in ATTACKS:
        for set_name in SETS:
            if (attack_name, set_name) in REFUSED:
                continue
            is_quick = set_name == "linf-box" and attack_name in {"fgsm", "pgd", "apgd", "fab", "pgd-momentum"}
            is_quick |= set_name == "l2-box" and attack_name in {"square", "carlini-wagner"}
            is_quick |= (attack_name, set_name) in {("restarts", "l1-box"), ("fgsm", "sphere")}
            yield pytest.param(attack_name, set_name, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("attack_name", "set_name"), list(pairs()))
def test_every_attack_on_every_set_keeps_its_contract(attack_name, set_name, key):
    attack, perturbations = ATTACKS[attack_name], SETS[set_name]
    xs, ys = batch(jnp.float32)
    # One radius is broadcast to all examples before the attack sees it; here it is, so that one program serves below.
    every = perturbations.with_epsilon(jnp.full(NUM, perturbations.epsilon, float))
    found = attack_batch(attack, wavy, xs, ys, every, key=key)
    assert found.x_adv.dtype == found.value.dtype == jnp.float32
    assert found.x_adv.shape == xs.shape
    assert bool(contains_all(perturbations, xs, found.x_adv).all())
    np.testing.assert_allclose(found.value, value_all(found.x_adv, ys), rtol=1e-5, atol=1e-5)
    assert (np.diff(np.asarray(found.values), axis=1) >= 0).all()
    np.testing.assert_array_equal(np.asarray(found.values)[:, -1], found.value)
    if attack_name in {"identity", "fgsm", "pgd"}:  # these look at x itself
        assert (np.asarray(found.value) >= np.asarray(value_all(xs, ys)) - 1e-6).all()
    again = attack_batch(attack, wavy, xs, ys, every, key=key)
    np.testing.assert_array_equal(again.x_adv, found.x_adv)
    # Radius zero is the identity, and a radius for each example is that radius for each example.
    mixed = attack_batch(attack, wavy, xs, ys, perturbations.with_epsilon(jnp.asarray([0.0, 0.1, 0.2] * 2)), key=key)
    np.testing.assert_allclose(mixed.x_adv[::3], xs[::3], rtol=0, atol=1e-6)
    moved = jax.vmap(perturbations.norm)(mixed.x_adv - xs)
    assert (np.asarray(moved) <= np.asarray([0.0, 0.1, 0.2] * 2) + 1e-6).all()


@eqx.filter_jit
def contains_all(perturbations, xs, points):
    return jax.vmap(perturbations.contains)(xs, points)


value_all = jax.jit(jax.vmap(wavy))


@pytest.mark.parametrize(
    "set_name",
    [
        pytest.param("linf-box", marks=pytest.mark.slow),
        pytest.param("l2-box", marks=pytest.mark.slow),
        "l1-box",
        pytest.param("sphere", marks=pytest.mark.slow),
    ],
)
def test_one_fgsm_step_solves_a_linear_problem_and_pgd_gets_there(set_name, key):
    perturbations = SETS[set_name]
    xs, _ = batch()
    directions = jr.normal(key, (NUM, DIM))
    best = jax.jit(jax.vmap(perturbations.argmax_linear))(xs, directions)  # held against linear programs in test_sets
    optimum = jnp.sum(best * directions, axis=1)
    fgsm = attack_batch(FGSM(), linear, xs, directions, perturbations, key=key)
    np.testing.assert_allclose(fgsm.value, optimum, rtol=1e-12)
    pgd = attack_batch(PGD(400, 0.5), linear, xs, directions, perturbations, key=key)
    np.testing.assert_allclose(pgd.value, optimum, rtol=1e-6)
    assert bool((pgd.value <= optimum + 1e-12).all())


def test_pgd_finds_the_trust_region_optimum_of_a_quadratic_in_the_l2_ball(key):
    matrix = jr.normal(key, (NUM, DIM, DIM))
    matrix = matrix + jnp.swapaxes(matrix, 1, 2)
    slopes = jr.normal(jr.fold_in(key, 1), (NUM, DIM))
    found = attack_batch(
        Restarts(PGD(200, 0.1), 6),
        lambda x, problem: x @ problem[:, :DIM] @ x / 2 + problem[:, DIM] @ x,
        jnp.zeros((NUM, DIM)),
        jnp.concatenate([matrix, slopes[:, :, None]], axis=2),
        L2Ball(1.0),
        key=key,
    )
    for hessian, slope, value in zip(np.asarray(matrix), np.asarray(slopes), np.asarray(found.value), strict=True):
        # Exact by the secular equation: δ = (μ - H)⁻¹ g with ‖δ‖ = 1 and μ ≥ λ_max.
        eigenvalues, vectors = np.linalg.eigh(hessian)
        weights = vectors.T @ slope
        low, high = eigenvalues[-1], eigenvalues[-1] + np.linalg.norm(slope)
        for _ in range(200):
            middle = (low + high) / 2
            too_long = np.sum((weights / (middle - eigenvalues)) ** 2) > 1
            low, high = (middle, high) if too_long else (low, middle)
        delta = vectors @ (weights / (high - eigenvalues))
        optimum = delta @ hessian @ delta / 2 + slope @ delta
        assert optimum - 2e-2 * abs(optimum) <= value <= optimum + 1e-9


def test_momentum_follows_its_slow_twin(key):
    def ridge(x, y):  # climbs slowly along the first axis, with a steep roof across it
        return y * x[0] - 10 * jnp.abs(x[1])

    xs, ys = jnp.asarray([[0.5, 0.52]]), jnp.ones(1)
    found = attack_batch(PGD(12, 0.1, False, momentum=1.0), ridge, xs, ys, L2Ball(0.3, BOX), key=key)
    point, velocity, best = np.asarray(xs[0]), np.zeros(2), -np.inf
    for _ in range(13):
        best = max(best, point[0] - 10 * abs(point[1]))
        gradient = np.asarray([1.0, -10 * np.sign(point[1])])
        velocity = velocity + gradient / np.abs(gradient).sum()
        point = point + 0.03 * velocity / np.linalg.norm(velocity)
        delta = point - np.asarray(xs[0])
        point = np.clip(np.asarray(xs[0]) + delta * min(1, 0.3 / np.linalg.norm(delta)), 0, 1)
    assert float(found.value[0]) == pytest.approx(best, abs=1e-12)


def test_where_the_gradient_is_zero_an_attack_stays_and_says_so(key):
    xs, ys = batch()
    for attack, num_gradients in ((FGSM(), 1), (PGD(4, 0.5, random_start=False), 4)):
        for perturbations in (SETS["linf-box"], SETS["l2-box"]):
            found = attack_batch(attack, flat, xs, ys, perturbations, key=key)
            np.testing.assert_array_equal(found.x_adv, xs)
            np.testing.assert_array_equal(found.zero_gradients, num_gradients)
            assert bool(jnp.isfinite(found.value).all())


def flat(x, y):
    return jnp.sum(0 * x) + y


def test_an_attack_never_returns_the_points_where_the_objective_is_not_a_number(key):
    xs, ys = batch()

    def cliff(x, y):
        return jnp.where(x[0] > xs[:, 0].max() - 0.5, jnp.nan, jnp.sum(x)) * jnp.abs(y)

    found = attack_batch(PGD(8, 0.3, random_start=False), cliff, xs, ys, LinfBall(0.2), key=key)
    starts = jax.vmap(cliff)(xs, ys)
    assert bool(jnp.isfinite(found.value[jnp.isfinite(starts)]).all())
    assert bool((found.value[jnp.isnan(starts)] == -jnp.inf).all() | jnp.isfinite(found.value).all())


def test_more_restarts_never_find_less(key):
    xs, ys = batch()
    one = attack_batch(Restarts(PGD(3, 0.5), 1), wavy, xs, ys, SETS["linf-box"], key=key)
    many = attack_batch(Restarts(PGD(3, 0.5), 8), wavy, xs, ys, SETS["linf-box"], key=key)
    assert float(many.value.mean()) > float(one.value.mean())
    assert many.values.shape == (NUM, 8 * 4)


def test_new_radii_steps_keys_and_inputs_do_not_compile_again(key):
    traces = []

    def counted(x, y):
        traces.append(None)
        return wavy(x, y)

    xs, ys = batch()
    attack_batch(PGD(5, 0.3), counted, xs, ys, LinfBall(0.2, BOX), key=key)
    first = len(traces)
    attack_batch(PGD(5, 0.1), counted, xs / 2, -ys, LinfBall(0.05, Box(-1.0, 2.0)), key=jr.fold_in(key, 1))
    attack_batch(PGD(5, 0.1), counted, xs, ys, LinfBall(jnp.linspace(0.0, 0.2, NUM), BOX), key=key)
    assert len(traces) == first > 0
    attack_batch(PGD(6, 0.1), counted, xs, ys, LinfBall(0.05, BOX), key=key)
    assert len(traces) > first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(0), "num_steps=0"),
        (lambda: PGD(3, 0.0), "relative_step=0.0"),
        (lambda: PGD(3, float("nan")), "relative_step=nan"),
        (lambda: PGD(3, momentum=-0.1), "momentum=-0.1"),
        (lambda: Restarts(FGSM(), 0), "num_restarts=0"),
        (lambda: DeepFool(0), "num_steps=0"),
        (lambda: CarliniWagner(num_searches=0), "num_searches=0"),
        (lambda: CarliniWagner(learning_rate=0.0), "learning_rate=0.0"),
        (lambda: CarliniWagner(first_penalty=-1.0), "first_penalty=-1.0"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("xs", "ys", "epsilon", "message"),
    [
        (jnp.zeros((0, 3)), jnp.zeros(0), 0.1, "the batch is empty"),
        (jnp.zeros(3), jnp.zeros(3), 0.1, "examples along the first axis"),
        (jnp.zeros((2, 3)), jnp.zeros(3), 0.1, "one target for each example"),
        (jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(5), "give one radius"),
        (jnp.asarray([[0.0, jnp.nan], [0.0, 0.0]]), jnp.zeros(2), 0.1, "1 of 2 inputs hold nan"),
        (jnp.asarray([[0.0, 255.0], [0.0, 0.0]]), jnp.zeros(2), 0.1, r"1 of 2 inputs leave the valid box \[0, 1\]"),
    ],
)
def test_a_batch_that_cannot_be_attacked_gives_one_clear_error(xs, ys, epsilon, message, key):
    with pytest.raises(ValueError, match=message):
        attack_batch(FGSM(), flat, xs, ys, LinfBall(epsilon, BOX), key=key)
