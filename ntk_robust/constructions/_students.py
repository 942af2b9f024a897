r"""Students: networks that equal given labels on cubes around given points and a teacher elsewhere.

In the setting of Shi et al. (2024): the students have zero adversarial training error, by construction. Which is which,
and all proofs: `docs/theory/shi2024.md`, sections 4 and 5.
"""

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from ntk_robust.certify import Network, Parallel
from ntk_robust.constructions._blocks import (
    RELU,
    Layers,
    affine,
    check_transition,
    exact_bump_layers,
    product_gate_layers,
    trapezoid_bump_layers,
)

_BLOCK = 256


def separation(xs: Float[Array, "n d"], labels: Float[Array, " n"] | None = None) -> float:
    r"""Smallest $\ell_\infty$ distance of two points; with labels, of two points with different labels.

    Args:
        xs: Points.
        labels: One number for each, or None for all pairs.

    Returns:
        The distance in input units, infinite if there is no such pair.

    Raises:
        ValueError: If there are not as many labels as points.
    """
    points = np.asarray(xs)
    if labels is not None and len(labels) != len(points):
        raise ValueError(f"there are {len(points)} points and {len(labels)} labels; give one label for each")
    values = None if labels is None else np.asarray(labels)
    smallest = np.inf
    for i in range(len(points) - 1):
        others = points[i + 1 :] if values is None else points[i + 1 :][values[i + 1 :] != values[i]]
        for start in range(0, len(others), _BLOCK):
            distances = np.max(np.abs(others[start : start + _BLOCK] - points[i]), axis=1)
            smallest = min(smallest, float(np.min(distances)))
    return smallest


def clip_gate_student(
    teacher: Network,
    xs: Float[Array, "n d"],
    ys: Float[Array, " n"],
    *,
    epsilon: float,
    tau: float,
    bound: float,
    plateau: float | None = None,
    bumps: Literal["exact", "trapezoid"] = "exact",
) -> Network:
    r"""S2: $f_S = \max(\min(f_T, u), l)$ with $u = M + \sum_i (y_i - M) G_i$ and $l = -M + \sum_i (y_i + M) G_i$.

    $f_S = y_i$ on $B(x_i, ε)$, which `ntk_robust.certify.dyadic_interval_bounds` proves with a width of 0;
    $f_S = f_T$ (clipped to $[-M, M]$) where all bumps vanish; everywhere $f_S$ lies between $f_T$ and a mean of the
    labels of the bumps there. Besides the teacher it has at most $n(6d + 3) + O(1)$ nonzero weights and two more hidden
    layers.

    Args:
        teacher: A scalar network of d inputs.
        xs: $x_i$.
        ys: $y_i$, in output units.
        epsilon: Radius of the cubes.
        tau: Width of the transition.
        bound: $M ≥ \max |y_i|$.
        plateau: Half width of the cubes on which $f_S = y_i$, at least epsilon, which is the default.
        bumps: "exact", or "trapezoid" for the blocks of the paper.

    Returns:
        The student, scalar, with the dtype of `xs`.

    Raises:
        ValueError: If two points are closer than 2 plateau + tau, a label exceeds the bound, or shapes do not fit.
    """
    half = _half_width(epsilon, plateau)
    points, targets = _checked(teacher, xs, ys, bound=bound, tau=tau)
    _check_apart(separation(xs), half, tau, "points")
    dtype, m = points.dtype, bound
    # one number after the other: C = Σ (y + M) G, A = Σ G, f_T
    gather = affine(np.stack([targets + m, np.ones_like(targets), np.zeros_like(targets)]), None, dtype)
    carried = affine(np.array([[0.0], [0.0], [1.0]]), None, dtype)
    gate = (
        affine(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, -2.0 * m, -1.0]]), [0.0, 0.0, m], dtype),
        RELU,  # C, A >= 0 pass; s_1 = (M + C - 2 M A - f_T)_+
        affine(np.array([[1.0, 0.0, 0.0], [0.0, -2.0 * m, -1.0]]), [0.0, 2.0 * m], dtype),
        RELU,
        affine(np.array([[1.0, 1.0]]), [-m], dtype),
    )
    blocks = _bump_layers(points, half, tau, bumps)
    layers = (Parallel(((*blocks, gather), (*teacher.layers, carried))), *gate)
    return Network(layers, teacher.input_shape, scalar=True)


