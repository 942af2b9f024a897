"""Refusals of examples that no kernel takes, before anything is traced."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROWS_AT_ONCE = 1024


def check_examples(x1: Any, x2: Any = None, *, shape: tuple[int, ...] | None = None, floating: bool = True) -> None:
    """Refuses what is not an array with one example per row; traced arrays have shapes and dtypes too.

    Args:
        x1: Examples.
        x2: Examples of the other side, None for `x1`.
        shape: Of one example, None for any.
        floating: Whether examples must be of a float dtype.

    Raises:
        ValueError: For something else than an array, no rows, examples of another shape or that differ between the
            sides, and integers.
    """
    for name, x in (("x1", x1), ("x2", x2)):
        if name == "x2" and x is None:
            continue
        if not isinstance(x, jax.Array | np.ndarray):
            raise ValueError(f"{name} is a {type(x).__name__}; give an array with one example per row")
        if floating and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {x.dtype}; cast it to floats, {name}.astype('float32')")
        if x.ndim == 0 or (shape is not None and x.shape[1:] != shape):
            wanted = "(rows, …)" if shape is None else f"(rows, {', '.join(map(str, shape))})"
            raise ValueError(f"{name} has shape {x.shape}; give one example per row, {wanted}")
        if x.shape[0] == 0:
            raise ValueError(f"{name} has shape {x.shape}: no examples; give at least one row")
        if x.shape[1:] != x1.shape[1:]:
            raise ValueError(f"x1 has shape {x1.shape} and x2 {x.shape}; give examples of one shape to both sides")


def check_points(x1: Any, x2: Any = None, *, width: int | None = None) -> None:
    """As `check_examples`, for kernels of flat examples: arrays of two axes, of `width` columns where that is given."""
    for name, x in (("x1", x1), ("x2", x2)):
        if isinstance(x, jax.Array | np.ndarray) and x.ndim != 2:
            raise ValueError(
                f"{name} has shape {x.shape}; give one flat example per row, {name}[None] for one or "
                f"{name}.reshape(len({name}), -1)"
            )
    check_examples(x1, x2, shape=None if width is None else (width,))


def whole_number(name: str, number: Any, wanted: str = "a whole number") -> int:
    """The number as a Python integer.

    Raises:
        ValueError: If it is none, quoting it and what is wanted.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{name} is {number!r}; give {wanted}") from None


def check_values(name: str, x: np.ndarray) -> None:
    """Refuses rows of which an entry is not finite, or whose squared norm overflows the dtype they are computed in.

    Raises:
        ValueError: With the first such row.
    """
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    for start in range(0, len(x), _ROWS_AT_ONCE):
        block = np.asarray(x[start : start + _ROWS_AT_ONCE]).reshape(-1, int(np.prod(x.shape[1:])))
        with np.errstate(over="ignore", invalid="ignore"):
            block = block.astype(dtype, copy=False)
            fine = np.isfinite(np.einsum("ij,ij->i", block, block))
        if fine.all():
            continue
        row = int(np.argmin(fine))
        entry = block[row][int(np.argmin(np.isfinite(block[row])))]
        if not np.isfinite(entry):
            raise ValueError(f"row {start + row} of {name} holds {entry}; take such rows out")
        largest = float(np.max(np.abs(block[row].astype(np.float64))))
        raise ValueError(
            f"row {start + row} of {name} has entries up to {largest:.3g}, whose squares overflow {dtype.name}; "
            "rescale the examples"
        )
