"""Empirical kernels beside neural-tangents and torch.func, in one run: values compared first, then process CPU time.

    python benchmarks/bench_empirical.py [--rows 512] [--widths 512 2048] [--repeats 5] [--threads 1]
        [--torch-python PYTHON] [--out FILE.json]

Three tables, each from processes of their own:

- "networks": the layerwise kernel of ReLU networks beside every implementation of neural-tangents that can be expected
  to win (an implementation of more than five times the operations of the cheapest, or of more than 8 GiB, is left out
  and said so). neural-tangents sees the same network written for it, as products x @ W without transposes, batched and
  with vmap_axes 0 and None. Traced with "mean" over outputs, float32, x2 = None.
- "choices": other networks by each implementation, and the one that "auto" takes: how much slower than the fastest.
- "torch": torch.func's Jacobian contraction, where its Jacobian takes less than 3 GiB, in the Python given by
  --torch-python (any with torch; default: this one). Inputs and values go through files. Without torch the record says
  so.

Peers alternate; medians of process CPU seconds (all threads) and of wall seconds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIM = 784
TOO_MANY_FLOPS = 5.0
TOO_MANY_BYTES = 8 * 2**30
TORCH_JACOBIAN_BYTES = 3 * 2**30
# Rows, width, hidden layers, outputs: those with a Jacobian that fits.
TORCH_CASES = [(512, 512, 2, 1), (512, 512, 4, 1), (128, 2048, 2, 1), (128, 512, 2, 10), (32, 512, 4, 10)]


def main() -> None:
    """Measures all tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="1 pins XLA to one thread; 0 leaves it alone")
    parser.add_argument("--tables", nargs="+", default=["networks", "choices", "torch"])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--part", help="one table, in this process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_empirical.json")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    from ntk_robust._core import write_json_atomically

    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for table in arguments.tables:
        record[table] = in_a_process(arguments, table)
        write_json_atomically(arguments.out, record)
    show(record)
    print(f"written: {arguments.out}")


def in_a_process(arguments: argparse.Namespace, table: str) -> Any:
    """One table from a process of its own."""
    environment = dict(os.environ)
    if arguments.threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, __file__, "--part", table, "--rows", str(arguments.rows)]
    command += ["--repeats", str(arguments.repeats), "--torch-python", arguments.torch_python]
    for option in ("widths", "depths", "outputs"):
        command += [f"--{option}", *map(str, getattr(arguments, option))]
    completed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(completed.stdout.splitlines()[-1])


def show(record: dict[str, Any]) -> None:
    """The ratios, on the terminal."""
    networks = record.get("networks", {})
    for row in networks.get("rows", []):
        print(
            f"width {row['width']:5d} hidden {row['hidden_layers']} outputs {row['outputs']:2d}: "
            f"{row['best_peer']} / ours {row['ratio_cpu']:.2f}, compile {row['compile_ratio_cpu']:.2f}, "
            f"memory {row['ours_bytes'] / row['bound_bytes']:.2f} of activations + deltas + Gram"
        )
    if networks:
        print(f"geometric mean {networks['geometric_mean_ratio_cpu']:.2f}")
    for row in record.get("choices", {}).get("rows", []):
        print(f"{row['network']}: {row['chosen']}, {row['chosen_over_fastest']:.2f} of the fastest")
    torch = record.get("torch", {})
    print(*(f"torch / ours {row['ratio_cpu']:.0f}: {row}" for row in torch.get("rows", [])), sep="\n")
    if "absent" in torch:
        print(torch["absent"])


def environment() -> dict[str, Any]:
    """What made the numbers."""
    from ntk_robust._core import provenance, to_jsonable

    return to_jsonable(provenance() | {"load_average": os.getloadavg(), "xla_flags": os.environ.get("XLA_FLAGS", "")})


