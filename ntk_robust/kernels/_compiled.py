"""Methods that cost one compilation for each shape, called inside or outside of `jax.jit`."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import equinox as eqx

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A method or function under `jax.jit`; outside of it loops and closures would be compiled again at every call.

    What comes out is a plain function: `jax.jit(kernel.gram)` hashes its bound method, which those of
    `equinox.filter_jit` do not allow.

    Args:
        method: Its arguments, and fields of modules among them, are arrays, numbers or hashable.
    """
    once = eqx.filter_jit(method)

    @functools.wraps(method)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return once(*args, **kwargs)

    return call
