"""Runs that survive a kill: checkpoints by Orbax."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ntk_robust.training._fingerprint import fingerprint
from ntk_robust.training._loop import Carry, Program
from ntk_robust.training._os_error import os_error


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where `fit` saves after every chunk, and whether it goes on from there.

    A run that was killed at any moment and called again with the same arguments and `resume=True` ends with the same
    bits as one that was not. A save is complete or absent: the last good checkpoint survives a kill, and a full disk,
    while the next one is written. A checkpoint of other settings, data, code, versions or device is refused, naming
    what differs.

    Attributes:
        folder: Folder of this run alone.
        resume: Whether to go on from the newest checkpoint, if there is one. Without it, a folder that holds one is
            refused, so that nothing is overwritten by accident.
        num_kept: How many of the newest checkpoints to keep.

    Raises:
        ValueError: If `num_kept` is below 1.
    """

    folder: str | os.PathLike[str]
    resume: bool = False
    num_kept: int = 2

    def __post_init__(self) -> None:
        if self.num_kept < 1:
            raise ValueError(f"num_kept is {self.num_kept}; keep at least one checkpoint")

    @contextlib.contextmanager
    def open(self, program: Program, carry: Carry) -> Iterator["RunCheckpoints"]:
        """The checkpoints of one run.

        Raises:
            ValueError: If the folder is a file, or holds a checkpoint and `resume` is off, or one of another run.
        """
        import orbax.checkpoint as ocp  # noqa: PLC0415 - two seconds that only checkpoints cost

        logging.getLogger("absl").setLevel(logging.WARNING)
        folder = Path(self.folder).resolve()  # TensorStore takes no ".."
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; name a folder for the checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=self.num_kept, enable_async_checkpointing=False)
        with ocp.CheckpointManager(folder, options=options) as manager:
            run = RunCheckpoints(ocp, manager, folder, fingerprint(program) | {"weights": _shapes(carry)})
            if run.step is not None and not self.resume:
                raise ValueError(
                    f"{folder} holds a checkpoint after step {run.step}; resume it (resume=True) or name another folder"
                )
            yield run


@dataclasses.dataclass
class RunCheckpoints:
    """The open checkpoints of one run.

    Attributes:
        ocp: The Orbax module.
        manager: Its checkpoint manager.
        folder: Where it writes.
        settings: Digests of everything that the run depends on.
    """

    ocp: Any
    manager: Any
    folder: Path
    settings: dict[str, str]

    @property
    def step(self) -> int | None:
        """How many steps the newest checkpoint has behind it; None without one."""
        return self.manager.latest_step()

    def describe(self) -> str:
        """A sentence on where the newest checkpoint is."""
        if self.step is None:
            return " No checkpoint was saved."
        return f" The last checkpoint is that after step {self.step} in {self.folder}."

    def restore(self, carry: Carry) -> tuple[Carry, int]:
        """The newest checkpoint and its step, or the given carry and 0 where there is none.

        Raises:
            ValueError: If it was saved by a run with other settings.
            OSError: If it cannot be read.
        """
        if self.step is None:
            return carry, 0
        saved = self._read(settings=self.ocp.args.JsonRestore())["settings"]
        differing = sorted(name for name in {*saved, *self.settings} if saved.get(name) != self.settings.get(name))
        if differing:
            raise ValueError(
                f"the checkpoint in {self.folder} is of another run: {', '.join(differing)} differ. Repeat the call "
                "that made it, or name another folder"
            )
        named = _named(carry)
        arrays = self._read(
            carry=self.ocp.args.StandardRestore(
                {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in named.items()}
            )
        )["carry"]
        leaves, structure = jax.tree.flatten(carry)
        restored = [jax.numpy.asarray(arrays[str(i)]) if leaf.size else leaf for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, restored), self.step

    def _read(self, **args: Any) -> Any:
        """Parts of the newest checkpoint."""
        try:
            return self.manager.restore(self.step, args=self.ocp.args.Composite(**args))
        except Exception as error:  # Orbax and TensorStore raise errors of many types for files that are damaged
            older = [step for step in self.manager.all_steps() if step != self.step]
            remedy = (
                f"delete that folder and resume from the one after step {max(older)}"
                if older
                else "there is none before it: delete that folder and begin again"
            )
            raise OSError(
                f"the checkpoint {self.folder / str(self.step)} cannot be read ({error}); {remedy}"
            ) from error

    def save(self, carry: Carry, step: int) -> None:
        """Writes a checkpoint and waits until it is on disk.

        Raises:
            OSError: If it could not be written; the newest one before it is still there.
        """
        previous = self.step
        args = self.ocp.args.Composite(
            carry=self.ocp.args.StandardSave(_named(carry)), settings=self.ocp.args.JsonSave(self.settings)
        )
        try:
            self.manager.save(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise errors of many types for a disk that is full
            kept = "there is none before it" if previous is None else f"the one after step {previous} is intact"
            found = os_error(error, self.folder)
            raise OSError(
                f"the checkpoint after step {step} could not be written to {self.folder} "
                f"({error if found is None else found.strerror}); {kept}. Free space on the disk and resume"
            ) from error


def _named(carry: Carry) -> dict[str, Array]:
    """The arrays by their number; empty ones hold nothing to save."""
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(carry)) if leaf.size}


def _shapes(carry: Carry) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    return "; ".join(f"{jax.tree_util.keystr(path)} {np.dtype(leaf.dtype)}{leaf.shape}" for path, leaf in leaves)
