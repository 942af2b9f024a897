"""PGD-40 and APGD beside hand-written jitted loops: MLP 784-512-512-10, float32, l-infinity, random images.

    python benchmarks/bench_attacks.py [--batch 256] [--steps 40] [--repeats 5] [--threads 1] [--out FILE.json]

The hand-written loops do what a user would write without this library: a `lax.fori_loop` over sign steps, once as plain
as possible and once with the best iterate kept, as `PGD` does it. Before anything is timed, the points must agree.
Peers alternate; medians and spread of process CPU seconds, and wall seconds, of one attack, compilation apart.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

EPSILON, RELATIVE_STEP = 0.1, 0.1


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="1 pins XLA to one thread; 0 leaves it alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_attacks.json")
    arguments = parser.parse_args()
    if arguments.threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["OMP_NUM_THREADS"] = "1"
    from ntk_robust._core import provenance, write_json_atomically

    rows = measure(arguments)
    sizes = {name: getattr(arguments, name) for name in ("batch", "steps", "repeats", "threads")}
    write_json_atomically(arguments.out, {"environment": provenance(), **sizes, "rows": rows})
    for row in rows:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    print(f"written: {arguments.out}")


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One row per peer."""
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
    params = [jr.normal(k, shape) * (2 / shape[1]) ** 0.5 for k, shape in zip(keys, shapes, strict=False)]
    xs = jr.uniform(keys[3], (arguments.batch, 784))
    ys = jr.randint(keys[4], (arguments.batch,), 0, 10)
    loss = CrossEntropy()

    def network(x: jax.Array) -> jax.Array:
        for weight in params[:-1]:
            x = jax.nn.relu(weight @ x)
        return params[-1] @ x

    def objective(x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(network(x), y)

    batched = jax.vmap(objective)

    def total(points: jax.Array, ys: jax.Array) -> jax.Array:
        return jnp.sum(batched(points, ys))

    def project(points: jax.Array, xs: jax.Array) -> jax.Array:
        return jnp.clip(jnp.clip(points, xs - EPSILON, xs + EPSILON), 0, 1)

    @jax.jit
    def plain(xs: jax.Array, ys: jax.Array) -> jax.Array:
        def step(_: int, points: jax.Array) -> jax.Array:
            return project(points + RELATIVE_STEP * EPSILON * jnp.sign(jax.grad(total)(points, ys)), xs)

        return lax.fori_loop(0, arguments.steps, step, xs)

    @jax.jit
    def keeping_best(xs: jax.Array, ys: jax.Array) -> jax.Array:
        def better(best: tuple, points: jax.Array, values: jax.Array) -> tuple:
            improved = values > best[1]
            return jnp.where(improved[:, None], points, best[0]), jnp.where(improved, values, best[1])

        def step(_: int, state: tuple) -> tuple:
            points, best = state
            values, pull = jax.vjp(lambda points: batched(points, ys), points)
            best = better(best, points, values)
            return project(points + RELATIVE_STEP * EPSILON * jnp.sign(pull(jnp.ones_like(values))[0]), xs), best

        start = (xs, (xs, jnp.full(len(xs), -jnp.inf)))
        points, best = lax.fori_loop(0, arguments.steps, step, start)
        return better(best, points, batched(points, ys))[0]

    perturbations = LinfBall(EPSILON, Box(0.0, 1.0))
    pgd, apgd = PGD(arguments.steps, RELATIVE_STEP, random_start=False), APGD(arguments.steps, random_start=False)
    peers = {
        "hand-written loop": lambda: plain(xs, ys),
        "hand-written loop, best iterate kept": lambda: keeping_best(xs, ys),
        "PGD": lambda: attack_batch(pgd, objective, xs, ys, perturbations, key=keys[0]).x_adv,
        "APGD": lambda: attack_batch(apgd, objective, xs, ys, perturbations, key=keys[0]).x_adv,
    }
    first_calls, found = {}, {}
    for name, run in peers.items():
        begin = time.perf_counter()
        found[name] = jax.block_until_ready(run())
        first_calls[name] = time.perf_counter() - begin
    mean_loss = {name: float(jnp.mean(batched(points, ys))) for name, points in found.items()}
    np.testing.assert_allclose(mean_loss["PGD"], mean_loss["hand-written loop, best iterate kept"], rtol=1e-4)

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for _ in range(arguments.repeats):
        for name, run in peers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows = []
    for name, times in seconds.items():
        cpu, wall = (sorted(column) for column in zip(*times, strict=True))
        rows.append(
            {
                "peer": name,
                "cpu_s": statistics.median(cpu),
                "cpu_s_min": cpu[0],
                "cpu_s_max": cpu[-1],
                "wall_s": statistics.median(wall),
                "first_call_s": first_calls[name],
                "mean_loss": mean_loss[name],
            }
        )
    return rows


if __name__ == "__main__":
    main()
