"""How fast projected gradient ascent finds a maximum, at initialization and during adversarial training."""

import os
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ntk_robust._core import AbstractProgress, Figure, Series, SilentProgress, Table
from ntk_robust.attacks import PGD, L2Ball
from ntk_robust.data import Dataset
from ntk_robust.landscape import (
    TwoLayer,
    ball_bounds,
    global_maximum,
    local_maximum,
    projected_gradient_ascent,
    two_layer_of,
)
from ntk_robust.losses import Squared
from ntk_robust.studies._study import Study, history_folder, kept_in
from ntk_robust.studies._two_classes import network, two_classes
from ntk_robust.training import at_rate, fit, save_history


class _Size(NamedTuple):
    width: int
    num_train: int
    num_images: int
    num_stages: int
    steps_per_stage: int
    num_steps: int


_SIZES = {
    "quick": _Size(width=200, num_train=100, num_images=8, num_stages=4, steps_per_stage=60, num_steps=150),
    "full": _Size(width=1000, num_train=500, num_images=40, num_stages=6, steps_per_stage=200, num_steps=400),
}
_SCALE, _RATIO = 1.0, 0.1  # input scale s, perturbation ratio τ
_RATE = 0.5
_TOLERANCE = 1e-6
_ATTACK = PGD(num_steps=5, relative_step=0.5)
_OPTIMIZER = optax.sgd(1.0)


