"""Products of the empirical NTK with vectors, without the matrix."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from ntk_robust.kernels._empirical import prepared
from ntk_robust.kernels._empirical_generic import ApplyFn, Problem, flat_output, num_outputs


def empirical_ntk_vector_product(
    apply_fn: ApplyFn,
    params: PyTree,
    vectors: Float[Array, "n2 *columns"],
    x1: Shaped[Array, "n1 *d"],
    x2: Shaped[Array, "n2 *d"] | None = None,
    *,
    params2: PyTree | None = None,
    trainable: PyTree[bool] | None = None,
    outputs: str = "trace",
    batch_size: int | None = None,
) -> Float[Array, "n1 *columns"]:
    r"""The empirical NTK between `x1` and `x2` times vectors: $J(x_1) J(x_2)^\top v$, a vector-Jacobian product and
    then a Jacobian-vector product, without the matrix.

    One product costs about three evaluations of the network at `x2` and two at `x1`; memory is that of a batch and of
    one set of weights. "trace" and "mean" take k products for each column, "full" one. The product is what
    `conjugate_gradients` needs where the kernel is too large to store:

        matvec = lambda v: np.asarray(empirical_ntk_vector_product(apply_fn, params, jnp.asarray(v), x))
        conjugate_gradients(matvec, y, ridge=1e-3)

    Args:
        apply_fn: (params, one example) → output of shape () or (k,).
        params: Weights.
        vectors: Shape (n2,) or (n2, columns); for "full" (n2, k) or (n2, k, columns).
        x1: Examples, one per row.
        x2: Examples; None for `x1`.
        params2: Weights for the second side; None for `params`.
        trainable: As in `empirical_ntk`.
        outputs: "trace" or "mean" for the kernel of shape (n1, n2), "full" for the one with outputs.
        batch_size: Examples taken at a time on either side; None for all at once.

    Returns:
        Like `vectors` with n1 in the place of n2.

    Raises:
        ValueError: As `empirical_ntk`, for vectors of another shape, and for a batch size below 1.
    """
    _, problem = prepared(apply_fn, params, x1, params2=params2, x2=x2, trainable=trainable, outputs=outputs)
    k, n2 = num_outputs(problem), (x1 if x2 is None else x2).shape[0]
    rows = (n2, k) if outputs == "full" else (n2,)
    if vectors.shape[: len(rows)] != rows or vectors.ndim > len(rows) + 1:
        raise ValueError(
            f"vectors has shape {vectors.shape} for {n2} examples and {k} outputs; give {rows} and perhaps one axis of "
            f"columns for outputs {outputs!r}"
        )
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise ValueError(f"vectors has dtype {vectors.dtype}; cast it to the floats of the weights")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1, or None for all examples at once")
    return _product(problem, vectors, batch_size)


@eqx.filter_jit
def _product(problem: Problem, vectors: Array, batch_size: int | None) -> Array:
    k, full = num_outputs(problem), problem.outputs == "full"
    single = vectors.ndim == (2 if full else 1)
    columns = jnp.moveaxis(vectors[..., None] if single else vectors, -1, 0)
    x2 = problem.x1 if problem.x2 is None else problem.x2
    params2 = problem.params if problem.params2 is None else problem.params2

    def of_cotangents(cotangents: Array) -> Array:
        """(n2, k) → (n1, k)."""
        gradient = _pulled_back(problem, params2, x2, cotangents, batch_size)
        return _pushed_forward(problem, problem.params, problem.x1, gradient, batch_size)

    def of_column(column: Array) -> Array:
        if full:
            return of_cotangents(column)
        units = jnp.eye(k, dtype=column.dtype)
        parts = jax.lax.map(lambda unit: of_cotangents(column[:, None] * unit[None, :]) @ unit, units)
        return jnp.mean(parts, axis=0) if problem.outputs == "mean" else jnp.sum(parts, axis=0)

    product = jnp.moveaxis(jax.lax.map(of_column, columns), 0, -1)
    return product[..., 0] if single else product


def _of_weights(problem: Problem, params: PyTree, x: Array) -> tuple[PyTree, Callable[[PyTree], Array]]:
    """The weights that count, and the outputs for `x` as a function of them."""
    moving, frozen = eqx.partition(params, problem.mask)

    def outputs(weights: PyTree) -> Array:
        return jax.vmap(lambda example: flat_output(problem.apply_fn, eqx.combine(weights, frozen), example))(x)

    return moving, outputs


def _pulled_back(problem: Problem, params: PyTree, x: Array, cotangents: Array, batch_size: int | None) -> PyTree:
    """Σ over examples of cotangent × Jacobian, shaped like the weights that count."""

    def of_batch(x: Array, cotangents: Array) -> PyTree:
        moving, outputs = _of_weights(problem, params, x)
        return jax.vjp(outputs, moving)[1](cotangents)[0]

    if batch_size is None or batch_size >= x.shape[0]:
        return of_batch(x, cotangents)

    def add(total: PyTree, batch: tuple[Array, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, of_batch(*batch)), None

    zero = jax.tree.map(jnp.zeros_like, eqx.filter(params, problem.mask))
    # the rows that fill up the last batch have cotangent 0
    batches = _in_batches(x, batch_size), _in_batches(cotangents, batch_size, fill=0.0)
    return jax.lax.scan(add, zero, batches)[0]


def _pushed_forward(problem: Problem, params: PyTree, x: Array, tangent: PyTree, batch_size: int | None) -> Array:
    """The Jacobian of each example times a tangent: (n, k)."""

    def of_batch(x: Array) -> Array:
        moving, outputs = _of_weights(problem, params, x)
        return jax.jvp(outputs, (moving,), (tangent,))[1]

    if batch_size is None or batch_size >= x.shape[0]:
        return of_batch(x)
    changes = jax.lax.map(of_batch, _in_batches(x, batch_size))
    return changes.reshape(-1, changes.shape[-1])[: x.shape[0]]


def _in_batches(x: Array, batch_size: int, fill: float | None = None) -> Array:
    """Rows as (batches, batch_size, ...), filled up with copies of the first row, or with a number."""
    missing = -x.shape[0] % batch_size
    filler = jnp.broadcast_to(x[:1], (missing, *x.shape[1:]))
    filled = jnp.concatenate([x, filler if fill is None else jnp.full_like(filler, fill)])
    return filled.reshape(-1, batch_size, *x.shape[1:])
