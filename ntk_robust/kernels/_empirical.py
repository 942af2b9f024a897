"""Kernels of networks of finite width at given weights."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ntk_robust.kernels._checks import check_examples
from ntk_robust.kernels._empirical_generic import (
    METHODS,
    ApplyFn,
    NtkCost,
    Problem,
    flat_output,
    generic_costs,
    generic_ntk,
    num_outputs,
)
from ntk_robust.kernels._layerwise import Batch, has_layerwise, layerwise_diagonal, layerwise_ntk
from ntk_robust.kernels._room import check_matrix_room
from ntk_robust.models import AbstractModel

_HIGHEST = jax.lax.Precision.HIGHEST
# The diagonal of any function forms Jacobians of as many examples at a time as fit in this.
_JACOBIAN_BYTES = 2**27


def empirical_ntk(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: Shaped[Array, "n1 *d"],
    x2: Shaped[Array, "n2 *d"] | None = None,
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
    $\sum_l (H_{l-1} H_{l-1}^\top) ∘ (\Delta_l \Delta_l^\top)$ over layers, with no Jacobian; its memory is that of the
    features $H$, the signals $\Delta$ and the result (up to twice that for many more examples than neurons). All else
    goes through neural-tangents, by that of its implementations which costs least: "auto" lowers all three without
    compiling them, takes the one with the fewest operations (`empirical_ntk_costs`), and remembers this for the
    function and the shapes. The first call with a new function therefore takes a second or so longer; define the
    function once, outside of loops.

    Args:
        apply_fn: (params, one example) → output of shape () or (k,).
        params: Weights, any pytree. Leaves that are not arrays of floats, such as the activation functions in an
            equinox module, are left alone.
        x1: Examples, one per row.
        x2: Examples; None for `x1`.
        params2: Weights for the second side, for kernels between two states of a network; None for `params`.
        trainable: Tree of bools like `params`, True for weights that count. None: the model's own
            `trainable_mask` where `apply_fn` is a model's method, else all arrays of floats.
        outputs: "trace" sums over outputs, "mean" averages, "full" keeps them: shape (n1, n2, k, k).
        method: "auto", "layerwise", or an implementation of neural-tangents: "structured_derivatives",
            "ntk_vector_products", "jacobian_contraction".

    Returns:
        Shape (n1, n2), or (n1, n2, k, k) for "full". Warns where "auto" had to leave an implementation out because it
        cannot be applied to this function, with its error.

    Raises:
        ValueError: For an unknown option, no examples or (for a model's method) examples of another shape than the
            model takes, an output that is no array or has more than one axis, a mask or `params2` unlike `params`, or
            "layerwise" for another function; or a matrix larger than the memory that is there.

    Examples:
        An equinox module is its own weights:

        >>> import equinox as eqx, jax.numpy as jnp, jax.random as jr
        >>> net = eqx.nn.MLP(3, 2, 8, 1, key=jr.key(0))
        >>> x = jnp.eye(3)
        >>> empirical_ntk(lambda net, x: net(x), net, x).shape
        (3, 3)
        >>> readout = jax.tree.map(lambda _: False, net)  # only the last layer trains
        >>> readout = eqx.tree_at(lambda m: (m.layers[-1].weight, m.layers[-1].bias), readout, (True, True))
        >>> empirical_ntk(lambda net, x: net(x), net, x, trainable=readout, outputs="full").shape
        (3, 3, 2, 2)

        A flax.nnx module is split first; `rest` holds what is not trained, such as batch statistics:

            graph, weights, rest = nnx.split(module, nnx.Param, ...)
            empirical_ntk(lambda weights, x: nnx.merge(graph, weights, rest)(x), weights, x)

        Pairs of init and apply that expect a batch, as in haiku, flax.linen and stax:

            empirical_ntk(lambda weights, x: net.apply(weights, x[None])[0], weights, x)

    References:
        Novak, Sohl-Dickstein, Schoenholz, "Fast Finite Width Neural Tangent Kernel", ICML 2022.
    """
    model, problem = prepared(apply_fn, params, x1, params2=params2, x2=x2, trainable=trainable, outputs=outputs)
    if method not in ("auto", "layerwise", *METHODS):
        raise ValueError(f"method is {method!r}; give {', '.join(map(repr, ('auto', 'layerwise', *METHODS)))}")
    if method == "layerwise" and model is None:
        raise ValueError(
            "method 'layerwise' needs apply_fn to be the apply method of a FullyConnected, DeepReluNet or "
            "PairedTwoLayerNet; give 'auto'"
        )
    check_matrix_room(x1, x2, num_outputs(problem) ** 2 if outputs == "full" else 1)
    if model is not None and method in ("auto", "layerwise"):
        return _layerwise(model, problem)
    return generic_ntk(problem, _cheapest(problem) if method == "auto" else method)


