"""Exponents of power laws from repeated measurements."""

import dataclasses

import numpy as np
from jaxtyping import Float

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class SlopeFit:
    r"""The exponent of a power law $y = C x^{p}$, fitted on log-log axes.

    Attributes:
        slope: $p$, the least-squares slope of the seeds' mean $\log y$ against $\log x$.
        lower: Lower end of its interval over seeds.
        upper: Upper end.
        log_prefactor: $\log C$.
        max_log_residual: Largest distance of the seeds' mean $\log y$ from the line. It shows curvature, which the
            interval does not: the interval speaks of the noise between seeds only.
        confidence: Nominal coverage of the interval.
    """

    slope: float
    lower: float
    upper: float
    log_prefactor: float
    max_log_residual: float
    confidence: float

    def predict(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values of the fitted law at `x`."""
        return np.exp(self.log_prefactor) * np.asarray(x) ** self.slope


def slope_fit(
    x: Float[np.ndarray, " n"], y_by_seed: Float[np.ndarray, "seeds n"], *, confidence: float = 0.95
) -> SlopeFit:
    """The exponent of the power law through measurements repeated over seeds, with an interval.

    The least-squares slope is linear in log y, so that the slope of the mean is the mean of the seeds' slopes. The
    interval is the wider one, end by end, of the percentile bootstrap over seeds and of Student's t on the seeds'
    slopes: a bootstrap of fewer than about ten seeds is too narrow (three seeds cover 75 % at best), and Student's t
    does not see skewness. The bootstrap's draws are fixed, so that the same numbers give the same interval.

    Args:
        x: Positive abscissae, at least two different ones.
        y_by_seed: Positive ordinates, one row per seed, at least two rows.
        confidence: Nominal coverage, between 0 and 1.

    Returns:
        The fit in plain numbers.

    Raises:
        ValueError: For fewer than two seeds or abscissae, for values that are not positive and finite, or a
            confidence outside (0, 1).
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y_by_seed, dtype=float)
    if len(np.unique(x)) < 2:
        raise ValueError(f"a slope needs at least two different abscissae; got {x.tolist()}")
    if y.shape[0] < 2:
        raise ValueError(f"an interval over seeds needs at least two seeds; got {y.shape[0]}")
    for name, values in (("x", x), ("y_by_seed", y)):
        if not (np.all(np.isfinite(values)) and np.all(values > 0)):
            raise ValueError(f"{name} has values that are not positive and finite; a power law has no logarithm there")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95")

    log_x, log_y = np.log(x), np.log(y)
    centered = log_x - log_x.mean()
    slopes = log_y @ centered / (centered @ centered)
    slope, seeds = slopes.mean(), len(slopes)
    log_prefactor = log_y.mean() - slope * log_x.mean()

    draws = np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))
    tails = (0.5 - confidence / 2, 0.5 + confidence / 2)
    bootstrap = np.quantile(slopes[draws].mean(axis=1), tails)
    import scipy.special  # noqa: PLC0415 - every package imports this one, few fit slopes

    student = slope + scipy.special.stdtrit(seeds - 1, tails) * slopes.std(ddof=1) / np.sqrt(seeds)
    return SlopeFit(
        slope=float(slope),
        lower=float(min(bootstrap[0], student[0])),
        upper=float(max(bootstrap[1], student[1])),
        log_prefactor=float(log_prefactor),
        max_log_residual=float(np.max(np.abs(log_y.mean(axis=0) - log_prefactor - slope * log_x))),
        confidence=confidence,
    )
