"""A tree of strategy objects as the two kinds of argument that `jax.jit` knows."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

Static = tuple[Any, tuple[Any, ...]]


def split(tree: PyTree) -> tuple[tuple[Any, ...], Static]:
    """Numbers and the rest: leaves to trace, and a hashable description of everything else.

    Unlike `equinox.filter_jit`, Python floats are numbers: another radius or threshold does not compile again. They
    stay weakly typed inside, so that they follow the dtype of what they meet.
    """
    leaves, structure = jax.tree.flatten(tree)
    numbers = tuple(leaf if _is_number(leaf) else None for leaf in leaves)
    return numbers, (structure, tuple(None if _is_number(leaf) else leaf for leaf in leaves))


def join(numbers: tuple[Any, ...], static: Static) -> PyTree:
    """The tree from its two parts."""
    structure, others = static
    leaves = [other if number is None else number for number, other in zip(numbers, others, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float)
