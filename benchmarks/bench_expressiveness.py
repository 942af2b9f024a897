"""Norms of robust interpolants of digits against the radius, smallest robust losses, certified fits; and their cost.

    NTK_ROBUST_DATA=... python benchmarks/bench_expressiveness.py SECTION ... [--examples 150] [--out FILE]

Sections: norms-DATA-SET (DATA digits or mnist, SET linf or l2), curves, grids, surfaces. What others wrote stays. All
in float64, process CPU seconds with compilation. Norms: threes against eights in pixels of [0, 1], the NTK of a
ReLU network with two hidden layers; radii are shares of the largest one at which sets of unlike points do not meet. The
norm "audited" is that of the multiple of the function that is right against PGD with 40 steps from two random starts,
which took no part in making it.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import equinox as eqx

SHARES = (0.0, 0.02, 0.1, 0.3)
RADII = (1.0, 2.0, 4.0, 8.0, 16.0)
WIDTHS = (256, 4096)
GRIDS = ((1000, 2.0), (4000, 2.0), (16_000, 2.0), (64_000, 2.0), (4000, 4.0))  # points and radius
SECTIONS = ("norms-digits-linf", "norms-digits-l2", "norms-mnist-linf", "norms-mnist-l2", "curves", "grids", "surfaces")


def main() -> None:
    """Measures sections and puts them into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--examples", type=int, default=150)
    default = Path(__file__).parent / "results" / "cpu" / "bench_expressiveness.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    from ntk_robust._core import provenance, write_json_atomically

    for section in arguments.sections:
        kind, *rest = section.split("-")
        measure = {"norms": norms, "curves": curves, "grids": grids, "surfaces": surfaces}[kind]
        found = measure(*rest, arguments.examples) if rest else measure()
        record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        write_json_atomically(arguments.out, record | {"environment": provenance(), section: found})
        print(f"written: {section}")


def norms(name: str, ball: str, examples: int) -> dict[str, Any]:
    """Norms against radii on one data set."""
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    from ntk_robust import attacks, data, expressiveness, kernels, models

    digits = data.binary_task(data.load_dataset(name), (3, 8))
    digits = data.subset(digits, examples, 2, key=jr.key(0))
    xs = digits.x_train.reshape(len(digits.x_train), -1).astype(float)
    ys = digits.y_train.astype(float)
    kernel = kernels.analytic_ntk(models.FullyConnected(xs.shape[1], 512, 2, "scalar"))
    box = attacks.Box(0.0, 1.0)

    def perturbations(epsilon: float) -> attacks.AbstractPerturbationSet:
        return attacks.LinfBall(epsilon, box) if ball == "linf" else attacks.L2Ball(epsilon, box)

    largest = expressiveness.compatibility(xs, ys, perturbations(0.1)).largest_epsilon
    auditor = attacks.Restarts(attacks.PGD(num_steps=40, relative_step=0.1), 2)
    before = time.process_time()
    quick = attacks.PGD(num_steps=10, relative_step=0.3, random_start=False)  # many rounds; the auditor is slow
    sets = [expressiveness.AttackedSets(xs, ys, perturbations(share * largest), quick) for share in SHARES]
    curve = expressiveness.norm_curve(kernel, sets, relative_gap=0.05, max_rounds=10)
    seconds, rows = time.process_time() - before, []
    for share, each, found in zip(SHARES, sets, curve, strict=True):
        predictor = kernels.KernelPredictor(kernel, jnp.asarray(found.points), jnp.asarray(found.coefficients))
        result = attacks.attack_batch(auditor, Margin(predictor), xs, ys, each.perturbations, key=jr.key(1))
        margin = -float(jnp.max(result.value))
        norm = float(jnp.sqrt(found.coefficients @ kernel.gram(found.points) @ found.coefficients))
        rows.append(
            {
                "share": share,
                "epsilon": share * largest,
                "norm_lower": found.norm_lower,
                "norm_attained": found.norm_attained,
                "norm_audited": norm / margin if margin > 0 else None,
                "norm_upper": found.norm_upper if np.isfinite(found.norm_upper) else None,
                "constraints": found.num_constraints,
                "rounds": found.num_rounds,
                "converged": found.converged,
            }
        )
        print(rows[-1], flush=True)
    return {
        "examples": len(xs),
        "input_dim": xs.shape[1],
        "largest_epsilon": largest,
        "rows": rows,
        "curve_cpu_s": seconds,
    }


class Margin(eqx.Module):
    """What the auditor maximizes: minus the margin."""

    predictor: Any

    def __call__(self, x: Any, y: Any) -> Any:
        """At one point."""
        return -y * self.predictor(x)


