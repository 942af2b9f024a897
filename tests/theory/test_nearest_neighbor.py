"""The explicit network against the rule that it implements, and the memorizer against a search."""

import numpy as np

from ntk_robust.theory.checks.gao2019_nearest_neighbor_network import (
    memorizer_network,
    memorizer_radii,
    nearest_neighbor_network,
)


def nearest_label(xs: np.ndarray, labels: np.ndarray, point: np.ndarray) -> int:
    return int(labels[np.argmin(np.linalg.norm(xs - point, axis=1))])


def test_the_network_is_the_nearest_neighbor_rule_everywhere_in_its_domain():
    rng = np.random.default_rng(0)
    for count in (2, 3, 7, 16):
        xs, labels = rng.integers(-9, 10, size=(count, 4)), rng.choice([-1, 1], count)
        labels[:2] = 1, -1
        net = nearest_neighbor_network(xs, labels, largest_norm=30.0)
        points = rng.normal(size=(300, 4)) * 7
        points = points[np.linalg.norm(points, axis=1) <= 30]
        outputs = net(points)
        expected = [nearest_label(xs, labels, point) for point in points]
        assert np.sign(outputs).astype(int).tolist() == expected
        scores = 2 * points @ xs.T - np.sum(xs * xs, axis=1)
        gap = np.max(scores[:, labels == 1], axis=1) - np.max(scores[:, labels == -1], axis=1)
        assert np.max(np.abs(outputs - gap)) <= net.rounding(points)


def test_the_memorizer_changes_its_sign_at_the_stated_radius():
    rng = np.random.default_rng(1)
    xs, labels, direction = rng.integers(0, 17, size=(40, 6)), rng.choice([-1, 1], 40), rng.normal(size=6)
    radii = memorizer_radii(xs, labels, direction)
    unit = direction / np.linalg.norm(direction)
    order = np.argsort(xs @ unit)

    def memorizer(points: np.ndarray) -> np.ndarray:
        return np.interp(points @ unit, (xs @ unit)[order], labels[order])

    network = memorizer_network(xs, labels, direction)
    np.testing.assert_allclose(network(xs.astype(float)), labels, atol=1e-9)
    inside = rng.uniform(np.min(xs @ unit), np.max(xs @ unit), 200)[:, None] * unit
    np.testing.assert_allclose(network(inside), memorizer(inside), atol=1e-9)
    for x, label, radius in zip(xs, labels, radii, strict=True):
        along = x + np.linspace(-1, 1, 2001)[:, None] * radius * unit
        assert np.all(memorizer(along[1:-1]) * label > 0)
        beyond = x + 1.000001 * radius * np.stack([unit, -unit])
        assert np.any(memorizer(beyond) * label < 0)
