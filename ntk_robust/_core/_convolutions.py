"""Convolutions as XLA computes them fast on a CPU, inside loops too."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, PyTree

from ntk_robust._core._narrow_convolution import is_narrow, narrow_convolution
from ntk_robust._core._strided_convolution import is_dilated, is_strided, without_dilation, without_strides


def with_fast_convolutions(function: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
    """`function`, with its convolutions in a form that XLA computes fast on a CPU.

    XLA has a fast convolution for images of (batch, pixels, channels) and filters of (pixels, inputs, outputs), and a
    naive one for every other order. It reorders by itself, but not in the bodies of loops (jax-ml/jax issue 12868),
    where the gradient in the filters then takes twenty to forty times as long. Differentiation and vmap choose their
    own orders, so this rewrites what is left when they are done: it belongs directly under `jax.jit`, around everything
    else. Convolutions with few channels become matrix products (`narrow_convolution`), and strided ones with few
    channels, and their gradients in the images, convolutions of step one (`_strided_convolution.py`). On other devices
    nothing is changed.

    Args:
        function: Of arrays and trees of them; it is traced once for each tracing of the result.

    Returns:
        A function of the same arguments with the same results up to rounding.
    """

    @functools.wraps(function)
    def rewritten(*args: PyTree) -> PyTree[Array]:
        if jax.default_backend() != "cpu":
            return function(*args)
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = jaxpr_as_fun(_rewritten(jaxpr))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return rewritten


def _convolves(value: Any) -> bool:
    # In newer versions of JAX a closed jaxpr is a jaxpr.
    if isinstance(value, Jaxpr):
        return any(
            equation.primitive is lax.conv_general_dilated_p or _convolves(tuple(equation.params.values()))
            for equation in value.eqns
        )
    if isinstance(value, ClosedJaxpr):
        return _convolves(value.jaxpr)
    return isinstance(value, tuple) and any(map(_convolves, value))


def _rewritten(value: Any) -> Any:
    """A parameter of an equation, with every convolution in it reordered."""
    if not _convolves(value):
        return value
    if isinstance(value, tuple):
        return tuple(map(_rewritten, value))
    if isinstance(value, Jaxpr):
        return value.replace(eqns=[_rewritten_equation(equation) for equation in value.eqns])
    return value.replace(jaxpr=_rewritten(value.jaxpr))


def _rewritten_equation(equation: Any) -> Any:
    if equation.primitive is not lax.conv_general_dilated_p:
        return equation.replace(params={name: _rewritten(value) for name, value in equation.params.items()})
    operands = [jax.ShapeDtypeStruct(operand.aval.shape, operand.aval.dtype) for operand in equation.invars]
    reordered = jax.make_jaxpr(jax.jit(functools.partial(_channels_last, **equation.params)))(*operands).eqns[0]
    return reordered.replace(invars=equation.invars, outvars=equation.outvars)


def _channels_last(
    images: Float[Array, "..."],
    filters: Float[Array, "..."],
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    **params: Any,
) -> Float[Array, "..."]:
    """The same convolution with its operands and its result transposed, or in a faster form."""
    image_spec, filter_spec, result_spec = dimension_numbers
    rank = len(image_spec)
    last = (0, rank - 1, *range(1, rank - 1))
    images = images.transpose(image_spec[0], *image_spec[2:], image_spec[1])
    filters = filters.transpose(*filter_spec[2:], filter_spec[1], filter_spec[0])
    order = lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)

    def convolve(images: Array, filters: Array, **other: Any) -> Array:
        chosen = params | other
        if is_narrow(images, filters, chosen):
            return narrow_convolution(images, filters, chosen["padding"])
        return lax.conv_general_dilated_p.bind(images, filters, dimension_numbers=order, **chosen)

    of_step_one = functools.partial(
        convolve, window_strides=(1, 1), lhs_dilation=(1, 1), rhs_dilation=(1, 1), padding=((0, 0), (0, 0))
    )
    if is_strided(images, filters, params):
        result = of_step_one(*without_strides(images, filters, params["window_strides"], params["padding"]))
    elif is_dilated(images, filters, params):
        result = without_dilation(images, filters, params["lhs_dilation"], params["padding"], of_step_one)
    else:
        result = convolve(images, filters)
    places = (result_spec[0], *result_spec[2:], result_spec[1])
    return result.transpose(*(places.index(axis) for axis in range(rank)))
