"""Adversarial training as a measuring instrument: the compiled loop, its constraints, and what it measures."""

from ntk_robust.training._displacement import Displacement, parameter_displacement
from ntk_robust.training._fit import TrainingResult, fit, running_minimum
from ntk_robust.training._loop import Step
from ntk_robust.training._methods import AbstractMethod, Adversarial, Batch, Gradient, Problem
from ntk_robust.training._probes import DisplacementProbe, FlippedPatternsProbe, KernelDriftProbe, NaturalProbe
from ntk_robust.training._trajectory import Trajectory, adversarial_trajectory
from ntk_robust.training._weight_sets import AbstractWeightSet, FrobeniusBall, LayerwiseFrobeniusBall, NeuronBall

__all__ = [
    "AbstractMethod",
    "AbstractWeightSet",
    "Adversarial",
    "Batch",
    "Displacement",
    "DisplacementProbe",
    "FlippedPatternsProbe",
    "FrobeniusBall",
    "Gradient",
    "KernelDriftProbe",
    "LayerwiseFrobeniusBall",
    "NaturalProbe",
    "NeuronBall",
    "Problem",
    "Step",
    "TrainingResult",
    "Trajectory",
    "adversarial_trajectory",
    "fit",
    "parameter_displacement",
    "running_minimum",
]
