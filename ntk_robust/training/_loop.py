"""The compiled loop: one program that steps, measures and records."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from ntk_robust._core import with_fast_convolutions
from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet
from ntk_robust.training._layers import layers
from ntk_robust.training._methods import AbstractAttackedObjective, AbstractMethod, Batch, Problem
from ntk_robust.training._static import Static, join, split
from ntk_robust.training._weight_sets import AbstractWeightSet


class Step(eqx.Module):
    """Everything that one step knew, for a `record` function.

    Attributes:
        index: t, from 0.
        params: The weights W_t before the step, frozen ones included.
        gradient: Gradient in the trained weights, None at frozen ones.
        next_params: The weights W_{t+1} after step and projection.
        xs: The batch.
        xs_adv: The batch as the attack left it.
        ys: Its targets.
        objective: What the method descended, at W_t.
        surrogate_loss: L_A(W_t) on this batch.
        projected: Whether the constraint moved the weights.
    """

    index: Int[Array, ""]
    params: PyTree
    gradient: PyTree
    next_params: PyTree
    xs: Float[Array, "b *dims"]
    xs_adv: Float[Array, "b *dims"]
    ys: Num[Array, "b ..."]
    objective: Float[Array, ""]
    surrogate_loss: Float[Array, ""]
    projected: Bool[Array, ""]


RecordFn = Callable[[Step], Mapping[str, PyTree]]
ProbeFn = Callable[[PyTree], Mapping[str, Array]]


class State(NamedTuple):
    """What a step changes.

    Attributes:
        params: The trained weights.
        optimizer: The optimizer's state.
        method: The method's state.
        order: The rows of the running epoch, in the order of their batches; empty for a full batch.
        num_steps: Steps completed.
        finite: False once a step met numbers that are not; from then on nothing changes.
        culprits: Which layers' gradients were not finite in that step.
    """

    params: PyTree
    optimizer: PyTree
    method: PyTree
    order: Int[Array, " rows"]
    num_steps: Int[Array, ""]
    finite: Bool[Array, ""]
    culprits: Bool[Array, " layers"]


class Carry(NamedTuple):
    """State and what was written down so far: one row per step, one per probing.

    Attributes:
        state: What a step changes.
        history: Records of the steps.
        probes: Results of the probes.
    """

    state: State
    history: dict[str, PyTree]
    probes: dict[str, dict[str, Array]]


class Program(eqx.Module):
    """Everything that a run depends on and does not change.

    Attributes:
        apply_fn: (weights, one example) -> output.
        loss: (output, target) -> scalar.
        attack: The inner maximization.
        perturbations: The set it searches.
        method: How a batch becomes a gradient.
        optimizer: An optax transformation.
        constraint: Set to which weights are projected, or None.
        record: Called in every step; what it returns joins the history.
        probes: Called on the weights at the probing steps.
        frozen: The weights that do not train (None elsewhere).
        anchor: Center of the constraint (trained weights only).
        xs: Training inputs.
        ys: Training targets.
        key: Randomness of the run; step t uses `fold_in(key, t)`.
        num_steps: Steps of the whole run.
        probe_every: Steps between probings.
        batch_size: Rows of a batch, None for all.
        sharding: How the rows of a batch are split over devices, None for one device.
    """

    apply_fn: Callable[..., Any]
    loss: Callable[..., Any]
    attack: AbstractAttack
    perturbations: AbstractPerturbationSet
    method: AbstractMethod
    optimizer: optax.GradientTransformation
    constraint: AbstractWeightSet | None
    record: RecordFn
    probes: dict[str, ProbeFn]
    frozen: PyTree
    anchor: PyTree
    xs: Float[Array, "n *dims"]
    ys: Num[Array, "n ..."]
    key: Key[Array, ""]
    sharding: jax.sharding.NamedSharding | None
    num_steps: int = eqx.field(static=True)
    probe_every: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)

    def problem(self, rows: Int[Array, " b"] | None) -> Problem:
        """The problem in the trained weights alone, for a batch of these rows (None for all)."""

        def predict(params: PyTree, x: Array) -> Array:
            return self.apply_fn(eqx.combine(params, self.frozen), x)

        perturbations = self.perturbations
        if rows is not None and jnp.ndim(perturbations.epsilon):
            perturbations = perturbations.with_epsilon(perturbations.epsilon[rows])
        return Problem(predict, self.loss, self.attack, perturbations)

    @property
    def num_probings(self) -> int:
        """Before steps 0, k, 2k, ... and after the last."""
        return -(-self.num_steps // self.probe_every) + 1

    def start(self, params: PyTree) -> Carry:
        """Before the first step, from the trained weights."""
        rows = 0 if self.batch_size is None else len(self.xs) // self.batch_size * self.batch_size
        batch_size = len(self.xs) if self.batch_size is None else self.batch_size
        state = State(
            params=params,
            optimizer=self.optimizer.init(params),
            method=self.method.init(self.problem(None), params, self.xs[:batch_size]),
            order=jnp.zeros((rows,), jnp.int32),
            num_steps=jnp.zeros((), jnp.int32),
            finite=jnp.asarray(True),
            culprits=jnp.zeros((len(layers(params)),), bool),
        )
        _, record = jax.eval_shape(_plain(self.step), state, jnp.zeros((), jnp.int32))
        measured = jax.eval_shape(_plain(self.measure), params)
        # One row more, for the trial after the last step.
        return Carry(state, _buffers(record, self.num_steps + 1), _buffers(measured, self.num_probings))

    def batch(self, state: State, step: Int[Array, ""]) -> tuple[Batch, Int[Array, " b"] | None, Int[Array, " rows"]]:
        """The batch of step t, its rows (None for all), and the order of the epoch: permuted anew when one begins."""
        order_key, method_key = jr.split(jr.fold_in(self.key, step))
        if self.batch_size is None:
            return Batch(self.split(self.xs), self.split(self.ys), step, method_key), None, state.order
        turn = step // self.method.num_replays
        place = turn % (len(state.order) // self.batch_size)
        order = lax.cond(
            (place == 0) & (step % self.method.num_replays == 0),
            lambda: jr.permutation(order_key, len(self.xs))[: len(state.order)].astype(jnp.int32),
            lambda: state.order,
        )
        rows = lax.dynamic_slice_in_dim(order, place * self.batch_size, self.batch_size)
        return Batch(self.split(self.xs[rows]), self.split(self.ys[rows]), step, method_key), rows, order

    def split(self, rows: Num[Array, "b ..."]) -> Num[Array, "b ..."]:
        """Rows of a batch, split over the devices."""
        return rows if self.sharding is None else lax.with_sharding_constraint(rows, self.sharding)

    def step(self, state: State, index: Int[Array, ""]) -> tuple[State, dict[str, PyTree]]:
        """One step of the method, the optimizer and the projection, and its record."""
        batch, rows, order = self.batch(state, index)
        found = self.method.gradient(self.problem(rows), state.params, batch, state.method)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer step count
            updates, optimizer = optax.with_extra_args_support(self.optimizer).update(
                found.gradient,
                state.optimizer,
                state.params,
                value=found.objective,
                grad=found.gradient,
                value_fn=self.value_fn(batch, rows, found.xs_adv),
            )
        params = optax.apply_updates(state.params, updates)
        projected = jnp.asarray(False)
        if self.constraint is not None:
            projected = self.constraint.boundary_distance(params, self.anchor) < 0
            params = self.constraint.project(params, self.anchor)

        gradient_norm = optax.tree.norm(found.gradient)
        step_length = optax.tree.norm(optax.tree.sub(params, state.params))
        finite = jnp.isfinite(found.objective) & jnp.isfinite(gradient_norm)
        finite &= jnp.isfinite(step_length) | (index == self.num_steps)
        record = {
            "objective": found.objective,
            "surrogate_loss": found.surrogate_loss,
            "gradient_norm": gradient_norm,
            "step_length": step_length,
            "projected": projected,
        }
        more = self.record(
            Step(
                index=index,
                params=eqx.combine(state.params, self.frozen),
                gradient=found.gradient,
                next_params=eqx.combine(params, self.frozen),
                xs=batch.xs,
                xs_adv=found.xs_adv,
                ys=batch.ys,
                objective=found.objective,
                surrogate_loss=found.surrogate_loss,
                projected=projected,
            )
        )
        if record.keys() & more.keys():
            raise ValueError(
                f"record returned {', '.join(sorted(record.keys() & more.keys()))}, which the history holds already; "
                "choose other names"
            )
        record |= more
        # A step that is not finite is not taken: the weights stay the last ones at which everything was.
        taken = State(params, optimizer, found.state, order, index + 1, jnp.asarray(True), state.culprits)
        refused = state._replace(
            finite=finite,
            culprits=jnp.stack([~jnp.all(jnp.isfinite(layer)) for layer in layers(found.gradient)]),
        )
        goes_on = finite & (index < self.num_steps)
        return jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), taken, refused), record

    def value_fn(
        self, batch: Batch, rows: Int[Array, " b"] | None, xs_adv: Float[Array, "b *dims"]
    ) -> Callable[[PyTree], Float[Array, ""]]:
        """The objective of a step at other weights and the same perturbed inputs, for line searches."""

        def value(params: PyTree) -> Float[Array, ""]:
            if not isinstance(self.method, AbstractAttackedObjective):
                raise ValueError(
                    f"the optimizer asks for the objective at other weights (a line search), which "
                    f"{type(self.method).__name__} does not have; give another optimizer, or a method that is an "
                    "AbstractAttackedObjective, such as Adversarial()"
                )
            return self.method.objective(self.problem(rows), params, batch, xs_adv)[0]

        return value

    def measure(self, params: PyTree) -> dict[str, dict[str, Array]]:
        """All probes at the trained weights `params`."""
        whole = eqx.combine(params, self.frozen)
        _check_names("a probe", self.probes)
        found = {name: probe(whole) for name, probe in self.probes.items()}
        for name, measured in found.items():
            if not isinstance(measured, Mapping):
                raise ValueError(f"probe {name!r} returned {measured}; it must return a dict of arrays")
            _check_names(f"a measurement of probe {name!r}", measured)
        return {name: dict(measured) for name, measured in found.items()}

    def turn(self, index: Int[Array, ""], carry: Carry) -> Carry:
        """Probes before step `index` if they are due, then the step; index `num_steps` tries one that is not taken."""
        state, history, probes = carry
        if self.probes:
            # The condition must not depend on the state: vmap would turn it into a select, with probes at every step.
            due = (index % self.probe_every == 0) | (index == self.num_steps)
            measure = _plain(self.measure)
            measured = lax.cond(due, measure, _blank(measure), state.params)
            row = jnp.where(due & state.finite, -(-index // self.probe_every), self.num_probings)
            probes = _write(probes, measured, row)
        step, acts = _plain(self.step), state.finite
        state, record = lax.cond(acts, step, _idle(step), state, index)
        history = _write(history, record, jnp.where(acts, index, self.num_steps + 1))
        return Carry(state, history, probes)


def start(program: Program, params: PyTree) -> Carry:
    """The carry before the first step; `params` are copied."""
    numbers, static = split(program)
    return _start(numbers, params, static)


def advance(program: Program, carry: Carry, begin: int, end: int) -> Carry:
    """The carry after turns `begin` to `end` - 1; the given one is consumed.

    The bounds are traced: however a run is cut into pieces, every piece runs the same executable, and so the same bits.
    """
    numbers, static = split(program)
    return _advance(numbers, carry, jnp.asarray(begin, jnp.int32), jnp.asarray(end, jnp.int32), static)


def start_together(programs: Sequence[Program], params: Sequence[PyTree]) -> Carry:
    """The carries of several runs, stacked: of runs that agree in everything but numbers."""
    numbers, axes, static = _stacked(programs)
    return _start_together(numbers, _stack(params), static, axes)


def advance_together(programs: Sequence[Program], carry: Carry, begin: int, end: int) -> Carry:
    """`advance` for the stacked carries of several runs, vectorized."""
    numbers, axes, static = _stacked(programs)
    bounds = jnp.asarray(begin, jnp.int32), jnp.asarray(end, jnp.int32)
    return _advance_together(numbers, carry, bounds, static, axes)


@functools.partial(jax.jit, static_argnames="static")
def _start(numbers: tuple[Any, ...], params: PyTree, static: Static) -> Carry:
    # jit may hand an argument back as a result, and the carry is donated: the caller's weights must not go with it.
    return join(numbers, static).start(jax.tree.map(jnp.copy, params))


@functools.partial(jax.jit, static_argnames="static", donate_argnames="carry")
def _advance(numbers: tuple[Any, ...], carry: Carry, begin: Array, end: Array, static: Static) -> Carry:
    return with_fast_convolutions(functools.partial(_turns, static=static))(numbers, carry, begin, end)


def _turns(numbers: tuple[Any, ...], carry: Carry, begin: Array, end: Array, *, static: Static) -> Carry:
    return lax.fori_loop(begin, end, _plain(join(numbers, static).turn), carry)


@functools.partial(jax.jit, static_argnames=("static", "axes"))
def _start_together(numbers: tuple[Any, ...], params: PyTree, static: Static, axes: tuple[int | None, ...]) -> Carry:
    return jax.vmap(lambda numbers, params: join(numbers, static).start(params), (axes, 0))(numbers, params)


@functools.partial(jax.jit, static_argnames=("static", "axes"), donate_argnames="carry")
def _advance_together(
    numbers: tuple[Any, ...], carry: Carry, bounds: tuple[Array, Array], static: Static, axes: tuple[int | None, ...]
) -> Carry:
    turns = jax.vmap(functools.partial(_turns, static=static), (axes, 0, None, None))
    return with_fast_convolutions(turns)(numbers, carry, *bounds)


def _stacked(programs: Sequence[Program]) -> tuple[tuple[Any, ...], tuple[int | None, ...], Static]:
    """The numbers of programs that agree in all else: shared where they are one object, else stacked."""
    halves = [split(program) for program in programs]
    columns = list(zip(*(numbers for numbers, _ in halves), strict=True))
    axes = tuple(None if all(leaf is column[0] for leaf in column) else 0 for column in columns)
    numbers = tuple(column[0] if axis is None else _stack(column) for column, axis in zip(columns, axes, strict=True))
    return numbers, axes, halves[0][1]


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _check_names(what: str, names: Iterable[Any]) -> None:
    """Names become folders of a saved history."""
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{what} is called {name!r}; give a text without slashes that is not . or ..")


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method that hashes by identity: JAX hashes its functions, and the program holds traced numbers."""
    return functools.partial(method)


def _buffers(row: PyTree[jax.ShapeDtypeStruct], count: int) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), row)


def _write(buffers: PyTree[Array], row: PyTree[Array], index: Int[Array, ""]) -> PyTree[Array]:
    """`row` at `index`; an index past the end writes nothing."""
    return jax.tree.map(lambda buffer, leaf: buffer.at[index].set(leaf, mode="drop"), buffers, row)


def _blank(function: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
    """A function with the same shapes that computes nothing."""

    def zeros(*args: PyTree) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args))

    return zeros


def _idle(step: Callable[..., tuple[State, PyTree]]) -> Callable[..., tuple[State, PyTree]]:
    """A step that changes nothing."""

    def stay(state: State, index: Int[Array, ""]) -> tuple[State, PyTree]:
        _, record = _blank(step)(state, index)
        return state, record

    return stay
