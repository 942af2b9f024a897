"""Cutting a range into tiles."""


def tiles(size: int, tile: int) -> list[slice]:
    """Slices of `tile` indices that cover `range(size)` in order; the last may be shorter.

    Raises:
        ValueError: If `tile` is not positive or `size` is negative.
    """
    if tile < 1:
        raise ValueError(f"tile is {tile}; give a positive number of rows")
    if size < 0:
        raise ValueError(f"size is {size}; give the number of rows, at least 0")
    return [slice(start, min(start + tile, size)) for start in range(0, size, tile)]
