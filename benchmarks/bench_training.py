"""Adversarial training steps: `fit` beside PyTorch, a hand-written JAX loop, and the bare matrix products.

    python benchmarks/bench_training.py [--steps 100] [--repeats 5] [--threads 1] [--cases NAME ...] [--out FILE.json]

float32, PGD-10 in the l-infinity ball within [0, 1], no random start, SGD and Adam, on random images. Peers alternate
in one process; medians of process CPU seconds (all threads) and of wall seconds per step, compilation apart. Before
anything is timed, the losses of the first steps must agree between all peers. PyTorch, torchattacks and foolbox take
part where they are installed (benchmarks/README.md); the record says which did not.

"products" is what no implementation can be faster than: the step's matrix products alone, each in its own shape. "fit,
probes" is `fit` with displacement, drift of the empirical NTK on 32 points and natural accuracy on 500, at the default
cadence of 100 steps and once more at the end. "seeds together" and "seeds in turn" are four seeds by `sweep`, each with
a quarter of the steps, per seed and step.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EPSILON, RELATIVE_STEP, NUM_ATTACK_STEPS, NUM_SEEDS, CHECKED_STEPS = 0.1, 0.25, 10, 4, 3
LEARNING_RATES = {"sgd": 0.01, "adam": 1e-4}


class Case(NamedTuple):
    """A network and a batch; `widths` of a perceptron, or `channels` of a convolutional network on 32 x 32 x 3."""

    batch: int
    widths: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()


CASES = {
    "mlp 784-512-512-10, batch 128": Case(batch=128, widths=(784, 512, 512, 10)),
    "mlp 784-64-10, batch 32": Case(batch=32, widths=(784, 64, 10)),
    "cnn 3-16-32-10 on 32x32, batch 64": Case(batch=64, channels=(3, 16, 32)),
}


def main() -> None:
    """Measures every case and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps per timing; the default cadence of probes is 100")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="1 pins XLA and PyTorch to one thread; 0 leaves them")
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="beginnings of names of cases")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_training.json")
    arguments = parser.parse_args()
    if arguments.threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["OMP_NUM_THREADS"] = "1"
    from ntk_robust._core import provenance, write_json_atomically

    names = [name for name in CASES if any(name.startswith(start) for start in arguments.cases)]
    rows = [row for name in names for optimizer in LEARNING_RATES for row in measure(name, optimizer, arguments)]
    peers = {name: _version(name) for name in ("torch", "torchattacks", "foolbox")} | {"g++": shutil.which("g++")}
    record = {"environment": provenance(), "peers": peers, "threads": arguments.threads, "steps": arguments.steps}
    write_json_atomically(arguments.out, {**record, "rows": rows})
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    print(f"absent peers: {[name for name, version in peers.items() if version is None] or 'none'}")
    print(f"written: {arguments.out}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Peer(NamedTuple):
    """One way to train: a function of the number of steps that returns the loss of the last one.

    `iterate` says which point of the attack is trained on, so that the peer's losses can be compared: "best" (as `PGD`
    here), "last" (as PyTorch's attacks), or "" for what is no training.
    """

    run: Callable[[int], float]
    iterate: str
    runs: int = 1


def measure(name: str, optimizer_name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per peer."""
    import numpy as np

    case = CASES[name]
    data = make_data(case)
    peers = jax_peers(case, optimizer_name, data)
    if importlib.util.find_spec("torch") is not None:
        peers |= torch_peers(optimizer_name, data, arguments.threads)

    losses = {label: [peer.run(count) for count in range(1, CHECKED_STEPS + 1)] for label, peer in peers.items()}
    references = {"best": "fit", "last": "hand-written JAX loop, last iterate"}
    for label, peer in peers.items():
        if peer.iterate:
            # Signs of slopes that are only rounding may differ between peers, in single pixels.
            expected, message = losses[references[peer.iterate]], f"{label} trains something else: {name}"
            np.testing.assert_allclose(losses[label], expected, rtol=1e-3, err_msg=message)
    for peer in peers.values():
        peer.run(arguments.steps // peer.runs)  # compiles
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in peers}
    for _ in range(arguments.repeats):
        for label, peer in peers.items():
            cpu, wall = time.process_time(), time.perf_counter()
            peer.run(arguments.steps // peer.runs)
            times[label].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows = []
    for label, pairs in times.items():
        count = arguments.steps // peers[label].runs * peers[label].runs
        cpu, wall = ([1e3 * pair[i] / count for pair in pairs] for i in (0, 1))
        rows.append(
            {
                "case": name,
                "optimizer": optimizer_name,
                "peer": label,
                "cpu_ms_per_step": statistics.median(cpu),
                "cpu_ms_min": min(cpu),
                "cpu_ms_max": max(cpu),
                "wall_ms_per_step": statistics.median(wall),
            }
        )
    ours = next(row for row in rows if row["peer"] == "fit")
    for row in rows:
        row["cpu_over_fit"] = row["cpu_ms_per_step"] / ours["cpu_ms_per_step"]
    return rows


class Data(NamedTuple):
    """Initial weights, as a list of arrays, and one batch."""

    weights: list[Any]
    xs: Any
    ys: Any


def make_data(case: Case) -> Data:
    """The same numbers for every peer."""
    import numpy as np

    random = np.random.default_rng(0)
    if case.channels:
        shapes = [(out, into, 3, 3) for into, out in itertools.pairwise(case.channels)]
        shapes.append((10, case.channels[-1] * (32 // 2 ** len(shapes)) ** 2))
        xs = random.uniform(size=(case.batch, 3, 32, 32))
    else:
        shapes = [(out, into) for into, out in itertools.pairwise(case.widths)]
        xs = random.uniform(size=(case.batch, case.widths[0]))
    weights = [random.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5 for shape in shapes]
    ys = random.integers(0, 10, case.batch)
    return Data([w.astype(np.float32) for w in weights], xs.astype(np.float32), ys.astype(np.int32))


def jax_peers(case: Case, optimizer_name: str, data: Data) -> dict[str, Peer]:
    """`fit` in its forms, the loop that a user of plain JAX writes, and the products alone."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import optax

    from ntk_robust.attacks import PGD, Box, LinfBall
    from ntk_robust.kernels import empirical_ntk
    from ntk_robust.losses import CrossEntropy
    from ntk_robust.models import FullyConnected
    from ntk_robust.training import DisplacementProbe, KernelDriftProbe, NaturalProbe, fit, sweep

    rate = LEARNING_RATES[optimizer_name]
    optimizer = optax.sgd(rate) if optimizer_name == "sgd" else optax.adam(rate)
    params, xs, ys = [jnp.asarray(w) for w in data.weights], jnp.asarray(data.xs), jnp.asarray(data.ys)

    def convolutional(params: list[jax.Array], x: jax.Array) -> jax.Array:
        for weight in params[:-1]:
            x = jax.nn.relu(jax.lax.conv(x[None], weight, (2, 2), "SAME")[0])
        return params[-1] @ x.ravel()

    network = convolutional
    if case.widths:
        model = FullyConnected(*case.widths[:2], len(case.widths) - 2, case.widths[-1], parameterization="standard")
        network = model.apply
        layers = model.init(key=jr.key(0), dtype=jnp.float32)
        params = tuple(eqx.tree_at(lambda p: p.weight, p, w) for p, w in zip(layers, params, strict=True))

    common = {
        "apply_fn": network,
        "params": params,
        "xs": xs,
        "ys": ys,
        "loss": CrossEntropy(),
        "attack": PGD(num_steps=NUM_ATTACK_STEPS, relative_step=RELATIVE_STEP, random_start=False),
        "perturbations": LinfBall(EPSILON, box=Box(0.0, 1.0)),
        "optimizer": optimizer,
        "key": jr.key(3),
    }

    def last_loss(count: int, **more: Any) -> float:
        return float(fit(**common, num_steps=count, **more).history["surrogate_loss"][-1])

    def hand_loop(iterate: str) -> Peer:
        hand_step = make_hand_step(network, optimizer, xs, ys, keep_best=iterate == "best")

        def run(count: int) -> float:
            weights, state, value = params, optimizer.init(params), jnp.zeros(())
            for _ in range(count):
                weights, state, value = hand_step(weights, state)
            return float(value)

        return Peer(run, iterate)

    def seeds_by(vectorize: bool, count: int) -> float:
        starts = [jax.tree.map(lambda w, seed=seed: w * (1.0 + 0.01 * seed), params) for seed in range(NUM_SEEDS)]
        runs = [{**common, "params": start, "num_steps": count} for start in starts]
        return float(sweep(runs, vectorize=vectorize)[0].history["surrogate_loss"][-1])

    peers = {
        "fit": Peer(last_loss, "best"),
        "hand-written JAX loop": hand_loop("best"),
        "hand-written JAX loop, last iterate": hand_loop("last"),
    }
    if case.widths:
        # Convolutions whose weights differ between seeds become grouped ones, which XLA computes naively on a CPU.
        peers["seeds in turn"] = Peer(lambda count: seeds_by(False, count), "best", runs=NUM_SEEDS)
        peers["seeds together"] = Peer(lambda count: seeds_by(True, count), "best", runs=NUM_SEEDS)
        products = make_products(case.widths, case.batch)
        peers["products"] = Peer(lambda count: float(products(count)), "")
        points = jr.uniform(jr.key(4), (500, case.widths[0]), jnp.float32)
        labels = jr.randint(jr.key(5), (500,), 0, 10)

        def kernel_fn(params: Any) -> jax.Array:
            return empirical_ntk(network, params, points[:32])

        probes = {
            "movement": DisplacementProbe(params),
            "kernel": KernelDriftProbe(kernel_fn, kernel_fn(params)),
            "natural": NaturalProbe(network, CrossEntropy(), points, labels),
        }
        peers["fit, probes"] = Peer(lambda count: last_loss(count, probes=probes), "best")
    return peers


def make_hand_step(network: Callable, optimizer: Any, xs: Any, ys: Any, *, keep_best: bool) -> Callable:
    """One step as a user of plain JAX writes it: sign steps, the best or the last iterate, no bookkeeping."""
    import jax
    import jax.numpy as jnp
    import optax

    @jax.jit
    def hand_step(params, state):
        def losses(params, xs):
            logits = jax.vmap(network, (None, 0))(params, xs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, ys)

        def total(xs):
            values = losses(params, xs)
            return values.sum(), values

        def better(xs_adv, values, best, best_values):
            improved = (values > best_values).reshape(-1, *(1,) * (xs.ndim - 1))
            return jnp.where(improved, xs_adv, best), jnp.maximum(values, best_values)

        def ascend(_, carry):
            xs_adv, *best = carry
            slopes, values = jax.grad(total, has_aux=True)(xs_adv)
            best = better(xs_adv, values, *best) if keep_best else best
            moved = xs_adv + RELATIVE_STEP * EPSILON * jnp.sign(slopes)
            return jnp.clip(jnp.clip(moved, xs - EPSILON, xs + EPSILON), 0.0, 1.0), *best

        nothing = xs, jnp.full(len(xs), -jnp.inf, xs.dtype)
        xs_adv, *best = jax.lax.fori_loop(0, NUM_ATTACK_STEPS, ascend, (xs, *nothing))
        if keep_best:
            xs_adv, _ = better(xs_adv, losses(params, xs_adv), *best)
        value, gradient = jax.value_and_grad(lambda params: losses(params, xs_adv).mean())(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return hand_step


def make_products(widths: tuple[int, ...], batch: int) -> Callable:
    """A program of the matrix products of one step, as often as asked."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    weights = [jr.normal(jr.key(i), (m, n), jnp.float32) for i, (n, m) in enumerate(itertools.pairwise(widths))]
    features = [jr.normal(jr.key(9 + i), (batch, n), jnp.float32) for i, n in enumerate(widths)]

    @jax.jit
    def run(count):
        def one_step(_, total):
            # Each operand depends on the running total, so that no product is computed once and reused; the maximum
            # needs all of it.
            def passes(_, total):
                for i, weight in enumerate(weights):
                    total += 1e-30 * jnp.max((features[i] + total) @ weight.T)
                    total += 1e-30 * jnp.max((features[i + 1] + total) @ weight)
                return total

            # The attack's last evaluation is a forward pass alone; the step in the weights needs no gradient in x.
            total = jax.lax.fori_loop(0, NUM_ATTACK_STEPS, passes, total)
            for i, weight in enumerate(weights):
                total += 1e-30 * jnp.max((features[i] + total) @ weight.T)
                total += 1e-30 * jnp.max((features[i] - total) @ weight.T)
                if i > 0:
                    total += 1e-30 * jnp.max((features[i + 1] + total) @ weight)
                total += 1e-30 * jnp.max((features[i + 1] + total).T @ features[i])
            return total

        return jax.lax.fori_loop(0, count, one_step, jnp.zeros((), jnp.float32))

    return run


def torch_peers(optimizer_name: str, data: Data, threads: int) -> dict[str, Peer]:
    """Eager PyTorch with its three usual attacks, and compiled where there is a compiler for C++."""
    import torch
    from torch import nn

    if threads:
        torch.set_num_threads(threads)
    xs, ys = torch.tensor(data.xs), torch.tensor(data.ys, dtype=torch.long)

    def trainer(make_attack: Callable, compiled: bool = False) -> Peer:
        def run(count: int) -> float:
            model = torch_network(data.weights)
            called = torch.compile(model) if compiled else model
            attack = make_attack(called, xs, ys)
            kind = torch.optim.SGD if optimizer_name == "sgd" else torch.optim.Adam
            optimizer = kind(model.parameters(), lr=LEARNING_RATES[optimizer_name])
            loss = torch.zeros(())
            for _ in range(count):
                x_adv = attack()
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(called(x_adv), ys)
                loss.backward()
                optimizer.step()
            return float(loss.detach())

        return Peer(run, "last")

    peers = {"PyTorch, PGD by hand": trainer(attack_by_hand)}
    if importlib.util.find_spec("torchattacks") is not None:
        peers["PyTorch, torchattacks"] = trainer(attack_of_torchattacks)
    if importlib.util.find_spec("foolbox") is not None:
        peers["PyTorch, foolbox"] = trainer(attack_of_foolbox)
    if shutil.which("g++") is not None:
        peers["PyTorch, torch.compile"] = trainer(attack_by_hand, compiled=True)
    return peers


def torch_network(weights: list[Any]) -> Any:
    """The network of `jax_peers` with its initial weights."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for weight in weights[:-1]:
        if weight.ndim == 4:
            # JAX's SAME padding at stride 2 on even sizes pads at the far end only.
            layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(weight.shape[1], weight.shape[0], 3, 2, bias=False)]
        else:
            layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(weights[-1].shape[1], 10, bias=False))
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.tensor(weight))
    return model


