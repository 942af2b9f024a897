"""The empirical NTK of any function through neural-tangents, by the implementation that costs least."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ntk_robust.kernels._neural_tangents import load_neural_tangents

ApplyFn = Callable[[Any, Any], Array]
METHODS = ("structured_derivatives", "ntk_vector_products", "jacobian_contraction")
# Jacobians of more bytes than this are not formed unless they are asked for by name.
MAX_JACOBIAN_BYTES = 2**31
# Choices remembered, the oldest forgotten first: each holds on to its function and what that closes over.
_NUM_REMEMBERED = 64


class NtkCost(NamedTuple):
    """What one implementation would cost.

    Attributes:
        method: The name for `empirical_ntk(..., method=)`.
        flops: Floating-point operations that XLA counts in the program before optimization; inf where there is no
            program.
        jacobian_bytes: Memory of the Jacobians that it forms, 0 where it forms none.
        failure: Why there is no program, else empty.
    """

    method: str
    flops: float
    jacobian_bytes: int
    failure: str


class Problem(eqx.Module):
    """A kernel to be computed: arrays are traced, all else is part of the program.

    Attributes:
        apply_fn: (params, one example) -> output.
        params: Weights.
        params2: Weights of the second side, or None for the same.
        x1: Examples.
        x2: Examples of the second side, or None for the same.
        mask: Like `params`, True for arrays that count.
        outputs: "trace", "mean" or "full".
    """

    apply_fn: ApplyFn
    params: PyTree
    params2: PyTree | None
    x1: Array
    x2: Array | None
    mask: PyTree[bool]
    outputs: str = eqx.field(static=True)


def flat_output(apply_fn: ApplyFn, params: PyTree, example: Array) -> Array:
    """The output as one axis."""
    output: Any = apply_fn(params, example)
    if not hasattr(output, "ndim"):
        raise ValueError(
            f"apply_fn returned a {type(output).__name__} for one example; give a function that returns one array"
        )
    if output.ndim > 1:
        raise ValueError(f"apply_fn returned shape {output.shape} for one example; give one axis of outputs or none")
    return jnp.atleast_1d(output)


def num_outputs(problem: Problem) -> int:
    """Entries of the output for one example, without computing it."""
    example = jax.ShapeDtypeStruct(problem.x1.shape[1:], problem.x1.dtype)
    return eqx.filter_eval_shape(flat_output, problem.apply_fn, problem.params, example).shape[0]


@eqx.filter_jit
def generic_ntk(problem: Problem, method: str) -> Array:
    """The kernel by one implementation of neural-tangents."""
    return _by(method, problem)


def generic_costs(problem: Problem) -> tuple[NtkCost, ...]:
    """What each implementation costs, the one to take first; from memory where the same was asked before.

    Cost is the number of operations of the lowered program: it needs no compilation and no run, and is the same on
    every run (so that the bits of a kernel are) and inside of a trace. What it names is not always the fastest, but
    never far from it: at most 1.6 times its time in `benchmarks/bench_empirical.py`, where the slowest takes up to 68
    times.
    """
    dynamic, static = eqx.partition(problem, eqx.is_array)
    leaves = jax.tree.leaves(dynamic)
    # Inside of a trace the function may close over tracers, which nothing may hold longer than the trace.
    tracing = any(isinstance(leaf, jax.core.Tracer) for leaf in (jnp.zeros(()), *leaves))
    key = None if tracing else _key(static, leaves)
    if key is not None and key in _REMEMBERED:
        _REMEMBERED.move_to_end(key)
        return _REMEMBERED[key]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dynamic)
    num_examples = problem.x1.shape[0]
    if problem.x2 is not None or problem.params2 is not None:
        num_examples += (problem.x1 if problem.x2 is None else problem.x2).shape[0]
    moving = jax.tree.leaves(eqx.filter(problem.params, problem.mask))
    jacobian_bytes = num_examples * num_outputs(problem) * sum(leaf.size * leaf.dtype.itemsize for leaf in moving)
    costs = [_cost(method, shapes, static, jacobian_bytes) for method in METHODS]
    if all(cost.failure for cost in costs):
        raise ValueError("no implementation can be applied: " + "; ".join(f"{c.method}: {c.failure}" for c in costs))
    costs.sort(key=lambda cost: (bool(cost.failure), cost.jacobian_bytes > MAX_JACOBIAN_BYTES, cost.flops))
    if key is not None:
        _REMEMBERED[key] = tuple(costs)
        if len(_REMEMBERED) > _NUM_REMEMBERED:
            _REMEMBERED.popitem(last=False)
    return tuple(costs)


_REMEMBERED: OrderedDict[Hashable, tuple[NtkCost, ...]] = OrderedDict()


def _key(static: Problem, leaves: list[Any]) -> Hashable:
    flat, treedef = jax.tree.flatten(static)
    return treedef, tuple(flat), tuple((leaf.shape, leaf.dtype) for leaf in leaves), jax.default_backend()


def _cost(method: str, shapes: Problem, static: Problem, jacobian_bytes: int) -> NtkCost:
    held = jacobian_bytes if method == "jacobian_contraction" else 0
    try:
        lowered = jax.jit(lambda arrays: _by(method, eqx.combine(arrays, static))).lower(shapes)
    except Exception as error:
        return NtkCost(method, math.inf, held, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    analysis: Any = lowered.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    # where XLA does not count, all cost the same, and the first of METHODS is taken
    return NtkCost(method, float((analysis or {}).get("flops", 0.0)), held, "")


def _by(method: str, problem: Problem) -> Array:
    # The import computes constants: they must not become part of a trace that happens to be the first to need them.
    with jax.ensure_compile_time_eval():
        nt = load_neural_tangents()
    config: Any = jax.config  # which declares its flags at run time
    promotion = config.jax_numpy_dtype_promotion, config.jax_numpy_rank_promotion
    moving, frozen = eqx.partition(problem.params, problem.mask)
    leaves, tree = jax.tree.flatten(moving)

    def outputs(params: PyTree, x: Array) -> Array:
        # neural-tangents needs implicit promotion; the function is run as its caller has configured
        with jax.numpy_dtype_promotion(promotion[0]), jax.numpy_rank_promotion(promotion[1]):
            return jax.vmap(lambda example: flat_output(problem.apply_fn, params, example))(x)

    def at_point(weights: list[Array], x: Array) -> Array:
        return outputs(eqx.combine(jax.tree.unflatten(tree, weights), frozen), x)

    network, point, extra = at_point, leaves, {}
    if problem.params2 is not None:
        # Derivatives at two points are derivatives at 0 of two functions of a displacement.
        arrays, rest = zip(*(eqx.partition(p, eqx.is_array) for p in (problem.params, problem.params2)), strict=True)

        def displaced(weights: list[Array], x: Array, base: PyTree) -> Array:
            here, still = eqx.partition(eqx.combine(base, rest[0]), problem.mask)
            return outputs(eqx.combine(jax.tree.map(jnp.add, here, jax.tree.unflatten(tree, weights)), still), x)

        network, point, extra = displaced, [jnp.zeros_like(leaf) for leaf in leaves], {"base": tuple(arrays)}

    x2 = problem.x2 if problem.params2 is None else (problem.x1 if problem.x2 is None else problem.x2)
    kernel_fn = nt.empirical_ntk_fn(
        network,
        trace_axes=() if problem.outputs == "full" else (-1,),
        vmap_axes=(0, 0, {}),
        implementation=nt.NtkImplementation[method.upper()],
    )
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("highest"),
    ):
        kernel = kernel_fn(problem.x1, x2, point, **extra)
    # neural-tangents averages over the outputs that it contracts
    return kernel * num_outputs(problem) if problem.outputs == "trace" else kernel
