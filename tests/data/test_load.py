"""Official files are read as published, and anything else is refused in one line that says what to do."""

import gzip
import hashlib
import os
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_robust.data import DATASET_NAMES, dataset_status, load_dataset
from ntk_robust.data import _cifar10 as cifar10
from ntk_robust.data import _idx as idx
from ntk_robust.data._official import OfficialFile

REAL = os.environ.get("NTK_ROBUST_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="NTK_ROBUST_DATA is not set: no official files to read")


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A tiny set in the idx format, whose sums stand in for the official ones."""
    generator = np.random.default_rng(0)
    arrays = {
        part: generator.integers(0, 256 if "images" in part else 10, shape).astype(np.uint8)
        for part, shape in zip(idx.PARTS, [(12, 28, 28), (12,), (5, 28, 28), (5,)], strict=True)
    }
    files = {}
    (tmp_path / "mnist").mkdir()
    for part, array in arrays.items():
        payload = idx_bytes(array)
        packed = gzip.compress(payload, mtime=0)
        (tmp_path / "mnist" / f"{part}.gz").write_bytes(packed)
        files[part] = (
            OfficialFile(f"{part}.gz", len(packed), hashlib.sha256(packed).hexdigest()),
            OfficialFile(part, len(payload), hashlib.sha256(payload).hexdigest()),
        )
    monkeypatch.setattr("ntk_robust.data._load.MNIST_FILES", files)
    return arrays


def assert_one_line_with(caught: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_digits_have_every_image_of_scikit_learn_once_and_the_last_fifth_of_each_class_is_the_test_part() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = load_dataset("digits")
    assert digits.x_train.shape == (1433, 64)
    assert digits.x_test.shape == (364, 64)
    rows = np.concatenate([np.c_[digits.x_train * 16, digits.y_train], np.c_[digits.x_test * 16, digits.y_test]])
    expected = np.c_[bunch.data, bunch.target]
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    sevens = bunch.data[bunch.target == 7] / 16
    np.testing.assert_array_equal(digits.x_train[digits.y_train == 7], sevens[: len(sevens) * 4 // 5])
    np.testing.assert_array_equal(digits.x_test[digits.y_test == 7], sevens[len(sevens) * 4 // 5 :])
    assert jnp.bincount(digits.y_train).min() >= 139
    assert digits.image_shape == (8, 8, 1)


def test_pixels_have_the_dtype_that_was_asked_for_and_labels_are_int32() -> None:
    digits = load_dataset("digits", dtype=np.float32)
    assert digits.x_train.dtype == jnp.float32
    assert digits.y_train.dtype == jnp.int32
    assert load_dataset("digits").x_train.dtype == jnp.float64
    with pytest.raises(ValueError, match="dtype is int32; pixels"):
        load_dataset("digits", dtype=np.int32)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_gzipped_or_not(tiny_mnist: dict[str, np.ndarray], tmp_path: Path, packed: bool) -> None:
    if not packed:
        for path in (tmp_path / "mnist").glob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    mnist = load_dataset("mnist", data_dir=tmp_path)
    x_train, y_train, x_test, y_test = tiny_mnist.values()
    np.testing.assert_array_equal(mnist.x_train.reshape(-1, *mnist.image_shape)[..., 0], x_train / 255)
    np.testing.assert_array_equal(mnist.x_test, x_test.reshape(5, 784) / 255)
    np.testing.assert_array_equal(mnist.y_train, y_train)
    np.testing.assert_array_equal(mnist.y_test, y_test)


def test_a_truncated_file_a_changed_file_and_a_longer_file_are_each_refused_by_name(
    tiny_mnist: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    original = path.read_bytes()
    changed = bytearray(original)
    changed[len(changed) // 2] ^= 1
    for content, trouble in (
        (original[:-7], f"truncated to {len(original) - 7} of {len(original)} bytes"),
        (bytes(changed), "right size, other content"),
        (original + b"x", f"{len(original) + 1} bytes where the official file has {len(original)}"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not the official file") as caught:
            load_dataset("mnist", data_dir=tmp_path)
        expected = hashlib.sha256(original).hexdigest()
        came = hashlib.sha256(content).hexdigest()
        assert_one_line_with(caught, str(path), trouble, expected, came, "get it again from https://")


def test_a_missing_file_and_a_folder_in_its_place_are_named(tiny_mnist: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    path.unlink()
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        load_dataset("mnist", data_dir=tmp_path)
    assert_one_line_with(caught, str(path), "MNIST needs this file", "https://")
    path.mkdir()
    with pytest.raises(OSError, match=re.escape(str(path))):
        load_dataset("mnist", data_dir=tmp_path)


def test_no_data_directory_and_one_that_does_not_exist_say_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NTK_ROBUST_DATA", raising=False)
    with pytest.raises(ValueError, match="NTK_ROBUST_DATA") as caught:
        load_dataset("mnist")
    assert_one_line_with(caught, "mnist/", "https://")
    monkeypatch.setenv("NTK_ROBUST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="does not exist") as missing:
        load_dataset("cifar10")
    assert_one_line_with(missing, str(tmp_path / "nowhere"), "cifar10/cifar-10-batches-bin/")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'imagenet' is unknown; give one of digits, mnist, fashion_mnist, cifar10"):
        load_dataset("imagenet")


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Rows of the test batch; training batches 2 and 4 are there too."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rows = {}
    official = {}
    for name in ("data_batch_2.bin", "data_batch_4.bin", "test_batch.bin"):
        rows[name] = generator.integers(0, 256, (4, 3073)).astype(np.uint8)
        rows[name][:, 0] = generator.integers(0, 10, 4)
        content = rows[name].tobytes()
        (folder / name).write_bytes(content)
        official[name] = OfficialFile(name, len(content), hashlib.sha256(content).hexdigest())
    for number in (2, 4):
        monkeypatch.setitem(cifar10.TRAIN_BATCHES, number, official[f"data_batch_{number}.bin"])
    monkeypatch.setattr(cifar10, "TEST_BATCH", official["test_batch.bin"])
    return rows["test_batch.bin"]


def test_cifar10_rows_come_as_height_width_channel_from_the_batches_named(
    tiny_cifar10: np.ndarray, tmp_path: Path
) -> None:
    cifar = load_dataset("cifar10", data_dir=tmp_path, train_batches=(4, 2))
    assert cifar.x_train.shape == (8, 3072)
    image = cifar.x_test[3].reshape(cifar.image_shape)
    for channel, row, column in ((0, 0, 0), (1, 5, 31), (2, 30, 7)):
        assert float(image[row, column, channel]) == tiny_cifar10[3, 1 + 1024 * channel + 32 * row + column] / 255
    np.testing.assert_array_equal(cifar.y_test, tiny_cifar10[:, 0])
    other = load_dataset("cifar10", data_dir=tmp_path, train_batches=(2, 4))
    np.testing.assert_array_equal(cifar.x_train[:4], other.x_train[4:])


def test_missing_batches_of_cifar10_are_named_together_with_the_way_to_do_without(
    tiny_cifar10: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        load_dataset("cifar10", data_dir=tmp_path)
    assert_one_line_with(
        caught, "data_batch_1.bin, data_batch_3.bin, data_batch_5.bin", "train_batches=(2, 4) asks for what is there"
    )
    for wrong in ((), (1, 1), (0,), (6,)):
        with pytest.raises(ValueError, match=re.escape(f"train_batches is {wrong}")):
            load_dataset("cifar10", data_dir=tmp_path, train_batches=wrong)


def test_the_status_agrees_with_what_loading_does(
    tiny_cifar10: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {entry.name: entry for entry in dataset_status(tmp_path)}
    assert tuple(status) == DATASET_NAMES
    assert status["digits"].available
    assert not status["mnist"].available
    assert "train-images-idx3-ubyte.gz: missing" in status["mnist"].detail
    monkeypatch.delenv("NTK_ROBUST_DATA", raising=False)
    assert [entry.available for entry in dataset_status()] == [True, False, False, False]


def test_the_status_names_the_batches_that_are_there(tiny_cifar10: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ntk_robust.data._status.TEST_BATCH", cifar10.TEST_BATCH)
    status = {entry.name: entry for entry in dataset_status(tmp_path)}
    assert status["cifar10"].available
    assert "training batches [2, 4] only" in status["cifar10"].detail


def test_the_sums_of_gzipped_and_unpacked_files_are_all_different_sums() -> None:
    files = [*idx.MNIST_FILES.values(), *idx.FASHION_MNIST_FILES.values()]
    sums = [official.sha256 for pair in files for official in pair]
    sums += [official.sha256 for official in cifar10.TRAIN_BATCHES.values()] + [cifar10.TEST_BATCH.sha256]
    assert len(set(sums)) == len(sums) == 22
    assert all(re.fullmatch("[0-9a-f]{64}", total) for total in sums)


@needs_real_data
def test_the_real_mnist_loads_within_seconds_and_has_its_published_class_counts() -> None:
    jax.block_until_ready(jnp.zeros(()))
    start = time.process_time()
    mnist = load_dataset("mnist")
    jax.block_until_ready(mnist.x_train)
    assert time.process_time() - start < 5
    assert mnist.x_train.shape == (60000, 784)
    assert jnp.bincount(mnist.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert jnp.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@needs_real_data
def test_the_real_unpacked_mnist_labels_have_the_sum_of_the_payload() -> None:
    assert REAL is not None
    for part, (packed, unpacked) in idx.MNIST_FILES.items():
        payload = gzip.decompress((Path(REAL) / "mnist" / packed.name).read_bytes())
        assert (len(payload), hashlib.sha256(payload).hexdigest()) == (unpacked.size, unpacked.sha256), part


@needs_real_data
def test_the_real_first_batch_of_cifar10_is_balanced_enough_and_lies_in_the_box() -> None:
    cifar = load_dataset("cifar10", train_batches=(1,), dtype=np.float32)
    assert cifar.x_train.shape == (10000, 3072)
    assert jnp.bincount(cifar.y_test).tolist() == [1000] * 10
    assert (float(cifar.x_test.min()), float(cifar.x_test.max())) == (0.0, 1.0)
