"""Certified beside adversarial accuracy on MNIST: bounds against PGD, on networks and an NTK regression.

    NTK_ROBUST_DATA=... python benchmarks/bench_certify.py [--examples 200] [--steps 2000] [--width 100] [--out FILE]

Networks 784-width-width-10 in float32 are trained here, naturally or by PGD at the l-infinity radius 0.1, and evaluated
on l-infinity and l2 balls with the box [0, 1]; the convolutional network is the adversarially trained one of
references/, on fewer examples. For every example the attack's margin must not be below the certified one. Seconds are
process CPU time, with compilation at the first radius. The NTK regression tells 3 from 8 after 1000 examples, in
float64, on l2 balls; its certificates are those of its norm and of its gradient with a bound of its Hessians.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Activation, training, norm of the balls, radii.
CASES = (
    ("Relu", "natural", "linf", (0.01, 0.02)),
    ("Relu", "adversarial", "linf", (0.02, 0.05, 0.1)),
    ("Relu", "adversarial", "l2", (0.2, 0.5, 1.0)),
    ("Tanh", "adversarial", "linf", (0.02, 0.05, 0.1)),
)
CONVOLUTIONAL_RADII = (0.01, 0.02)
CONVOLUTIONAL_EXAMPLES = 20
KERNEL_RADII = (1e-4, 1e-3, 1e-2, 0.1, 0.3)
KERNEL_EXAMPLES = 50
TRAINING_RADIUS = 0.1


def main() -> None:
    """Trains, measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "bench_certify.json")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent / "references"))
    from ntk_robust._core import provenance, write_json_atomically

    rows = []
    for row in itertools.chain(measure(arguments), measure_convolutional(), measure_kernel()):
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        rows.append(row)
    sizes = {name: getattr(arguments, name) for name in ("examples", "steps", "width")}
    write_json_atomically(arguments.out, {"environment": provenance(), **sizes, "rows": rows})
    print(f"written: {arguments.out}")


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each trained network, norm and radius."""
    import jax.random as jr
    import numpy as np
    import optax

    from ntk_robust import models
    from ntk_robust.attacks import PGD, Box, Identity, LinfBall
    from ntk_robust.data import load_dataset, subset
    from ntk_robust.losses import CrossEntropy
    from ntk_robust.training import fit

    data = subset(load_dataset("mnist", dtype=np.float32), 20_000, arguments.examples, key=jr.key(0))
    attacks = {"natural": Identity(), "adversarial": PGD(num_steps=7, relative_step=0.3)}
    trained: dict[tuple[str, str], Any] = {}
    for activation, training, norm, radii in CASES:
        model = models.FullyConnected(
            input_dim=784,
            width=arguments.width,
            num_hidden_layers=2,
            num_outputs=10,
            activation=getattr(models, activation)(),
            parameterization="standard",
            b_std=0.01,
        )
        if (activation, training) not in trained:
            trained[activation, training] = fit(
                model.apply,
                model.init(key=jr.key(1), dtype=np.float32),
                data.x_train,
                data.y_train,
                loss=CrossEntropy(),
                attack=attacks[training],
                perturbations=LinfBall(TRAINING_RADIUS, Box(0.0, 1.0)),
                optimizer=optax.adam(1e-3),
                num_steps=arguments.steps,
                batch_size=128,
                key=jr.key(2),
            ).params
        about = {"network": f"perceptron, {activation.lower()}", "training": training, "norm": norm}
        network = (model, trained[activation, training])
        for row in bounds_beside_attack(network, (data.x_test, data.y_test), norm, radii, batch_size=20):
            yield about | row


def measure_convolutional() -> Iterator[dict[str, Any]]:
    """One row for each radius, for the convolutional reference network."""
    import jax.numpy as jnp
    from networks import load_examples, load_network

    xs, ys = (jnp.asarray(part[:CONVOLUTIONAL_EXAMPLES]) for part in load_examples("mnist"))
    network = load_network("mnist_cnn_adversarial")
    about = {"network": "convolutional, relu", "training": "adversarial", "norm": "linf"}
    for row in bounds_beside_attack(network, (xs, ys), "linf", CONVOLUTIONAL_RADII, batch_size=1, optimized=False):
        yield about | row


def bounds_beside_attack(
    trained: tuple[Any, Any],
    examples: tuple[Any, Any],
    norm: str,
    radii: tuple[float, ...],
    *,
    batch_size: int,
    optimized: bool = True,
) -> Iterator[dict[str, Any]]:
    """Accuracies that PGD-40 leaves and that each method certifies, and what the certificates cost."""
    import jax
    import jax.random as jr
    import numpy as np

    from ntk_robust.attacks import PGD, Box, L2Ball, LinfBall, evaluate
    from ntk_robust.certify import (
        AlphaCrown,
        Crown,
        IntervalBounds,
        Zonotope,
        bracket_accuracy,
        certify_batch,
        network_of,
    )
    from ntk_robust.losses import Margin

    model, params = trained
    network = network_of(model, params)
    methods = {
        "interval": (IntervalBounds(), None),
        "zonotope": (Zonotope(), batch_size),
        "crown": (Crown(), batch_size),
    } | ({"alpha_crown": (AlphaCrown(num_steps=20), batch_size)} if optimized else {})
    for radius in radii:
        perturbations = {"linf": LinfBall, "l2": L2Ball}[norm](radius, Box(0.0, 1.0))
        evaluation = evaluate(
            model.apply,
            params,
            *examples,
            attack=PGD(num_steps=40, relative_step=0.1),
            perturbations=perturbations,
            loss=Margin(),
            key=jr.key(3),
        )
        row = {
            "examples": len(examples[0]),
            "epsilon": radius,
            "natural_accuracy": evaluation.natural_accuracy,
            "adversarial_accuracy": evaluation.adversarial_accuracy,
        }
        for name, (method, size) in methods.items():
            begin = time.process_time()
            certificate = certify_batch(method, network, *examples, perturbations, batch_size=size)
            jax.block_until_ready(certificate.margins)
            seconds = time.process_time() - begin
            bracket = bracket_accuracy(evaluation, certificate)
            row |= {
                name: bracket.certified_accuracy,
                f"{name}_cpu_s": seconds,
                f"{name}_median_gap": float(np.median(bracket.gap)),
            }
        yield row


def measure_kernel() -> Iterator[dict[str, Any]]:
    """One row per radius for the NTK regression."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from ntk_robust.attacks import PGD, L2Ball, evaluate
    from ntk_robust.certify import RkhsFunction, local_kernel_bounds, rkhs_bounds
    from ntk_robust.data import binary_task, load_dataset, subset
    from ntk_robust.kernels import analytic_ntk, kernel_regression
    from ntk_robust.losses import Margin
    from ntk_robust.models import FullyConnected

    data = binary_task(load_dataset("mnist", dtype=np.float64), (3, 8))
    data = subset(data, 1000, KERNEL_EXAMPLES, key=jr.key(0))
    kernel = analytic_ntk(FullyConnected(input_dim=784, width=1, num_hidden_layers=3, num_outputs="scalar"))
    fitted = kernel_regression(np.asarray(kernel.gram(data.x_train)), np.asarray(data.y_train)[:, None], ridge=0.0)
    function = RkhsFunction(kernel, data.x_train, jnp.asarray(fitted.dual))

    @eqx.filter_jit
    def certified(bounds_fn, epsilon: jax.Array) -> jax.Array:
        def lowest(example: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, y = example
            return bounds_fn(function, x, L2Ball(epsilon), y[None, None]).lower[0]

        return jax.lax.map(lowest, (data.x_test, data.y_test)) > 0

    for radius in KERNEL_RADII:
        evaluation = evaluate(
            lambda function, x: function(x)[0],
            function,
            data.x_test,
            data.y_test,
            attack=PGD(num_steps=10, relative_step=0.3),
            perturbations=L2Ball(radius),
            loss=Margin(),
            key=jr.key(1),
            batch_size=10,
        )
        by_norm, local = (certified(method, jnp.asarray(radius)) for method in (rkhs_bounds, local_kernel_bounds))
        right = np.asarray(evaluation.margins) < 0
        assert not np.any(np.asarray(by_norm | local) & ~right), "an attack refuted a certificate"
        yield {
            "network": "ntk regression",
            "epsilon": radius,
            "natural_accuracy": evaluation.natural_accuracy,
            "adversarial_accuracy": evaluation.adversarial_accuracy,
            "rkhs_norm": float(np.mean(by_norm)),
            "local": float(np.mean(local)),
        }


if __name__ == "__main__":
    main()
