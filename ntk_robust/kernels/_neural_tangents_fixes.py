"""Replacements for the private functions of neural-tangents 0.6.5 that use what JAX no longer has.

One function per file of neural-tangents, listed in `FIXES`; the loader in `_neural_tangents` calls it on the module
that it has just run. Everything here stands on public JAX API, and a replacement keeps the arguments and the meaning of
what it replaces.
"""

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import scipy  # loads its parts when they are first used
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_LOGGER = logging.getLogger("neural_tangents")


def _replace(module: ModuleType, **replacements: Any) -> None:
    """Set names that `module` has; one that it lacks means another version of neural-tangents."""
    for name, replacement in replacements.items():
        if not hasattr(module, name):
            raise ImportError(f"{module.__name__} has no {name}, which 0.6.5 has")
        setattr(module, name, replacement)


def facade(module: ModuleType, **added: Any) -> ModuleType:
    """A module that has `added` and, for every other attribute, forwards to `module`."""
    made = ModuleType(module.__name__, module.__doc__)
    vars(made).update(added, __getattr__=lambda name: getattr(module, name))
    return made


# _src.empirical: structured derivatives, a backward pass over the equations of the tangent map


class _LinearProgram(NamedTuple):
    """What the backward pass of neural-tangents reads of a jaxpr."""

    constvars: Sequence[Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
    eqns: Sequence[Any]


def _tangent_map(fn: Callable[..., Any], primals: Sequence[Any]) -> tuple[Any, Any]:
    """Value of `fn` and the jaxpr of its derivative, in equations that each have one output."""
    # jit would hide the structure of what it wraps behind one equation.
    with jax.disable_jit():
        value, tangent_map = jax.linearize(fn, *primals)
        closed = jax.make_jaxpr(tangent_map)(*primals)
        if any(eqn.primitive is lax.split_p for eqn in closed.jaxpr.eqns):
            closed = jax.make_jaxpr(functools.partial(_cut_instead_of_split, closed))(*jax.tree.leaves(primals))
    return value, closed


def _cut_instead_of_split(closed: Any, *tangents: Any) -> list[Any]:
    """Evaluate a jaxpr with every split, an equation with several outputs, as slices."""
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(closed.jaxpr.invars, tangents, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax.extend.core.Literal) else env[atom]

    for eqn in closed.jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        if eqn.primitive is lax.split_p:
            axis, sizes = eqn.params["axis"], eqn.params["sizes"]
            stops = np.cumsum(sizes).tolist()
            outs = [
                lax.slice_in_dim(values[0], stop - size, stop, axis=axis)
                for size, stop in zip(sizes, stops, strict=True)
            ]
        else:
            outs = eqn.primitive.bind(*values, **eqn.params)
            outs = outs if eqn.primitive.multiple_results else [outs]
        env |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _fix_empirical(module: ModuleType) -> None:
    undefined, symbolic_zero = module.UndefinedPrimal, module.Zero

    def get_primals_out_and_pullback(
        fn: Callable[..., Any], mode: Any, _j_rules: bool, _s_rules: bool, _fwd: bool | None, *primals_in: Any
    ) -> tuple[Any, Callable[..., Any]]:
        primals_out, closed = _tangent_map(fn, primals_in)
        in_tree = jax.tree.structure(primals_in)

        def pullback(*cotangents: Any) -> Any:
            collected = module._backward_pass(
                closed.jaxpr,
                mode=mode,
                consts=closed.consts,
                primals_in=[undefined(var.aval) for var in closed.jaxpr.invars],
                cotangents_in=tuple(jax.tree.leaves(cotangents)),
                _j_rules=_j_rules,
                _s_rules=_s_rules,
                _fwd=_fwd,
            )
            return jax.tree.unflatten(in_tree, collected)

        return primals_out, pullback

    def apply_eqn(eqn: Any, invals: Sequence[Any], replaced: dict[int, Any]) -> Any:
        """Output of an equation; an input without a value, which the derivative does not depend on, is zero."""
        values = [
            replaced[i]
            if i in replaced
            else jnp.zeros(inval.aval.shape, inval.aval.dtype)
            if isinstance(inval, undefined)
            else jnp.zeros(inval.shape, inval.dtype)
            if isinstance(inval, jax.core.ShapedArray)
            else inval
            for i, inval in enumerate(invals)
        ]
        out = eqn.primitive.bind(*values, **eqn.params)
        return out[0] if eqn.primitive.multiple_results else out

    def eqn_vjp_fn(eqn: Any, cts_in: Any, *invals: Any) -> Sequence[Any]:
        if eqn is None:  # the identity
            return (cts_in,)
        if isinstance(cts_in, symbolic_zero):
            return [symbolic_zero(atom.aval) for atom in eqn.invars]
        avals = {
            i: jax.ShapeDtypeStruct(inval.aval.shape, inval.aval.dtype)
            for i, inval in enumerate(invals)
            if isinstance(inval, undefined)
        }

        def linear(arguments: dict[int, Any]) -> Any:
            return apply_eqn(eqn, invals, arguments)

        # A reshape whose structure was trimmed takes a cotangent of another shape, with its entries in the same order.
        out = jax.eval_shape(linear, avals)
        (cotangents,) = jax.linear_transpose(linear, avals)(cts_in.reshape(out.shape).astype(out.dtype))
        return [cotangents.get(i) for i in range(len(invals))]

    def eqn_jvp_fn(eqn: Any, idx: int, tangents: Any, *invals: Any) -> Any:
        if eqn is None:  # the identity
            return tangents
        primal = jnp.zeros(invals[idx].aval.shape, invals[idx].aval.dtype)
        return jax.jvp(lambda inval: apply_eqn(eqn, invals, {idx: inval}), (primal,), (tangents,))[1]

    def write_cotangent(_prim: Any, ct_env: dict[Any, Any], var: Any, cotangent: Any) -> None:
        if cotangent is None or isinstance(var, module.Literal) or isinstance(cotangent, symbolic_zero):
            return
        ct_env[var] = module.ad.add_tangents(ct_env[var], cotangent) if var in ct_env else cotangent

    _replace(
        module,
        _get_primals_out_and_pullback=get_primals_out_and_pullback,
        _eqn_vjp_fn=eqn_vjp_fn,
        _eqn_jvp_fn=eqn_jvp_fn,
        _write_cotangent=write_cotangent,
        _get_fx_axis_and_dtype=_fx_axis_and_dtype,
        _get_flops=_flops,
    )
    # AUTO prints what it measured, and stdout belongs to the caller.
    vars(module)["print"] = _LOGGER.debug


def _fx_axis_and_dtype(fx: Any, fx_axis: Any, params: Any) -> tuple[Any, Any]:
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    dtype = functools.reduce(jnp.promote_types, dtypes) if dtypes else None
    return jax.tree.map(lambda _: None, fx) if fx_axis is None else fx_axis, dtype


def _flops(fn: Callable[..., Any], optimize: bool, *args: Any, **kwargs: Any) -> float:
    """Floating-point operations of `fn` by XLA's count, by which AUTO chooses."""
    lowered = jax.jit(fn).lower(*args, **kwargs)
    analysis = (lowered.compile() if optimize else lowered).cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    flops = analysis.get("flops", -1.0) if analysis else -1.0
    # Where XLA does not count, all implementations cost the same, and AUTO takes the first: Jacobian contraction.
    return flops if flops >= 0 else sys.float_info.max


# _src.batching: several devices


def _fix_batching(module: ModuleType) -> None:
    _replace(module, pmap=_pmap)


def _pmap(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` mapped over the first axis of all its arguments, one slice per device.

    Arguments may be committed to other devices: they are placed on the first devices of this process.
    """

    def one_slice(arguments: Any) -> Any:
        args, kwargs = jax.tree.map(lambda array: array[0], arguments)
        return jax.tree.map(lambda array: jnp.asarray(array)[None], fn(*args, **kwargs))

    @functools.cache
    def on(num_devices: int) -> tuple[NamedSharding, Callable[..., Any]]:
        mesh = Mesh(np.asarray(jax.local_devices()[:num_devices]), ("slice",))
        spec = PartitionSpec("slice")
        mapped = jax.shard_map(one_slice, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return NamedSharding(mesh, spec), jax.jit(mapped)

    def mapped(*args: Any, **kwargs: Any) -> Any:
        sharding, compiled = on(len(jax.tree.leaves((args, kwargs))[0]))
        return compiled(jax.device_put((args, kwargs), sharding))

    return mapped


# _src.predict: caches that outlive a trace, and a keyword that SciPy has renamed


def _fix_predict(module: ModuleType) -> None:
    is_on_cpu = module._is_on_cpu
    _replace(
        module,
        # eval_context refuses tracers, so it moves to where it can be seen that there are none.
        jax=facade(module.jax, core=facade(module.jax.core, eval_context=nullcontext)),
        _get_cho_solve=_at_once_if_concrete(module._get_cho_solve),
        _get_fns_in_eigenbasis=_at_once_if_concrete(module._get_fns_in_eigenbasis),
        gradient_descent_mse=_fresh_in_each_trace(module.gradient_descent_mse),
        gp_inference=_fresh_in_each_trace(module.gp_inference),
        gradient_descent_mse_ensemble=_fresh_in_each_trace(module.gradient_descent_mse_ensemble),
        _is_on_cpu=lambda tree: not _traced(tree) and is_on_cpu(tree),
        sp=SimpleNamespace(linalg=SimpleNamespace(eigvalsh=_eigvalsh)),
    )


def _eigvalsh(matrix: Any, eigvals: tuple[int, int]) -> Any:
    return scipy.linalg.eigvalsh(matrix, subset_by_index=eigvals)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _at_once_if_concrete(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, evaluated outside of the current trace where its arguments allow, so that a jit holds only the result."""

    @functools.wraps(fn)
    def evaluated(*args: Any, **kwargs: Any) -> Any:
        with nullcontext() if _traced((args, kwargs)) else jax.core.eval_context():
            return fn(*args, **kwargs)

    return evaluated


def _fresh_in_each_trace(make_predict_fn: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """A maker of prediction functions whose caches do not outlive the trace that filled them.

    neural-tangents keeps decompositions in the closure of the function that it returns. One that was computed while
    tracing is a tracer, and the next trace must not see it.
    """

    @functools.wraps(make_predict_fn)
    def make(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        here = jax.extend.core.get_opaque_trace_state()
        made = make_predict_fn(*args, **kwargs)

        @functools.wraps(made)
        def predict_fn(*predict_args: Any, **predict_kwargs: Any) -> Any:
            nonlocal here, made
            now = jax.extend.core.get_opaque_trace_state()
            if now != here:
                here, made = now, make_predict_fn(*args, **kwargs)
            return made(*predict_args, **predict_kwargs)

        return predict_fn

    return make


FIXES = {
    "neural_tangents._src.empirical": _fix_empirical,
    "neural_tangents._src.batching": _fix_batching,
    "neural_tangents._src.predict": _fix_predict,
}
