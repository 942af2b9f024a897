"""Networks by construction: bumps, gates, teachers and students that are robustly overfitted on purpose.

In the setting of Shi et al. (2024). Every construction is a `ntk_robust.certify.Network`, so that bounds go through
it, and with `architecture_of` a model like any other, so that attacks and training do.
"""

from ntk_robust.constructions._architecture import (
    Architecture,
    architecture_of,
    num_hidden_layers,
    num_parameters,
    rounded,
)
from ntk_robust.constructions._blocks import exact_bumps, product_gate, trapezoid, trapezoid_bumps
from ntk_robust.constructions._bracket import RiskBracket, robust_risk_bracket
from ntk_robust.constructions._risk import (
    Breakpoints,
    breakpoints,
    interpolation_bound,
    robust_risk,
    union_volume,
    window_extrema,
)
from ntk_robust.constructions._students import (
    class_student,
    clip_gate_student,
    product_gate_student,
    separation,
    student_family,
)
from ntk_robust.constructions._teachers import (
    clipped,
    hat_teacher,
    localized_teacher,
    random_feature_teacher,
    spline_teacher,
    taylor_teacher,
)

__all__ = [
    "Architecture",
    "Breakpoints",
    "RiskBracket",
    "architecture_of",
    "breakpoints",
    "class_student",
    "clip_gate_student",
    "clipped",
    "exact_bumps",
    "hat_teacher",
    "interpolation_bound",
    "localized_teacher",
    "num_hidden_layers",
    "num_parameters",
    "product_gate",
    "product_gate_student",
    "random_feature_teacher",
    "robust_risk",
    "robust_risk_bracket",
    "rounded",
    "separation",
    "spline_teacher",
    "student_family",
    "taylor_teacher",
    "trapezoid",
    "trapezoid_bumps",
    "union_volume",
    "window_extrema",
]
