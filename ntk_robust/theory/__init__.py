"""Statements of the literature as experiments: claims with uncertainties, checks with negative controls."""

from ntk_robust.theory._check import Check, CheckResult, Size, run_check
from ntk_robust.theory._claim import Claim, Relation, Verdict, exact_claim, summation_error
from ntk_robust.theory._registry import check_names, checks, select
from ntk_robust.theory._report import Report

__all__ = [
    "Check",
    "CheckResult",
    "Claim",
    "Relation",
    "Report",
    "Size",
    "Verdict",
    "check_names",
    "checks",
    "exact_claim",
    "run_check",
    "select",
    "summation_error",
]
