r"""What floating point may add to a bound, from the standard model of rounding.

A sum of n products, in any order, with or without fused multiply-add, differs from the exact one by at most
$\gamma_n \sum |w_i x_i|$ with $\gamma_n = n u / (1 - n u)$ and $u$ half the machine epsilon (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). At each layer three such errors add up: the network's own evaluation,
that of the bound's coefficients, and that of its constants.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float


def slack_factor(num_terms: int, dtype: DTypeLike) -> float:
    r"""$4 (n + 8) u$, at least three $\gamma_{n + 8}$ with room for rounding the slack itself.

    Raises:
        ValueError: If the dtype is neither float32 nor float64, or if sums are so long that $\gamma_n$ means nothing.
    """
    name = np.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise ValueError(f"certificates take float32 or float64 and got {name}; cast weights and inputs")
    factor = 2.0 * (num_terms + 8) * float(np.finfo(name).eps)
    if factor > 0.05:
        raise ValueError(f"sums of {num_terms} terms have no useful rounding bound in {name}; use float64")
    return factor


def underflow(num_terms: int, dtype: DTypeLike) -> float:
    """What products that fall below the smallest normal number may add."""
    return 4.0 * (num_terms + 1) * float(np.finfo(np.dtype(dtype).name).tiny)


def magnitude(lower: Float[Array, "*dims"], upper: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The largest absolute value between the bounds."""
    return jnp.maximum(jnp.abs(lower), jnp.abs(upper))