def curves() -> dict[str, Any]:
    """The smallest robust loss in a ball, of the infinitely wide kernel and of features of finite networks."""
    import jax.random as jr

    from ntk_robust import attacks, data, expressiveness, kernels, models

    xs, ys = data.circle_points(4)
    arcs = expressiveness.ArcSets(xs, attacks.SphereSlice(0.2), ys)
    digits = data.subset(data.binary_task(data.load_dataset("digits"), (3, 8)), 40, 2, key=jr.key(0))
    points = data.to_sphere_slice(digits.x_train.astype(float))
    caps = expressiveness.AttackedSets(points, digits.y_train.astype(float), attacks.SphereSlice(0.05))
    found = {}
    for name, each in (("4 arcs of a circle", arcs), ("40 digits, caps of radius 0.05", caps)):
        dim = each.xs.shape[1]
        wide = models.PairedTwoLayerNet(dim, WIDTHS[-1], models.Softplus())
        tried = {"infinite": kernels.analytic_ntk(wide)}
        for width in WIDTHS:
            net = models.PairedTwoLayerNet(dim, width, models.Softplus())
            tried[f"m = {width}"] = expressiveness.TangentKernel(net, net.init(key=jr.key(width)))
        for which, kernel in tried.items():
            before = time.process_time()
            curve = expressiveness.error_curve(kernel, each, list(RADII), relative_gap=0.02)
            found[f"{name}: {which}"] = {
                "rows": [
                    {
                        "radius": fit.radius,
                        "error_lower": fit.error_lower,
                        "error_attained": fit.error_attained,
                        "error_upper": fit.error_upper if math.isfinite(fit.error_upper) else None,
                    }
                    for fit in curve.fits
                ],
                "cpu_s": time.process_time() - before,
            }
            print(name, which, found[f"{name}: {which}"], flush=True)
    return found


def grids() -> list[dict[str, Any]]:
    """Uniform approximation on grids of growing size: how many points enter the programs."""
    import jax
    import numpy as np

    from ntk_robust import expressiveness, kernels, models

    kernel = kernels.analytic_ntk(models.FullyConnected(3, 512, 1, "scalar"))
    rows = []
    for count, radius in GRIDS:
        side = round(math.sqrt(count))
        u, v = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
        points = np.stack([u.ravel(), v.ravel(), np.ones(side * side)], axis=1)
        targets = np.sin(3 * points[:, 0]) * np.cos(2 * points[:, 1])
        jax.clear_caches()
        before = time.process_time()
        fit = expressiveness.best_fit(kernel, expressiveness.PointSets(points[None], targets[None]), radius)
        rows.append(
            {
                "points": side * side,
                "radius": radius,
                "error_lower": fit.error_lower,
                "error_upper": fit.error_upper,
                "constraints": fit.num_constraints,
                "rounds": fit.num_rounds,
                "cpu_s": time.process_time() - before,
            }
        )
        print(rows[-1], flush=True)
    return rows


def surfaces() -> list[dict[str, Any]]:
    """Errors certified on whole surfaces, not on grids."""
    import jax.numpy as jnp
    import jax.random as jr

    from ntk_robust import expressiveness, kernels, models

    def on_sphere(x: Any) -> Any:  # u v + w / 2 on the unit sphere, second derivatives at most 2.5
        u = x[:3] / jnp.linalg.norm(x[:3])
        return u[0] * u[1] + 0.5 * u[2]

    def on_square(x: Any) -> Any:  # second derivatives at most 5
        return jnp.sin(2.0 * x[0]) * jnp.cos(x[1])

    sphere_net, square_net = (models.PairedTwoLayerNet(dim, 1024, models.Softplus()) for dim in (4, 3))
    sphere_kernel, square_kernel = kernels.analytic_ntk(sphere_net), kernels.analytic_ntk(square_net)
    tangent = expressiveness.TangentKernel(square_net, square_net.init(key=jr.key(0)))
    third, largest = 1 / (6 * math.sqrt(3)), math.sqrt(3)

    def square(kernel_bend: float) -> expressiveness.SurfaceSets:
        return expressiveness.rectangle((-1.0, -1.0), (1.0, 1.0), on_square, target_bend=5.0, kernel_bend=kernel_bend)

    cases = [
        ("sphere, infinite", sphere_kernel, expressiveness.whole_sphere(sphere_kernel, on_sphere, 2.5, 0.7)),
        ("square, infinite", square_kernel, square(expressiveness.two_layer_bend(square_net, largest, third=third))),
        ("square, m = 1024", tangent, square(tangent.bend(largest, third=third))),
    ]
    rows = []
    for name, kernel, sets in cases:
        for radius in (2.0, 4.0):
            before = time.process_time()
            fit = expressiveness.best_fit(kernel, sets, radius, relative_gap=0.05)
            rows.append(
                {
                    "case": name,
                    "radius": radius,
                    "error_lower": fit.error_lower,
                    "error_upper": fit.error_upper,
                    "constraints": fit.num_constraints,
                    "rounds": fit.num_rounds,
                    "cpu_s": time.process_time() - before,
                }
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