def class_student(
    teacher: Network,
    xs: Float[Array, "n d"],
    labels: Float[Array, " n"],
    *,
    epsilon: float,
    tau: float,
    bound: float = 1.0,
    plateau: float | None = None,
) -> Network:
    r"""S2 for classes: as `clip_gate_student` with labels $\pm K$, where cubes of one class may overlap.

    Only points of different labels have to be apart: $2ε + τ$ for zero adversarial training error, $2ε + 2τ$ for a
    student that moves the teacher towards the labels only (then clean labels change no sign anywhere).

    Args:
        teacher: A scalar network of d inputs, positive for one class.
        xs: $x_i$.
        labels: $\pm 1$.
        epsilon: Radius of the cubes.
        tau: Width of the transition.
        bound: $K$, the student's value on the cubes.
        plateau: Half width of the cubes on which the student has its label, at least epsilon, which is the default.

    Returns:
        The student, scalar, with the dtype of `xs`.

    Raises:
        ValueError: If labels are not ±1, unlike points are closer than 2 plateau + tau, or shapes do not fit.
    """
    half = _half_width(epsilon, plateau)
    points, signs = _checked(teacher, xs, labels, bound=1.0, tau=tau)
    if not np.all(np.abs(signs) == 1.0):
        raise ValueError("labels are classes ±1 here; use clip_gate_student for regression")
    if not bound > 0.0:
        raise ValueError(f"the value on the cubes is {bound}; give a positive number")
    _check_apart(separation(xs, labels), half, tau, "points of different labels")
    dtype, k = points.dtype, bound
    # s_- = (1 - Σ_- G)_+ and s_+ = (1 - Σ_+ G)_+; u = -K + 2K s_-, l = K - 2K s_+
    sums = affine(np.stack([-(signs < 0.0).astype(dtype), -(signs > 0.0).astype(dtype)]), [1.0, 1.0], dtype)
    spread = affine(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), None, dtype)
    carried = affine(np.array([[0.0], [0.0], [1.0]]), None, dtype)
    gate = (
        affine(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0 * k, 0.0, -1.0]]), [0.0, 0.0, -k], dtype),
        RELU,  # (u - f_T)_+
        affine(np.array([[0.0, 1.0, 0.0], [2.0 * k, 2.0 * k, -1.0]]), [0.0, -2.0 * k], dtype),
        RELU,  # (min(f_T, u) - l)_+
        affine(np.array([[-2.0 * k, 1.0]]), [k], dtype),
    )
    blocks = (*_bump_layers(points, half, tau, "exact"), sums, RELU, spread)
    return Network((Parallel((blocks, (*teacher.layers, carried))), *gate), teacher.input_shape, scalar=True)


def product_gate_student(
    teacher: Network,
    xs: Float[Array, "n d"],
    ys: Float[Array, " n"],
    *,
    epsilon: float,
    tau: float,
    bound: float,
    levels: int,
    plateau: float | None = None,
    bumps: Literal["exact", "trapezoid"] = "trapezoid",
) -> Network:
    r"""S1, as in the paper: $f_S = f_T + \pi(\sum_i G_i, -f_T) + \sum_i y_i G_i$ with one product gate.

    On $B(x_i, ε)$ it is within $B^2 4^{-q}$ of $y_i$, and equal to it if the bound B is a power of two with
    $2^q ≥ 2B$, because the gate multiplies by 0 and 1 exactly. No bound of single neurons sees that.

    Args:
        teacher: A scalar network with $|f_T| ≤ B$; see `clipped`.
        xs: $x_i$.
        ys: $y_i$, in output units.
        epsilon: Radius of the cubes.
        tau: Width of the transition.
        bound: $B ≥ \max(1, \max |y_i|)$.
        levels: $q$.
        plateau: Half width of the cubes of the bumps, at least epsilon, which is the default.
        bumps: "trapezoid", the blocks of the paper, or "exact".

    Returns:
        The student, scalar, with the dtype of `xs`.

    Raises:
        ValueError: If two points are closer than 2 plateau + tau, a label or 1 exceeds the bound, or shapes do not fit.
    """
    half = _half_width(epsilon, plateau)
    points, targets = _checked(teacher, xs, ys, bound=bound, tau=tau)
    if bound < 1.0:
        raise ValueError(f"the gate's bound is {bound}; the bumps reach 1, give at least that")
    _check_apart(separation(xs), half, tau, "points")
    dtype = points.dtype
    gather = affine(np.stack([np.ones_like(targets), np.zeros_like(targets), targets]), None, dtype)
    carried = affine(np.array([[0.0], [1.0], [0.0]]), None, dtype)
    factors = affine(np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), None, dtype)
    rest = affine(np.array([[0.0, 1.0, 1.0]]), None, dtype)
    blocks = (*_bump_layers(points, half, tau, bumps), gather)
    gate = (factors, *product_gate_layers(bound, levels, 1, dtype))
    layers = (Parallel((blocks, (*teacher.layers, carried))), Parallel((gate, (rest,))))
    return Network(layers, teacher.input_shape, scalar=True)


