"""Kernels: the neural tangent kernel and the NNGP kernel, analytic and empirical."""

from ntk_robust.kernels._analytic import analytic_nngp, analytic_ntk
from ntk_robust.kernels._base import AbstractKernel, ProductKernel, ScaledKernel, SumKernel, rkhs_distance_squared
from ntk_robust.kernels._conjugate_gradients import (
    IterativeSolution,
    Preconditioner,
    conjugate_gradients,
    kernel_matvec,
    pivoted_cholesky,
    stored_matvec,
)
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._empirical import empirical_nngp, empirical_ntk, empirical_ntk_diagonal
from ntk_robust.kernels._forecast import GramForecast, forecast_gram
from ntk_robust.kernels._gram import gram
from ntk_robust.kernels._metrics import effective_rank, kernel_alignment, kernel_drift
from ntk_robust.kernels._neural_tangents import load_neural_tangents
from ntk_robust.kernels._regression import (
    GradientFlow,
    KernelRegression,
    cross_validation_residuals,
    gradient_flow,
    kernel_regression,
)
from ntk_robust.kernels._zonal import ZonalFit, ZonalKernel

__all__ = [
    "AbstractKernel",
    "DenseKernel",
    "GradientFlow",
    "GramForecast",
    "IterativeSolution",
    "KernelRegression",
    "Preconditioner",
    "ProductKernel",
    "ScaledKernel",
    "SumKernel",
    "ZonalFit",
    "ZonalKernel",
    "analytic_nngp",
    "analytic_ntk",
    "conjugate_gradients",
    "cross_validation_residuals",
    "effective_rank",
    "empirical_nngp",
    "empirical_ntk",
    "empirical_ntk_diagonal",
    "forecast_gram",
    "gradient_flow",
    "gram",
    "kernel_alignment",
    "kernel_drift",
    "kernel_matvec",
    "kernel_regression",
    "load_neural_tangents",
    "pivoted_cholesky",
    "rkhs_distance_squared",
    "stored_matvec",
]
