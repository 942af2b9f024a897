"""Evaluation and its audit: true numbers for honest attacks, and every planted fault caught."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from ntk_robust.attacks import (
    FGSM,
    PGD,
    AbstractAttack,
    AttackResult,
    Box,
    Controls,
    Identity,
    L2Ball,
    LinfBall,
    Restarts,
    Square,
    evaluate,
)
from ntk_robust.attacks._checks import check_batch, check_kind
from ntk_robust.attacks._grading import Grades
from ntk_robust.attacks._problem import pose
from ntk_robust.attacks._replay import Visit, Visits
from ntk_robust.losses import Absolute, CrossEntropy, Hinge, Logistic, Margin, Squared

BOX = Box(0.0, 1.0)
SET = LinfBall(0.08, BOX)
ZERO = jnp.zeros((), jnp.int32)


def network(params, x):
    return params[1] @ jnp.tanh(params[0] @ x)


def scalar_network(params, x):
    return jnp.vdot(params, x - 0.5)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(5)
    params = (jnp.asarray(rng.normal(size=(16, 6))), jnp.asarray(rng.normal(size=(3, 16)) / 4))
    xs = jnp.asarray(rng.uniform(size=(20, 6)))
    ys = jnp.argmax(jax.vmap(network, (None, 0))(params, xs), axis=1).at[0].set(1)
    return params, xs, ys


def run(problem, attack, **changes):
    params, xs, ys = problem
    settings = {"perturbations": SET, "loss": CrossEntropy(), "key": jr.key(0)} | changes
    return evaluate(network, params, xs, ys, attack=attack, **settings)


def names(evaluation):
    return [finding.name for finding in evaluation.audit.findings]


class Forged(AbstractAttack):
    """A PGD with one planted fault."""

    fault: str = eqx.field(static=True)

    def __call__(self, objective, x, perturbations, *, key):
        start = perturbations.sample(x, key=key)
        centre = start if self.fault == "recentred" else x
        step = perturbations.with_epsilon(perturbations.epsilon / 3)
        once = jax.grad(objective)(start)

        def body(state, number):
            point, before = state
            gradient = {
                "stale": lambda: jax.grad(objective)(start),
                "unscored": lambda: jax.grad(objective)(start),
                "lagging": lambda: jax.grad(objective)(before),
                "relapsing": lambda: jax.grad(objective)(jnp.where(number < 2, point, start)),
                "hoisted": lambda: once,
            }.get(self.fault, lambda: jax.grad(objective)(point))()
            new = perturbations.project(centre, step.argmax_linear(point, gradient))
            return (new, point), -jnp.inf if self.fault == "unscored" else objective(new)

        (end, _), values = lax.scan(body, (start, start), jnp.arange(8))
        value = objective(end)
        values = values if self.fault == "decreasing" else lax.cummax(jnp.append(values[:-1], value))
        if self.fault == "decreasing":
            values = values[::-1].at[-1].set(value)
        if self.fault == "boasting":
            value = value + 1
        if self.fault == "nan":
            end = end.at[0].set(jnp.nan)
        return AttackResult(end, value, values, ZERO)


CAUGHT_AS = {
    "stale": "stale-gradient",
    "hoisted": "stale-gradient",
    "lagging": "stale-gradient",
    "relapsing": "stale-gradient",
    "recentred": "outside-set",
    "decreasing": "not-monotone",
    "boasting": "value-mismatch",
    "nan": "not-finite",
}


# What these two look like from outside is tested below without compiling them.
SLOW = {"lagging", "relapsing"}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.slow] if fault in SLOW else []) for fault in CAUGHT_AS]
)
def test_a_planted_fault_is_caught_under_its_name(fault, problem):
    found = run(problem, Forged(fault))
    assert CAUGHT_AS[fault] in names(found)
    assert not found.audit.is_sound


@pytest.mark.slow
def test_stale_gradients_are_caught_behind_restarts(problem):
    found = run(problem, Restarts(Forged("unscored"), 3))
    assert "stale-gradient" in names(found)
    assert found.audit.gradient_points == 3


def visited(path):
    """What "g0 v1 g1" says: a gradient at the point 0, a value at 1, a gradient at 1; values grow with the points."""
    visits = Visits()
    for step in path.split():
        number = int(step[1:])
        visits.visits.append(Visit(np.asarray([0.1 * number]), float(number), step[0] == "g"))
    return visits


@pytest.mark.parametrize(
    "path",
    [
        "g0 v1 g0 v2 g0 v3 g0 v4",  # all gradients at the start
        "g0 g0 g0 g0 v4",  # the same, scored at its end only
        "g0 g0 g0 g0 v4 g10 g10 g10 g10 v14",  # restarts of it
        "g0 v1 v2 v3 v4 v5",  # one gradient and many steps
        "g0 v1 g1 v2 g0 v3 g0 v4 g0 v5",  # honest for two steps
        "v0 g0 v1 g0 v2 g1 v3 g2 v4 g3 v5",  # always one step late
    ],
)
def test_gradients_of_points_that_were_left_look_stale(path):
    assert visited(path).are_stale


@pytest.mark.parametrize(
    "path",
    [
        "g0 g1 g2 g3 v4",
        "g0 v1 g1 v2 g2 v3",
        "g0 g0 v1 g1 v2 g2 v3",  # looks twice at its start
        "g0 g0 g0 g0 v0",  # cannot move
        "g0 g1 g2 g2 g2 g2 v2",  # has arrived
        "g0 g1 g2 g2 g2 g2 v3",  # had arrived, and momentum carries it on
        "g0 g1 g0 g1 g0 v1",  # goes back and forth
        "g5 v3 v4 g5 v2 g5 v1",  # steps refused, since they lose
        "g0 v9 v0 v4 v2 v1 v1",  # crosses the boundary and halves the way
        "g0 v4 g0 v4 g0 v4",  # restarts without randomness
        "g0 v1 g0 v4 g4 v5 g5 v6",  # starts twice at the same point
        "g0 g5 v1 v6 g1 g6 v2 v7 g2 g7 v3 v8",  # two runs side by side
        "v0 v1 v2 v3",
    ],
)
def test_honest_paths_do_not_look_stale(path):
    assert not visited(path).are_stale


def test_the_same_attack_without_a_planted_fault_is_sound(problem):
    found = run(problem, Forged("none"))
    assert found.audit.is_sound
    assert found.audit.gradients_taken == 9  # with the unused one at the start
    assert 1 < found.audit.gradient_points <= 8  # at a corner it stays


@pytest.mark.parametrize(
    "attack", [Identity(), FGSM(), Restarts(PGD(4, 1.0), 2)], ids=lambda attack: type(attack).__name__
)
def test_honest_attacks_have_no_faults_and_true_numbers(attack, problem):
    found = run(problem, attack)
    assert found.audit.is_sound, names(found)
    params, xs, ys = problem
    logits = np.asarray(jax.vmap(network, (None, 0))(params, xs))
    labels = np.asarray(ys)
    assert found.natural_accuracy == np.mean(logits.argmax(axis=1) == labels) == 0.95
    attacked = np.asarray(jax.vmap(network, (None, 0))(params, found.x_adv))
    right = (logits.argmax(axis=1) == labels) & (attacked.argmax(axis=1) == labels)
    assert found.adversarial_accuracy == right.mean()
    np.testing.assert_array_equal(np.asarray(found.margins) < 0, right)
    log_sum = np.log(np.exp(attacked).sum(axis=1))
    assert found.surrogate_loss == pytest.approx(np.mean(log_sum - attacked[np.arange(20), labels]))
    assert np.abs(np.asarray(found.x_adv - xs)).max() <= 0.08 + 1e-15
    assert ("weaker-than-fgsm" in names(found)) == isinstance(attack, Identity)
    assert ("flat-loss" in names(found)) == isinstance(attack, Identity)


def test_an_attack_that_moves_at_radius_zero_is_at_fault_also_where_its_points_are_inside_the_set(problem):
    class Restless(AbstractAttack):
        def __call__(self, objective, x, perturbations, *, key):
            moved = jnp.clip(x + 0.01, 0, 1)
            return AttackResult(moved, objective(moved), objective(moved)[None], ZERO)

    found = run(problem, Restless())
    assert names(found)[0] == "moves-at-radius-zero"
    assert (found.audit.num_outside, found.audit.num_moved_at_zero) == (0, 4)
    assert not found.audit.is_sound


def test_points_outside_the_set_never_count_as_successes(problem):
    class Teleport(AbstractAttack):
        def __call__(self, objective, x, perturbations, *, key):
            far = 1 - x
            return AttackResult(far, objective(far), objective(far)[None], ZERO)

    found = run(problem, Teleport())
    assert found.audit.num_outside == 20
    assert found.audit.max_excess > 0.5
    assert found.adversarial_accuracy == found.natural_accuracy
    assert found.surrogate_loss == found.natural_loss


@pytest.mark.slow
def test_batches_and_new_weights_change_neither_results_nor_the_compiled_program(problem):
    params, xs, ys = problem
    traces = []

    def counted(params, x):
        traces.append(None)
        return network(params, x)

    def accuracy(params, epsilon, step, batch_size):
        return evaluate(
            counted, params, xs, ys, attack=PGD(8, step), perturbations=LinfBall(epsilon, BOX), loss=CrossEntropy(),
            key=jr.key(0), batch_size=batch_size,
        )  # fmt: skip

    first = accuracy(params, 0.08, 0.3, 8)
    num_traces = len(traces)
    again = accuracy((params[0] / 2, params[1]), 0.05, 0.2, 8)
    assert len(traces) <= num_traces + 1  # the shape of the output is asked for once
    assert again.surrogate_loss != first.surrogate_loss
    whole = accuracy(params, 0.08, 0.3, None)
    np.testing.assert_allclose(whole.x_adv, first.x_adv, rtol=0, atol=1e-14)
    assert whole.adversarial_accuracy == first.adversarial_accuracy


def test_a_scalar_network_is_attacked_to_the_exact_worst_case(key):
    weights = jnp.asarray([1.0, -2.0, 0.5, 0.0])
    xs = jr.uniform(key, (30, 4))
    ys = jnp.sign(jax.vmap(scalar_network, (None, 0))(weights, xs))
    found = evaluate(
        scalar_network, weights, xs, ys, attack=PGD(60, 0.5), perturbations=L2Ball(0.2), loss=Logistic(), key=key
    )
    worst = np.asarray(ys) * ((np.asarray(xs) - 0.5) @ np.asarray(weights)) - 0.2 * np.linalg.norm(weights)
    np.testing.assert_allclose(-np.asarray(found.margins), worst, atol=1e-6)
    assert found.adversarial_accuracy == np.mean(worst > 0)
    assert found.surrogate_loss == pytest.approx(np.mean(np.log1p(np.exp(-worst))), rel=1e-6)
    assert found.natural_accuracy == 1.0


def test_a_network_that_rounds_its_input_is_reported_to_hide_its_gradient(problem):
    params, xs, ys = problem

    def stepped(params, x):
        return network(params, jnp.round(4 * x) / 4)

    attack = PGD(8, 0.3, random_start=False)
    found = evaluate(stepped, params, xs, ys, attack=attack, perturbations=SET, loss=CrossEntropy(), key=jr.key(0))
    assert {"zero-gradient", "flat-loss"} <= set(names(found))
    assert found.audit.flat_fraction == 1.0
    assert found.audit.zero_gradient_fraction == 1.0
    assert found.audit.is_sound


@pytest.mark.slow
def test_second_runs_find_a_masked_gradient_and_nothing_wrong_with_an_honest_attack(problem):
    params, xs, ys = problem
    controls = Controls(rivals=(Square(200),), source=(network, params))
    arguments = {"perturbations": SET, "loss": CrossEntropy(), "key": jr.key(0), "controls": controls}

    def stepped(params, x):
        return network(params, jnp.round(30 * x) / 30)

    masked = evaluate(stepped, params, xs, ys, attack=PGD(8, 0.3, random_start=False), **arguments)
    assert {"rival-better", "transfer-better", "never-broken"} <= set(names(masked))
    runs = masked.controls
    # In the box from 0 to 1 a radius of 1 reaches every corner: 0.08 doubles four times to 1.28.
    np.testing.assert_allclose(runs.radii, [0.16, 0.32, 0.64, 1.28])
    assert runs.accuracies == (masked.natural_accuracy,) * 4
    assert dict(runs.rival_accuracies)["Square"] < masked.adversarial_accuracy

    honest = evaluate(network, params, xs, ys, attack=PGD(40, 0.1), **arguments)
    assert honest.controls.accuracies[-1] == 0
    assert honest.controls.transfer_accuracy == honest.adversarial_accuracy  # its own points
    assert not {"moves-at-radius-zero", "transfer-better", "never-broken"} & set(names(honest))


@pytest.mark.slow
def test_a_loss_that_hides_the_gradient_is_beaten_by_a_step_on_the_margin(key):
    # The output is so large that the saturating loss has no slope: only the margin still sees the direction.
    weights = jnp.asarray([300.0, -300.0])
    xs = jr.uniform(key, (16, 2))
    ys = jnp.sign(xs[:, 0] - xs[:, 1])

    class Saturating(Squared):
        def __call__(self, output, target):
            return jnp.maximum(jnp.tanh(-target * output), -1.0 + 1e-9)

    found = evaluate(
        jnp.vdot, weights, xs, ys,
        attack=PGD(8, 0.3, random_start=False), perturbations=LinfBall(0.5), loss=Saturating(), key=key,
    )  # fmt: skip
    assert "margin-step-better" in names(found)
    assert found.audit.fgsm_margin_accuracy < found.adversarial_accuracy


@pytest.mark.parametrize(
    ("change_ys", "message"),
    [
        (lambda ys: ys.at[3].set(3), r"labels run from 0 to 3, but the network has 3 logits"),
        (lambda ys: ys.at[3].set(-1), r"labels run from -1"),
        (lambda ys: ys.astype(float), "labels are integers"),
        (lambda ys: jax.nn.one_hot(ys, 3), "labels are integers"),
        (lambda ys: ys[:5], "one target for each example"),
    ],
)
def test_labels_that_do_not_fit_give_one_clear_error(change_ys, message, problem):
    params, xs, ys = problem
    with pytest.raises(ValueError, match=message):
        run((params, xs, change_ys(ys)), FGSM())


def test_outputs_and_batches_that_do_not_fit_give_one_clear_error(problem):
    params, xs, ys = problem
    with pytest.raises(ValueError, match="targets are floats"):
        evaluate(scalar_network, jnp.ones(6), xs, ys, attack=FGSM(), perturbations=SET, loss=Logistic(), key=jr.key(0))
    with pytest.raises(ValueError, match=r"output has shape \(1,\)"):
        evaluate(
            lambda params, x: network(params, x)[:1],
            params, xs, ys, attack=FGSM(), perturbations=SET, loss=CrossEntropy(), key=jr.key(0),
        )  # fmt: skip
    with pytest.raises(ValueError, match="leave the valid box"):
        run((params, xs + 1, ys), FGSM())
    with pytest.raises(ValueError, match="batch_size=0"):
        run(problem, FGSM(), batch_size=0)
    with pytest.raises(ValueError, match=r"does not take inputs of shape \(5,\)"):
        run((params, xs[:, :5], ys), FGSM())
    with pytest.raises(ValueError, match=r"bounds of shape \(5,\) for inputs of shape \(6,\)"):
        run(problem, FGSM(), perturbations=LinfBall(0.1, Box(jnp.zeros(5), jnp.ones(5))))
    with pytest.raises(ValueError, match="the batch is empty"):
        run((params, xs[:0], ys[:0]), FGSM())


def test_arguments_of_another_kind_give_one_clear_error(problem):
    _, xs, ys = problem
    check = inspect.unwrap(check_batch)  # the tests' own type checker would refuse these before
    for message, arguments in {
        "xs has dtype uint8; give floats": ((255 * xs).astype(jnp.uint8), ys, SET),
        r"ys is \[0, 1\], a list; give an array": (xs, [0, 1], SET),
        "perturbations is 0.1, a float; give a set": (xs, ys, 0.1),
    }.items():
        with pytest.raises(ValueError, match=message):
            check(*arguments)
    for attack in ("pgd", PGD):
        with pytest.raises(ValueError, match=r"attack is .*; give an attack, such as PGD"):
            check_kind("attack", attack, AbstractAttack, "an attack, such as PGD()")


def test_zero_is_no_class_and_a_number_to_fit(problem):
    _, xs, _ = problem
    labels = (jnp.arange(20) % 2).astype(float)
    for loss in (Hinge(), Logistic(), Margin(), None):
        with pytest.raises(ValueError, match="10 of 20 targets of the scalar output are 0"):
            pose((scalar_network, jnp.ones(6)), xs, labels, SET, None, loss=loss)
    for loss in (Squared(), Absolute()):
        assert pose((scalar_network, jnp.ones(6)), xs, labels, SET, None, loss=loss).batch_size == 20


def test_what_is_not_a_number_is_not_right():
    margins, inside = np.asarray([np.nan, np.nan, -1.0, 0.0]), np.asarray([True, False, True, True])
    np.testing.assert_array_equal(Grades(margins, margins, inside, margins, margins).fooled, [True, False, False, True])