def ascent_convergence(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    histories: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Loss, distance to the sphere, first-order residual and alignment along projected gradient ascent.

    A two-layer tanh network learns 3 against 8 adversarially, with squared error; at initialization and at stages of
    the training, ascents from the centers of training images are followed, with steps $1/Λ$ for the Lipschitz constant
    $Λ$ that `ball_bounds` certifies.

    Args:
        dataset: Integer-labelled images with the classes 3 and 8.
        size: "quick" takes a minute on small images.
        histories: Folder for the history of every run of training, with its arguments; None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of the network, the attack and the choice of examples.

    Returns:
        The study: four figures against the iteration, and what certificates say of where the ascents end.

    Raises:
        ValueError: For an unknown size.
        FloatingPointError: If the training meets numbers that are not finite.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    sizes = _SIZES[size]
    data_key, init_key, fit_key = jr.split(key, 3)
    data = two_classes(dataset, sizes.num_train, key=data_key)
    epsilon = _RATIO * _SCALE * data.input_dim**0.5
    model = network(data.input_dim, sizes.width)
    params = model.init(key=init_key, dtype=data.x_train.dtype)
    stages: dict[int, _Measured] = {}
    with (progress or SilentProgress()).task("ascent convergence", sizes.num_stages) as task:
        for stage in range(sizes.num_stages):
            if stage:
                arguments = {
                    "apply_fn": model.apply,
                    "params": params,
                    "xs": data.x_train,
                    "ys": data.y_train,
                    "loss": Squared(),
                    "attack": _ATTACK,
                    "perturbations": L2Ball(epsilon),
                    "optimizer": at_rate(_OPTIMIZER, _RATE),
                    "num_steps": sizes.steps_per_stage,
                    "trainable": model.trainable_mask(params),
                    "key": jr.fold_in(fit_key, stage),
                }
                result = fit(**arguments, throw=True)
                params = result.params
                history = history_folder(histories, f"stage{stage}")
                if history is not None:
                    save_history(history, result, arguments=arguments, about={"data": data.name})
            images, labels = data.x_train[: sizes.num_images], data.y_train[: sizes.num_images]
            net = two_layer_of(model, params)
            measured = _measure(net, images, labels, jnp.asarray(epsilon, images.dtype), sizes.num_steps)
            stages[stage * sizes.steps_per_stage] = _Measured(*(np.asarray(part, np.float64) for part in measured))
            task.advance(1)
    return kept_in(histories, _write_up(data, sizes, stages))


class _Measured(NamedTuple):
    """One row for each image; trajectories along the columns."""

    values: Float[np.ndarray, "n t"]
    norms: Float[np.ndarray, "n t"]
    residuals: Float[np.ndarray, "n t"]
    alignments: Float[np.ndarray, "n t"]
    margins: Float[np.ndarray, " n"]
    certified: Float[np.ndarray, " n"]
    contractions: Float[np.ndarray, " n"]
    rates: Float[np.ndarray, " n"]


@eqx.filter_jit
def _measure(
    net: TwoLayer,
    images: Float[Array, "n d"],
    labels: Float[Array, " n"],
    epsilon: Float[Array, ""],
    num_steps: int,
) -> tuple[Array, ...]:
    def follow(pair: tuple[Array, Array]) -> tuple[Array, ...]:
        x, label = pair

        def loss(delta: Float[Array, " d"]) -> Float[Array, ""]:
            return 0.5 * (net(x + delta) - label) ** 2

        bounds = ball_bounds(net, x, epsilon)
        step = 1 / bounds.lipschitz(label)
        found = projected_gradient_ascent(loss, epsilon, jnp.zeros_like(x), step_size=step, num_steps=num_steps)
        end = local_maximum(loss, epsilon, found.deltas[-1])
        side = jnp.sign(net(x + found.deltas[-1]) - label)
        whole = global_maximum(net, x, epsilon, found.deltas[-1], sign=side)
        return (
            found.values,
            found.relative_norms,
            found.residuals,
            found.alignments,
            end.margin,
            whole.certified,
            bounds.contraction,
            end.rate(step),
        )

    return jax.lax.map(follow, (images, labels))


def _write_up(data: Dataset, sizes: _Size, stages: dict[int, _Measured]) -> Study:
    rows, sentences = [], []
    for steps, found in stages.items():
        hits = _first(found.norms >= 1 - 1e-5)
        reached = _first(found.residuals < _TOLERANCE)
        rows.append(
            (
                steps,
                float(np.mean(found.values[:, -1])),
                _or_never(hits),
                _or_never(reached),
                float(np.median(found.rates)),
                float(np.min(found.margins)),
                float(np.mean(found.margins > 0)),
                float(np.mean(found.certified)),
                float(np.median(found.contractions)),
            )
        )
        sentences.append(
            f"after {steps} training steps the sphere is hit by iteration {_or_never(hits)} (median), and "
            f"{np.mean(found.margins > 0):.0%} of the ends are strict local maxima"
        )
    columns = (
        "training steps",
        "largest loss found, mean",
        "iterations to the sphere",
        f"iterations to a residual of {_TOLERANCE:g}",
        "predicted factor per iteration at the end",
        "smallest margin κ",
        "strict local maxima",
        "certified global maxima",
        "contraction ρ",
    )
    table = Table(
        "ascents",
        "Ascents at stages of adversarial training",
        columns,
        rows,
        f"Medians over {sizes.num_images} training images where nothing else is said; steps 1/Λ with the certified Λ.",
    )
    figures = (
        _figure(
            "loss", "Loss along the ascent", "L(δ_t) / L at the end", stages, lambda m: m.values / m.values[:, -1:]
        ),
        _figure("sphere", "Distance to the sphere", "1 − |δ_t|/ε", stages, lambda m: 1 - m.norms),
        _figure(
            "residual",
            "First-order residual along the ascent",
            "KKT residual / |∇L|",
            stages,
            lambda m: m.residuals,
            log_y=True,
        ),
        _figure("alignment", "Alignment of perturbation and gradient", "cos(δ_t, ∇L)", stages, lambda m: m.alignments),
    )
    return Study(
        name="ascent_convergence",
        title="How fast projected gradient ascent finds a maximum",
        text=(
            f"A tanh network with one hidden layer of width {sizes.width} learns 3 against 8 adversarially on "
            f"{sizes.num_train} images of {data.name} (input scale {_SCALE:g}, l2 radius {_RATIO:g} of the norm, "
            f"squared error, learning rate {_RATE:g}). From {sizes.num_images} images, {'; '.join(sentences)}."
        ),
        figures=figures,
        tables=(table,),
    )


def _first(reached: np.ndarray) -> np.ndarray:
    """The first iteration of each row, infinite where there is none."""
    return np.where(reached.any(axis=1), reached.argmax(axis=1), np.inf)


def _or_never(iterations: np.ndarray) -> float | str:
    middle = float(np.median(iterations))
    return middle if np.isfinite(middle) else "never"


def _figure(
    name: str,
    title: str,
    y_label: str,
    stages: dict[int, _Measured],
    values_of: Callable[[_Measured], Float[np.ndarray, "n t"]],
    *,
    log_y: bool = False,
) -> Figure:
    series = []
    for steps, found in stages.items():
        values = values_of(found)
        shown = values[:, 1:] if name == "alignment" else values  # the center has no direction
        iterations = np.arange(float(values.shape[1]))[-shown.shape[1] :]
        label = "at initialization" if steps == 0 else f"after {steps} steps"
        low, middle, high = np.quantile(shown, (0.1, 0.5, 0.9), axis=0)
        series.append(Series(label, iterations.tolist(), middle.tolist(), low.tolist(), high.tolist()))
    return Figure(
        name=name,
        title=title,
        x_label="iteration t",
        y_label=y_label,
        series=tuple(series),
        y_scale="log" if log_y else "linear",
        caption="Median over images; the band holds four fifths of them.",
    )
