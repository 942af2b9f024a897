"""How the remainder of linearization grows with the depth of a ReLU network: a trend, found by ascent."""

import functools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from ntk_robust._core import Figure, Series, Table, slope_fit
from ntk_robust.models import DeepReluNet, DeepReluParams
from ntk_robust.theory._check import Check, Size
from ntk_robust.theory._claim import Claim
from ntk_robust.theory._report import Report

_DEPTHS = {"quick": (1, 2, 4), "full": (1, 2, 3, 4, 6, 8)}
_WIDTH = {"quick": 128, "full": 512}
_NUM_STEPS = {"quick": 30, "full": 200}
_NUM_SEEDS = {"quick": 6, "full": 12}
_RADIUS = 4.0
_INPUT_DIM = 8
_EXPONENT = 2.5


def _run(size: Size, key: Key[Array, ""]) -> Report:
    note = (
        "A trend and no more: ascent finds lower bounds of the supremum at one width, and the rate of the paper in the "
        "depth, H^16 in all, cannot be reached by any computation."
    )
    return _report(size, key, 0.0, (note,))


def _control(size: Size, key: Key[Array, ""]) -> Report:
    note = "Broken on purpose: balls whose radius grows like H², so that the remainder's exponent grows by 8/3."
    return _report(size, key, 2.0, (note,))


def _report(size: Size, key: Key[Array, ""], growth: float, notes: tuple[str, ...]) -> Report:
    depths, width = _DEPTHS[size], _WIDTH[size]
    keys = jr.split(key, _NUM_SEEDS[size])
    found = np.stack(
        [
            np.asarray(largest_remainders(depth, width, _NUM_STEPS[size], keys, jnp.asarray(_RADIUS * depth**growth)))
            for depth in depths
        ],
        axis=1,
    )
    fit = slope_fit(np.array(depths, float), found, confidence=0.95)
    half_width = max(fit.upper - fit.slope, fit.slope - fit.lower)
    conclusions = (
        Claim(
            "exponent of the remainder in the depth H",
            fit.slope,
            "<=",
            _EXPONENT,
            half_width,
            1.0,
            f"a trend; interval over {len(keys)} seeds at 95%",
        ),
        Claim(
            f"smallest remainder found, over its size R^(4/3) m^(-1/6) at H = 1, H = {depths[0]}",
            float(np.min(found[:, 0])) / (_RADIUS ** (4 / 3) * width ** (-1 / 6)),
            ">=",
            0.0,
            1e-9,
            1e-6,
        ),
    )
    means = np.mean(found, axis=0)
    rows = [
        (depth, width, float(mean), float(np.min(column)), float(np.max(column)))
        for depth, mean, column in zip(depths, means, found.T, strict=True)
    ]
    reference = means[0] * np.array(depths, float) ** _EXPONENT
    figure = Figure(
        name="depth",
        title="Largest remainder of linearization found in B(R)",
        x_label="hidden layers H",
        y_label="remainder",
        series=(
            Series(
                "found by ascent",
                list(map(float, depths)),
                means.tolist(),
                np.min(found, axis=0).tolist(),
                np.max(found, axis=0).tolist(),
            ),
            Series("H^(5/2)", list(map(float, depths)), reference.tolist(), style="dashed"),
        ),
        x_scale="log",
        y_scale="log",
        caption="Lower bounds of suprema; the dashed line has the exponent of the upper bound, and starts with them.",
    )
    table = Table("depth", "Remainders found by ascent over B(R)", ("H", "m", "mean", "smallest", "largest"), rows)
    return Report((), conclusions, (table,), (figure,), notes)


@functools.partial(jax.jit, static_argnames=("depth", "width", "num_steps"))
def largest_remainders(
    depth: int, width: int, num_steps: int, keys: Key[Array, " seeds"], scaled_radius: Float[Array, ""]
) -> Float[Array, " seeds"]:
    """The largest |f(W) − f(W_0) − <∇f(W_0), W − W_0>| met by ascent over B(R) at a random input, for each seed."""
    net = DeepReluNet(input_dim=_INPUT_DIM, width=width, num_hidden_layers=depth)
    radius = scaled_radius / math.sqrt(width)

    def one(key: Array) -> Array:
        init_key, input_key = jr.split(key)
        params = net.init(key=init_key)
        x = jr.normal(input_key, (_INPUT_DIM,))
        x = x / jnp.linalg.norm(x)

        def output(shift: tuple[Array, ...]) -> Array:
            hidden = tuple(layer + move for layer, move in zip(params.hidden, shift, strict=True))
            return net.apply(DeepReluParams(params.embedding, hidden, params.readout), x)

        def on_sphere(shift: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(move * (radius / jnp.maximum(jnp.linalg.norm(move), 1e-30)) for move in shift)

        nothing = tuple(jnp.zeros_like(layer) for layer in params.hidden)
        value, slope = jax.value_and_grad(output)(nothing)

        def remainder(shift: tuple[Array, ...]) -> Array:
            linear = sum(jnp.vdot(part, move) for part, move in zip(slope, shift, strict=True))
            return jnp.abs(output(shift) - value - linear)

        def step(shift: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], Array]:
            here, upward = jax.value_and_grad(remainder)(shift)
            length = [jnp.maximum(jnp.linalg.norm(part), 1e-30) for part in upward]
            moved = tuple(
                move + 0.5 * radius / size * part for move, part, size in zip(shift, upward, length, strict=True)
            )
            return on_sphere(moved), here

        start = on_sphere(across_kinks(params, x, radius))
        last, values = lax.scan(step, start, length=num_steps)
        return jnp.maximum(jnp.max(values), remainder(last))

    return lax.map(one, keys)


def across_kinks(params: DeepReluParams, x: Float[Array, " d"], radius: Float[Array, ""]) -> tuple[Array, ...]:
    """A direction for each layer that flips neurons near their kink whose output raises f, as in the exact worst case.

    An ascent that starts where nothing flips has no gradient to follow.
    """
    inputs = [jax.nn.relu(params.embedding @ x)]
    before = []
    for layer in params.hidden:
        before.append(layer @ inputs[-1])
        inputs.append(jax.nn.relu(before[-1]))
    slope, starts = params.readout, []
    for layer, z, entering in zip(params.hidden[::-1], before[::-1], inputs[-2::-1], strict=True):
        size = jnp.linalg.norm(entering)
        count = len(z) // 8
        cost = jnp.where(slope > 0, jnp.abs(z), jnp.inf)
        chosen = cost <= jnp.sort(cost)[count]
        push = jnp.where(chosen, -jnp.sign(z) * radius / math.sqrt(count), 0.0)
        starts.append(push[:, None] * (entering / size)[None])
        slope = layer.T @ jnp.where(z > 0, slope, 0.0)
    return tuple(starts[::-1])


CHECK = Check(
    citation=(
        "In the setting of Gao et al. (NeurIPS 2019), the proof of theorem 4.1 (recalled: remainder at most of order "
        "R^{4/3} H^{5/2} m^{-1/6}); item D5 of docs/theory/gao2019"
    ),
    statement=(
        "Over B(R) the remainder of linearization of the deep ReLU net grows no faster than H^{5/2} with the depth, as "
        "far as ascent over B(R) finds it: a trend, one-sided, at one width."
    ),
    run=_run,
    control=_control,
)
