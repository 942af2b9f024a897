import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ntk_robust.attacks import FGSM, PGD, LinfBall
from ntk_robust.certify import Affine, Crown, Network
from ntk_robust.losses import DLR, Absolute, CrossEntropy, Hinge, Huber, Logistic, Margin, Squared
from ntk_robust.models import FullyConnected
from ntk_robust.training import (
    AdversarialProbe,
    AttackedKernelDriftProbe,
    AttackedKernelSpectrumProbe,
    AttackedPoints,
    BoundaryProbe,
    CertifiedProbe,
    DisplacementProbe,
    FlippedPatternsProbe,
    KernelDriftProbe,
    KernelSpectrumProbe,
    LayerwiseFrobeniusBall,
    LinearizationProbe,
    NaturalProbe,
    fit,
    parameter_displacement,
)
from ntk_robust.training import _displacement as displacement_module

MODEL = FullyConnected(input_dim=3, width=8, num_hidden_layers=2, num_outputs="scalar", b_std=0.1)
XS = jr.normal(jr.key(0), (5, 3))
YS = jnp.sign(jr.normal(jr.key(1), (5,)))
PARAMS = MODEL.init(key=jr.key(2))
ATTACKED = AttackedPoints(MODEL.apply, Squared(), PGD(num_steps=5, relative_step=0.5), LinfBall(0.2), XS, YS, jr.key(5))


