"""Certificates: what no point of a perturbation set can do to a network or a kernel predictor.

Bounds go through a `Network`, which `network_of` makes from a model and its weights. They enclose the outputs on the
whole set, rounding included; `certify_batch` turns them into a certified accuracy.
"""

from ntk_robust.certify._alpha_crown import AlphaCrown
from ntk_robust.certify._certificate import (
    AccuracyBracket,
    Certificate,
    bracket_accuracy,
    certify_batch,
    margin_specification,
)
from ntk_robust.certify._crown import Crown
from ntk_robust.certify._dyadic import DyadicBounds, dyadic_interval_bounds
from ntk_robust.certify._enumeration import PiecewiseLinear, pieces_on_polygon, pieces_on_segment
from ntk_robust.certify._interval import AbstractBound, Bounds, IntervalBounds
from ntk_robust.certify._lipschitz import lipschitz_bound, local_lipschitz_bound, spectral_norm_bound
from ntk_robust.certify._network import (
    AbstractLinear,
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Image,
    Network,
    Nonlinearity,
    PairedNeurons,
    Parallel,
    network_of,
)
from ntk_robust.certify._rkhs import (
    RkhsFunction,
    certified_kernel_radius,
    local_kernel_bounds,
    rkhs_bounds,
    rkhs_distance_bound,
)
from ntk_robust.certify._structured import PerBlock, PerCoordinate
from ntk_robust.certify._zonotope import Zonotope

__all__ = [
    "AbstractBound",
    "AbstractLinear",
    "AccuracyBracket",
    "Affine",
    "AlphaCrown",
    "AveragePool",
    "Bounds",
    "Certificate",
    "Convolution",
    "Crown",
    "DyadicBounds",
    "Flatten",
    "Image",
    "IntervalBounds",
    "Network",
    "Nonlinearity",
    "PairedNeurons",
    "Parallel",
    "PerBlock",
    "PerCoordinate",
    "PiecewiseLinear",
    "RkhsFunction",
    "Zonotope",
    "bracket_accuracy",
    "certified_kernel_radius",
    "certify_batch",
    "dyadic_interval_bounds",
    "lipschitz_bound",
    "local_kernel_bounds",
    "local_lipschitz_bound",
    "margin_specification",
    "network_of",
    "pieces_on_polygon",
    "pieces_on_segment",
    "rkhs_bounds",
    "rkhs_distance_bound",
    "spectral_norm_bound",
]
