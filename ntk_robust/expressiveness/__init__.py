"""What the functions of a kernel can do in the sup norm: approximation, robust interpolation, and at which norm."""

from ntk_robust.expressiveness._compatibility import Compatibility, compatibility
from ntk_robust.expressiveness._fit import ErrorCurve, Fit, best_fit, error_curve
from ntk_robust.expressiveness._interpolant import Interpolant, norm_curve, robust_interpolant
from ntk_robust.expressiveness._random_features import (
    FeatureNetwork,
    linearization_bound,
    random_feature_network,
    representer,
)
from ntk_robust.expressiveness._sets import AbstractSets, ArcSets, AttackedSets, PointSets, Worst, whole_circle
from ntk_robust.expressiveness._surfaces import SurfaceSets, rectangle, two_layer_bend, whole_sphere
from ntk_robust.expressiveness._tangent import TangentKernel
from ntk_robust.expressiveness._universality import HarmonicSupport, harmonic_support

__all__ = [
    "AbstractSets",
    "ArcSets",
    "AttackedSets",
    "Compatibility",
    "ErrorCurve",
    "FeatureNetwork",
    "Fit",
    "HarmonicSupport",
    "Interpolant",
    "PointSets",
    "SurfaceSets",
    "TangentKernel",
    "Worst",
    "best_fit",
    "compatibility",
    "error_curve",
    "harmonic_support",
    "linearization_bound",
    "norm_curve",
    "random_feature_network",
    "rectangle",
    "representer",
    "robust_interpolant",
    "two_layer_bend",
    "whole_circle",
    "whole_sphere",
]