def gram_at(params, xs):
    """ΘΘᵀ of flattened per-example gradients: the definition."""
    gradients = jax.vmap(jax.grad(MODEL.apply), (None, 0))(params, xs)
    rows = jnp.concatenate([leaf.reshape(len(xs), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    return rows @ rows.T


def tangent_gram(params):
    return gram_at(params, XS)


CONSTANT = 2.0 * tangent_gram(PARAMS)


@pytest.fixture(scope="module")
def result():
    return fit(
        MODEL.apply,
        PARAMS,
        XS,
        YS,
        loss=Squared(),
        attack=FGSM(),
        perturbations=LinfBall(0.1),
        optimizer=optax.sgd(0.1),
        num_steps=7,
        probes={
            "weights": lambda params: {"weight": params[1].weight},
            "displacement": DisplacementProbe(PARAMS, width=8),
            "natural": NaturalProbe(MODEL.apply, Squared(), XS, YS),
            "kernel": KernelDriftProbe(tangent_gram, tangent_gram(PARAMS)),
            "constant": KernelDriftProbe(lambda params: CONSTANT, tangent_gram(PARAMS)),
            "spectrum": KernelSpectrumProbe(tangent_gram, tangent_gram(PARAMS), 2),
            "patterns": FlippedPatternsProbe(MODEL.preactivations, PARAMS, XS),
            "adversarial": AdversarialProbe(ATTACKED),
            "points": lambda params: {"xs_adv": ATTACKED(params)},
            "tangent": LinearizationProbe(MODEL.apply, PARAMS, XS),
            "attacked_tangent": LinearizationProbe(MODEL.apply, PARAMS, ATTACKED),
            "boundary": BoundaryProbe(LayerwiseFrobeniusBall(2.0), PARAMS),
            "certified": CertifiedProbe(MODEL, Squared(), LinfBall(0.2), XS, YS, Crown()),
            "attacked_spectrum": AttackedKernelSpectrumProbe(gram_at, PARAMS, ATTACKED, 2),
        },
        probe_every=3,
        record=lambda step: {"params": step.params},
        key=jr.key(3),
    )


def weights_at(result, step):
    if step == result.num_steps:
        return result.params
    return jax.tree.map(lambda leaf: leaf[step], result.history["params"])


def test_probes_see_the_weights_before_steps_0_k_2k_and_after_the_last(result):
    assert result.probe_steps.tolist() == [0, 3, 6, 7]
    for row, step in enumerate(result.probe_steps):
        expected = weights_at(result, int(step))[1].weight
        assert np.array_equal(result.probes["weights"]["weight"][row], expected)


@pytest.mark.slow
def test_displacement_is_that_of_numpy_on_the_recorded_weights(result):
    names = parameter_displacement(PARAMS, PARAMS).layers
    assert names == ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    for row, step in enumerate(result.probe_steps):
        now = [np.asarray(leaf) for leaf in jax.tree.leaves(weights_at(result, int(step)))]
        before = [np.asarray(leaf) for leaf in jax.tree.leaves(PARAMS)]
        measured = {name: value[row] for name, value in result.probes["displacement"].items()}
        deltas = [a - b for a, b in zip(now, before, strict=True)]
        np.testing.assert_allclose(measured["frobenius"], [np.sqrt(np.sum(d**2)) for d in deltas], rtol=1e-12)
        two_infinity = [np.max(np.abs(d)) if d.ndim == 1 else np.max(np.sqrt(np.sum(d**2, 1))) for d in deltas]
        np.testing.assert_allclose(measured["two_infinity"], two_infinity, rtol=1e-12)
        spectral = [np.linalg.norm(d) if d.ndim == 1 else np.linalg.svd(d)[1][0] for d in deltas]
        np.testing.assert_allclose(measured["spectral"], spectral, rtol=1e-10, atol=1e-15)
        flat, initial = (np.concatenate([leaf.ravel() for leaf in leaves]) for leaves in (deltas, before))
        assert measured["total"] == pytest.approx(np.linalg.norm(flat), rel=1e-12)
        assert measured["total_relative"] == pytest.approx(np.linalg.norm(flat) / np.linalg.norm(initial), rel=1e-12)
        relative = [np.linalg.norm(d) / np.linalg.norm(b) for d, b in zip(deltas, before, strict=True)]
        np.testing.assert_allclose(measured["relative"], relative, rtol=1e-12)
        initial_spectral = [np.linalg.norm(b) if b.ndim == 1 else np.linalg.svd(b)[1][0] for b in before]
        np.testing.assert_allclose(
            measured["relative_spectral"], np.array(spectral) / initial_spectral, rtol=1e-10, atol=1e-15
        )
        initial_rows = [np.max(np.abs(b)) if b.ndim == 1 else np.max(np.sqrt(np.sum(b**2, 1))) for b in before]
        np.testing.assert_allclose(measured["relative_two_infinity"], np.array(two_infinity) / initial_rows, rtol=1e-12)
        np.testing.assert_allclose(measured["theory_radius"], np.sqrt(8.0) * measured["frobenius"], rtol=1e-14)
    assert result.probes["displacement"]["total"][0] == 0


def test_theory_radius_is_the_smallest_ball_that_holds_the_layers(result):
    moved = parameter_displacement(result.params, PARAMS)
    smallest = float(moved.theory_radius(8).max())
    inside, outside = (LayerwiseFrobeniusBall(smallest * factor / np.sqrt(8)) for factor in (1.0001, 0.9999))
    assert inside.boundary_distance(result.params, PARAMS) > 0 > outside.boundary_distance(result.params, PARAMS)


def test_path_lengths_add_up_the_steps_and_are_at_least_the_displacement(result):
    lengths = np.cumsum(np.asarray(result.history["step_length"]))
    np.testing.assert_allclose(result.path_length, lengths, rtol=1e-12)
    assert result.path_length[-1] >= result.probes["displacement"]["total"][-1] > 0


def test_drift_loss_accuracy_and_patterns_equal_direct_computation(result):
    for row, step in enumerate(result.probe_steps):
        params = weights_at(result, int(step))
        start, now = np.asarray(tangent_gram(PARAMS)), np.asarray(tangent_gram(params))
        drift = np.sqrt(np.sum((now - start) ** 2) / np.sum(start**2))
        assert result.probes["kernel"]["kernel_drift"][row] == pytest.approx(drift, rel=1e-10, abs=1e-14)

        outputs = np.array([MODEL.apply(params, x) for x in XS])
        natural = result.probes["natural"]
        assert natural["natural_loss"][row] == pytest.approx(np.mean((outputs - YS) ** 2) / 2)
        assert natural["natural_accuracy"][row] == np.mean(np.sign(outputs) == np.asarray(YS))

        flips = np.zeros(2)
        for x in XS:
            for layer, (a, b) in enumerate(
                zip(MODEL.preactivations(params, x), MODEL.preactivations(PARAMS, x), strict=True)
            ):
                flips[layer] += np.mean((np.asarray(a) > 0) != (np.asarray(b) > 0)) / len(XS)
        np.testing.assert_allclose(result.probes["patterns"]["flipped_patterns"][row], flips, atol=1e-15)


def test_length_direction_and_spectrum_of_the_kernel_are_those_of_numpy(result):
    def centered(k):
        return k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()

    def angle(a, b):
        return np.arccos(np.clip(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), -1.0, 1.0))

    start = np.asarray(tangent_gram(PARAMS))
    for row, step in enumerate(result.probe_steps):
        now = np.asarray(tangent_gram(weights_at(result, int(step))))
        kernel = {name: np.asarray(values[row]) for name, values in result.probes["kernel"].items()}
        assert kernel["kernel_growth"] == pytest.approx(np.linalg.norm(now) / np.linalg.norm(start))
        assert kernel["kernel_angle"] == pytest.approx(angle(now, start), abs=1e-7)  # arccos near 1
        assert kernel["centered_kernel_angle"] == pytest.approx(angle(centered(now), centered(start)), abs=1e-7)
        eigenvalues = np.linalg.svd(now, compute_uv=False)  # of a positive semi-definite matrix
        assert kernel["effective_rank"] == pytest.approx(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2))
        spectrum = {name: np.asarray(values[row]) for name, values in result.probes["spectrum"].items()}
        np.testing.assert_allclose(spectrum["leading_eigenvalues"], eigenvalues[:2], rtol=1e-10)
        assert spectrum["top_mass"] == pytest.approx(eigenvalues[:2].sum() / np.trace(now))
        projectors = [u[:, :2] @ u[:, :2].T for u in (np.linalg.svd(now)[0], np.linalg.svd(start)[0])]
        assert spectrum["eigenspace_overlap"] == pytest.approx(np.trace(projectors[0] @ projectors[1]) / 2)
    assert result.probes["kernel"]["kernel_angle"][-1] > 1e-3
    assert result.probes["spectrum"]["eigenspace_overlap"][-1] < 1 - 1e-9


def test_the_spectrum_at_attacked_points_is_that_of_both_kernels_there(result):
    found = result.probes["attacked_spectrum"]
    for row, step in enumerate(result.probe_steps):
        xs_adv = result.probes["points"]["xs_adv"][row]
        grams = [np.asarray(gram_at(weights, xs_adv)) for weights in (weights_at(result, int(step)), PARAMS)]
        np.testing.assert_allclose(found["leading_eigenvalues"][row], np.linalg.svd(grams[0])[1][:2], rtol=1e-10)
        projectors = [u[:, :2] @ u[:, :2].T for u in (np.linalg.svd(gram)[0] for gram in grams)]
        overlap = np.trace(projectors[0] @ projectors[1]) / 2
        assert found["eigenspace_overlap"][row] == pytest.approx(overlap, rel=1e-8)
    assert found["eigenspace_overlap"][0] == pytest.approx(1.0)  # the points moved, the weights did not
    with pytest.raises(ValueError, match="num_leading is 6 for 5 points"):
        AttackedKernelSpectrumProbe(gram_at, PARAMS, ATTACKED, 6)


def test_norms_of_the_initial_weights_are_not_computed_at_every_probing(monkeypatch):
    probe, moved = DisplacementProbe(PARAMS), jax.tree.map(lambda leaf: leaf + 1.0, PARAMS)
    matrices, spectral_norm = [], displacement_module._spectral_norm
    counted = lambda matrix: (matrices.append(matrix), spectral_norm(matrix))[1]  # noqa: E731
    monkeypatch.setattr(displacement_module, "_spectral_norm", counted)
    found = probe(moved)
    assert len(matrices) == len(jax.tree.leaves(PARAMS))  # those of the difference alone
    expected = parameter_displacement(moved, PARAMS)
    np.testing.assert_allclose(found["relative_spectral"], expected.relative_spectral, rtol=1e-12)


def test_natural_loss_is_below_attacked_loss_and_that_below_the_certified_bound(result):
    natural, attacked, certified = (result.probes[name] for name in ("natural", "adversarial", "certified"))
    assert (natural["natural_loss"] <= attacked["surrogate_loss"]).all()
    assert (attacked["surrogate_loss"] <= certified["robust_loss_upper"]).all()
    assert (certified["robust_loss_upper"] < 10 * attacked["surrogate_loss"]).all()
    assert (certified["certified_accuracy"] <= attacked["adversarial_accuracy"]).all()


@pytest.mark.parametrize("loss", [Squared(), Absolute(), Huber(0.5), Hinge(), Logistic(), Margin()])
def test_certified_bounds_of_a_linear_scalar_function_are_its_robust_loss(loss):
    rng = np.random.default_rng(3)
    weight, epsilon = rng.normal(size=3), 0.3
    network = Network((Affine(jnp.asarray(weight)[None]),), (3,), scalar=True)
    probe = CertifiedProbe(MODEL, loss, LinfBall(epsilon), XS, YS)
    found = probe(network)  # weights that are a network stand for themselves
    reach = epsilon * np.abs(weight).sum()
    ends = np.stack([np.asarray(XS) @ weight - reach, np.asarray(XS) @ weight + reach])
    expected = np.mean(
        [max(float(loss(jnp.asarray(end), y)) for end in pair) for pair, y in zip(ends.T, YS, strict=True)]
    )
    assert found["robust_loss_upper"] == pytest.approx(expected, rel=1e-9)
    assert found["robust_loss_upper"] >= expected
    assert found["certified_accuracy"] == np.mean((np.asarray(YS) * ends > 0).all(axis=0))


def test_certified_bounds_of_a_linear_classifier_are_its_worst_leads_together():
    rng = np.random.default_rng(4)
    weight, epsilon = rng.normal(size=(4, 3)), np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    network, labels = Network((Affine(jnp.asarray(weight)),), (3,)), jnp.asarray([0, 1, 2, 3, 0], jnp.int32)
    found = CertifiedProbe(MODEL, CrossEntropy(), LinfBall(jnp.asarray(epsilon)), XS, labels)(network)
    losses, right = [], []
    for x, y, radius in zip(np.asarray(XS), np.asarray(labels), epsilon, strict=True):
        differences = weight - weight[y]
        leads = differences @ x + radius * np.abs(differences).sum(axis=1)
        losses.append(np.log(np.exp(leads).sum()))
        right.append(np.delete(leads, y).max() < 0)
    assert found["robust_loss_upper"] == pytest.approx(np.mean(losses), rel=1e-9)
    assert found["certified_accuracy"] == np.mean(right)
    codes = jnp.eye(4)[labels]
    squared = CertifiedProbe(MODEL, Squared(), LinfBall(jnp.asarray(epsilon)), XS, codes)(network)
    reach = epsilon[:, None] * np.abs(weight).sum(axis=1)
    farthest = np.abs(np.asarray(XS) @ weight.T - np.asarray(codes)) + reach
    assert squared["robust_loss_upper"] == pytest.approx(np.mean((farthest**2).sum(axis=1)) / 2, rel=1e-9)
    assert squared["certified_accuracy"] == np.mean(right)


def test_losses_without_a_known_worst_case_are_not_certified():
    labels = jnp.asarray([0, 1, 2, 3, 0], jnp.int32)
    with pytest.raises(ValueError, match="no worst case of DLR is known"):
        CertifiedProbe(MODEL, DLR(), LinfBall(0.1), XS, labels)


def test_a_kernel_may_be_a_constant_of_the_program(result):
    np.testing.assert_allclose(result.probes["constant"]["kernel_drift"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(result.probes["constant"]["kernel_growth"], 2.0, rtol=1e-12)


def test_more_leading_eigenvalues_than_points_are_refused():
    with pytest.raises(ValueError, match="num_leading is 6 for 5 points"):
        KernelSpectrumProbe(tangent_gram, tangent_gram(PARAMS), 6)


def test_a_stronger_attack_is_measured_where_it_ends(result):
    for row, step in enumerate(result.probe_steps):
        params, found = weights_at(result, int(step)), result.probes["points"]["xs_adv"][row]
        assert np.max(np.abs(found - XS)) <= 0.2 * (1 + 1e-12)
        outputs = np.array([MODEL.apply(params, x) for x in found])
        adversarial = result.probes["adversarial"]
        assert adversarial["surrogate_loss"][row] == pytest.approx(np.mean((outputs - YS) ** 2) / 2)
        assert adversarial["adversarial_accuracy"][row] == np.mean(np.sign(outputs) == np.asarray(YS))
        assert adversarial["surrogate_loss"][row] > result.probes["natural"]["natural_loss"][row]


def test_linearization_errors_are_those_of_explicit_gradients(result):
    gradient = jax.jit(jax.grad(MODEL.apply))
    for row, step in enumerate(result.probe_steps):
        params = weights_at(result, int(step))
        attacked = result.probes["points"]["xs_adv"][row]
        for name, points in (("tangent", XS), ("attacked_tangent", attacked)):
            missed, changes = [], []
            for x in points:
                slopes = zip(jax.tree.leaves(gradient(PARAMS, x)), jax.tree.leaves(params), strict=True)
                moves = zip(slopes, jax.tree.leaves(PARAMS), strict=True)
                tangent = sum(np.sum(np.asarray(g) * (np.asarray(w) - np.asarray(w_0))) for (g, w), w_0 in moves)
                changes.append(float(MODEL.apply(params, x) - MODEL.apply(PARAMS, x)))
                missed.append(changes[-1] - tangent)
            measured = {key: float(value[row]) for key, value in result.probes[name].items()}
            assert measured["linearization_error"] == pytest.approx(np.sqrt(np.mean(np.square(missed))), abs=1e-13)
            assert measured["largest_linearization_error"] == pytest.approx(np.max(np.abs(missed)), abs=1e-13)
            if step > 0:
                ratio = np.sqrt(np.mean(np.square(missed)) / np.mean(np.square(changes)))
                assert measured["relative_linearization_error"] == pytest.approx(ratio)
    assert result.probes["tangent"]["linearization_error"][-1] > 1e-5


def test_points_that_move_are_no_drift_of_a_kernel_that_does_not():
    def linear(params, x):
        return params @ jnp.tanh(2.0 * x)

    def gram(params, xs):
        rows = jax.vmap(jax.grad(linear), (None, 0))(params, xs)
        return rows @ rows.T

    before, after = jnp.ones(3), jnp.asarray([1.0, -1.0, 0.5])
    points = AttackedPoints(linear, Squared(), FGSM(), LinfBall(0.2), XS, YS, jr.key(5))
    assert jnp.max(jnp.abs(points(after) - points(before))) == pytest.approx(0.4)
    assert AttackedKernelDriftProbe(gram, before, points)(after)["kernel_drift"] < 1e-15
    fixed_reference = KernelDriftProbe(lambda params: gram(params, points(params)), gram(before, points(before)))
    assert fixed_reference(after)["kernel_drift"] > 0.05  # the fault: the points moved


def test_the_largest_entry_of_a_vector_of_targets_is_its_class():
    weights, labels = jnp.eye(3), jnp.argmax(XS, axis=1).at[0].add(1) % 3  # one label is wrong
    found = NaturalProbe(jnp.matmul, Squared(), XS, 2 * jax.nn.one_hot(labels, 3) - 1)(weights)
    assert found["natural_accuracy"] == pytest.approx(4 / 5)


def test_boundary_distance_is_the_radius_minus_the_largest_layers_movement(result):
    moved = np.asarray(result.probes["displacement"]["frobenius"])
    np.testing.assert_allclose(result.probes["boundary"]["boundary_distance"], 2.0 - moved.max(axis=1), rtol=1e-12)


def test_displacement_can_leave_frozen_layers_out():
    moved = jax.tree.map(lambda leaf: leaf + 1.0, PARAMS)
    mask = jax.tree.map(lambda _: False, PARAMS)
    mask = (*mask[:2], jax.tree.map(lambda _: True, PARAMS[2]))
    found = parameter_displacement(moved, PARAMS, trainable=mask)
    assert found.layers == ("2.weight", "2.bias")
    assert float(found.total) == pytest.approx(3.0)


def test_a_layer_that_left_zero_has_infinite_relative_displacement():
    found = parameter_displacement({"bias": jnp.ones(2)}, {"bias": jnp.zeros(2)})
    assert np.isinf(found.relative).all()


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        parameter_displacement({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
