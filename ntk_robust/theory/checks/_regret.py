"""What the regret checks share: a recorded run of projected adversarial training on digits, and its bookkeeping."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ntk_robust.attacks import FGSM, PGD, AbstractAttack, Identity, SphereSlice
from ntk_robust.data import binary_task, load_dataset, subset, to_sphere_slice
from ntk_robust.losses import Absolute
from ntk_robust.models import DeepReluNet, DeepReluParams
from ntk_robust.theory._check import Size
from ntk_robust.theory._claim import summation_error
from ntk_robust.theory.checks._adversaries import (
    Mixture,
    RandomPoint,
    Strongest,
    Weakest,
    each_and_switching,
    gradient_steps,
)
from ntk_robust.training import LayerwiseFrobeniusBall, Trajectory, fit, record_trajectory

# The comparators stay inside B(R) by more than the rounding of their own length.
_INSIDE = 1 - 1e-10


class Setting(NamedTuple):
    """A problem for projected adversarial training with the absolute error.

    Attributes:
        net: The network; its frozen first and last layer do not train.
        params: W_0.
        xs: Digits of two classes on the sphere slice.
        ys: Their labels ±1.
        radius: R/√m, of each layer's ball.
        step_size: α.
        num_steps: T.
    """

    net: DeepReluNet
    params: DeepReluParams
    xs: Float[Array, "n d"]
    ys: Float[Array, " n"]
    radius: float
    step_size: float
    num_steps: int


def make_setting(
    *, width: int, num_hidden_layers: int, num_train: int, scaled_radius: float, num_steps: int, key: Key[Array, ""]
) -> Setting:
    """Threes against eights; `scaled_radius` is R, and α = 0.15/m."""
    data_key, init_key = jr.split(key)
    digits = subset(binary_task(load_dataset("digits"), (3, 8)), num_train, 2, key=data_key)
    xs = to_sphere_slice(digits.x_train)
    net = DeepReluNet(input_dim=xs.shape[1], width=width, num_hidden_layers=num_hidden_layers)
    return Setting(
        net=net,
        params=net.init(key=init_key),
        xs=xs,
        ys=digits.y_train,
        radius=scaled_radius / math.sqrt(width),
        step_size=0.15 / width,
        num_steps=num_steps,
    )


def record_run(
    setting: Setting,
    attack: AbstractAttack,
    *,
    key: Key[Array, ""],
    step_size: float | None = None,
    radius: float | None = None,
) -> Trajectory:
    """The library's loop on the setting, everything recorded.

    Args:
        setting: What to train.
        attack: Against which attack, on caps of radius 0.1 of the sphere slice.
        key: Randomness of the attack.
        step_size: Instead of the setting's α.
        radius: Of the balls projected on, instead of the setting's.
    """
    result = fit(
        setting.net.apply,
        setting.params,
        setting.xs,
        setting.ys,
        loss=Absolute(),
        attack=attack,
        perturbations=SphereSlice(0.1),
        optimizer=gradient_steps(setting.step_size if step_size is None else step_size),
        num_steps=setting.num_steps,
        trainable=setting.net.trainable_mask(setting.params),
        constraint=LayerwiseFrobeniusBall(setting.radius if radius is None else radius),
        record=record_trajectory,
        throw=True,
        key=key,
    )
    return Trajectory.of(result)


def adversaries(size: Size) -> dict[str, Mixture]:
    """Attacks on digits; in full size weak and strong ones, gradient-based and random, and one that helps.

    "oracle" is the strongest of the others, and "switching" one of them all at random. Two of them make a smaller
    program, which is most of the time in quick size.
    """
    fgsm, pgd = FGSM(), PGD(num_steps=3, relative_step=0.5, random_start=False)
    if size == "quick":
        return each_and_switching({"random": RandomPoint(), "PGD": pgd})
    found = {"identity": Identity(), "random": RandomPoint(), "FGSM": fgsm, "PGD": pgd}
    return each_and_switching({**found, "oracle": Strongest(tuple(found.values())), "weakest": Weakest(fgsm)})


def flat_weights(layers: tuple[Float[Array, "steps m m"], ...]) -> Float[np.ndarray, "steps weights"]:
    """The trained weights (or gradients) of all steps as rows."""
    return np.concatenate([np.asarray(layer).reshape(len(layer), -1) for layer in layers], axis=1)


def on_boundary(setting: Setting, direction: Float[np.ndarray, " weights"]) -> Float[np.ndarray, " weights"]:
    """The point of B(R) whose layers lie on their spheres, in the given direction from W_0."""
    center = flat_weights(tuple(layer[None] for layer in setting.params.hidden))[0]
    layers = direction.reshape(setting.net.num_hidden_layers, -1)
    unit = layers / np.linalg.norm(layers, axis=1, keepdims=True)
    return center + (_INSIDE * setting.radius * unit).reshape(-1)


class Pairing(NamedTuple):
    """What a comparator U does at the perturbed inputs of each step.

    Attributes:
        loss: ℓ_t(U), the mean loss of U at the inputs of step t.
        slope: s_i^t, the loss's slope in the output of W_t.
        output: f(W_t, x_i^t).
        comparator_output: f(U, x_i^t).
        derivative: <∇_W f(W_t, x_i^t), U − W_t>, by forward-mode differentiation.
    """

    loss: Float[Array, " steps"]
    slope: Float[Array, "steps n"]
    output: Float[Array, "steps n"]
    comparator_output: Float[Array, "steps n"]
    derivative: Float[Array, "steps n"]

    @property
    def remainder(self) -> Float[Array, "steps n"]:
        """r_i^t(U), what linearization at W_t misses of f(U, x_i^t)."""
        return self.comparator_output - self.output - self.derivative


def pair_with(setting: Setting, run: Trajectory, comparator: Float[np.ndarray, " weights"]) -> Pairing:
    """The pairing of a run with U, from the recorded weights and inputs alone."""
    shape = (setting.net.num_hidden_layers, setting.net.width, setting.net.width)
    hidden = tuple(jnp.asarray(comparator.reshape(shape)))
    return _pair(setting.net, setting.params, run, hidden)


@eqx.filter_jit
def _pair(
    net: DeepReluNet, params: DeepReluParams, run: Trajectory, comparator: tuple[Float[Array, "m m"], ...]
) -> Pairing:
    loss = Absolute()
    visited = tuple(layer[:-1] for layer in run.params.hidden)

    def with_hidden(hidden: tuple[Array, ...]) -> DeepReluParams:
        return DeepReluParams(params.embedding, hidden, params.readout)

    def one_step(hidden: tuple[Array, ...], xs: Array, ys: Array) -> Pairing:
        def outputs(hidden: tuple[Array, ...]) -> Array:
            return jax.vmap(net.apply, (None, 0))(with_hidden(hidden), xs)

        output, derivative = jax.jvp(outputs, (hidden,), (optax.tree.sub(comparator, hidden),))
        comparator_output = outputs(comparator)
        slope = jax.vmap(jax.grad(loss))(output, ys)
        return Pairing(jnp.mean(jax.vmap(loss)(comparator_output, ys)), slope, output, comparator_output, derivative)

    return jax.vmap(one_step)(visited, run.xs_adv, run.ys)


def output_error(setting: Setting) -> float:
    r"""Bound for the rounding of an output f(W, x), or of a directional derivative, at weights of B(R).

    Each of the H + 2 products sums at most max(m, d) terms, so the error is at most $γ_{(H + 2)(max(m, d) + 1)}$ times
    the output of the network of absolute values, $|a|^⊤ |W^{(H)}| ⋯ |W^{(1)}| |A| |x|$, here at W_0 and doubled for the
    rest of B(R) and for the derivative, whose sums are as long.

    References:
        N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.5.
    """
    params, depth = setting.params, setting.net.num_hidden_layers
    longest = max(setting.net.width, setting.net.input_dim)
    size = np.abs(params.embedding) @ np.abs(setting.xs).T
    for layer in params.hidden:
        size = np.abs(layer) @ size
    largest = float(np.max(np.abs(params.readout) @ size))
    return summation_error((depth + 2) * (longest + 1), 2 * largest)
