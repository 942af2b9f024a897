"""Experiments over widths that the main job runs beside the checks."""

from ntk_robust.studies._kernel_convergence import kernel_convergence
from ntk_robust.studies._study import Study
from ntk_robust.studies._training_displacement import training_displacement

__all__ = ["Study", "kernel_convergence", "training_displacement"]
