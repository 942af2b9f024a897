"""Training as one compiled program between progress reports."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from ntk_robust._core import AbstractProgress, SilentProgress, check_count
from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet
from ntk_robust.training._checkpoints import Checkpoints
from ntk_robust.training._layers import layer_names, layers, trainable_mask
from ntk_robust.training._loop import Carry, ProbeFn, Program, RecordFn, Step, advance, start
from ntk_robust.training._methods import AbstractMethod, Adversarial
from ntk_robust.training._weight_sets import AbstractWeightSet

# Often enough for progress and Ctrl-C, seldom enough that the host's work between chunks does not show.
_SECONDS_PER_CHUNK = 1.0


class TrainingResult(eqx.Module):
    """Where a run ended and what it saw.

    Attributes:
        params: Final weights; where `finite` is False, those before the step that was refused.
        params_0: The weights it began from.
        history: One entry per step t = 0, 1, ..., each measured on the batch of that step at the weights W_t before it:
            "objective" (what the method descends), "surrogate_loss" (mean loss under the training attack, L_A(W_t)),
            "gradient_norm" (of the objective, over the trained weights), "step_length" (||W_{t+1} - W_t||, projection
            included), "projected" (whether the constraint moved the weights), and what `record` returned. A run that
            stopped early ends with the entry of the step that was refused.
        probes: Per probe, its results stacked along a leading axis; see `probe_steps`.
        probe_steps: How many steps the weights of each probing had taken: 0, k, 2k, ..., and the last.
        num_steps: Steps completed.
        finite: Whether every loss, gradient and step was finite, and loss and gradient at the last weights.
        message: Empty, or what happened, where, and what to do.
    """

    params: PyTree
    params_0: PyTree
    history: dict[str, PyTree[Array]]
    probes: dict[str, dict[str, Array]]
    probe_steps: Int[Array, " probings"]
    num_steps: int = eqx.field(static=True)
    finite: bool = eqx.field(static=True)
    message: str = eqx.field(static=True)

    @property
    def best_surrogate_loss(self) -> Float[Array, ""]:
        """The smallest L_A(W_t) over the run, the quantity that the theorems of Gao et al. bound."""
        return jnp.nanmin(self.history["surrogate_loss"])

    @property
    def path_length(self) -> Float[Array, " steps"]:
        """Length of the way the weights took up to each step, weight units; the displacement is at most this."""
        return jnp.cumsum(self.history["step_length"])


def running_minimum(values: Float[Array, " steps"]) -> Float[Array, " steps"]:
    """The smallest value up to each step."""
    return jax.lax.cummin(values)


def fit(
    apply_fn: Callable[..., Any],
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "n ..."],
    *,
    loss: Callable[..., Any],
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    method: AbstractMethod | None = None,
    trainable: PyTree[bool] | None = None,
    constraint: AbstractWeightSet | None = None,
    anchor: PyTree | None = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    probes: Mapping[str, ProbeFn] | None = None,
    probe_every: int = 100,
    record: RecordFn | None = None,
    steps_per_chunk: int | None = None,
    checkpoints: Checkpoints | None = None,
    callback: Callable[[TrainingResult], None] | None = None,
    progress: AbstractProgress | None = None,
    throw: bool = False,
    key: Key[Array, ""],
) -> TrainingResult:
    r"""Weights after `num_steps` steps of (adversarial) training, with what was measured on the way.

    One step is $W_{t+1} = P(W_t + \mathrm{update}(\nabla_W \tfrac1n \sum_i \ell(f(W_t, x_i'), y_i)))$ with
    $x_i' = A(W_t, x_i)$ held fixed, the optimizer's update, and the projection $P$ on the constraint around the anchor.
    Attack, step, projection, probes and records are one compiled program, which runs in chunks; where it is cut changes
    no bit of any result. The same arguments and key give the same bits on the same machine.

    The weights after the last step are tried by one more step, which is not taken: objective and gradient must be
    finite there too. A run of T steps so costs T + 1.

    Args:
        apply_fn: (weights, one example) -> output, scalar or logits. A bound `model.apply`, a plain function, or an
            `equinox.Module`. Compiled once per function object and shapes.
        params: Initial weights $W_0$, any tree. They are copied, not consumed.
        xs: Training inputs.
        ys: Their targets, one per input, as the loss takes them.
        loss: (output, target) -> scalar, such as `ntk_robust.losses.Squared()`.
        attack: The inner maximization; `ntk_robust.attacks.Identity()` is natural training.
        perturbations: The set $B(x)$ that the attack searches; its `epsilon` may hold one radius for each input.
        optimizer: Any optax transformation; its state lives on the trained weights only. Line searches such as
            `optax.lbfgs()` see the method's objective at the perturbed inputs of the step, held fixed.
        num_steps: How many steps.
        method: How a batch becomes a gradient; None is `Adversarial()`.
        trainable: Mask like `params`, False at weights that never change; None trains every array of floats.
        constraint: Set to which the trained weights are projected after every step, None for none.
        anchor: Center of the constraint, weights like `params`; None is `params`.
        batch_size: Rows per step, drawn without replacement within an epoch; rows that do not fill a batch wait for
            the next epoch's permutation. None is the full batch of the theory.
        devices: Devices over which the rows of every batch are split, `jax.local_devices()` for all of this process;
            each holds all weights and data. None computes on the default device. Sums over rows are then taken in
            another order, which changes rounding, not meaning.
        probes: Named functions of the (whole) weights, each returning a dict of arrays, run inside the program.
        probe_every: Steps between probings, k; the first and the last weights are always probed.
        record: Function of a `Step` that returns a dict of arrays; called in every step, they join the history.
        steps_per_chunk: Steps between progress reports, checkpoints and callbacks; None is about a second's worth.
        checkpoints: Where to save after every chunk, and whether to resume; None for nowhere.
        callback: Called after every chunk with the result so far, a copy.
        progress: Where to report, an `AbstractProgress`; None is silence.
        throw: Whether a run that meets numbers that are not finite raises instead of returning with `finite=False`.
        key: Randomness of batches and attacks.

    Returns:
        The result. If a loss, a gradient or a step is not finite, the run ends there with the weights before that step,
        `finite=False` and a `message`.

    Raises:
        ValueError: If sizes, dtypes, labels, mask, anchor or names do not fit together.
        FloatingPointError: With `throw`, when the run met numbers that are not finite.
        OSError: If a checkpoint could not be written.
    """
    program, trained = prepare(
        apply_fn,
        params,
        xs,
        ys,
        loss=loss,
        attack=attack,
        perturbations=perturbations,
        optimizer=optimizer,
        num_steps=num_steps,
        method=method,
        trainable=trainable,
        constraint=constraint,
        anchor=anchor,
        batch_size=batch_size,
        devices=devices,
        probes=probes,
        probe_every=probe_every,
        record=record,
        key=key,
    )
    if steps_per_chunk is not None:
        check_count("steps_per_chunk", steps_per_chunk)
    chunk = steps_per_chunk or max(1, num_steps // 20)
    carry = start(program, trained)
    with contextlib.ExitStack() as stack:
        task = stack.enter_context((progress or SilentProgress()).task("training", num_steps))
        saved = None if checkpoints is None else stack.enter_context(checkpoints.open(program, carry))
        done = 0
        if saved is not None:
            carry, done = saved.restore(carry)
            task.advance(done)
        while done < num_steps:
            begin, end = done, min(done + chunk, num_steps)
            began = time.perf_counter()
            # The turn after the last step probes and looks at the last weights.
            carry = advance(program, carry, begin, end + (end == num_steps))
            if not bool(carry.state.finite):
                break
            elapsed = time.perf_counter() - began  # of the steps alone: callbacks and checkpoints may be slow
            done = end
            if saved is not None:
                saved.save(carry, end)
            task.advance(end - begin, surrogate_loss=float(carry.history["surrogate_loss"][end - 1]))
            if callback is not None:
                callback(finish(program, carry._replace(state=jax.tree.map(jnp.copy, carry.state)), params))
            if steps_per_chunk is None:
                chunk = max(1, int((end - begin) * min(_SECONDS_PER_CHUNK / max(elapsed, 1e-9), num_steps)))
        last_good = "" if saved is None else saved.describe()
    result = finish(program, carry, params, advice=last_good)
    if throw and not result.finite:
        raise FloatingPointError(result.message)
    return result


def prepare(
    apply_fn: Callable[..., Any],
    params: PyTree,
    xs: Float[Array, "n *dims"],
    ys: Num[Array, "n ..."],
    *,
    loss: Callable[..., Any],
    attack: AbstractAttack,
    perturbations: AbstractPerturbationSet,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    method: AbstractMethod | None = None,
    trainable: PyTree[bool] | None = None,
    constraint: AbstractWeightSet | None = None,
    anchor: PyTree | None = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    probes: Mapping[str, ProbeFn] | None = None,
    probe_every: int = 100,
    record: RecordFn | None = None,
    key: Key[Array, ""],
) -> tuple[Program, PyTree]:
    """The program and the trained weights of a run, after every check that needs no tracing; arguments as in `fit`."""
    check_count("num_steps", num_steps)
    check_count("probe_every", probe_every)
    _check_array("xs", xs)
    _check_array("ys", ys)
    if len(xs) != len(ys) or len(xs) == 0:
        raise ValueError(f"{len(xs)} inputs and {len(ys)} targets; give as many of each, at least one")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if batch_size is not None and batch_size > len(xs):
        raise ValueError(f"batch_size is {batch_size} with {len(xs)} examples; give 1 to {len(xs)}, or None for all")
    radii = jnp.shape(perturbations.epsilon)
    if radii not in ((), (len(xs),)):
        raise ValueError(f"radii of shape {radii} for {len(xs)} inputs; give one radius, or one for each input")
    sharding = _rows_over(devices, len(xs) if batch_size is None else batch_size)
    _check_dtypes(params, xs, ys)
    mask = trainable_mask(params, trainable)
    trained, frozen = eqx.partition(params, mask)
    anchor = params if anchor is None else anchor
    if jax.tree.structure(anchor) != jax.tree.structure(params):
        raise ValueError(
            f"anchor has the structure {jax.tree.structure(anchor)} and the weights have "
            f"{jax.tree.structure(params)}; give weights of the same network"
        )
    _check_targets(apply_fn, params, xs, ys, loss)
    program = Program(
        apply_fn=apply_fn,
        loss=loss,
        attack=attack,
        perturbations=perturbations,
        method=Adversarial() if method is None else method,
        optimizer=optimizer,
        constraint=constraint,
        record=_record_nothing if record is None else record,
        probes=dict(probes or {}),
        frozen=frozen,
        anchor=eqx.filter(anchor, mask) if constraint is not None else None,
        xs=xs,
        ys=ys,
        key=key,
        sharding=sharding,
        num_steps=int(num_steps),
        probe_every=int(probe_every),
        batch_size=None if batch_size is None else int(batch_size),
    )
    if sharding is None:
        return program, trained
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    program = eqx.tree_at(lambda p: (p.xs, p.ys, p.key), program, jax.device_put((xs, ys, key), everywhere))
    return program, jax.device_put(trained, everywhere)


def _rows_over(devices: Sequence[Any] | None, rows: int) -> NamedSharding | None:
    if devices is None:
        return None
    if len(devices) == 0 or rows % len(devices):
        raise ValueError(
            f"{rows} rows cannot be split evenly over {len(devices)} devices; give as many devices as divide the batch"
        )
    return NamedSharding(Mesh(np.asarray(devices), ("rows",)), PartitionSpec("rows"))


def finish(program: Program, carry: Carry, params_0: PyTree, advice: str = "") -> TrainingResult:
    """The result of a run from a carry; `advice` ends the message of one that is not finite.

    History and probes are copies. They are cut on the host: a slice of an array on a device compiles once per length.
    """
    state = carry.state
    num_steps, finite = int(state.num_steps), bool(state.finite)
    entries = num_steps if finite else num_steps + 1
    # The last row of the buffers is for the step after the last, kept where it shows what is not finite.
    # Probings happen before steps 0, k, ...; one that was due before the refused step did happen.
    probings = program.num_probings if num_steps == program.num_steps else -(-entries // program.probe_every)
    steps = np.minimum(np.arange(probings) * program.probe_every, num_steps)
    return TrainingResult(
        params=eqx.combine(state.params, program.frozen),
        params_0=params_0,
        history=jax.tree.map(lambda buffer: _first(buffer, entries), carry.history),
        probes=jax.tree.map(lambda buffer: _first(buffer, probings), carry.probes),
        probe_steps=jnp.asarray(steps),
        num_steps=num_steps,
        finite=finite,
        message="" if finite else _explain(carry) + advice,
    )


def _first(buffer: Array, count: int) -> Array:
    # Copied, since the next chunk writes where the buffer is.
    return jnp.asarray(np.array(np.asarray(buffer)[:count]))


def _explain(carry: Carry) -> str:
    state = carry.state
    names = layer_names(state.params)
    culprits = [name for name, bad in zip(names, np.asarray(state.culprits), strict=True) if bad]
    step = int(state.num_steps)
    row = {name: float(carry.history[name][step]) for name in ("objective", "gradient_norm", "step_length")}
    where = (
        f"the gradient of {', '.join(culprits)} is not finite" if culprits else "every entry of the gradient is finite"
    )
    if step == 0 and not math.isfinite(row["objective"] + row["gradient_norm"]):
        advice = (
            "No step was taken yet, so the learning rate is not the reason: look for numbers that are not finite in "
            "inputs, targets and initial weights, for a network or loss without a slope there, and at their scale."
        )
    else:
        advice = (
            "Usually the learning rate is too large or a loss without a bounded slope overflows: lower the learning "
            "rate, clip the gradient (optax.clip_by_global_norm), or use float64."
        )
    which = (
        f"step {step}" if step < len(carry.history["objective"]) - 1 else f"the trial after the last step, step {step}"
    )
    return (
        f"training stopped in {which}: objective {row['objective']:.3g}, gradient norm {row['gradient_norm']:.3g}, "
        f"step length {row['step_length']:.3g}; {where}. The result holds the weights before this step. {advice}"
    )


def _record_nothing(step: Step) -> dict[str, PyTree]:
    del step
    return {}


def _check_array(name: str, values: Any) -> None:
    if not isinstance(values, jax.Array | np.ndarray):
        raise ValueError(f"{name} is a {type(values).__name__}; give an array, such as jnp.asarray({name})")


def _check_dtypes(params: PyTree, xs: Array, ys: Array) -> None:
    dtypes = {str(layer.dtype) for layer in layers(params)}
    if not dtypes:
        raise ValueError("params holds no array of floats; there is nothing to train")
    if dtypes != {str(xs.dtype)}:
        raise ValueError(
            f"weights are {', '.join(sorted(dtypes))} and inputs {xs.dtype}; give both one dtype, "
            "for example xs.astype(...) or model.init(..., dtype=xs.dtype)"
        )
    if jnp.issubdtype(ys.dtype, jnp.floating) and jnp.result_type(ys) != xs.dtype:
        raise ValueError(
            f"targets are {ys.dtype} and inputs {xs.dtype}; give both one dtype, for example ys.astype(...)"
        )


def _check_targets(
    apply_fn: Callable[..., Any], params: PyTree, xs: Array, ys: Array, loss: Callable[..., Any]
) -> None:
    output = jax.eval_shape(apply_fn, params, xs[0])
    if not isinstance(output, jax.ShapeDtypeStruct) or output.ndim > 1:
        raise ValueError(
            f"apply_fn returned {output} for one example; it must return one scalar or one vector of outputs"
        )
    value = jax.eval_shape(loss, output, ys[0])
    if value.shape != ():
        raise ValueError(f"loss returned shape {value.shape} for one example; it must return a scalar")
    if output.ndim == 1 and ys.ndim == 1 and jnp.issubdtype(ys.dtype, jnp.integer):
        labels = np.asarray(ys)
        if labels.min() < 0 or labels.max() >= output.shape[0]:
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()} and there are {output.shape[0]} outputs; "
                f"labels must be 0 to {output.shape[0] - 1}"
            )
