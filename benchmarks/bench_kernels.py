"""Analytic Gram matrices beside neural-tangents, in one run: values compared first, then process CPU time.

    python benchmarks/bench_kernels.py [--rows 4000] [--depths 3 10] [--repeats 5] [--threads 1] [--out FILE.json]

Each dtype runs in a process of its own (neural-tangents answers float64 for float32 inputs while x64 is on). Peers
alternate; medians of process CPU seconds (all threads) and of wall seconds. The half GEMM is half of the time of X X^T
in the same dtype at full precision: no symmetric kernel matrix can cost less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Measures both dtypes and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--dim", type=int, default=784)
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="1 pins XLA to one thread; 0 leaves it alone")
    parser.add_argument("--dtype", choices=["float32", "float64"], help="one dtype, in this process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_kernels.json")
    arguments = parser.parse_args()
    if arguments.dtype:
        print(json.dumps(measure(arguments)))
        return
    results = [run_one(arguments, dtype) for dtype in ("float32", "float64")]
    from ntk_robust._core import write_json_atomically

    record = {"environment": results[0].pop("environment"), "rows": [row for r in results for row in r["rows"]]}
    write_json_atomically(arguments.out, record)
    for row in record["rows"]:
        print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()})
    print(f"written: {arguments.out}")


def run_one(arguments: argparse.Namespace, dtype: str) -> dict:
    """The record of one dtype, from a process of its own."""
    environment = dict(os.environ, JAX_ENABLE_X64="1" if dtype == "float64" else "0")
    if arguments.threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, __file__, "--dtype", dtype, "--rows", str(arguments.rows), "--dim", str(arguments.dim)]
    command += ["--repeats", str(arguments.repeats), "--depths", *map(str, arguments.depths)]
    completed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(completed.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict:
    """The record of the dtype of this process: values compared, then timed in turn."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ntk_robust._core import provenance, to_jsonable
    from ntk_robust.kernels import analytic_ntk, load_neural_tangents
    from ntk_robust.models import FullyConnected

    stax = load_neural_tangents().stax
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(arguments.rows, arguments.dim)), arguments.dtype)
    entries = arguments.rows**2
    product = jax.jit(lambda x: jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))
    rows = []
    for depth in arguments.depths:
        kernel = analytic_ntk(FullyConnected(arguments.dim, 1, depth, "scalar"))
        layers = [part for _ in range(depth) for part in (stax.Dense(1, W_std=2**0.5), stax.Relu())]
        kernel_fn = stax.serial(*layers, stax.Dense(1, W_std=2**0.5))[2]
        peers = {
            "neural_tangents": jax.jit(lambda x, f=kernel_fn: f(x, None, "ntk")),
            "ntk_robust": jax.jit(lambda x, k=kernel: k.gram(x)),
            "gemm": product,
        }
        compile_seconds, values = {}, {}
        for name, peer in peers.items():
            start = time.process_time()
            values[name] = np.asarray(peer(x))
            compile_seconds[name] = time.process_time() - start
        ours, theirs = values["ntk_robust"], values["neural_tangents"]
        difference = float(np.max(np.abs(ours - theirs)) / np.max(ours))
        # neural-tangents itself is off by up to 2.4e-3 (float32) and 1e-7 (float64) on the diagonal at ten layers
        limit = 5e-3 if arguments.dtype == "float32" else 1e-6
        if not difference < limit:
            raise SystemExit(f"values differ by {difference} relative to the largest; not timing unequal results")
        del values
        cpu, wall = ({name: [] for name in peers} for _ in range(2))
        for _ in range(arguments.repeats):
            for name, peer in peers.items():
                start_cpu, start_wall = time.process_time(), time.perf_counter()
                peer(x).block_until_ready()
                cpu[name].append(time.process_time() - start_cpu)
                wall[name].append(time.perf_counter() - start_wall)
        middle = {name: statistics.median(times) for name, times in cpu.items()}
        least = {name: min(times) for name, times in cpu.items()}
        rows.append(
            {
                "dtype": arguments.dtype,
                "rows": arguments.rows,
                "dim": arguments.dim,
                "depth": depth,
                "repeats": arguments.repeats,
                "largest_difference_relative": difference,
                "neural_tangents_over_ours_cpu": middle["neural_tangents"] / middle["ntk_robust"],
                "neural_tangents_over_ours_cpu_minima": least["neural_tangents"] / least["ntk_robust"],
                "ours_over_half_gemm_cpu": middle["ntk_robust"] / (0.5 * middle["gemm"]),
                "ours_over_half_gemm_cpu_minima": least["ntk_robust"] / (0.5 * least["gemm"]),
                **{f"{name}_cpu_ns_per_entry": 1e9 * t / entries for name, t in middle.items()},
                **{f"{name}_wall_seconds": statistics.median(times) for name, times in wall.items()},
                **{f"{name}_cpu_seconds": times for name, times in cpu.items()},
                **{f"{name}_compile_and_first_cpu_seconds": t for name, t in compile_seconds.items()},
            }
        )
    environment = provenance() | {"load_average": os.getloadavg(), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    return to_jsonable({"environment": environment, "rows": rows})


if __name__ == "__main__":
    main()
