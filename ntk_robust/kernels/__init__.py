"""Kernels: the neural tangent kernel and the NNGP kernel, analytic and empirical."""

from ntk_robust.kernels._analytic import analytic_nngp, analytic_ntk
from ntk_robust.kernels._base import AbstractKernel, ProductKernel, ScaledKernel, SumKernel, rkhs_distance_squared
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._empirical import empirical_nngp, empirical_ntk, empirical_ntk_diagonal
from ntk_robust.kernels._gram import gram
from ntk_robust.kernels._metrics import effective_rank, kernel_alignment, kernel_drift
from ntk_robust.kernels._neural_tangents import load_neural_tangents
from ntk_robust.kernels._zonal import ZonalFit, ZonalKernel

__all__ = [
    "AbstractKernel",
    "DenseKernel",
    "ProductKernel",
    "ScaledKernel",
    "SumKernel",
    "ZonalFit",
    "ZonalKernel",
    "analytic_nngp",
    "analytic_ntk",
    "effective_rank",
    "empirical_nngp",
    "empirical_ntk",
    "empirical_ntk_diagonal",
    "gram",
    "kernel_alignment",
    "kernel_drift",
    "load_neural_tangents",
    "rkhs_distance_squared",
]
