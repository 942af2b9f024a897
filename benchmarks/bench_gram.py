"""Kernel matrices larger than memory, and systems with them: peak memory, disk, time, and the forecasts beside them.

    NTK_ROBUST_DATA=... python benchmarks/bench_gram.py [--rows 2500 5000 10000 20000] [--solve 2000 4000] [--cg 20000]

Every size runs in a process of its own, which measures its peak resident memory, and by how much that exceeds what it
held before the run (interpreter, JAX, and the examples). "disk" writes the NTK of MNIST (three hidden layers, float32)
through `gram(..., out=FOLDER)` and deletes it; "memory" makes the same in memory; "solve" solves for ten classes by
Cholesky and by conjugate gradients with either preconditioner, on stored and on recomputed tiles, and checks the
residuals of all against the stored kernel in float64; "cg" writes the matrix to disk and solves for ten classes from
there, with a Nystrom preconditioner from one pass over the matrix, and classifies the test images. Its folder stays
until it is done, so that a run that was stopped goes on where it was; n = 60,000 needs 14.4 GB of disk and takes about
ten minutes. A line through the sizes of "disk" extrapolates to 60,000.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 3
RIDGE = 1e-3
CG_RIDGE, CG_RANK, CG_TOLERANCE = 1e-2, 500, 1e-3
TOLERANCE = 1e-4  # products in float32 cannot reach 1e-5 here, and neither does the factor in float32


def main() -> None:
    """Measures every size and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[2500, 5000, 10000, 20000])
    parser.add_argument("--memory", type=int, nargs="*", default=[5000, 10000])
    parser.add_argument("--solve", type=int, nargs="*", default=[2000, 4000])
    parser.add_argument("--cg", type=int, nargs="*", default=[20000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where matrices are written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_gram.json")
    parser.add_argument("--one", nargs=2, help="a job and its rows, in this process")
    arguments = parser.parse_args()
    jobs = {"disk": on_disk, "memory": in_memory, "solve": solve, "cg": from_disk}
    if arguments.one:
        print(json.dumps(jobs[arguments.one[0]](int(arguments.one[1]), arguments.folder)))
        return
    from ntk_robust._core import provenance, write_json_atomically

    sizes = {"disk": arguments.rows, "memory": arguments.memory, "solve": arguments.solve, "cg": arguments.cg}
    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    record = {"environment": provenance() | {"load_average": os.getloadavg()}}
    for job, rows in sizes.items():
        record[job] = [run_one(job, n, arguments.folder) for n in rows] or old.get(job, [])
    record["extrapolated"] = extrapolated(record["disk"])
    write_json_atomically(arguments.out, record)
    for job in sizes:
        for row in record[job]:
            print(job, {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    print("60,000 rows:", record["extrapolated"])
    print(f"written: {arguments.out}")


def run_one(job: str, rows: int, folder: Path) -> dict:
    """The record of one job, from a process of its own."""
    command = [sys.executable, __file__, "--one", job, str(rows), "--folder", str(folder)]
    completed = subprocess.run(command, check=False, capture_output=True, text=True)
    if completed.returncode:
        raise SystemExit(f"{job} at {rows} rows failed:\n{completed.stderr[-3000:]}")
    return json.loads(completed.stdout.splitlines()[-1])


def extrapolated(rows: list[dict]) -> dict:
    """Peak memory at 60,000 rows from sizes up to 20,000: a constant, and what grows with the rows, the examples."""
    import numpy as np

    if len(rows) < 2:
        return {}
    n = np.array([row["rows"] for row in rows], float)
    peak = np.array([row["peak_resident_bytes"] for row in rows], float)
    full = (n >= 5000) & (n <= 20000)  # smaller ones have smaller tiles
    slope, constant = (float(c) for c in np.polyfit(n[full], peak[full], 1))
    longest = max((row for row in rows if row["rows"] <= 20000), key=lambda row: row["rows"])
    return {
        "bytes_per_row": slope,
        "bytes_per_row_of_the_examples": 784 * 4,
        "peak_resident_bytes_at_60000": constant + 60000 * slope,
        "disk_bytes_at_60000": 4 * 60000**2,
        "seconds_at_60000": longest["seconds"] * (60000 / longest["rows"]) ** 2,
    }


def on_disk(rows: int, folder: Path) -> dict:
    """Peak memory and time of a matrix on disk, and what the forecast said."""
    from ntk_robust.kernels import forecast_gram, gram

    kernel, x, _ = problem(rows)
    before = resident("VmRSS")
    forecast = forecast_gram(kernel, x, out=folder / "forecast")
    path = Path(tempfile.mkdtemp(dir=folder, prefix="bench_gram_"))
    try:
        start, cpu = time.perf_counter(), time.process_time()
        store = gram(kernel, x, out=path / "gram")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        after = resident("VmHWM")
        check(store[rows - 3 : rows, :7].read().result(), kernel, x[rows - 3 :], x[:7])
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(path)
    return {
        "rows": rows,
        "tile": list(forecast.tile),
        "peak_resident_bytes": after,
        "growth_bytes": after - before,
        "forecast_memory_bytes": forecast.memory_bytes,
        "forecast_over_measured_memory": forecast.memory_bytes / (after - before),
        "disk_bytes": size,
        "forecast_over_measured_disk": forecast.disk_bytes / size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "forecast_over_measured_seconds": forecast.seconds / seconds,
    }


def in_memory(rows: int, folder: Path) -> dict:
    """The same in memory."""
    del folder
    from ntk_robust.kernels import forecast_gram, gram

    kernel, x, _ = problem(rows)
    before = resident("VmRSS")
    forecast = forecast_gram(kernel, x)
    start = time.perf_counter()
    matrix = gram(kernel, x)
    seconds, after = time.perf_counter() - start, resident("VmHWM")
    check(matrix[rows - 3 :, :7], kernel, x[rows - 3 :], x[:7])
    return {
        "rows": rows,
        "tile": list(forecast.tile),
        "growth_bytes": after - before,
        "forecast_memory_bytes": forecast.memory_bytes,
        "forecast_over_measured_memory": forecast.memory_bytes / (after - before),
        "seconds": seconds,
        "forecast_over_measured_seconds": forecast.seconds / seconds,
    }


def solve(rows: int, folder: Path) -> dict:
    """Cholesky and conjugate gradients, residuals checked against the kernel in float64."""
    import jax
    import numpy as np

    from ntk_robust.kernels import (
        conjugate_gradients,
        gram,
        kernel_matvec,
        kernel_regression,
        nystrom,
        pivoted_cholesky,
        stored_matvec,
    )

    del folder
    kernel, x, y = problem(rows)
    k = gram(kernel, x)
    rank = rows // 8
    results = {"rows": rows, "ridge": RIDGE, "rank": rank, "tolerance": TOLERANCE}

    def timed(name, make):
        result, results[f"{name}_seconds"], results[f"{name}_cpu_seconds"] = _timed(make)
        return result

    truth = k.astype(np.float64)
    truth[np.diag_indices(rows)] += RIDGE
    residual = lambda dual: float(np.linalg.norm(truth @ dual - y) / np.linalg.norm(y))  # noqa: E731
    fit = timed("cholesky_float32", lambda: kernel_regression(k, y, ridge=RIDGE))
    results |= {"cholesky_float32_residual": residual(fit.dual), "condition_number": fit.condition_number}
    double = k.astype(np.float64)
    exact = timed("cholesky_float64", lambda: kernel_regression(double, y, ridge=RIDGE))
    refined = timed(
        "cholesky_float32_refined",
        lambda: conjugate_gradients(
            double.__matmul__,
            y.astype(np.float64),
            ridge=RIDGE,
            preconditioner=kernel_regression(k, y, ridge=RIDGE).solve,
            tolerance=1e-12,
        ),
    )
    results |= {
        "cholesky_float64_residual": residual(exact.dual),
        "cholesky_float32_refined_residual": residual(refined.dual),
        "cholesky_float32_refined_products": refined.num_products,
    }
    del double, exact, refined
    makers = {
        "pivoted": lambda: pivoted_cholesky(kernel, x, rank=rank, ridge=RIDGE),
        "nystrom": lambda: nystrom(stored_matvec(k), rows, rank=rank, ridge=RIDGE, key=jax.random.key(0)),
        "none": lambda: None,
    }
    for name, make in makers.items():
        preconditioner = timed(f"{name}_setup", make)
        for where, matvec in (("stored", stored_matvec(k)), ("recomputed", kernel_matvec(kernel, x))):
            if (name, where) == ("none", "recomputed"):
                continue
            found = timed(
                f"{name}_{where}",
                lambda p=preconditioner, m=matvec: conjugate_gradients(
                    m, y, ridge=RIDGE, preconditioner=p, tolerance=TOLERANCE
                ),
            )
            results |= {
                f"{name}_{where}_products": found.num_products,
                f"{name}_{where}_converged": found.converged,
                f"{name}_{where}_residual": residual(found.dual),
            }
    return results


def from_disk(rows: int, folder: Path) -> dict:
    """Conjugate gradients with the matrix on disk, and how well the solution classifies the test images."""
    import jax
    import numpy as np

    from ntk_robust.data import load_dataset
    from ntk_robust.kernels import conjugate_gradients, gram, nystrom, stored_matvec

    kernel, x, y = problem(rows)
    before = resident("VmRSS")
    path = folder / f"bench_gram_cg_{rows}"
    store, matrix_seconds, matrix_cpu = _timed(lambda: gram(kernel, x, out=path))
    matvec = stored_matvec(store)
    sketch = lambda: nystrom(matvec, rows, rank=CG_RANK, ridge=CG_RIDGE, key=jax.random.key(0))  # noqa: E731
    preconditioner, setup_seconds, setup_cpu = _timed(sketch)
    found, seconds, cpu = _timed(
        lambda: conjugate_gradients(
            matvec, y, ridge=CG_RIDGE, preconditioner=preconditioner, tolerance=CG_TOLERANCE, max_products=100
        )
    )
    after = resident("VmHWM")
    mnist = load_dataset("mnist", dtype=np.float32)
    test, labels = np.asarray(mnist.x_test), np.asarray(mnist.y_test)
    outputs = [gram(kernel, test[i : i + 500], x) @ found.dual for i in range(0, len(test), 500)]
    predicted = np.concatenate(outputs).argmax(axis=1)
    result = {
        "rows": rows,
        "ridge": CG_RIDGE,
        "rank": CG_RANK,
        "tolerance": CG_TOLERANCE,
        "matrix_seconds": matrix_seconds,  # 0 where a run before this one wrote it
        "matrix_cpu_seconds": matrix_cpu,
        "setup_seconds": setup_seconds,
        "setup_cpu_seconds": setup_cpu,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "products": found.num_products,
        "converged": found.converged,
        "largest_residual": float(np.max(found.residual)),
        "largest_rkhs_error_bound": float(np.max(found.rkhs_error_bound)),
        "peak_resident_bytes": after,
        "growth_bytes": after - before,
        "test_accuracy": float(np.mean(predicted == labels)),
    }
    shutil.rmtree(path)
    return result


def _timed(make) -> tuple:
    """What `make` returns, and its wall and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    result = make()
    return result, time.perf_counter() - start, time.process_time() - cpu


def problem(rows: int):
    """A kernel, MNIST and its classes as unit vectors."""
    import numpy as np

    from ntk_robust.data import load_dataset
    from ntk_robust.kernels import analytic_ntk
    from ntk_robust.models import FullyConnected

    mnist = load_dataset("mnist", dtype=np.float32)
    x = np.array(np.asarray(mnist.x_train)[:rows])
    y = np.eye(10, dtype=np.float32)[np.asarray(mnist.y_train)[:rows]]
    del mnist
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: reading the files is not the matrix
    return analytic_ntk(FullyConnected(784, 1, LAYERS, "scalar")), x, y


def resident(what: str) -> int:
    """Resident memory of this process (Linux) in bytes: now (VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def check(found, kernel, rows, columns) -> None:
    """Stops where a corner of the matrix is not the kernel, pair by pair in float64."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    with jax.enable_x64(True):
        exact = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(jnp.asarray(columns, jnp.float64)))(
            jnp.asarray(rows, jnp.float64)
        )
    difference = float(np.max(np.abs(found - np.asarray(exact))) / np.max(found))
    if not difference < 1e-5:
        raise SystemExit(f"a corner of the matrix is off by {difference}; not reporting a wrong one")


if __name__ == "__main__":
    main()
