"""Kernels: the neural tangent kernel and the NNGP kernel, analytic and empirical."""

from ntk_robust.kernels._analytic import analytic_nngp, analytic_ntk
from ntk_robust.kernels._base import AbstractKernel, ProductKernel, ScaledKernel, SumKernel, rkhs_distance_squared
from ntk_robust.kernels._conjugate_gradients import IterativeSolution, conjugate_gradients
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._empirical import (
    empirical_nngp,
    empirical_ntk,
    empirical_ntk_costs,
    empirical_ntk_diagonal,
)
from ntk_robust.kernels._empirical_generic import NtkCost
from ntk_robust.kernels._empirical_product import empirical_ntk_vector_product
from ntk_robust.kernels._forecast import GramForecast, forecast_gram
from ntk_robust.kernels._gram import gram
from ntk_robust.kernels._joint import JointKernel, NtkAndNngp, analytic_ntk_and_nngp
from ntk_robust.kernels._matvec import kernel_matvec, stored_matvec
from ntk_robust.kernels._mercer import MercerSpectrum, mercer_spectrum
from ntk_robust.kernels._metrics import (
    bures_distance,
    effective_rank,
    eigenspace_overlap,
    kernel_alignment,
    kernel_angle,
    kernel_distance,
    kernel_drift,
    kernel_velocity,
    top_mass,
)
from ntk_robust.kernels._neural_tangents import load_neural_tangents
from ntk_robust.kernels._power_series import power_coefficients
from ntk_robust.kernels._preconditioners import Preconditioner, nystrom, pivoted_cholesky
from ntk_robust.kernels._predictor import KernelPredictor
from ntk_robust.kernels._regression import (
    GradientFlow,
    KernelRegression,
    cross_validation_residuals,
    gradient_flow,
    kernel_regression,
)
from ntk_robust.kernels._spectrum import Eigenpairs, Interval, effective_dimension, eigenpairs, leading_eigenpairs
from ntk_robust.kernels._through_neural_tangents import NeuralTangentsKernel
from ntk_robust.kernels._zonal import ZonalFit, ZonalKernel

__all__ = [
    "AbstractKernel",
    "DenseKernel",
    "Eigenpairs",
    "GradientFlow",
    "GramForecast",
    "Interval",
    "IterativeSolution",
    "JointKernel",
    "KernelPredictor",
    "KernelRegression",
    "MercerSpectrum",
    "NeuralTangentsKernel",
    "NtkAndNngp",
    "NtkCost",
    "Preconditioner",
    "ProductKernel",
    "ScaledKernel",
    "SumKernel",
    "ZonalFit",
    "ZonalKernel",
    "analytic_nngp",
    "analytic_ntk",
    "analytic_ntk_and_nngp",
    "bures_distance",
    "conjugate_gradients",
    "cross_validation_residuals",
    "effective_dimension",
    "effective_rank",
    "eigenpairs",
    "eigenspace_overlap",
    "empirical_nngp",
    "empirical_ntk",
    "empirical_ntk_costs",
    "empirical_ntk_diagonal",
    "empirical_ntk_vector_product",
    "forecast_gram",
    "gradient_flow",
    "gram",
    "kernel_alignment",
    "kernel_angle",
    "kernel_distance",
    "kernel_drift",
    "kernel_matvec",
    "kernel_regression",
    "kernel_velocity",
    "leading_eigenpairs",
    "load_neural_tangents",
    "mercer_spectrum",
    "nystrom",
    "pivoted_cholesky",
    "power_coefficients",
    "rkhs_distance_squared",
    "stored_matvec",
    "top_mass",
]
