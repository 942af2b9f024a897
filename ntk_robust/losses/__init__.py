"""Losses as functions of a network's output and a target, with the Lipschitz constants that the theory asks for."""

from ntk_robust.losses._losses import (
    DLR,
    Absolute,
    AbstractLoss,
    CrossEntropy,
    Hinge,
    Huber,
    Logistic,
    Margin,
    Squared,
    TargetedDLR,
)

__all__ = [
    "DLR",
    "Absolute",
    "AbstractLoss",
    "CrossEntropy",
    "Hinge",
    "Huber",
    "Logistic",
    "Margin",
    "Squared",
    "TargetedDLR",
]