def attack_by_hand(model: Any, xs: Any, ys: Any) -> Callable:
    """The loop that a user of plain PyTorch writes; it differentiates in the inputs alone."""
    import torch

    def attack() -> torch.Tensor:
        x_adv = xs.clone()
        for _ in range(NUM_ATTACK_STEPS):
            x_adv.requires_grad_(True)
            (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x_adv), ys), x_adv)
            moved = x_adv.detach() + RELATIVE_STEP * EPSILON * slope.sign()
            x_adv = torch.clamp(torch.minimum(torch.maximum(moved, xs - EPSILON), xs + EPSILON), 0, 1)
        return x_adv

    return attack


def attack_of_torchattacks(model: Any, xs: Any, ys: Any) -> Callable:
    """torchattacks.PGD."""
    import torchattacks

    step = RELATIVE_STEP * EPSILON
    attack = torchattacks.PGD(model, eps=EPSILON, alpha=step, steps=NUM_ATTACK_STEPS, random_start=False)
    return lambda: attack(xs, ys)


def attack_of_foolbox(model: Any, xs: Any, ys: Any) -> Callable:
    """foolbox.attacks.LinfPGD on its PyTorch backend."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=NUM_ATTACK_STEPS, random_start=False)
    return lambda: attack.run(wrapped, xs, foolbox.criteria.Misclassification(ys), epsilon=EPSILON)


if __name__ == "__main__":
    main()
