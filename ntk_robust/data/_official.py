"""Official files of the image data sets: where they may lie, what they must hold."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT_VARIABLE = "NTK_ROBUST_DATA"


@dataclasses.dataclass(frozen=True)
class OfficialFile:
    """One file as its authors publish it.

    Attributes:
        name: File name.
        size: Bytes.
        sha256: Of those bytes.
    """

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the files of a data set come from.

    Attributes:
        title: How its authors call it.
        folders: Folders below the data directory where its files may lie; the first is the one that errors name.
        address: Where the files can be had.
    """

    title: str
    folders: tuple[str, ...]
    address: str


def find_data_dir(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The data directory that was named, or that the environment names; None if neither does."""
    named = os.environ.get(ENVIRONMENT_VARIABLE) if data_dir is None else os.fspath(data_dir)
    return Path(named).expanduser() if named else None


def require_data_dir(source: Source, data_dir: str | os.PathLike[str] | None) -> Path:
    """The data directory, which must exist.

    Raises:
        ValueError: If none is named.
        FileNotFoundError: If it is not a folder.
    """
    folder = find_data_dir(data_dir)
    if folder is None:
        raise ValueError(
            f"{source.title} needs a data directory: set {ENVIRONMENT_VARIABLE} or name one; its files go to "
            f"{source.folders[0]}/ below it, from {source.address}"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: the data directory does not exist; make it, with the files of {source.title} in "
            f"{source.folders[0]}/ below it, from {source.address}"
        )
    return folder


def locate(source: Source, data_dir: Path, alternatives: Sequence[OfficialFile]) -> tuple[Path, OfficialFile] | None:
    """The first of the alternative files that is there, with what it must hold; None if none is."""
    for folder in source.folders:
        for official in alternatives:
            path = data_dir / folder / official.name
            if path.exists():
                return path, official
    return None


def read_official(source: Source, data_dir: Path, alternatives: Sequence[OfficialFile]) -> tuple[OfficialFile, bytes]:
    """The bytes of the first of the alternative files that is there, after comparing them with the official sum.

    Raises:
        FileNotFoundError: If none is there.
        ValueError: If the one that is there holds something else.
        OSError: If it cannot be read.
    """
    found = locate(source, data_dir, alternatives)
    if found is None:
        raise FileNotFoundError(
            f"{data_dir / source.folders[0] / alternatives[0].name}: missing; {source.title} needs this file "
            f"({alternatives[0].size} bytes) from {source.address}"
        )
    path, official = found
    content = path.read_bytes()
    measured = hashlib.sha256(content).hexdigest()
    if measured != official.sha256:
        if len(content) < official.size:
            trouble = f"truncated to {len(content)} of {official.size} bytes"
        elif len(content) > official.size:
            trouble = f"{len(content)} bytes where the official file has {official.size}"
        else:
            trouble = "right size, other content"
        raise ValueError(
            f"{path}: not the official file of {source.title} ({trouble}): sha256 is {measured}, expected "
            f"{official.sha256}; get it again from {source.address}"
        )
    return official, content
