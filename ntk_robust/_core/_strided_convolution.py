"""Convolutions with steps as convolutions of step one, which a CPU computes faster.

XLA reads the patches of few channels one number at a time, and multiplies the zeros that a dilation of the image, as in
the gradient of a strided convolution, puts between its pixels. Sorting pixels by their place modulo the step into
channels leaves a convolution of step one with a smaller filter: more channels in the first case, no zeros in the other.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_MOST_INPUTS = 7  # from eight on XLA reads whole packets, and the detour costs up to three times the convolution
_MOST_OUTPUTS = 32  # measured: 1.3 to 2.9 times as fast up to here, as slow or slower from 64 on

Padding = Sequence[tuple[int, int]]


def is_strided(images: Array, filters: Array, params: dict[str, Any]) -> bool:
    """Whether `without_strides` is made for a convolution with these parameters, and was measured to be faster."""
    return (
        _is_plain(images, params)
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
        and max(params["window_strides"]) > 1
        and filters.shape[2] <= _MOST_INPUTS
    )


def is_dilated(images: Array, filters: Array, params: dict[str, Any]) -> bool:
    """Whether `without_dilation` is made for a convolution with these parameters, and was measured to be faster."""
    *sides, _, outputs = filters.shape
    return (
        _is_plain(images, params)
        and {*params["window_strides"], *params["rhs_dilation"]} == {1}
        and max(params["lhs_dilation"]) > 1
        and max(sides) > 1
        and outputs <= _MOST_OUTPUTS
    )


def _is_plain(images: Array, params: dict[str, Any]) -> bool:
    groups = {params["feature_group_count"], params["batch_group_count"]}
    return images.ndim == 4 and groups == {1} and params["preferred_element_type"] in (None, images.dtype)


def without_strides(
    images: Float[Array, "batch height width inputs"],
    filters: Float[Array, "tall wide inputs outputs"],
    strides: Sequence[int],
    padding: Padding,
) -> tuple[Float[Array, "batch down across places"], Float[Array, "few fewer places outputs"]]:
    r"""Images and filters whose convolution of step one without padding is the one asked for.

    With $a = s a' + r$ it is $y_i = \sum_a x_{s i + a} f_a = \sum_{a'} \sum_r x_{s (i + a') + r} f_{s a' + r}$: the
    places $r$ of a pixel within its block of $s$ become channels.

    Args:
        images: Images.
        filters: Filters.
        strides: Steps along the height and the width.
        padding: Zeros before and behind, along both; negative numbers cut.
    """
    batch, _, _, inputs = images.shape
    outputs, blocks, ends = filters.shape[3], [], [(0, 0, 0)]
    for size, taps, step, (before, behind) in zip(images.shape[1:3], filters.shape[:2], strides, padding, strict=True):
        results, blocks_of_taps = (size + before + behind - taps) // step + 1, -(-taps // step)
        blocks.append((results - 1 + blocks_of_taps, blocks_of_taps))
        ends.append((before, blocks[-1][0] * step - size - before, 0))
    (down, few), (across, fewer) = blocks
    filled = lax.pad(images, jnp.zeros((), images.dtype), (*ends, (0, 0, 0)))
    sorted_pixels = filled.reshape(batch, down, strides[0], across, strides[1], inputs).transpose(0, 1, 3, 2, 4, 5)
    unused = [(0, count * step - taps) for (_, count), step, taps in zip(blocks, strides, filters.shape, strict=False)]
    whole = jnp.pad(filters, (*unused, (0, 0), (0, 0)))
    sorted_taps = whole.reshape(few, strides[0], fewer, strides[1], inputs, outputs).transpose(0, 2, 1, 3, 4, 5)
    return sorted_pixels.reshape(batch, down, across, -1), sorted_taps.reshape(few, fewer, -1, outputs)


def without_dilation(
    images: Float[Array, "batch height width inputs"],
    filters: Float[Array, "tall wide inputs outputs"],
    dilation: Sequence[int],
    padding: Padding,
    convolve: Any,
) -> Float[Array, "batch new_height new_width outputs"]:
    r"""A convolution of images with zeros between their pixels, without these zeros.

    With $i = s i' + q$ and $x$ at multiples of $s$ alone, $y_{s i' + q} = \sum_d x_{i' + d} f_{s d - q}$ (indices from
    the padding on): each place $q$ of a result within its block of $s$ has some of the taps, and becomes a channel.

    Args:
        images: Images, before the dilation.
        filters: Filters.
        dilation: Steps between pixels, along the height and the width.
        padding: Zeros before and behind the dilated images, along both; negative numbers cut.
        convolve: Of images and filters, the convolution of step one without padding.
    """
    batch, outputs = images.shape[0], filters.shape[3]
    taps_of, ends, counts, sizes = [], [(0, 0, 0)], [], []
    for size, taps, step, (before, behind) in zip(images.shape[1:3], filters.shape[:2], dilation, padding, strict=True):
        results = (size - 1) * step + 1 + before + behind - taps + 1
        count = -(-results // step)
        # Result step * i + q and tap a meet pixel i + d where q + a - before = step * d.
        first, last = -(before // step), (step - 1 + taps - 1 - before) // step
        offsets, places = np.arange(first, last + 1)[:, None], np.arange(step)
        tap = step * offsets + before - places
        taps_of.append(np.where((tap >= 0) & (tap < taps), tap, taps))  # one behind the last is zero
        ends.append((-first, count - 1 + last - (size - 1), 0))
        counts.append(count)
        sizes.append(results)
    filled = lax.pad(images, jnp.zeros((), images.dtype), (*ends, (0, 0, 0)))
    taps = jnp.pad(filters, ((0, 1), (0, 1), (0, 0), (0, 0)))[taps_of[0]][:, :, taps_of[1]]
    (few, high), (fewer, broad) = taps_of[0].shape, taps_of[1].shape
    by_place = taps.transpose(0, 2, 4, 1, 3, 5).reshape(few, fewer, -1, high * broad * outputs)
    results = convolve(filled, by_place).reshape(batch, *counts, high, broad, outputs)
    return results.transpose(0, 1, 3, 2, 4, 5).reshape(batch, counts[0] * high, -1, outputs)[:, : sizes[0], : sizes[1]]
