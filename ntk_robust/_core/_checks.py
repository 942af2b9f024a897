"""Refusals that every package words alike."""

from typing import Any

import numpy as np


def check_count(name: str, count: Any) -> None:
    """Refuses counts of steps, restarts, rows and the like that are not positive whole numbers.

    Integers of Python and of NumPy count; bools, floats and arrays do not.

    Raises:
        ValueError: Quoting name and value.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"{name}={count!r}; give a whole number of at least 1")
