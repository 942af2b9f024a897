"""Attacks: parity and speed beside torchattacks, foolbox and hand-written loops, and input gradients of kernels.

    python benchmarks/bench_attacks.py [--sections speed auto parity parity_l2 kernel] [--networks NAME ...] [--live]

Runs in the environment with PyTorch of benchmarks/README.md; without it, peers on PyTorch are left out and named. One
thread; peers alternate; medians and spread of process CPU seconds, compilation apart. Sections are merged into the
record, so that they can be run one at a time.

- speed: PGD-40 on an MLP 784-512-512-10, batch 256, l∞; losses at the points found must agree before anything is timed.
- auto: AutoAttack "standard" on MNIST test examples, ours and that of torchattacks at the same budget.
- parity, parity_l2: the reference networks under each attack of the ensemble; torchattacks' and foolbox' accuracies are
  those stored in benchmarks/references/reference.json, or measured in this process with --live.
- kernel: PGD-10 on an NTK regressor of 10,000 points, by closed-form gradients and by automatic ones.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

EPSILON, RELATIVE_STEP, NUM_STEPS, BATCH = 0.1, 0.1, 40, 256
HERE = Path(__file__).parent
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square", "auto-attack")


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--networks", nargs="+", help="networks of the parity sections; by default all with references")
    parser.add_argument("--live", action="store_true", help="run the peers of the parity sections here")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--examples", type=int, default=1000, help="MNIST examples of the auto section")
    parser.add_argument("--train", type=int, default=10_000, help="training points of the kernel section")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu" / "bench_attacks.json")
    arguments = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(HERE / "references"))
    from ntk_robust._core import provenance, write_json_atomically

    for section in arguments.sections:
        found = SECTIONS[section](arguments)
        record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        if section.startswith("parity"):
            found["networks"] = record.get(section, {}).get("networks", {}) | found["networks"]
        record = {name: record[name] for name in SECTIONS if name in record} | {section: found}
        record["environment"] = provenance() | {"peers": _peer_versions()}
        write_json_atomically(arguments.out, record)
        print(f"written: {section} in {arguments.out}", flush=True)


def _peer_versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "torchattacks", "foolbox")
    return {name: version(name) if importlib.util.find_spec(name) else "absent" for name in names}


def _alternate(peers: dict[str, Callable[[], Any]], repeats: int) -> list[dict[str, Any]]:
    """Median, smallest and largest process CPU seconds of each peer, and wall seconds."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, run in peers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows = []
    for name, times in seconds.items():
        cpu, wall = (sorted(column) for column in zip(*times, strict=True))
        row = {"peer": name, "cpu_s": statistics.median(cpu), "cpu_s_min": cpu[0], "cpu_s_max": cpu[-1]}
        rows.append(row | {"wall_s": statistics.median(wall)})
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})
    return rows