def compiled(fn: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The program of `fn`, and the CPU seconds that tracing, lowering and compiling took."""
    import jax

    start = time.process_time()
    program = jax.jit(fn).lower(*arguments).compile()
    return program, time.process_time() - start


def counted(program: Any) -> tuple[float, int]:
    """Operations, and bytes of temporaries and result."""
    analysis = program.cost_analysis()
    memory = program.memory_analysis()
    flops = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    return flops, memory.temp_size_in_bytes + memory.output_size_in_bytes


def timed(peers: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """CPU and wall seconds of each, in turn."""
    import jax

    cpu, wall = ({name: [] for name in peers} for _ in range(2))
    for _ in range(repeats):
        for name, peer in peers.items():
            start_cpu, start_wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(peer())
            cpu[name].append(time.process_time() - start_cpu)
            wall[name].append(time.perf_counter() - start_wall)
    return cpu, wall


def relative_difference(a: Any, b: Any) -> float:
    """Largest difference relative to the largest value."""
    import numpy as np

    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


def relu_network(width: int, depth: int, num_outputs: int, rows: int) -> tuple[Any, Any, Any]:
    """A network of this project, weights and examples."""
    import jax.random as jr

    from ntk_robust.models import FullyConnected

    model = FullyConnected(DIM, width, depth, num_outputs)
    return model, model.init(key=jr.key(0)), jr.normal(jr.key(1), (rows, DIM))


def networks(arguments: argparse.Namespace) -> dict[str, Any]:
    """The layerwise kernel beside neural-tangents."""
    import jax
    import jax.numpy as jnp

    from ntk_robust.kernels import empirical_ntk, load_neural_tangents

    nt = load_neural_tangents()

    def for_neural_tangents(weights: list[Any], x: Any) -> Any:
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight * math.sqrt(2.0 / weight.shape[0]))
        return x @ weights[-1] * math.sqrt(2.0 / weights[-1].shape[0])

    rows = []
    for width in arguments.widths:
        for depth in arguments.depths:
            for num_outputs in arguments.outputs:
                model, params, x = relu_network(width, depth, num_outputs, arguments.rows)
                weights = [jnp.asarray(dense.weight.T) for dense in params]
                ours, ours_compile = compiled(
                    lambda params, x, model=model: empirical_ntk(model.apply, params, x, outputs="mean"), params, x
                )
                programs: dict[str, tuple[Any, Any]] = {"ours": (ours, params)}
                compile_seconds, left_out = {"ours": ours_compile}, {}
                candidates = {}
                for implementation in list(nt.NtkImplementation)[1:]:
                    for axes in (0, None):
                        kernel_fn = nt.empirical_ntk_fn(
                            for_neural_tangents, trace_axes=(-1,), vmap_axes=axes, implementation=implementation
                        )
                        name = f"{implementation.name.lower()}, vmap_axes={axes}"
                        lowered = jax.jit(lambda w, x, f=kernel_fn: f(x, None, w)).lower(weights, x)
                        candidates[name] = kernel_fn, lowered.cost_analysis()["flops"]
                cheapest = min(flops for _, flops in candidates.values())
                for name, (kernel_fn, flops) in candidates.items():
                    if flops > TOO_MANY_FLOPS * cheapest:
                        left_out[name] = f"{flops / cheapest:.1f} times the operations of the cheapest"
                        continue
                    jax.clear_caches()
                    program, seconds = compiled(lambda w, x, f=kernel_fn: f(x, None, w), weights, x)
                    if counted(program)[1] > TOO_MANY_BYTES:
                        left_out[name] = f"{counted(program)[1] / 2**30:.0f} GiB"
                        continue
                    programs[name], compile_seconds[name] = (program, weights), seconds
                reference = programs["ours"][0](params, x)
                differences = {
                    name: relative_difference(reference, program(w, x)) for name, (program, w) in programs.items()
                }
                if not max(differences.values()) < 1e-4:
                    raise SystemExit(f"values differ by {differences}; not timing unequal results")
                cpu, wall = timed(
                    {name: lambda p=program, w=w, x=x: p(w, x) for name, (program, w) in programs.items()},
                    arguments.repeats,
                )
                middle = {name: statistics.median(seconds) for name, seconds in cpu.items()}
                best = min((name for name in middle if name != "ours"), key=middle.__getitem__)
                # features of the hidden layers, signals of each of them and output, and the matrix
                bound = arguments.rows * depth * width * (1 + num_outputs) + arguments.rows**2
                rows.append(
                    {
                        "rows": arguments.rows,
                        "dim": DIM,
                        "width": width,
                        "hidden_layers": depth,
                        "outputs": num_outputs,
                        "best_peer": best,
                        "ratio_cpu": middle[best] / middle["ours"],
                        "ratio_cpu_minima": min(cpu[best]) / min(cpu["ours"]),
                        "ratio_wall": statistics.median(wall[best]) / statistics.median(wall["ours"]),
                        "compile_ratio_cpu": compile_seconds[best] / compile_seconds["ours"],
                        "ours_gflops": counted(ours)[0] / 1e9,
                        "ours_gflops_per_cpu_second": counted(ours)[0] / middle["ours"] / 1e9,
                        "peer_gflops": counted(programs[best][0])[0] / 1e9,
                        "ours_bytes": counted(ours)[1],
                        "peer_bytes": counted(programs[best][0])[1],
                        "bound_bytes": 4 * bound,
                        "largest_difference_relative": max(differences.values()),
                        "cpu_seconds": cpu,
                        "wall_seconds": wall,
                        "compile_cpu_seconds": compile_seconds,
                        "left_out": left_out,
                    }
                )
    mean = math.exp(statistics.fmean(math.log(row["ratio_cpu"]) for row in rows))
    return {"environment": environment(), "geometric_mean_ratio_cpu": mean, "rows": rows}


def other_networks() -> dict[str, tuple[Callable[..., Any], Any, Any]]:
    """Functions of one example, weights and examples that the layerwise way does not cover."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1])), jnp.float32)

    def dense(params: list[Any], x: Any) -> Any:
        for w in params[:-1]:
            x = jax.nn.relu(w @ x)
        return params[-1] @ x

    def transposed(params: list[Any], x: Any) -> Any:
        return jax.nn.relu(x @ params[0].T) @ params[1].T

    def convolutional(params: list[Any], x: Any) -> Any:
        x = x[None]
        for w in params[:-1]:
            x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x)
            x = 0.25 * (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2])
        return jnp.mean(x, axis=(0, 1, 2)) @ params[-1]

    def attention(params: list[Any], x: Any) -> Any:
        for query, key, value, out in params[:-1]:
            x = x + jax.nn.softmax((x @ query) @ (x @ key).T / 4.0) @ (x @ value)
            x = x + jax.nn.gelu(x @ out)
        return jnp.mean(x, axis=0) @ params[-1]

    blocks = [[normal(32, 32) for _ in range(4)] for _ in range(2)]
    filters = [normal(3, 3, 3, 32), normal(3, 3, 32, 32)]
    images = jnp.asarray(rng.normal(size=(16, 16, 16, 3)), jnp.float32)
    return {
        "dense 784-256-256-10, n = 64": (dense, [normal(256, 784), normal(256, 256), normal(10, 256)], normal(64, 784)),
        "dense 64-64-64-100, n = 8": (dense, [normal(64, 64), normal(64, 64), normal(100, 64)], normal(8, 64)),
        "dense 20-32-1, n = 16": (dense, [normal(32, 20), normal(1, 32)], normal(16, 20)),
        "dense with transposes 256-128-10, n = 32": (
            transposed,
            [normal(128, 256), normal(10, 128)],
            normal(32, 256),
        ),
        "convolutional, 10 outputs, n = 16": (convolutional, [*filters, normal(32, 10)], images),
        "convolutional, 1 output, n = 16": (convolutional, [*filters, normal(32, 1)], images),
        "attention, 10 outputs, n = 16": (
            attention,
            [*blocks, normal(32, 10)],
            jnp.asarray(rng.normal(size=(16, 12, 32)), jnp.float32),
        ),
    }


