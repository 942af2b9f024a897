"""CIFAR-10, binary version: rows of one label byte and three 32x32 planes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ntk_robust.data._official import OfficialFile, Source, locate, read_official

CIFAR10 = Source(
    "CIFAR-10 (binary version)",
    ("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "cifar10"),
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)

_BATCH_BYTES = 10000 * 3073
TRAIN_BATCHES = {
    number: OfficialFile(f"data_batch_{number}.bin", _BATCH_BYTES, total)
    for number, total in enumerate(
        (
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        start=1,
    )
}
TEST_BATCH = OfficialFile(
    "test_batch.bin", _BATCH_BYTES, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
)


def present_batches(data_dir: Path) -> list[int]:
    """Numbers of the training batches that are there, whatever they hold."""
    return [number for number, official in TRAIN_BATCHES.items() if locate(CIFAR10, data_dir, [official])]


def read_cifar10_rows(data_dir: Path, train_batches: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 3073 bytes: those of the training batches in the order named, and those of the test batch.

    Raises:
        OSError: If a file is missing or unreadable; missing training batches are named all at once.
        ValueError: If a file is not the official one, or the batches named are not different numbers in 1..5.
    """
    numbers = list(train_batches)
    if not numbers or len(set(numbers)) != len(numbers) or not set(numbers) <= set(TRAIN_BATCHES):
        raise ValueError(f"train_batches is {tuple(numbers)}; give different numbers in 1..5, at least one")
    present = present_batches(data_dir)
    missing = [number for number in numbers if number not in present]
    if missing:
        there = f"train_batches={tuple(present)} asks for what is there" if present else "no training batch is there"
        raise FileNotFoundError(
            f"{data_dir / CIFAR10.folders[0]}: missing {', '.join(TRAIN_BATCHES[number].name for number in missing)} "
            f"({_BATCH_BYTES} bytes each) of {CIFAR10.title}, from {CIFAR10.address}; {there}"
        )
    train = b"".join(read_official(CIFAR10, data_dir, [TRAIN_BATCHES[number]])[1] for number in numbers)
    _, test = read_official(CIFAR10, data_dir, [TEST_BATCH])
    return np.frombuffer(train, np.uint8).reshape(-1, 3073), np.frombuffer(test, np.uint8).reshape(-1, 3073)
