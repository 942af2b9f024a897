"""Experiments on real images that the main job and the command `study` run."""

from ntk_robust.studies._kernel_convergence import kernel_convergence
from ntk_robust.studies._lazy_training import lazy_training
from ntk_robust.studies._perturbation_radius import perturbation_radius
from ntk_robust.studies._projection_radius import projection_radius
from ntk_robust.studies._study import Study
from ntk_robust.studies._training_displacement import training_displacement

__all__ = [
    "Study",
    "kernel_convergence",
    "lazy_training",
    "perturbation_radius",
    "projection_radius",
    "training_displacement",
]
