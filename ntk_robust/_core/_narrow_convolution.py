"""Convolutions with few input channels as matrix products, which a CPU computes several times as fast."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_TILE = 4  # pixels of a row that one row of the product computes: of 2, 4 and 8 the best in most shapes
_MOST_INPUTS, _MOST_PRODUCTS, _LARGEST_FILTER = 7, 96, 7


def is_narrow(images: Array, filters: Array, params: dict[str, Any]) -> bool:
    """Whether `narrow_convolution` is made for these operands and parameters of XLA's convolution, and is faster.

    XLA reads patches in packets of eight channels. For fewer channels it reads them one number at a time, and reading
    takes longer than multiplying; the bound on channels times channels is where it was measured to win again.

    Args:
        images: (batch, height, width, inputs).
        filters: (height, width, inputs, outputs).
        params: Of `jax.lax.conv_general_dilated_p`.
    """
    groups = {params["feature_group_count"], params["batch_group_count"]}
    if images.ndim != 4 or groups != {1} or params["preferred_element_type"] not in (None, images.dtype):
        return False
    steps = *params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"]
    *sides, inputs, outputs = filters.shape
    return (
        set(steps) == {1}
        and max(sides) <= _LARGEST_FILTER
        and inputs <= _MOST_INPUTS
        and inputs * outputs <= _MOST_PRODUCTS
    )


def narrow_convolution(
    images: Float[Array, "batch height width inputs"],
    filters: Float[Array, "tall wide inputs outputs"],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "batch new_height new_width outputs"]:
    """A convolution of stride one as one matrix product.

    A row of the product's left side holds the pixels that four neighbouring results of one row of the image depend on;
    its right side holds the filter at four places, and zeros. Half of the multiplications are by these zeros, and only
    half as much is copied as for a product that has a row for every result.

    Args:
        images: Images.
        filters: Filters.
        padding: Zeros before and behind, along the height and the width; negative numbers cut.
    """
    tall, wide, inputs, outputs = filters.shape
    (above, below), (left, right) = padding
    height = images.shape[1] + above + below - tall + 1
    width = images.shape[2] + left + right - wide + 1
    num_tiles, reach = -(-width // _TILE), _TILE + wide - 1
    unused = num_tiles * _TILE - width
    ends = (0, 0, 0), (above, below, 0), (left, right + unused, 0), (0, 0, 0)
    filled = lax.pad(images, jnp.zeros((), images.dtype), ends)
    columns = [filled[:, :, _TILE * tile : _TILE * tile + reach] for tile in range(num_tiles)]
    tiles = jnp.stack(columns, axis=2).reshape(images.shape[0], -1, num_tiles, reach * inputs)
    patches = jnp.concatenate([tiles[:, row : row + height] for row in range(tall)], axis=-1)
    shifted = [jnp.pad(filters, ((0, 0), (place, _TILE - 1 - place), (0, 0), (0, 0))) for place in range(_TILE)]
    band = jnp.stack(shifted, axis=3)
    results = patches.reshape(-1, tall * reach * inputs) @ band.reshape(-1, _TILE * outputs)
    return results.reshape(-1, height, num_tiles * _TILE, outputs)[:, :, :width]
