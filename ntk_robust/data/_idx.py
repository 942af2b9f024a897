"""MNIST and Fashion-MNIST: four idx files, gzipped or not.

The sums of the MNIST files are those that the common mirrors serve. The authors of Fashion-MNIST publish md5 sums only
(README of zalandoresearch/fashion-mnist). The sha256 sums of its label files were computed from the bytes in that
repository, whose md5 sums agree with the published ones; those of its image files are the ones that several independent
projects list beside the published md5 sums. Sums of unpacked files belong to the same payloads.
"""

import gzip
from pathlib import Path

import numpy as np

from ntk_robust.data._official import OfficialFile, Source, read_official

MNIST = Source("MNIST", ("mnist", "MNIST/raw"), "https://ossci-datasets.s3.amazonaws.com/mnist/")
FASHION_MNIST = Source(
    "Fashion-MNIST",
    ("fashion_mnist", "FashionMNIST/raw"),
    "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion",
)

PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_UNPACKED_SIZES = (47040016, 60008, 7840016, 10008)


def _files(
    gzipped: tuple[tuple[int, str], ...], unpacked_sums: tuple[str, ...]
) -> dict[str, tuple[OfficialFile, OfficialFile]]:
    return {
        part: (OfficialFile(f"{part}.gz", size, total), OfficialFile(part, unpacked_size, unpacked_total))
        for part, (size, total), unpacked_size, unpacked_total in zip(
            PARTS, gzipped, _UNPACKED_SIZES, unpacked_sums, strict=True
        )
    }


MNIST_FILES = _files(
    (
        (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
FASHION_MNIST_FILES = _files(
    (
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


def read_idx_arrays(
    source: Source, files: dict[str, tuple[OfficialFile, OfficialFile]], data_dir: Path
) -> dict[str, np.ndarray]:
    """Every part of the set as the array of bytes that its header describes, keyed by the part's name.

    Raises:
        OSError: If a file is missing or unreadable.
        ValueError: If a file is not the official one.
    """
    arrays = {}
    for part, alternatives in files.items():
        official, content = read_official(source, data_dir, alternatives)
        payload = gzip.decompress(content) if official.name.endswith(".gz") else content
        num_axes = payload[3]
        shape = np.frombuffer(payload, ">u4", count=num_axes, offset=4)
        arrays[part] = np.frombuffer(payload, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
    return arrays
