"""How fast the empirical neural tangent kernel approaches the analytic one."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_robust._core import AbstractProgress, Figure, Series, SilentProgress, Table, slope_fit
from ntk_robust.data import Dataset, subset
from ntk_robust.kernels import analytic_ntk, empirical_ntk
from ntk_robust.models import FullyConnected
from ntk_robust.studies._study import SLOPE_COLUMNS, Study, slope_row


class _Size(NamedTuple):
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    num_seeds: int
    num_examples: int


_SIZES = {
    "quick": _Size(widths=(64, 128, 256, 512, 1024), depths=(1, 3), num_seeds=32, num_examples=40),
    "full": _Size(widths=(64, 128, 256, 512, 1024, 2048, 4096), depths=(1, 2, 3, 5), num_seeds=64, num_examples=100),
}


def kernel_convergence(
    dataset: Dataset,
    *,
    size: Literal["quick", "full"] = "quick",
    progress: AbstractProgress | None = None,
    key: Key[Array, ""],
) -> Study:
    r"""Distance of the empirical NTK at initialization from the analytic one, against width.

    For ReLU networks in NTK parameterization the empirical kernel is a sum of averages over neurons, so that the
    relative distance $\|\hat\Theta_m - \Theta\|_F / \|\Theta\|_F$ is expected to fall like $m^{-1/2}$.

    Args:
        dataset: Where the points of the kernel matrix come from.
        size: "quick" ends within a minute on two cores.
        progress: Where to report, an `AbstractProgress`; None is silence.
        key: Randomness of networks and of the choice of points.

    Returns:
        The study: a figure, the errors, and the fitted slopes.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose 'quick' or 'full'")
    widths, depths, num_seeds, num_examples = _SIZES[size]
    data_key, network_key = jr.split(key)
    xs = subset(dataset, num_examples, 1, key=data_key).x_train
    errors: dict[int, np.ndarray] = {}
    with (progress or SilentProgress()).task("kernel convergence", len(widths) * len(depths)) as task:
        for depth in depths:
            columns = []
            for width in widths:
                keys = jr.split(jr.fold_in(network_key, width), num_seeds)
                columns.append(np.asarray(_relative_errors(_network(xs, width, depth), xs, keys)))
                task.advance(1, width=float(width), relative_error=float(np.mean(columns[-1])))
            errors[depth] = np.stack(columns, axis=1)
    return _write_up(dataset, widths, errors, num_examples)


def _network(xs: Float[Array, "n d"], width: int, depth: int) -> FullyConnected:
    return FullyConnected(input_dim=xs.shape[1], width=width, num_hidden_layers=depth, num_outputs="scalar")


def _relative_errors(
    network: FullyConnected, xs: Float[Array, "n d"], keys: Key[Array, " seeds"]
) -> Float[Array, " seeds"]:
    """Relative Frobenius distance for every seed, in one program."""
    analytic = analytic_ntk(network).gram(xs)

    @jax.jit
    def errors(keys: Key[Array, " seeds"], analytic: Float[Array, "n n"]) -> Float[Array, " seeds"]:
        def error(key: Key[Array, ""]) -> Float[Array, ""]:
            empirical = empirical_ntk(network.apply, network.init(key=key, dtype=xs.dtype), xs)
            return jnp.linalg.norm(empirical - analytic) / jnp.linalg.norm(analytic)

        return jax.lax.map(error, keys)

    return errors(keys, analytic)


def _write_up(dataset: Dataset, widths: tuple[int, ...], errors: dict[int, np.ndarray], num_examples: int) -> Study:
    series, rows, slopes, sentences = [], [], [], []
    xs = [float(width) for width in widths]
    for depth, by_seed in errors.items():
        fit = slope_fit(np.array(xs), by_seed)
        label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
        lower, upper = by_seed.min(axis=0), by_seed.max(axis=0)
        series.append(Series(label, xs, by_seed.mean(axis=0).tolist(), lower.tolist(), upper.tolist()))
        rows += [
            (depth, width, float(np.mean(column)), float(np.std(column, ddof=1)))
            for width, column in zip(widths, by_seed.T, strict=True)
        ]
        slopes.append(slope_row("relative error of the empirical NTK", label, fit, "-1/2"))
        sentences.append(f"{fit.slope:.3f} [{fit.lower:.3f}, {fit.upper:.3f}] with {label}")
    start = np.exp(np.mean(np.log(next(iter(errors.values()))[:, 0])))
    series.append(Series("slope -1/2", xs, [float(start * (x / xs[0]) ** -0.5) for x in xs], style="dashed"))
    num_seeds = len(next(iter(errors.values())))
    return Study(
        name="kernel_convergence",
        title="The empirical NTK approaches the analytic one",
        text=(
            "Relative Frobenius distance between the empirical neural tangent kernel of random ReLU networks "
            f"in NTK parameterization and the analytic kernel, on {num_examples} examples of {dataset.name}, "
            f"{num_seeds} networks per width. Fitted exponents of the width, with 95 % intervals over seeds: "
            f"{'; '.join(sentences)}. An average over neurons predicts -1/2; terms of higher order in depth "
            "over width make deep, narrow networks steeper."
        ),
        figures=(
            Figure(
                name="relative_error",
                title="Error of the empirical NTK against width",
                x_label="width",
                y_label="relative Frobenius error",
                series=series,
                x_scale="log",
                y_scale="log",
                caption="Mean over seeds; the band reaches from the smallest to the largest seed.",
            ),
        ),
        tables=(
            Table("slopes", "Fitted exponents of the width", SLOPE_COLUMNS, slopes, "95 % intervals over seeds."),
            Table("errors", "Relative errors", ("hidden layers", "width", "mean", "standard deviation"), rows),
        ),
    )
