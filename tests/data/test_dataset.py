"""Tasks and parts of a data set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.data import Dataset, binary_task, load_dataset, subset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def rows(x: jax.Array) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(x)}


def test_a_binary_task_keeps_exactly_two_classes_with_the_first_positive(digits: Dataset) -> None:
    task = binary_task(digits, (3, 8))
    assert task.y_train.dtype == digits.x_train.dtype
    np.testing.assert_array_equal(task.x_train[task.y_train == 1], digits.x_train[digits.y_train == 3])
    np.testing.assert_array_equal(task.x_test[task.y_test == -1], digits.x_test[digits.y_test == 8])
    assert len(task.y_train) == int(((digits.y_train == 3) | (digits.y_train == 8)).sum())
    assert (task.num_classes, task.class_names, task.name) == (2, ("3", "8"), "digits:3-8")


@pytest.mark.parametrize("classes", [(3, 3), (-1, 2), (0, 10)])
def test_a_binary_task_refuses_classes_that_are_not_there(digits: Dataset, classes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"give two different labels of digits in 0\.\.9"):
        binary_task(digits, classes)


def test_a_binary_task_of_a_binary_task_is_refused(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="needs integer labels"):
        binary_task(binary_task(digits, (0, 1)), (0, 1))


def test_a_subset_is_balanced_drawn_without_repetition_from_the_right_part_and_repeats_with_its_key(
    digits: Dataset, key: jax.Array
) -> None:
    part = subset(digits, 57, 30, key=key)
    counts = jnp.bincount(part.y_train, length=10)
    assert int(counts.max()) - int(counts.min()) == 1
    assert jnp.bincount(part.y_test).tolist() == [3] * 10
    assert len(rows(part.x_train)) == 57
    assert rows(part.x_train) <= rows(digits.x_train)
    assert rows(part.x_test) <= rows(digits.x_test)
    assert rows(jnp.c_[part.x_train, part.y_train.astype(float)]) <= rows(
        jnp.c_[digits.x_train, digits.y_train.astype(float)]
    )
    again = subset(digits, 57, 30, key=key)
    np.testing.assert_array_equal(part.x_train, again.x_train)
    other = subset(digits, 57, 30, key=jax.random.fold_in(key, 1))
    assert rows(part.x_train) != rows(other.x_train)


def test_a_larger_subset_begins_with_the_smaller_one(digits: Dataset, key: jax.Array) -> None:
    small, large = subset(digits, 20, 10, key=key), subset(digits, 100, 50, key=key)
    np.testing.assert_array_equal(large.x_train[:20], small.x_train)
    np.testing.assert_array_equal(large.y_test[:10], small.y_test)


def test_a_subset_of_a_binary_task_has_as_many_of_either_sign(digits: Dataset, key: jax.Array) -> None:
    part = subset(binary_task(digits, (0, 1)), 40, 20, key=key)
    assert float(part.y_train.sum()) == float(part.y_test.sum()) == 0.0


def test_a_subset_that_a_class_is_too_small_for_says_how_large_it_can_be(digits: Dataset, key: jax.Array) -> None:
    smallest = int(jnp.bincount(digits.y_train).min())
    assert len(subset(digits, 10 * smallest, 10, key=key).y_train) == 10 * smallest
    with pytest.raises(ValueError, match=f"num_train is 2000, but .* have 1 to {10 * smallest} rows"):
        subset(digits, 2000, 10, key=key)
    with pytest.raises(ValueError, match="num_test is 0"):
        subset(digits, 10, 0, key=key)