def choices(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each implementation of neural-tangents on other networks, and the one that is taken."""
    import jax

    from ntk_robust.kernels import empirical_ntk, empirical_ntk_costs

    rows = []
    for name, (apply_fn, params, x) in other_networks().items():
        start = time.process_time()
        costs = empirical_ntk_costs(apply_fn, params, x)
        choosing = time.process_time() - start
        programs, compile_seconds = {}, {}
        for cost in costs:
            programs[cost.method], compile_seconds[cost.method] = compiled(
                lambda p, x, f=apply_fn, m=cost.method: empirical_ntk(f, p, x, method=m), params, x
            )
        values = {method: program(params, x) for method, program in programs.items()}
        difference = max(relative_difference(value, values[costs[0].method]) for value in values.values())
        if not difference < 1e-3:
            raise SystemExit(f"{name}: values differ by {difference}; not timing unequal results")
        cpu, _ = timed({m: lambda p=p, w=params, x=x: p(w, x) for m, p in programs.items()}, arguments.repeats)
        middle = {method: statistics.median(seconds) for method, seconds in cpu.items()}
        rows.append(
            {
                "network": name,
                "chosen": costs[0].method,
                "fastest": min(middle, key=middle.__getitem__),
                "chosen_over_fastest": middle[costs[0].method] / min(middle.values()),
                "slowest_over_chosen": max(middle.values()) / middle[costs[0].method],
                "choosing_cpu_seconds": choosing,
                "flops": {cost.method: cost.flops for cost in costs},
                "cpu_seconds": cpu,
                "compile_cpu_seconds": compile_seconds,
                "largest_difference_relative": difference,
            }
        )
        jax.clear_caches()
    return {"environment": environment(), "rows": rows}


def torch_peer(arguments: argparse.Namespace) -> dict[str, Any]:
    """The layerwise kernel beside torch.func's Jacobian contraction."""
    import numpy as np

    from ntk_robust.kernels import empirical_ntk

    probe = subprocess.run([arguments.torch_python, "-c", "import torch"], check=False, capture_output=True)
    if probe.returncode:
        return {"absent": f"{arguments.torch_python} has no torch: the comparison with torch.func was not made"}
    rows, left_out = [], []
    for num_rows, width, depth, num_outputs in TORCH_CASES:
        model, params, x = relu_network(width, depth, num_outputs, num_rows)
        weights = [np.asarray(dense.weight) for dense in params]
        jacobian_bytes = 4 * num_rows * num_outputs * sum(weight.size for weight in weights)
        case = {"rows": num_rows, "width": width, "hidden_layers": depth, "outputs": num_outputs}
        if jacobian_bytes > TORCH_JACOBIAN_BYTES:
            left_out.append(case | {"jacobian_gib": jacobian_bytes / 2**30})
            continue
        program, _ = compiled(lambda p, x, model=model: empirical_ntk(model.apply, p, x), params, x)
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
            np.savez(given, x=np.asarray(x), **{f"w{i}": weight for i, weight in enumerate(weights)})
            subprocess.run(
                [arguments.torch_python, "-c", TORCH_PROGRAM, str(given), str(found), "3"],
                check=True,
                stdout=sys.stderr,
            )
            with np.load(found) as record:
                theirs, seconds, version = record["kernel"], record["cpu_seconds"].tolist(), str(record["version"])
        difference = relative_difference(program(params, x), theirs)
        if not difference < 1e-4:
            raise SystemExit(f"{case}: values differ by {difference}; not timing unequal results")
        cpu, _ = timed({"ours": lambda p=program, w=params, x=x: p(w, x)}, arguments.repeats)
        rows.append(
            case
            | {
                "ratio_cpu": min(seconds) / statistics.median(cpu["ours"]),  # torch's first run warms up
                "torch_cpu_seconds": seconds,
                "ours_cpu_seconds": cpu["ours"],
                "jacobian_gib": jacobian_bytes / 2**30,
                "largest_difference_relative": difference,
                "torch": version,
            }
        )
    return {"environment": environment(), "rows": rows, "left_out": left_out}


# Runs where only torch and numpy are; the contraction is the one of torch.func's tutorial on NTKs.
TORCH_PROGRAM = """
import sys, time
import numpy as np, torch
from torch.func import jacrev, vmap
torch.set_num_threads(1)
given = np.load(sys.argv[1])
x = torch.from_numpy(given["x"])
weights = tuple(torch.from_numpy(given[f"w{i}"]) for i in range(len(given.files) - 1))

def network(weights, x):
    for weight in weights[:-1]:
        x = torch.relu(weight @ x * (2.0 / weight.shape[1]) ** 0.5)
    return weights[-1] @ x * (2.0 / weights[-1].shape[1]) ** 0.5

def contraction():
    jacobians = vmap(jacrev(network), (None, 0))(weights, x)
    return sum(torch.einsum("Naf,Maf->NM", j.flatten(2), j.flatten(2)) for j in jacobians)

with torch.no_grad():
    seconds = []
    for _ in range(int(sys.argv[3])):
        start = time.process_time()
        kernel = contraction()
        seconds.append(time.process_time() - start)
np.savez(sys.argv[2], kernel=kernel.numpy(), cpu_seconds=seconds, version=torch.__version__)
"""

PARTS = {"networks": networks, "choices": choices, "torch": torch_peer}

if __name__ == "__main__":
    main()
