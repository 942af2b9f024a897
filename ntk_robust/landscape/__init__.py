"""The maximization over one input as an object of study: trajectories, certificates of maxima, rates, exact oracles.

Attacks search a perturbation set; here one asks what their search is like and whether what it found is a maximum.
"""

from ntk_robust.landscape._ascent import Ascent, projected_gradient_ascent
from ntk_robust.landscape._curvature_bound import curvature_bound
from ntk_robust.landscape._global_maximum import GlobalMaximum, global_maximum, vertex_is_maximum
from ntk_robust.landscape._local_maximum import LocalMaximum, local_maximum
from ntk_robust.landscape._trust_region import QuadraticMaximum, quadratic_maximum
from ntk_robust.landscape._two_layer import TwoLayer, two_layer_of

__all__ = [
    "Ascent",
    "GlobalMaximum",
    "LocalMaximum",
    "QuadraticMaximum",
    "TwoLayer",
    "curvature_bound",
    "global_maximum",
    "local_maximum",
    "projected_gradient_ascent",
    "quadratic_maximum",
    "two_layer_of",
    "vertex_is_maximum",
]