def measure_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """PGD of every peer on one network."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np
    from jax import lax

    from ntk_robust.attacks import APGD, PGD, Box, LinfBall, attack_batch
    from ntk_robust.losses import CrossEntropy

    keys = jr.split(jr.key(0), 5)
    widths = (784, 512, 512, 10)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [jr.normal(k, shape) * (2 / shape[1]) ** 0.5 for k, shape in zip(keys, shapes, strict=False)]
    xs = jr.uniform(keys[3], (BATCH, 784))
    ys = jr.randint(keys[4], (BATCH,), 0, 10)
    loss = CrossEntropy()

    def network(x: jax.Array) -> jax.Array:
        for weight in weights[:-1]:
            x = jax.nn.relu(weight @ x)
        return weights[-1] @ x

    def objective(x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(network(x), y)

    batched = jax.jit(jax.vmap(objective))

    @jax.jit
    def by_hand(xs: jax.Array, ys: jax.Array) -> jax.Array:
        def step(_: int, points: jax.Array) -> jax.Array:
            slopes = jax.grad(lambda points: jnp.sum(jax.vmap(objective)(points, ys)))(points)
            moved = points + RELATIVE_STEP * EPSILON * jnp.sign(slopes)
            return jnp.clip(jnp.clip(moved, xs - EPSILON, xs + EPSILON), 0, 1)

        return lax.fori_loop(0, NUM_STEPS, step, xs)

    perturbations = LinfBall(EPSILON, Box(0.0, 1.0))
    pgd, apgd = PGD(NUM_STEPS, RELATIVE_STEP, random_start=False), APGD(NUM_STEPS, random_start=False)
    peers: dict[str, Callable[[], Any]] = {
        "ntk_robust PGD": lambda: attack_batch(pgd, objective, xs, ys, perturbations, key=keys[0]).x_adv,
        "ntk_robust APGD": lambda: attack_batch(apgd, objective, xs, ys, perturbations, key=keys[0]).x_adv,
        "hand-written jitted loop": lambda: by_hand(xs, ys),
    }
    peers = {name: lambda run=run: np.asarray(run()) for name, run in peers.items()}
    peers |= _speed_peers(weights, np.asarray(xs), np.asarray(ys))
    mean_loss = {name: float(jnp.mean(batched(jnp.asarray(run()), ys))) for name, run in peers.items()}
    for name, value in mean_loss.items():
        assert abs(value - mean_loss["hand-written jitted loop"]) < 0.02 * value, mean_loss
        print(name, value)
    rows = _alternate(peers, arguments.repeats)
    return {
        "batch": BATCH,
        "num_steps": NUM_STEPS,
        "rows": [row | {"mean_loss": mean_loss[row["peer"]]} for row in rows],
    }


def _speed_peers(weights: list, xs: Any, ys: Any) -> dict[str, Callable[[], Any]]:
    """PGD of torchattacks and foolbox on the same network."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchattacks", "foolbox")):
        return {}
    import foolbox
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import torchattacks

    torch.set_num_threads(1)
    layers = []
    for weight in weights:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(weight)))
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers[:-1]).eval()
    images, labels = torch.tensor(xs).reshape(-1, 1, 28, 28), torch.tensor(ys, dtype=torch.long)
    attack = torchattacks.PGD(model, eps=EPSILON, alpha=RELATIVE_STEP * EPSILON, steps=NUM_STEPS, random_start=False)
    linf = foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=NUM_STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))

    def forward(x: jax.Array) -> jax.Array:
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight.T)
        return x @ weights[-1].T

    in_jax = foolbox.JAXModel(forward, bounds=(0, 1))
    jax_images, jax_labels = jnp.asarray(xs), jnp.asarray(ys)
    return {
        "torchattacks PGD": lambda: attack(images, labels).reshape(len(xs), -1).numpy(),
        "foolbox PGD, PyTorch": lambda: (
            linf(wrapped, images, labels, epsilons=EPSILON)[1].reshape(len(xs), -1).detach().numpy()
        ),
        "foolbox PGD, JAX": lambda: np.asarray(linf(in_jax, jax_images, jax_labels, epsilons=EPSILON)[1]),
    }


