"""Gram matrices in tiles: in host memory, on a device, or on disk."""

import os
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust._core import SilentProgress
from ntk_robust.kernels._checks import check_values
from ntk_robust.kernels._forecast import (
    Destination,
    checked,
    folder_of,
    needs,
    plan_gram,
    refuse_another_shape,
    refuse_what_cannot_fit,
)
from ntk_robust.kernels._on_disk import on_disk
from ntk_robust.kernels._room import Device
from ntk_robust.kernels._tiles import KernelLike, TilePlan, padded_tile, tile_values

if TYPE_CHECKING:
    import tensorstore

_Points = Float[Array | np.ndarray, "_ *_"]


@overload
def gram(
    kernel: KernelLike,
    x1: _Points,
    x2: _Points | None = None,
    *,
    tile: int | None = None,
    out: np.ndarray | None = None,
    kernel_name: str | None = None,
    progress: Any = None,
) -> np.ndarray: ...
@overload
def gram(
    kernel: KernelLike,
    x1: _Points,
    x2: _Points | None = None,
    *,
    tile: int | None = None,
    out: str | os.PathLike[str],
    kernel_name: str | None = None,
    progress: Any = None,
) -> "tensorstore.TensorStore": ...
@overload
def gram(
    kernel: KernelLike,
    x1: _Points,
    x2: _Points | None = None,
    *,
    tile: int | None = None,
    out: Device,
    kernel_name: str | None = None,
    progress: Any = None,
) -> Array: ...
def gram(
    kernel: KernelLike,
    x1: Float[Array | np.ndarray, "n1 *d"],
    x2: Float[Array | np.ndarray, "n2 *d"] | None = None,
    *,
    tile: int | None = None,
    out: Destination = None,
    kernel_name: str | None = None,
    progress: Any = None,
) -> Any:
    """Kernel matrix computed tile by tile, half of a symmetric one: in host memory, on a device, or on disk.

    The device works on one tile and its examples at a time. `forecast_gram` says beforehand what it costs.

    A matrix on disk is a zarr array `gram.zarr` (version 2, uncompressed, one chunk a tile) in the folder `out`. Beside
    it lie a fingerprint of data, kernel, dtype, shape and tile, and the list of finished tiles, to which a tile is
    added once its data have reached the disk. Killed at any moment and called again, the run computes what is missing
    and, on the same machine and versions, ends with the same bits; a finished matrix is opened. Memory is that of a
    few tiles and the examples, whatever the size of the matrix.

    Args:
        kernel: A kernel, or a function (x1, x2 or None) → matrix such as a closure over `empirical_ntk`.
        x1: Examples, one per row.
        x2: Examples; None for `x1` with itself, which gives an exactly symmetric matrix.
        tile: Rows and columns of a tile; None for that of the matrix on disk, or the largest that fits into the memory
            that is there (at most 2048, on accelerators 8192).
        out: None for a new NumPy array; an array to fill (a `numpy.memmap`, or an open TensorStore); a device, for an
            array there; or the path of a folder, for a matrix on disk (needs tensorstore). Only a path can be resumed:
            nothing in an array says which tiles are done.
        kernel_name: For a function and a matrix on disk: what identifies the function's values, weights included. A
            kernel is identified by its fields, and by this name too where one is given.
        progress: Where to report, an `AbstractProgress`; None is silence.

    Returns:
        The matrix in the kernel's dtype: `out` where that is an array; a JAX array on the device; or the array on disk
        open for reading, of which `store[i:j].read().result()` is a NumPy array.

    Raises:
        ValueError: If `tile` is not a positive integer; there are no examples, or they are not floats, not finite or
            too large to be squared (with the row); `out` is an array of another shape or dtype, a JAX array, a folder
            with a matrix of other data, kernel, dtype, shape or tile (with what differs), with a damaged one or with
            other things; a function goes to disk without `kernel_name`; or memory or disk do not suffice (with what
            would fit).

    Examples:
        >>> import jax, numpy as np
        >>> from ntk_robust.kernels import analytic_ntk
        >>> from ntk_robust.models import FullyConnected
        >>> kernel = analytic_ntk(FullyConnected(input_dim=2, width=1, num_hidden_layers=1, num_outputs="scalar"))
        >>> gram(kernel, np.eye(2, dtype=np.float32)).shape
        (2, 2)
        >>> isinstance(gram(kernel, np.eye(2, dtype=np.float32), out=jax.devices()[0]), jax.Array)
        True
    """
    x1, x2 = checked(kernel, x1, x2)
    check_values("x1", x1)
    if x2 is not None:
        check_values("x2", x2)
    progress = progress or SilentProgress()
    if folder_of(out) is not None:
        return on_disk(kernel, x1, x2, tile=tile, out=out, kernel_name=kernel_name, progress=progress)
    plan = plan_gram(kernel, x1, x2, tile, out)
    refuse_another_shape(out, plan)
    refuse_what_cannot_fit(plan, needs(kernel, x1, plan, out), out)
    with progress.task("kernel matrix", total=len(plan.pairs)) as task:
        if isinstance(out, jax.Device):
            with jax.default_device(out):
                return _on_device(kernel, x1, x2, plan, task)
        matrix: Any = np.empty(plan.shape, plan.dtype) if out is None else out
        for start in plan.pairs:
            rows, columns = plan.cut(start)
            block = tile_values(kernel, x1, x2, plan, start)
            matrix[rows, columns] = block
            if plan.symmetric and rows != columns:
                matrix[columns, rows] = block.T
            task.advance()
    return matrix


def _on_device(kernel: KernelLike, x1: Any, x2: Any, plan: TilePlan, task: Any) -> Array:
    matrix = jnp.zeros(plan.shape, plan.dtype)
    for start in plan.pairs:
        rows, columns = plan.cut(start)
        block = padded_tile(kernel, x1, x2, plan, start)[: rows.stop - rows.start, : columns.stop - columns.start]
        matrix = _placed(matrix, block, *start)
        if plan.symmetric and rows != columns:
            matrix = _placed(matrix, block.T, *start[::-1])
        task.advance()
    return matrix


def _update(matrix: Array, block: Array, i: Any, j: Any) -> Array:
    return jax.lax.dynamic_update_slice(matrix, block, (i, j))


_placed = jax.jit(_update, donate_argnums=0)
