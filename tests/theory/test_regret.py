"""The regret checks notice planted faults in the loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import FGSM, Identity, LinfBall, SphereSlice
from ntk_robust.theory.checks._adversaries import Mixture, RandomPoint, Weakest, arc_grid, each_and_switching
from ntk_robust.theory.checks._regret import Setting, make_setting, on_boundary, output_error, pair_with, record_run
from ntk_robust.theory.checks.gao2019_certificate import certify
from ntk_robust.theory.checks.gao2019_regret_identity import bookkeeping, comparators
from ntk_robust.training import Trajectory


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(width=12, num_hidden_layers=2, num_train=4, scaled_radius=0.3, num_steps=25, key=jr.key(3))


@pytest.fixture(scope="module")
def run(setting) -> Trajectory:
    return record_run(setting, Identity(), key=jr.key(4))


def worst_free_residual(setting: Setting, run: Trajectory) -> float:
    found = bookkeeping(setting, run, comparators(setting, run, jr.key(5)))
    return float(np.max(np.abs(found.step[~np.asarray(run.projected)])))


def test_the_identity_holds_on_the_recorded_run_and_both_kinds_of_steps_occur(setting, run):
    found = bookkeeping(setting, run, comparators(setting, run, jr.key(5)))
    projected = np.asarray(run.projected)
    assert projected.any()
    assert not projected.all()
    assert np.all(found.step <= found.step_error)
    assert np.all(np.abs(found.step[~projected]) <= found.step_error[~projected])
    assert np.all(found.total <= found.total_error)


def test_a_stale_gradient_breaks_the_identity(setting, run):
    stale = eqx.tree_at(
        lambda r: r.gradients.hidden, run, tuple(jnp.roll(layer, 1, axis=0) for layer in run.gradients.hidden)
    )
    assert worst_free_residual(setting, run) < 1e-13
    assert worst_free_residual(setting, stale) > 1e-6


def test_a_wrong_step_size_breaks_the_identity(setting, run):
    assert worst_free_residual(setting._replace(step_size=1.01 * setting.step_size), run) > 1e-6


def test_an_error_of_a_thousandth_in_one_weight_breaks_the_identity(setting, run):
    weights = run.params.hidden[0].at[3, 0, 0].add(1e-3 * setting.radius)
    touched = eqx.tree_at(lambda r: r.params.hidden, run, (weights, *run.params.hidden[1:]))
    assert worst_free_residual(setting, touched) > 1e-8


def test_the_pairing_notices_a_gradient_at_other_inputs_than_those_recorded(setting, run):
    comparator = comparators(setting, run, jr.key(5))[0]

    def gap(run: Trajectory) -> float:
        pairing = pair_with(setting, run, comparator)
        offsets = comparator - np.concatenate([np.asarray(h)[:-1].reshape(25, -1) for h in run.params.hidden], axis=1)
        gradients = np.concatenate([np.asarray(h).reshape(25, -1) for h in run.gradients.hidden], axis=1)
        found = np.sum(offsets * gradients, axis=1)
        return float(np.max(np.abs(found - np.mean(pairing.slope * pairing.derivative, axis=1))))

    moved = eqx.tree_at(lambda r: r.xs_adv, run, run.xs_adv[:, ::-1])
    assert gap(run) < output_error(setting)
    assert gap(moved) > 1e-4


def test_the_certificate_holds_within_its_rounding_for_every_comparator(setting, run):
    rng = np.random.default_rng(0)
    size = sum(layer.size for layer in setting.params.hidden)
    for direction in rng.normal(size=(5, size)):
        found = certify(setting, run, on_boundary(setting, direction))
        assert found.surrogate <= found.bound + found.uncertainty
        assert found.uncertainty < 1e-8


def test_comparators_lie_on_the_boundary_of_each_layers_ball(setting):
    point = on_boundary(setting, np.random.default_rng(1).normal(size=2 * 144))
    center = np.concatenate([np.asarray(layer).ravel() for layer in setting.params.hidden])
    distances = np.linalg.norm((point - center).reshape(2, -1), axis=1)
    np.testing.assert_allclose(distances, setting.radius, rtol=1e-9)
    assert np.all(distances < setting.radius)


def test_the_rounding_bound_of_outputs_covers_a_computation_in_another_order(setting):
    reference = setting.net.apply(setting.params, setting.xs[0])
    features = jax.nn.relu(setting.params.embedding[:, ::-1] @ setting.xs[0][::-1])
    for layer in setting.params.hidden:
        features = jax.nn.relu(layer[:, ::-1] @ features[::-1])
    again = setting.params.readout[::-1] @ features[::-1]
    assert 0 <= abs(float(again - reference)) <= output_error(setting) < 1e-10


def test_mixtures_with_one_share_are_that_attack_and_switching_uses_all(key):
    ball, x = LinfBall(0.5), jnp.zeros(3)
    mixed = each_and_switching({"identity": Identity(), "fgsm": FGSM(), "weakest": Weakest(FGSM())})

    @jax.jit
    def values(attack: Mixture, keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda k: attack(jnp.sum, x, ball, key=k).value)(keys)

    found = {name: np.unique(values(attack, jr.split(key, 600)), return_counts=True) for name, attack in mixed.items()}
    assert [found[name][0].tolist() for name in ("identity", "fgsm", "weakest")] == [[0.0], [1.5], [-1.5]]
    drawn, counts = found["switching"]
    assert drawn.tolist() == [-1.5, 0.0, 1.5]
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(600 * 2 / 9))


def test_random_points_and_arc_grids_stay_in_the_set_and_the_grid_reaches_its_ends(key):
    arcs, x = SphereSlice(0.3), jnp.array([0.6, 0.0, 0.8])

    @jax.jit
    def points(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        random = jax.vmap(lambda k: RandomPoint()(jnp.sum, x, arcs, key=k).x_adv)(keys)
        return random, arc_grid(x, arcs, 9)

    random, grid = (np.asarray(found) for found in points(jr.split(key, 5)))
    for found in (random, grid):
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-15)
        np.testing.assert_allclose(found[:, 2], 0.8)
        assert np.all(np.linalg.norm(found - np.asarray(x), axis=1) <= 0.3 + 1e-15)
    chords = np.linalg.norm(grid - np.asarray(x), axis=1)
    np.testing.assert_allclose(chords[[0, 4, 8]], [0.3, 0.0, 0.3], atol=1e-15)
