"""From compatible data to a robust network, every link with its certificate: training reaches 2ε in time."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ntk_robust._core import Figure, Series, Table
from ntk_robust.attacks import SphereSlice
from ntk_robust.expressiveness import (
    ArcSets,
    Compatibility,
    FeatureNetwork,
    Interpolant,
    compatibility,
    random_feature_network,
    robust_interpolant,
)
from ntk_robust.kernels import analytic_ntk
from ntk_robust.losses import Absolute
from ntk_robust.models import Softplus
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim, exact_claim, summation_error
from ntk_robust.theory._report import Report
from ntk_robust.theory.checks._adversaries import arc_attacks
from ntk_robust.theory.checks._circle import ArcRun, CircleProblem, losses_on_arcs, make_problem, robust_loss

_GRID = 17
_HALF_ANGLE = 0.5
_TOLERANCE = 0.1
_SIZES = {"quick": (2, 2048, ("oracle",)), "full": (2, 16_384, ("oracle", "random", "weakest", "switching"))}
_LONGEST = 300  # steps of a run at most: the bound T leaves many more


class Chain(NamedTuple):
    """What is known before training.

    Attributes:
        problem: Data, arcs, network; W_0 is that of `explicit`.
        separation: Whether the arcs of unlike points meet.
        interpolant: h with |h − y| ≤ 0.1 on all arcs, and the bounds of its norm.
        explicit: The network W made from h.
        radius: R = |W − W_0|.
        robust_loss: L_*(W), from above.
        epsilon: ε: L_*(W), or what the width allows if that is more.
    """

    problem: CircleProblem
    separation: Compatibility
    interpolant: Interpolant
    explicit: FeatureNetwork
    radius: float
    robust_loss: float
    epsilon: float


def _run(size: Size, key: Key[Array, ""]) -> Report:
    return _report(size, key, _HALF_ANGLE, ())


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: training meets arcs of opposite labels that overlap; R and ε are those of the others."
    return _report(size, key, 0.5 * math.pi + 0.3, (note,))


def _report(size: Size, key: Key[Array, ""], half_angle: float, notes: tuple[str, ...]) -> Report:
    chain_key, run_key = jr.split(key)
    num_train, width, names = _SIZES[size]
    chain = make_chain(num_train, width, key=chain_key)
    activation, g = chain.problem.net.activation, Absolute().lipschitz
    required = 4 * (g * activation.smoothness * chain.radius**2 / chain.epsilon) ** 2
    step_size = chain.epsilon / (g * activation.lipschitz) ** 2
    num_steps = math.ceil(2 * chain.radius**2 / (step_size * chain.epsilon))
    chord = 2 * float(jnp.linalg.norm(chain.problem.xs[0, :2])) * math.sin(half_angle / 2)
    problem = chain.problem._replace(arcs=SphereSlice(chord))
    longest = min(num_steps, _LONGEST)
    # the oracle sees a grid: an attack like any other
    attacks = arc_attacks(_GRID, names if half_angle == _HALF_ANGLE else names[:1])
    runs = {
        name: losses_on_arcs(problem, attack, step_size=step_size, num_steps=longest, key=run_key)
        for name, attack in attacks.items()
    }
    found = chain.interpolant
    hypotheses = (
        exact_claim("pairs of unlike arcs that meet", len(chain.separation.broken), "==", 0),
        Claim("width against 4 G² C_2² R⁴ / ε²", float(width), ">=", required, 1e-9 * width, 1e-6 * width),
    )
    rounding = summation_error(4 * width, 4 * math.sqrt(width))
    conclusions = [
        Claim(
            "norm of the robust interpolant over its certified lower bound",
            found.norm_upper / found.norm_lower,
            "<=",
            1.05,
            1e-9,
            1e-6,
            "certified on the whole arcs, within 0.1 of the labels",
        ),
        Claim(
            "distance R of the explicit network over the norm of the interpolant",
            chain.radius / found.norm_upper,
            "in",
            (0.8, 1.2),
            1e-9,
            1e-6,
            "it converges to 1 with the width",
        ),
        Claim("L_* of the explicit network, certified", chain.robust_loss, "<=", chain.epsilon, rounding, 1e-6),
    ]
    for name, run in runs.items():
        level = 2 * chain.epsilon
        hits = np.flatnonzero(run.surrogate_loss <= level)
        conclusions += [
            Claim(
                f"smallest L_A, {name}",
                float(np.min(run.surrogate_loss)),
                "<=",
                level,
                rounding,
                1e-6,
                f"in the first {longest} of {num_steps} steps",
            ),
            exact_claim(f"first step with L_A ≤ 2ε, {name}", hits[0] if len(hits) else num_steps, "<=", num_steps - 1),
        ]
    return Report(hypotheses, tuple(conclusions), (_table(chain, num_steps, runs),), (_figure(chain, runs),), notes)


def make_chain(num_train: int, width: int, *, key: Key[Array, ""]) -> Chain:
    """Data, function, network."""
    problem = make_problem(num_train, width, Softplus(), _HALF_ANGLE, key=key)
    separation = compatibility(problem.xs, problem.ys, problem.arcs)
    sets = ArcSets(problem.xs, problem.arcs, problem.ys)
    found = robust_interpolant(analytic_ntk(problem.net), sets, tolerance=_TOLERANCE, relative_gap=0.02)
    explicit = random_feature_network(problem.net, found.points, found.coefficients, key=key, draw="sampled")
    problem = problem._replace(params=explicit.start)
    radius, (_, upper) = float(explicit.displacement()), robust_loss(problem, explicit.params)
    allowed = 2 * Absolute().lipschitz * Softplus().smoothness * radius**2 / math.sqrt(width)
    return Chain(problem, separation, found, explicit, radius, upper, max(upper, allowed))


def _table(chain: Chain, num_steps: int, runs: dict[str, ArcRun]) -> Table:
    found = chain.interpolant
    rows = [
        ("largest compatible radius of the arcs", chain.separation.largest_epsilon),
        ("their radius", chain.separation.epsilon),
        ("smallest norm within 0.1 of the labels, from below", found.norm_lower),
        ("the same, from above", found.norm_upper),
        ("width m", chain.problem.net.width),
        ("R = |W − W_0| of the explicit network", chain.radius),
        ("its L_*, from above", chain.robust_loss),
        ("ε", chain.epsilon),
        ("steps T", num_steps),
        *(
            (f"first L_A ≤ 2ε, {name}", int(np.argmax(run.surrogate_loss <= 2 * chain.epsilon)))
            for name, run in runs.items()
        ),
    ]
    return Table("two_epsilon", "From compatible data to 2ε", ("link", "value"), rows)


def _figure(chain: Chain, runs: dict[str, ArcRun]) -> Figure:
    longest = len(next(iter(runs.values())).surrogate_loss)
    steps, level = np.arange(float(longest)).tolist(), 2 * chain.epsilon
    return Figure(
        name="two_epsilon",
        title=f"Adversarial training from W_0, m = {chain.problem.net.width}",
        x_label="step t",
        y_label="L_A(W_t)",
        series=(
            *(Series(name, steps, run.surrogate_loss.tolist()) for name, run in runs.items()),
            Series("2ε", [0.0, float(longest)], [level, level], style="dashed"),
        ),
        caption="ε is the certified robust loss of a network that is written down, not trained.",
    )


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), theorem 5.1 and corollary 5.1 (numbers recalled); items D3, D6 "
        "of docs/theory/gao2019"
    ),
    statement=(
        "Where the arcs of unlike points do not meet, some h of the kernel's space is within 0.1 of all labels; the "
        "explicit network W made from h has R = |W − W_0| near |h| and L_*(W) ≤ ε; and from W_0, with "
        "m ≥ 4G²C_2²R⁴/ε², α = ε/(G²C_1²) and T = 2R²/(αε), unprojected adversarial training has min_{t<T} L_A ≤ 2ε."
    ),
    run=_run,
    control=_control,
)
