"""Gram matrices in tiles, in host memory."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from ntk_robust._core import SilentProgress
from ntk_robust.kernels._forecast import refuse_what_cannot_fit
from ntk_robust.kernels._tiles import KernelLike, TilePlan, tile_values


def gram(
    kernel: KernelLike,
    x1: Float[Array | np.ndarray, "n1 *d"],
    x2: Float[Array | np.ndarray, "n2 *d"] | None = None,
    *,
    tile: int | None = None,
    out: Float[np.ndarray, "n1 n2"] | None = None,
    progress: Any = None,
) -> Float[np.ndarray, "n1 n2"]:
    """Kernel matrix in host memory, computed tile by tile; half of a symmetric one.

    The device holds one tile and its examples at a time. `forecast_gram` says beforehand what it costs, and
    `gram_on_disk` takes matrices larger than memory.

    Args:
        kernel: A kernel, or a function (x1, x2 or None) → matrix such as a closure over `empirical_ntk`.
        x1: Examples, one per row.
        x2: Examples; None for `x1` with itself, which gives an exactly symmetric matrix.
        tile: Rows and columns of a tile; None for 2048.
        out: Array to fill (a `numpy.memmap`, say); None for a new one.
        progress: Where to report, an `AbstractProgress`; None is silence.

    Returns:
        The matrix, in the kernel's dtype; `out` where that is given.

    Raises:
        ValueError: If `tile` is not positive, there are no examples, `out` has another shape or dtype, or the matrix
            does not fit into memory (with what would).
    """
    plan = TilePlan.of(kernel, x1, x2, tile)
    if out is None:
        refuse_what_cannot_fit(plan, None)
        out = np.empty(plan.shape, plan.dtype)
    elif out.shape != plan.shape or out.dtype != plan.dtype:
        raise ValueError(f"out is {out.dtype}{out.shape} and the matrix {plan.dtype}{plan.shape}; make them agree")
    with (progress or SilentProgress()).task("kernel matrix", total=len(plan.pairs)) as task:
        for i, j in plan.pairs:
            block = tile_values(kernel, x1, x2, plan, (i, j))
            out[i : i + plan.tile, j : j + plan.tile] = block
            if plan.symmetric and i != j:
                out[j : j + plan.tile, i : i + plan.tile] = block.T
            task.advance()
    return out
