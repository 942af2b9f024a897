"""Trees of weights as lists of named layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def layer_names(params: PyTree) -> tuple[str, ...]:
    """One name per array of weights, its path in the tree: "hidden.0", "2.bias"."""
    paths = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_inexact_array))
    return tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths)


def layers(params: PyTree) -> list[Float[Array, "..."]]:
    """The arrays of weights, in the order of `layer_names`."""
    return jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))


def trainable_mask(params: PyTree, trainable: PyTree[bool] | None) -> PyTree[bool]:
    """The mask asked for, or True at every array of floats where none was.

    Raises:
        ValueError: If the mask is not a tree of bools like `params`, selects nothing, or selects what has no gradient.
    """
    if trainable is None:
        return jax.tree.map(eqx.is_inexact_array, params)
    if jax.tree.structure(trainable) != jax.tree.structure(params):
        raise ValueError(
            f"trainable has the structure {jax.tree.structure(trainable)} and the weights have "
            f"{jax.tree.structure(params)}; give one bool per array, as model.trainable_mask(params) does"
        )
    unmovable = [
        leaf
        for leaf, moves in zip(jax.tree.leaves(params), jax.tree.leaves(trainable), strict=True)
        if moves and not eqx.is_inexact_array(leaf)
    ]
    if unmovable:
        raise ValueError(f"trainable selects {unmovable[0]!r}, which is no array of floats; mark it False")
    if not any(jax.tree.leaves(trainable)):
        raise ValueError("trainable selects no weights; mark at least one array True")
    return trainable


def rows(layer: Float[Array, "..."]) -> Float[Array, "neurons fan_in"]:
    """One row per neuron: the first axis, or each entry of a vector."""
    return layer.reshape(layer.shape[0] if layer.ndim else 1, -1)


def row_norms(layer: Float[Array, "..."]) -> Float[Array, " neurons"]:
    """Euclidean norm of each neuron's weights."""
    return jnp.linalg.norm(rows(layer), axis=1)
