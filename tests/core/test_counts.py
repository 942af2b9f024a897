import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust._core import check_count


@pytest.mark.parametrize("count", [1, 7, np.int32(3), np.uint8(2)])
def test_positive_integers_of_python_and_numpy_count(count):
    check_count("num_steps", count)


@pytest.mark.parametrize("count", [0, -1, True, np.bool_(True), 6.0, "6", None, np.array([2]), jnp.asarray(2)])
def test_nothing_else_counts(count):
    with pytest.raises(ValueError, match=r"num_steps=.*; give a whole number of at least 1"):
        check_count("num_steps", count)
