"""The maximization over one input as an object of study: trajectories, certificates of maxima, rates, exact oracles.

Attacks search a perturbation set; here one asks what their search is like and whether what it found is a maximum.
"""

from ntk_robust.landscape._ascent import Ascent, ascent_limit, projected_gradient_ascent
from ntk_robust.landscape._ball_bounds import BallBounds, ball_bounds
from ntk_robust.landscape._cube_maximum import CubeMaximum, local_maximum_of_cube
from ntk_robust.landscape._curvature_bound import curvature_bound
from ntk_robust.landscape._curvature_law import CurvatureLaw, CurvatureStatistics, curvature_law, curvature_statistics
from ntk_robust.landscape._global_maximum import GlobalMaximum, global_maximum, vertex_is_maximum
from ntk_robust.landscape._local_maximum import LocalMaximum, local_maximum
from ntk_robust.landscape._trust_region import QuadraticMaximum, local_quadratic_maximum, quadratic_maximum
from ntk_robust.landscape._two_layer import TwoLayer, two_layer_of
from ntk_robust.landscape._two_maxima import TwoMaxima, two_maxima

__all__ = [
    "Ascent",
    "BallBounds",
    "CubeMaximum",
    "CurvatureLaw",
    "CurvatureStatistics",
    "GlobalMaximum",
    "LocalMaximum",
    "QuadraticMaximum",
    "TwoLayer",
    "TwoMaxima",
    "ascent_limit",
    "ball_bounds",
    "curvature_bound",
    "curvature_law",
    "curvature_statistics",
    "global_maximum",
    "local_maximum",
    "local_maximum_of_cube",
    "local_quadratic_maximum",
    "projected_gradient_ascent",
    "quadratic_maximum",
    "two_layer_of",
    "two_maxima",
    "vertex_is_maximum",
]
