"""Our attacks beside torchattacks' and foolbox' on the same networks, whose accuracies are stored."""

import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust.attacks import PGD, auto_attack, evaluate
from ntk_robust.losses import CrossEntropy

FOLDER = Path(__file__).parents[2] / "benchmarks" / "references"
SPEC = importlib.util.spec_from_file_location("reference_networks", FOLDER / "networks.py")
STORED = json.loads((FOLDER / "reference.json").read_text())
ONE_EXAMPLE = 0.01 + 1e-6  # torch says accuracies in float32


@pytest.fixture(scope="module")
def networks():

    assert SPEC is not None
    assert SPEC.loader is not None
    module = importlib.util.module_from_spec(SPEC)
    sys.modules[SPEC.name] = module
    SPEC.loader.exec_module(module)
    return module


def problem(networks, name, norm="linf"):
    reference = networks.REFERENCES[name]
    model, params = networks.load_network(name)
    xs, ys = map(jnp.asarray, networks.load_examples(reference.data))
    return model.apply, params, xs, ys, reference.perturbations(norm)


@pytest.mark.slow
def test_the_reference_networks_fit_their_files_and_have_the_stored_accuracies(networks):
    assert set(STORED["networks"]) == set(networks.REFERENCES)
    assert set(STORED["networks_l2"]) <= set(networks.REFERENCES)
    for name, row in STORED["networks_l2"].items():
        assert float(networks.REFERENCES[name].perturbations("l2").epsilon) == pytest.approx(row["epsilon"])
    for name, reference in networks.REFERENCES.items():
        apply_fn, params, xs, _, perturbations = problem(networks, name)
        outputs = np.asarray(jnp.stack([apply_fn(params, x) for x in xs[:5]]))
        assert outputs.shape == (5, 10)
        assert float(perturbations.epsilon) == pytest.approx(STORED["networks"][name]["epsilon"])
        assert (networks.FOLDER / f"{name}.npz").stat().st_size < 300_000
        assert xs.shape == (100, int(np.prod(networks.IMAGE_SHAPES[reference.data])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "attacks"),
    [
        ("mnist_mlp_adversarial", "linf", ("apgd-ce", "apgd-t", "fab-t", "square")),
        ("mnist_mlp_natural", "l2", ("fab-t",)),
    ],
)
def test_each_attack_of_the_ensemble_is_within_one_example_of_torchattacks_and_not_weaker(
    networks, name, norm, attacks
):
    apply_fn, params, xs, ys, perturbations = problem(networks, name, norm)
    stored = STORED["networks" if norm == "linf" else "networks_l2"][name]
    theirs, budget = stored["torchattacks"], STORED["budget"]
    ours = {}
    for attack in attacks:
        found = auto_attack(
            apply_fn, params, xs, ys, perturbations=perturbations, key=jr.key(0), only=[attack], batch_size=50,
            num_steps=budget["num_steps"], num_targets=budget["num_targets"], num_queries=budget["num_queries"],
            image_shape=(28, 28, 1),
        )  # fmt: skip
        ours[attack] = found.adversarial_accuracy
        assert found.natural_accuracy == pytest.approx(stored["natural_accuracy"])
        assert abs(ours[attack] - theirs[attack]) < ONE_EXAMPLE, attack
    assert np.mean(list(ours.values())) <= np.mean([theirs[attack] for attack in ours]) + 1e-6


@pytest.mark.slow
def test_pgd_is_within_one_example_of_foolbox_and_not_weaker(networks):
    budget = STORED["budget"]
    ours, theirs = [], []
    for name in ("mnist_mlp_natural", "mnist_mlp_adversarial"):
        apply_fn, params, xs, ys, perturbations = problem(networks, name)
        attack = PGD(budget["pgd_steps"], budget["pgd_relative_step"])
        found = evaluate(
            apply_fn, params, xs, ys, attack=attack, perturbations=perturbations, loss=CrossEntropy(), key=jr.key(0)
        )
        ours.append(found.adversarial_accuracy)
        theirs.append(STORED["networks"][name]["foolbox"]["pgd"])
        assert abs(ours[-1] - theirs[-1]) < ONE_EXAMPLE, name
    assert np.mean(ours) <= np.mean(theirs) + 1e-6