def student_family(
    teacher: Network, xs: Float[Array, "n d"], ys: Float[Array, " n"], *, epsilon: float, bound: float
) -> Iterator[Network]:
    r"""Students that all equal $y_i$ on the cubes $B(x_i, ε)$, without end, pairwise different.

    With $s = \mathrm{sep} - 2ε$ the slack of the separation, the k-th has the transition width $2^{-k} s'$ with
    $s' ≤ s$ a power of two; then $f_S = u$ or $l$ has another slope beside every face of a cube on which the teacher
    does not already have the label, so that no two are the same function.

    Args:
        teacher: A scalar network of d inputs.
        xs: $x_i$, more than 2 epsilon apart.
        ys: $y_i$, in output units.
        epsilon: Radius of the cubes.
        bound: $M ≥ \max |y_i|$.

    Yields:
        `clip_gate_student` networks.

    Raises:
        ValueError: If two points are at most 2 epsilon apart, and as `clip_gate_student`.
    """
    slack = separation(xs) - 2.0 * epsilon
    if not slack > 0.0:
        raise ValueError(f"two points are {slack + 2.0 * epsilon} apart, not more than 2 epsilon = {2.0 * epsilon}")
    widest = 2.0 ** np.floor(np.log2(min(slack, 1.0)))
    for halvings in itertools.count():
        yield clip_gate_student(teacher, xs, ys, epsilon=epsilon, tau=widest * 2.0**-halvings, bound=bound)


def _bump_layers(points: np.ndarray, half: float, tau: float, bumps: str) -> Layers:
    if bumps not in ("exact", "trapezoid"):
        raise ValueError(f"bumps is {bumps!r}; give 'exact' or 'trapezoid'")
    make = exact_bump_layers if bumps == "exact" else trapezoid_bump_layers
    half = points.dtype.type(half)
    return make(points - half, points + half, tau)


def _half_width(epsilon: float, plateau: float | None) -> float:
    if not epsilon >= 0.0:
        raise ValueError(f"the radius epsilon is {epsilon}; give a number of at least 0")
    half = epsilon if plateau is None else plateau
    if half < epsilon:
        raise ValueError(f"the plateau's half width is {half} and the radius {epsilon}; give at least the radius")
    return half


def _checked(teacher: Network, xs: Array, ys: Array, *, bound: float, tau: float) -> tuple[np.ndarray, np.ndarray]:
    check_transition(tau)
    points, targets = np.asarray(xs), np.asarray(ys)
    if len(points) != len(targets) or not len(points):
        raise ValueError(f"there are {len(points)} points and {len(targets)} labels; give one label for each")
    if not teacher.scalar or teacher.input_shape != points.shape[1:]:
        raise ValueError(
            f"the teacher takes inputs of shape {teacher.input_shape} to {teacher.num_outputs} outputs and the points "
            f"have shape {points.shape[1:]}; give a scalar network of the same inputs"
        )
    if teacher.dtype != points.dtype:
        raise ValueError(f"the teacher's weights are {teacher.dtype} and the points {points.dtype}; cast one of them")
    largest = float(np.max(np.abs(targets)))
    if largest > bound:
        raise ValueError(f"a label has size {largest} and the bound is {bound}; raise the bound or clip the labels")
    return points, targets


def _check_apart(apart: float, half: float, tau: float, which: str) -> None:
    if apart < 2.0 * half + tau:
        raise ValueError(
            f"two {which} are {apart} apart, less than 2 plateau + tau = {2.0 * half + tau}: their bumps would mix; "
            "give a smaller radius or transition"
        )