def empirical_ntk_costs(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: Shaped[Array, "n1 *d"],
    x2: Shaped[Array, "n2 *d"] | None = None,
    *,
    params2: PyTree | None = None,
    trainable: PyTree[bool] | None = None,
    outputs: str = "trace",
) -> tuple[NtkCost, ...]:
    """What `empirical_ntk` would cost by each implementation of neural-tangents, the one that "auto" takes first.

    Cost is XLA's count of operations in the lowered program, before it is compiled: it needs no run, does not vary from
    run to run, so that neither do the bits of the kernel, and can be had while tracing. A Jacobian contraction whose
    Jacobians take more than 2 GiB comes last. Counted once are the operations in the body of a loop (`lax.scan`).

    Args:
        apply_fn: As in `empirical_ntk`, as all others.
        params: Weights.
        x1: Examples.
        x2: Examples of the second side.
        params2: Weights of the second side.
        trainable: Which weights count.
        outputs: "trace", "mean" or "full".

    Returns:
        One record for each method.

    Raises:
        ValueError: As `empirical_ntk`; and if no implementation can be applied, with the reasons.
    """
    _, problem = prepared(apply_fn, params, x1, params2=params2, x2=x2, trainable=trainable, outputs=outputs)
    return generic_costs(problem)


def empirical_ntk_diagonal(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Shaped[Array, "n *d"],
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
    model, problem = prepared(apply_fn, params, x, trainable=trainable, outputs=outputs)
    return _generic_diagonal(problem) if model is None else _layerwise_diagonal(model, problem)


def empirical_nngp(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: Shaped[Array, "n1 *d"],
    x2: Shaped[Array, "n2 *d"] | None = None,
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
        ValueError: For an unknown option, no examples, or an output that is no array or has more than one axis.
    """
    _check_outputs(outputs)
    _check_examples(_model_of(apply_fn), x1, x2)
    check_matrix_room(x1, x2)
    return _outer_outputs(apply_fn, params, x1, x2, outputs)


def prepared(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: Array,
    *,
    params2: PyTree | None = None,
    x2: Array | None = None,
    trainable: PyTree[bool] | None,
    outputs: str,
) -> tuple[AbstractModel | None, Problem]:
    """The model to go through layer by layer, if any, and the problem with its mask; refuses what cannot be done."""
    _check_outputs(outputs)
    model = _model_of(apply_fn)
    _check_examples(model, x1, x2)
    if params2 is not None:
        _check_second_weights(params, params2)
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, params) if model is None else model.trainable_mask(params)
    elif jax.tree.structure(trainable) != jax.tree.structure(params):
        raise ValueError(
            f"trainable has the structure {jax.tree.structure(trainable)}, params {jax.tree.structure(params)}; give "
            "one bool for each array of params"
        )
    mask = jax.tree.map(lambda leaf, counts: bool(counts) and _is_float_array(leaf), params, trainable)
    if not any(jax.tree.leaves(mask)):
        raise ValueError("no weight is trainable, so the NTK is 0; let at least one array of floats in params train")
    problem = Problem(apply_fn, _on_device(params), _on_device(params2), x1, x2, mask, outputs)
    return (model if model is not None and has_layerwise(model) else None), problem


def _model_of(apply_fn: ApplyFn) -> AbstractModel | None:
    """The model whose `apply` this is."""
    owner = getattr(apply_fn, "__self__", None)
    return owner if isinstance(owner, AbstractModel) and getattr(apply_fn, "__name__", "") == "apply" else None


def _check_examples(model: AbstractModel | None, x1: Any, x2: Any) -> None:
    """Any function may take examples of any shape, integers too; a model says what it takes."""
    check_examples(x1, x2, shape=None if model is None else (model.input_dim,), floating=model is not None)


def _check_second_weights(params: PyTree, params2: PyTree) -> None:
    structures = [jax.tree.structure(tree) for tree in (params, params2)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"params has the structure {structures[0]} and params2 {structures[1]}; give two states of one network"
        )
    leaves = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(params2), strict=True)
    for (path, leaf), other in leaves:
        if np.shape(leaf) != np.shape(other):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has shape {np.shape(leaf)} and in params2 {np.shape(other)}; give "
                "two states of one network"
            )


def _is_float_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _on_device(tree: PyTree) -> PyTree:
    """NumPy arrays as JAX arrays: only those are traced."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def _check_outputs(outputs: str) -> None:
    if outputs not in ("trace", "mean", "full"):
        raise ValueError(f"outputs is {outputs!r}; give 'trace', 'mean' or 'full'")


def _cheapest(problem: Problem) -> str:
    costs = generic_costs(problem)
    for cost in costs:
        if cost.failure:
            warnings.warn(
                f"{cost.method} cannot be applied to this function ({cost.failure}); {costs[0].method} is the cheapest "
                "of the others. Give a method by name to choose yourself.",
                stacklevel=3,
            )
    return costs[0].method


@eqx.filter_jit
def _layerwise(model: AbstractModel, problem: Problem) -> Array:
    first, second = Batch(problem.params, problem.x1), None
    if problem.x2 is not None or problem.params2 is not None:
        second = Batch(
            problem.params if problem.params2 is None else problem.params2,
            problem.x1 if problem.x2 is None else problem.x2,
        )
    return layerwise_ntk(model, first, second, problem.mask, problem.outputs)


@eqx.filter_jit
def _layerwise_diagonal(model: AbstractModel, problem: Problem) -> Array:
    return layerwise_diagonal(model, problem.params, problem.x1, problem.mask, problem.outputs)


@eqx.filter_jit
def _generic_diagonal(problem: Problem) -> Array:
    moving, frozen = eqx.partition(problem.params, problem.mask)

    def of_one(example: Array) -> Array:
        jacobian = jax.jacrev(lambda weights: flat_output(problem.apply_fn, eqx.combine(weights, frozen), example))
        leaves = jax.tree.leaves(jacobian(moving))
        parts = [jnp.sum(leaf * leaf) for leaf in leaves]
        total = sum(parts[1:], parts[0])
        return total / leaves[0].shape[0] if problem.outputs == "mean" else total

    bytes_of_one = num_outputs(problem) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(moving))
    return jax.lax.map(of_one, problem.x1, batch_size=max(1, min(problem.x1.shape[0], _JACOBIAN_BYTES // bytes_of_one)))


@eqx.filter_jit
def _outer_outputs(apply_fn: ApplyFn, params: PyTree, x1: Array, x2: Array | None, outputs: str) -> Array:
    def run(x: Array) -> Array:
        return jax.vmap(lambda example: flat_output(apply_fn, params, example))(x)

    first = run(x1)
    second = first if x2 is None else run(x2)
    axes = "ia,jb->ijab" if outputs == "full" else "ia,ja->ij"
    kernel = jnp.einsum(axes, first, second, precision=_HIGHEST)
    return kernel / first.shape[1] if outputs == "mean" else kernel
