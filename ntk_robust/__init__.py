"""Adversarial robustness in the neural-tangent-kernel regime: kernels, adversarial training, checks of theory.

Sub-packages load when they are first used, so `import ntk_robust` costs little; `import ntk_robust.kernels` loads one.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "attacks",
    "certify",
    "constructions",
    "data",
    "expressiveness",
    "kernels",
    "landscape",
    "losses",
    "models",
    "report",
    "studies",
    "theory",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; its sub-packages are {', '.join(__all__[1:])}"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
