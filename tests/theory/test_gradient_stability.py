"""The exact worst cases of one ReLU layer against searches that do not know them."""

import itertools

import numpy as np
import pytest

from ntk_robust.theory.checks.gao2019_gradient_stability import Layer, largest_gradient_change, largest_remainder


def small_layer(seed: int, width: int = 10) -> Layer:
    rng = np.random.default_rng(seed)
    return Layer(rng.normal(size=width) * np.sqrt(2 / width), rng.choice(np.array([-1, 1]), width))


def remainder(layer: Layer, shifts: np.ndarray) -> float:
    z = layer.preactivations
    return float(layer.readout @ (np.maximum(z + shifts, 0) - np.maximum(z, 0) - (z > 0) * shifts))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [0.3, 1.0, 3.0])
def test_no_subset_of_flips_within_the_budget_changes_the_gradient_more(seed, radius):
    layer, budget = small_layer(seed), radius**2 / 10
    costs = layer.preactivations**2
    most = max(sum(chosen) for chosen in itertools.product((0, 1), repeat=10) if np.dot(chosen, costs) <= budget)
    active = np.sum(layer.preactivations > 0)
    assert largest_gradient_change(layer, radius) == pytest.approx(np.sqrt(most / active))


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_gradient_ascent_from_many_starts_finds_the_largest_remainder_and_no_more(radius):
    for seed in range(4):
        layer, budget = small_layer(seed), radius / np.sqrt(10)
        rng = np.random.default_rng(seed)
        shifts = rng.normal(size=(4000, 10)) * rng.integers(0, 2, size=(4000, 10)) + 1e-9 * rng.normal(size=(4000, 10))
        active = layer.preactivations > 0
        for _ in range(40):
            shifts *= budget / np.linalg.norm(shifts, axis=1, keepdims=True)
            crossed = (layer.preactivations + shifts > 0).astype(float) - active
            shifts = shifts + budget * layer.readout * crossed
        shifts *= budget / np.linalg.norm(shifts, axis=1, keepdims=True)
        best = max(remainder(layer, row) for row in shifts)
        exact = largest_remainder(layer, radius)
        assert 0.98 * exact <= best <= exact + 1e-12


def test_equal_shifts_on_every_neuron_below_the_water_level_are_not_the_best():
    layer = Layer(np.random.default_rng(0).normal(size=2**14) / np.sqrt(2**13), np.ones(2**14, int))
    budget = 1 / np.sqrt(2**14)
    sizes = np.sort(np.abs(layer.preactivations))
    level = max(c for k, c in ((k, budget / np.sqrt(k)) for k in range(1, 2000)) if sizes[k - 1] < c <= sizes[k])
    filled = np.sum(np.maximum(level - sizes, 0))
    assert filled < 0.9 * largest_remainder(layer, 1.0)


def test_unequal_neurons_are_flipped_in_the_order_of_cost_over_value():
    layer = small_layer(5)._replace(readout=np.random.default_rng(9).normal(size=10))
    costs, values = layer.preactivations**2, layer.readout**2
    budget = 2.0**2 / 10
    chosen = np.array(list(itertools.product((0, 1), repeat=10)))
    best = np.max((chosen @ values)[chosen @ costs <= budget])
    found = largest_gradient_change(layer, 2.0) ** 2 * np.sum(values[layer.preactivations > 0])
    assert best - np.max(values) <= found <= best * (1 + 1e-12)
    sets = chosen[:, layer.readout > 0]
    a, z = layer.readout[layer.readout > 0], np.abs(layer.preactivations[layer.readout > 0])
    exact = np.max(np.sqrt(sets @ a**2) * np.sqrt(budget) - sets @ (a * z))
    assert 0.95 * exact <= largest_remainder(layer, 2.0) <= exact + 1e-12