def measure_auto_attack(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole ensemble on MNIST, on the adversarially trained MLP."""
    import jax.random as jr
    import numpy as np
    from networks import REFERENCES, load_network

    from ntk_robust.attacks import Box, LinfBall, auto_attack
    from ntk_robust.data import load_dataset, subset

    name = "mnist_mlp_adversarial"
    model, params = load_network(name)
    data = subset(load_dataset("mnist", dtype=np.float32), 10, arguments.examples, key=jr.key(1))
    xs, ys = np.asarray(data.x_test), np.asarray(data.y_test)
    epsilon = REFERENCES[name].epsilon

    def ours() -> float:
        found = auto_attack(
            model.apply, params, data.x_test, data.y_test, perturbations=LinfBall(epsilon, Box(0.0, 1.0)),
            key=jr.key(0), image_shape=(28, 28, 1), batch_size=min(100, arguments.examples),
        )  # fmt: skip
        return found.adversarial_accuracy

    peers: dict[str, Callable[[], float]] = {"ntk_robust auto_attack": ours}
    if importlib.util.find_spec("torchattacks"):
        import torch
        from peers import TorchNetwork, adversarial_accuracy, images_of, torchattacks_peers

        torch.set_num_threads(1)
        network = TorchNetwork(name).eval()
        images, labels = images_of(xs, "mnist"), torch.tensor(ys, dtype=torch.long)
        attack = torchattacks_peers(network, epsilon)["auto-attack"]
        peers["torchattacks, the same budget"] = lambda: adversarial_accuracy(
            network, images, attack(images, labels), labels, epsilon
        )
    begin = time.process_time()
    accuracies = {name: run() for name, run in peers.items() if name.startswith("ntk")}
    first = time.process_time() - begin
    accuracy = dict(accuracies)

    def timed(name: str, run: Callable[[], float]) -> Callable[[], None]:
        return lambda: accuracy.update({name: run()})

    rows = _alternate({name: timed(name, run) for name, run in peers.items()}, 1)
    rows = [row | {"adversarial_accuracy": accuracy[row["peer"]]} for row in rows]
    return {"num_examples": arguments.examples, "epsilon": epsilon, "first_call_cpu_s": first, "rows": rows}


def measure_parity(arguments: argparse.Namespace, norm: Literal["linf", "l2"] = "linf") -> dict[str, Any]:
    """Accuracies of the reference networks under our attacks, beside those of the peers."""
    import jax.random as jr
    from networks import IMAGE_SHAPES, REFERENCES, load_examples, load_network

    from ntk_robust.attacks import PGD, auto_attack, evaluate
    from ntk_robust.losses import CrossEntropy

    stored = json.loads((HERE / "references" / "reference.json").read_text())
    budget, references = stored["budget"], stored["networks" if norm == "linf" else "networks_l2"]
    networks = {}
    for name in arguments.networks or list(references):
        reference = REFERENCES[name]
        model, params = load_network(name)
        xs, ys = load_examples(reference.data)
        common: dict[str, Any] = {"perturbations": reference.perturbations(norm), "key": jr.key(0)}
        ours, seconds = {}, {}
        for attack in ATTACKS:
            begin = time.process_time()
            found = auto_attack(
                model.apply, params, *_on_device(xs, ys), **common,
                image_shape=IMAGE_SHAPES[reference.data],
                num_steps=budget["num_steps"], num_queries=budget["num_queries"], num_targets=budget["num_targets"],
                only=None if attack == "auto-attack" else [attack], batch_size=50,
            )  # fmt: skip
            seconds[attack] = time.process_time() - begin
            ours[attack] = found.adversarial_accuracy
        pgd = PGD(budget["pgd_steps"], budget["pgd_relative_step"])
        found = evaluate(model.apply, params, *_on_device(xs, ys), attack=pgd, loss=CrossEntropy(), **common)
        ours["pgd"] = found.adversarial_accuracy
        if arguments.live:
            from peers import measure

            peers = measure(name, norm)
        else:
            peers = references[name]
        row = {"natural_accuracy": found.natural_accuracy, "epsilon": peers["epsilon"], "ntk_robust": ours}
        row |= {"cpu_s": seconds, "peers_cpu_s": peers["cpu_s"]}
        networks[name] = row | {"torchattacks": peers["torchattacks"], "foolbox": peers["foolbox"]}
        print(name, {attack: (ours[attack], round(peers["torchattacks"][attack], 4)) for attack in ATTACKS}, flush=True)
        print({attack: round(value, 1) for attack, value in seconds.items()}, peers["cpu_s"], flush=True)
    return {"budget": budget, "versions": stored["versions"], "networks": networks}


def _on_device(xs: Any, ys: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    return jnp.asarray(xs), jnp.asarray(ys)


def measure_kernel(arguments: argparse.Namespace) -> dict[str, Any]:
    """PGD-10 on an NTK regressor: gradients in closed form, and by automatic differentiation of the pair function."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from ntk_robust.attacks import PGD, Box, L2Ball, evaluate
    from ntk_robust.data import load_dataset, subset
    from ntk_robust.kernels import KernelPredictor, analytic_ntk, kernel_regression
    from ntk_robust.losses import CrossEntropy
    from ntk_robust.models import FullyConnected

    num_test, few = 500, 4
    data = subset(load_dataset("mnist", dtype=np.float32), arguments.train, num_test, key=jr.key(0))
    kernel = analytic_ntk(FullyConnected(input_dim=784, width=1, num_hidden_layers=3, num_outputs="scalar"))
    targets = np.eye(10, dtype=np.float32)[np.asarray(data.y_train)]
    gram = np.asarray(kernel.gram(data.x_train))
    dual = kernel_regression(gram, targets, ridge=1e-3 * float(np.mean(np.diag(gram)))).dual
    predictor = KernelPredictor(kernel, data.x_train, jnp.asarray(dual))
    common: dict[str, Any] = {"perturbations": L2Ball(1.0, Box(0.0, 1.0)), "loss": CrossEntropy(), "key": jr.key(1)}
    attack = PGD(num_steps=10, relative_step=0.25)
    row: dict[str, Any] = {"num_train": arguments.train, "num_test": num_test, "num_hidden_layers": 3}
    for call in ("first_call", "second_call"):
        begin, cpu = time.perf_counter(), time.process_time()
        found = evaluate(
            KernelPredictor.__call__, predictor, data.x_test, data.y_test, attack=attack, batch_size=250, **common
        )
        row[f"{call}_wall_s"], row[f"{call}_cpu_s"] = time.perf_counter() - begin, time.process_time() - cpu
    row |= {"natural_accuracy": found.natural_accuracy, "adversarial_accuracy": found.adversarial_accuracy}
    row["findings"] = [finding.name for finding in found.audit.findings]

    def automatic(predictor: KernelPredictor, x: jax.Array) -> jax.Array:
        return jnp.matmul(jax.vmap(predictor.kernel, (None, 0))(x, predictor.x_train), predictor.dual)

    weights = jnp.ones(10, np.float32)

    def gradients(function: Callable) -> Callable:
        return jax.jit(lambda p, xs: jax.vmap(jax.grad(lambda x: function(p, x) @ weights))(xs))

    closed, by_autodiff = gradients(KernelPredictor.__call__), gradients(automatic)
    xs = data.x_test[:few] * np.float32(0.99)
    first, second = np.asarray(closed(predictor, xs)), np.asarray(by_autodiff(predictor, xs))
    row["largest_difference"] = float(np.abs(first - second).max() / np.abs(second).max())
    assert row["largest_difference"] < 1e-3, row
    many = data.x_test * np.float32(0.99)
    np.asarray(closed(predictor, many))
    seconds = {}
    for name, run, points in (("closed", closed, many), ("automatic", by_autodiff, xs)):
        times = []
        for _ in range(3):
            begin = time.process_time()
            jax.block_until_ready(run(predictor, points))
            times.append((time.process_time() - begin) / len(points))
        seconds[name] = statistics.median(times)
    row |= {f"{name}_gradient_cpu_ms_a_point": 1e3 * value for name, value in seconds.items()}
    row["automatic_over_closed"] = seconds["automatic"] / seconds["closed"]
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return row


SECTIONS = {
    "speed": measure_speed,
    "auto": measure_auto_attack,
    "parity": measure_parity,
    "parity_l2": partial(measure_parity, norm="l2"),
    "kernel": measure_kernel,
}

if __name__ == "__main__":
    main()
