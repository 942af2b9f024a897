"""Several runs at once."""

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ntk_robust._core import AbstractProgress, SilentProgress
from ntk_robust.training._fit import TrainingResult, finish, prepare
from ntk_robust.training._history import save_history
from ntk_robust.training._loop import Carry, Program, advance, advance_together, start, start_together
from ntk_robust.training._static import split

_MEASURED_TURNS = 20


def sweep(
    runs: Sequence[Mapping[str, Any]],
    *,
    vectorize: bool | Literal["measured"] | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: AbstractProgress | None = None,
) -> list[TrainingResult]:
    """The results of many runs, in their order; runs that differ in numbers alone share one compiled program.

    Seeds, radii and initial weights are numbers. Widths, attacks and losses are not, and neither is a learning rate
    inside an optax transformation; `at_rate` makes it one.

    Args:
        runs: For each run the arguments of `fit` by name ("apply_fn", "params", "xs", "ys", "loss", ...), without those
            of the host: steps_per_chunk, checkpoints, callback, progress, throw.
        vectorize: Whether runs that share a program also run in one, by `jax.vmap`, instead of in turn. None decides by
            the device: in turn on a CPU, where a large network has nothing to gain, together elsewhere. "measured"
            tries both for twenty steps and takes the faster one, which costs compiling both; another sweep may then
            choose otherwise. It changes rounding, not meaning.
        folder: Where to write the history of every run with its arguments, by `save_history`, as soon as it is there:
            run_00, run_01, ... in the order of `runs`, with as many digits as the last one has. None for nowhere.
        progress: Where to report, an `AbstractProgress`; None is silence.

    Returns:
        One result per run. A run that meets numbers that are not finite stops alone, with `finite=False`.

    Raises:
        ValueError: As `fit`, for names that `fit` does not take, and for another `vectorize`.
        OSError: If a history could not be written.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> from ntk_robust.attacks import Identity, LinfBall
        >>> from ntk_robust.losses import Squared
        >>> common = dict(
        ...     apply_fn=lambda w, x: w @ x, xs=jnp.eye(3), ys=jnp.ones(3), loss=Squared(), attack=Identity(),
        ...     perturbations=LinfBall(0.1), optimizer=optax.sgd(0.5), num_steps=2, key=jax.random.key(0),
        ... )
        >>> results = sweep([{**common, "params": start * jnp.ones(3)} for start in (0.0, 1.0)])
        >>> [round(float(result.history["surrogate_loss"][0]), 3) for result in results]
        [0.5, 0.0]
    """
    for run in runs:
        try:
            inspect.signature(prepare).bind(**run)
        except TypeError as error:
            raise ValueError(f"a run of the sweep does not fit: {error}; name the arguments of fit") from error
    prepared = [prepare(**run) for run in runs]
    if vectorize not in (True, False, None, "measured"):
        raise ValueError(f'vectorize is {vectorize!r}; give True, False, None or "measured"')
    vectorize = jax.default_backend() != "cpu" if vectorize is None else vectorize
    results: dict[int, TrainingResult] = {}
    with (progress or SilentProgress()).task("sweep", len(runs)) as task:
        for group in _groups(prepared, vectorize):
            programs, trained = [prepared[i][0] for i in group], [prepared[i][1] for i in group]
            steps = programs[0].num_steps + 1
            if len(group) == 1 or (vectorize == "measured" and not faster_together(programs, trained)):
                carries = [
                    advance(program, start(program, p), 0, steps) for program, p in zip(programs, trained, strict=True)
                ]
            else:
                stacked = advance_together(programs, start_together(programs, trained), 0, steps)
                carries = [jax.tree.map(lambda leaf, row=row: leaf[row], stacked) for row in range(len(group))]
            for i, program, carry in zip(group, programs, carries, strict=True):
                results[i] = finish(program, carry, runs[i]["params"])
                if folder is not None:
                    save_history(Path(folder) / f"run_{i:0{len(str(len(runs) - 1))}}", results[i], arguments=runs[i])
            task.advance(len(group))
    return [results[i] for i in range(len(runs))]


def at_rate(optimizer: optax.GradientTransformation, learning_rate: float | Float[Array, ""]) -> Any:
    """`optimizer` with its updates multiplied by a number that is traced, so that another rate compiles nothing.

    Args:
        optimizer: An optax transformation at learning rate 1, the same object for every rate: `optax.sgd(1.0)`.
        learning_rate: What multiplies its updates.

    Returns:
        An optax transformation.
    """
    scaled = jax.tree_util.Partial(_Scaled(optimizer), learning_rate)
    return optax.GradientTransformationExtraArgs(optimizer.init, scaled)


class _Scaled:
    """Update, then scale; equal for one optimizer."""

    def __init__(self, optimizer: optax.GradientTransformation) -> None:
        self.optimizer = optimizer

    def __call__(self, learning_rate: Any, updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> Any:
        updates, state = optax.with_extra_args_support(self.optimizer).update(updates, state, params, **extra)
        return jax.tree.map(lambda update: update * learning_rate, updates), state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scaled) and self.optimizer == other.optimizer

    def __hash__(self) -> int:
        return hash(self.optimizer)


def faster_together(
    programs: Sequence[Program], trained: Sequence[PyTree], clock: Callable[[], float] = time.perf_counter
) -> bool:
    """Whether some steps of all runs, stacked, take less time than those of one run times their number.

    Args:
        programs: Runs that can be stacked.
        trained: Their initial weights.
        clock: Seconds.
    """
    turns = min(_MEASURED_TURNS, programs[0].num_steps)

    def seconds(advanced: Callable[[Carry, int, int], Carry], carry: Carry) -> float:
        carry = jax.block_until_ready(advanced(carry, 0, 1))  # compiles
        began = clock()
        jax.block_until_ready(advanced(carry, 1, 1 + turns))
        return clock() - began

    in_turn = seconds(lambda carry, *turns: advance(programs[0], carry, *turns), start(programs[0], trained[0]))
    together = seconds(
        lambda carry, *turns: advance_together(programs, carry, *turns), start_together(programs, trained)
    )
    return together < len(programs) * in_turn


def _groups(prepared: Sequence[tuple[Program, PyTree]], vectorize: bool | str) -> list[list[int]]:
    """Runs that can be stacked, by their place; one by one where they should not be."""
    if not vectorize:
        return [[i] for i in range(len(prepared))]
    groups: dict[Any, list[int]] = {}
    for i, (program, trained) in enumerate(prepared):
        numbers, static = split(program)
        shapes = tuple(None if leaf is None else (np.shape(leaf), jnp.result_type(leaf)) for leaf in numbers)
        weights = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(trained))
        groups.setdefault((static, shapes, weights), []).append(i)
    return list(groups.values())
