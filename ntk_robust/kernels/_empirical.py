"""Kernels of networks of finite width at given weights."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_robust.kernels._layerwise import Batch, has_layerwise, layerwise_diagonal, layerwise_ntk
from ntk_robust.models import AbstractModel

ApplyFn = Callable[[Any, Float[Array, "..."]], Float[Array, "..."]]
_HIGHEST = jax.lax.Precision.HIGHEST


def empirical_ntk(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: Float[Array, "n1 *d"],
    x2: Float[Array, "n2 *d"] | None = None,
    *,
    params2: PyTree | None = None,
    trainable: PyTree[bool] | None = None,
    outputs: str = "trace",
    method: str = "auto",
) -> Float[Array, "n1 n2 *outputs"]:
    r"""Neural tangent kernel $\langle \nabla_W f_i(x), \nabla_W f_j(z) \rangle$ at given weights, over all pairs of
    examples.

    `apply_fn` may be any differentiable function of weights and one example. The `apply` method of the project's
    fully connected models takes a faster way: one forward pass and one backward pass per output, then
    $\sum_l (H_{l-1} H_{l-1}^\top) ∘ (\Delta_l \Delta_l^\top)$ over layers, with no Jacobian. Otherwise the Jacobian of
    either side is held in memory: (n1 + n2) × outputs × weights numbers.

    Args:
        apply_fn: (params, one example) → output of shape () or (k,).
        params: Weights, any pytree of float arrays.
        x1: Examples, one per row.
        x2: Examples; None for `x1`.
        params2: Weights for the second side, for kernels between two states of a network; None for `params`.
        trainable: Tree of bools like `params`, True for weights that count. None: the model's own
            `trainable_mask` where `apply_fn` is a model's method, else all.
        outputs: "trace" sums over outputs, "mean" averages, "full" keeps them: shape (n1, n2, k, k).
        method: "layerwise", "jacobian", or "auto": layer by layer where that is possible.

    Returns:
        Shape (n1, n2), or (n1, n2, k, k) for "full".

    Raises:
        ValueError: For an unknown option, an output of more than one axis, a mask unlike `params`, or "layerwise" for
            another function.
    """
    model, trainable = _prepared(apply_fn, params, trainable, outputs, method)
    first, second = Batch(params, x1), None
    if x2 is not None or params2 is not None:
        second = Batch(params if params2 is None else params2, x1 if x2 is None else x2)
    if model is not None:
        return _layerwise(model, first, second, trainable, outputs)
    return _from_jacobians(apply_fn, first, second, trainable, outputs)


def empirical_ntk_diagonal(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Float[Array, "n *d"],
    *,
    trainable: PyTree[bool] | None = None,
    outputs: str = "trace",
) -> Float[Array, " n"]:
    r"""$\sum_i \|\nabla_W f_i(x)\|^2$ of each example (its mean over outputs for "mean"), without the matrix.

    Args:
        apply_fn: (params, one example) → output of shape () or (k,).
        params: Weights.
        x: Examples, one per row.
        trainable: As in `empirical_ntk`.
        outputs: "trace" or "mean".

    Returns:
        One number per example.

    Raises:
        ValueError: As `empirical_ntk`, and for outputs "full".
    """
    if outputs == "full":
        raise ValueError("the diagonal is one number per example; give outputs 'trace' or 'mean'")
    model, trainable = _prepared(apply_fn, params, trainable, outputs, "auto")
    if model is not None:
        return _layerwise_diagonal(model, params, x, trainable, outputs)
    return _diagonal_from_jacobians(apply_fn, params, x, trainable, outputs)


def empirical_nngp(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: Float[Array, "n1 *d"],
    x2: Float[Array, "n2 *d"] | None = None,
    *,
    outputs: str = "mean",
) -> Float[Array, "n1 n2 *outputs"]:
    r"""$f_i(x) f_j(z)$ at given weights: a one-sample estimate of the NNGP kernel, unbiased where it has that mean.

    Args:
        apply_fn: (params, one example) → output of shape () or (k,).
        params: Weights.
        x1: Examples, one per row.
        x2: Examples; None for `x1`.
        outputs: "mean" over outputs (the estimate), "trace" (their sum), or "full": shape (n1, n2, k, k).

    Returns:
        Shape (n1, n2), or (n1, n2, k, k) for "full".

    Raises:
        ValueError: For an unknown option or an output of more than one axis.
    """
    _check_outputs(outputs)
    return _outer_outputs(apply_fn, params, x1, x2, outputs)


def _prepared(
    apply_fn: ApplyFn, params: PyTree, trainable: PyTree[bool] | None, outputs: str, method: str
) -> tuple[AbstractModel | None, PyTree[bool]]:
    """The model to go through layer by layer, if any, and the mask; refuses what cannot be done."""
    _check_outputs(outputs)
    if method not in ("auto", "layerwise", "jacobian"):
        raise ValueError(f"method is {method!r}; give 'auto', 'layerwise' or 'jacobian'")
    owner = getattr(apply_fn, "__self__", None)
    model = owner if isinstance(owner, AbstractModel) and getattr(apply_fn, "__name__", "") == "apply" else None
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, params) if model is None else model.trainable_mask(params)
    elif jax.tree.structure(trainable) != jax.tree.structure(params):
        raise ValueError(
            f"trainable has the structure {jax.tree.structure(trainable)}, params {jax.tree.structure(params)}; give "
            "one bool for each array of params"
        )
    if not any(jax.tree.leaves(trainable)):
        raise ValueError("no weight is trainable, so the NTK is 0; let at least one array of params train")
    layerwise = model is not None and has_layerwise(model) and method != "jacobian"
    if method == "layerwise" and not layerwise:
        raise ValueError(
            "method 'layerwise' needs apply_fn to be the apply method of a FullyConnected, DeepReluNet or "
            "PairedTwoLayerNet; give 'jacobian'"
        )
    return (model if layerwise else None), trainable


def _check_outputs(outputs: str) -> None:
    if outputs not in ("trace", "mean", "full"):
        raise ValueError(f"outputs is {outputs!r}; give 'trace', 'mean' or 'full'")


@eqx.filter_jit
def _layerwise(
    model: AbstractModel, first: Batch, second: Batch | None, trainable: PyTree[bool], outputs: str
) -> Array:
    return layerwise_ntk(model, first, second, trainable, outputs)


@eqx.filter_jit
def _layerwise_diagonal(model: AbstractModel, params: PyTree, x: Array, trainable: PyTree[bool], outputs: str) -> Array:
    return layerwise_diagonal(model, params, x, trainable, outputs)


@eqx.filter_jit
def _from_jacobians(
    apply_fn: ApplyFn, first: Batch, second: Batch | None, trainable: PyTree[bool], outputs: str
) -> Array:
    one = _jacobian(apply_fn, *first, trainable)
    other = one if second is None else _jacobian(apply_fn, *second, trainable)
    axes = "iap,jbp->ijab" if outputs == "full" else "iap,jap->ij"
    parts = [jnp.einsum(axes, a, b, precision=_HIGHEST) for a, b in zip(one, other, strict=True)]
    return _scaled(sum(parts[1:], parts[0]), outputs, one[0].shape[1])


@eqx.filter_jit
def _diagonal_from_jacobians(
    apply_fn: ApplyFn, params: PyTree, x: Array, trainable: PyTree[bool], outputs: str
) -> Array:
    leaves = _jacobian(apply_fn, params, x, trainable)
    parts = [jnp.sum(leaf * leaf, axis=(1, 2)) for leaf in leaves]
    return _scaled(sum(parts[1:], parts[0]), outputs, leaves[0].shape[1])


def _jacobian(apply_fn: ApplyFn, params: PyTree, x: Array, trainable: PyTree[bool]) -> list[Array]:
    """One array of shape (n, k, size) per trainable array of weights; k is 1 for a scalar output."""
    moving, frozen = eqx.partition(params, trainable)

    def flat_output(moving: PyTree, example: Array) -> Array:
        output = apply_fn(eqx.combine(moving, frozen), example)
        if output.ndim > 1:
            raise ValueError(
                f"apply_fn returned shape {output.shape} for one example; give one axis of outputs or none"
            )
        return jnp.atleast_1d(output)

    jacobian = jax.vmap(jax.jacrev(flat_output), (None, 0))(moving, x)
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)]


@eqx.filter_jit
def _outer_outputs(apply_fn: ApplyFn, params: PyTree, x1: Array, x2: Array | None, outputs: str) -> Array:
    def run(x: Array) -> Array:
        values = jax.vmap(apply_fn, (None, 0))(params, x)
        if values.ndim > 2:
            raise ValueError(f"apply_fn returned shape {values.shape[1:]} for one example; give at most one axis")
        return values.reshape(x.shape[0], -1)

    first = run(x1)
    second = first if x2 is None else run(x2)
    axes = "ia,jb->ijab" if outputs == "full" else "ia,ja->ij"
    return _scaled(jnp.einsum(axes, first, second, precision=_HIGHEST), outputs, first.shape[1])


def _scaled(kernel: Array, outputs: str, num_outputs: int) -> Array:
    return kernel / num_outputs if outputs == "mean" else kernel
