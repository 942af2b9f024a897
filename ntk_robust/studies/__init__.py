"""Experiments on real images that the main job and the command `study` run."""

from ntk_robust.studies._ascent_convergence import ascent_convergence
from ntk_robust.studies._input_scale import input_scale
from ntk_robust.studies._kernel_convergence import kernel_convergence
from ntk_robust.studies._landscape_slices import landscape_slices
from ntk_robust.studies._lazy_training import lazy_training
from ntk_robust.studies._perturbation_radius import perturbation_radius
from ntk_robust.studies._projection_radius import projection_radius
from ntk_robust.studies._robust_overfitting import robust_overfitting
from ntk_robust.studies._study import Study
from ntk_robust.studies._training_displacement import training_displacement

__all__ = [
    "Study",
    "ascent_convergence",
    "input_scale",
    "kernel_convergence",
    "landscape_slices",
    "lazy_training",
    "perturbation_radius",
    "projection_radius",
    "robust_overfitting",
    "training_displacement",
]
