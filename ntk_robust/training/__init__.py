"""Adversarial training as a measuring instrument: the compiled loop, its constraints, and what it measures."""

from ntk_robust._core import SlopeFit, slope_fit
from ntk_robust.training._awp import WeightPerturbed
from ntk_robust.training._certified_probe import CertifiedProbe
from ntk_robust.training._checkpoints import Checkpoints
from ntk_robust.training._displacement import Displacement, parameter_displacement
from ntk_robust.training._fit import TrainingResult, fit, running_minimum
from ntk_robust.training._free import Free
from ntk_robust.training._history import SavedHistory, load_history, save_history
from ntk_robust.training._linearized import Centered, Linearized
from ntk_robust.training._loop import Step
from ntk_robust.training._mart import Mart
from ntk_robust.training._methods import (
    AbstractAttackedObjective,
    AbstractMethod,
    Adversarial,
    Batch,
    Gradient,
    Problem,
)
from ntk_robust.training._phases import join_runs
from ntk_robust.training._points import AttackedPoints
from ntk_robust.training._probes import (
    AdversarialProbe,
    AttackedKernelDriftProbe,
    AttackedKernelSpectrumProbe,
    BoundaryProbe,
    DisplacementProbe,
    FlippedPatternsProbe,
    KernelDriftProbe,
    KernelSpectrumProbe,
    LinearizationProbe,
    NaturalProbe,
)
from ntk_robust.training._regret import RegretCertificate, RegretRecord
from ntk_robust.training._sweep import at_rate, sweep
from ntk_robust.training._trades import Trades
from ntk_robust.training._trajectory import Trajectory, record_trajectory
from ntk_robust.training._weight_sets import AbstractWeightSet, FrobeniusBall, LayerwiseFrobeniusBall, NeuronBall

__all__ = [
    "AbstractAttackedObjective",
    "AbstractMethod",
    "AbstractWeightSet",
    "Adversarial",
    "AdversarialProbe",
    "AttackedKernelDriftProbe",
    "AttackedKernelSpectrumProbe",
    "AttackedPoints",
    "Batch",
    "BoundaryProbe",
    "Centered",
    "CertifiedProbe",
    "Checkpoints",
    "Displacement",
    "DisplacementProbe",
    "FlippedPatternsProbe",
    "Free",
    "FrobeniusBall",
    "Gradient",
    "KernelDriftProbe",
    "KernelSpectrumProbe",
    "LayerwiseFrobeniusBall",
    "LinearizationProbe",
    "Linearized",
    "Mart",
    "NaturalProbe",
    "NeuronBall",
    "Problem",
    "RegretCertificate",
    "RegretRecord",
    "SavedHistory",
    "SlopeFit",
    "Step",
    "Trades",
    "TrainingResult",
    "Trajectory",
    "WeightPerturbed",
    "at_rate",
    "fit",
    "join_runs",
    "load_history",
    "parameter_displacement",
    "record_trajectory",
    "running_minimum",
    "save_history",
    "slope_fit",
    "sweep",
]
