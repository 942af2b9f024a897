"""Accuracies of the reference networks under torchattacks and foolbox, to be stored and compared with ours.

    python benchmarks/references/peers.py [--norms linf l2] [NAME ...]

Runs in the environment with PyTorch that benchmarks/README.md describes, and updates `reference.json` here. Networks
are rewritten in PyTorch, and their logits must be ours before anything is attacked. Budgets are those of AutoAttack's
"standard" version: 100 steps, 9 targets, 5000 queries. torchattacks' own default is 10 steps.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torchattacks
from networks import IMAGE_SHAPES, REFERENCES, Norm, load_examples, load_network
from torch import nn

from ntk_robust.models import Convolutional

FILE = Path(__file__).parent / "reference.json"
SECTIONS: dict[Norm, str] = {"linf": "networks", "l2": "networks_l2"}  # of the file
NUM_STEPS, NUM_TARGETS, NUM_QUERIES, PGD_STEPS, PGD_RELATIVE_STEP = 100, 9, 5000, 40, 0.1


class TorchNetwork(nn.Module):
    """A reference network on images (n, channels, height, width)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model, params = load_network(name)
        is_image = isinstance(self.model, Convolutional)
        layers = []
        for number, (dense, fan_in) in enumerate(zip(params, self.model.fan_ins, strict=True)):
            scale, bias_scale = (self.model.w_std / fan_in**0.5, self.model.b_std) if is_image else (1.0, 1.0)
            weight = torch.tensor(np.asarray(dense.weight)) * scale
            if is_image and number < len(params) - 1:
                weight = weight.reshape(weight.shape[0], *self.model.filter_shape, -1).permute(0, 3, 1, 2).contiguous()
                layer = nn.Conv2d(weight.shape[1], weight.shape[0], self.model.filter_shape, padding=1)
            else:
                layer = nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.copy_(torch.tensor(np.asarray(dense.bias)) * bias_scale)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        flat = isinstance(self.layers[0], nn.Linear)
        features = images.permute(0, 2, 3, 1).flatten(1) if flat else images
        for layer in self.layers[:-1]:
            features = torch.relu(layer(features))
        return self.layers[-1](features if flat else features.permute(0, 2, 3, 1).flatten(1))


def images_of(xs: np.ndarray, data: str) -> torch.Tensor:
    """Flat examples as PyTorch has images."""
    return torch.tensor(xs).reshape(-1, *IMAGE_SHAPES[data]).permute(0, 3, 1, 2).contiguous()


def torchattacks_peers(
    network: nn.Module, epsilon: float, norm: Norm = "linf", num_steps: int = NUM_STEPS
) -> dict[str, Callable]:
    """The attacks of torchattacks and its AutoAttack, at our budgets."""
    common = {"eps": epsilon, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": 0}
    apgd = torchattacks.APGD(network, steps=num_steps, loss="ce", **common)
    apgd_t = torchattacks.APGDT(network, steps=num_steps, n_classes=10, **common)
    fab_t = torchattacks.FAB(network, steps=num_steps, multi_targeted=True, n_classes=10, **common)
    square = torchattacks.Square(network, n_queries=NUM_QUERIES, **common)
    standard = torchattacks.MultiAttack([apgd, apgd_t, fab_t, square])
    return {"apgd-ce": apgd, "apgd-t": apgd_t, "fab-t": fab_t, "square": square, "auto-attack": standard}


def foolbox_pgd(network: nn.Module, epsilon: float, norm: Norm) -> Callable:
    """PGD of foolbox, with a random start."""
    import foolbox

    wrapped = foolbox.PyTorchModel(network, bounds=(0, 1))
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    attack = kind(rel_stepsize=PGD_RELATIVE_STEP, steps=PGD_STEPS)
    return lambda images, labels: attack(wrapped, images, labels, epsilons=epsilon)[1]


def adversarial_accuracy(
    network: nn.Module, images: Any, found: Any, labels: Any, epsilon: float, *, norm: Norm = "linf"
) -> float:
    """Fraction that is right at the image and at the point found; points outside the set do not count."""
    with torch.no_grad():
        right = network(images).argmax(1) == labels
        sizes = torch.linalg.vector_norm((found - images).flatten(1), ord={"linf": torch.inf, "l2": 2}[norm], dim=1)
        inside = (sizes <= epsilon * (1 + 1e-5)) & ((found >= 0) & (found <= 1)).flatten(1).all(1)
        fooled = inside & (network(found).argmax(1) != labels)
    return float((right & ~fooled).float().mean())


def measure(name: str, norm: Norm) -> dict[str, Any]:
    """Accuracies and CPU seconds of all peers on one network."""
    reference = REFERENCES[name]
    epsilon = float(reference.perturbations(norm).epsilon)
    xs, ys = load_examples(reference.data)
    network = TorchNetwork(name).eval()
    images, labels = images_of(xs, reference.data), torch.tensor(ys, dtype=torch.long)
    model, params = load_network(name)
    ours = np.asarray(jax.vmap(model.apply, (None, 0))(params, xs))
    with torch.no_grad():
        logits = network(images).numpy()
    np.testing.assert_allclose(logits, ours, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    row: dict[str, Any] = {
        "epsilon": epsilon,
        "natural_accuracy": float(np.mean(logits.argmax(1) == ys)),
        "torchattacks": {},
        "foolbox": {},
        "cpu_s": {},
    }
    attacks = {("torchattacks", key): run for key, run in torchattacks_peers(network, epsilon, norm).items()}
    attacks["foolbox", "pgd"] = foolbox_pgd(network, epsilon, norm)
    for (library, attack), run in attacks.items():
        begin = time.process_time()
        found = run(images, labels)
        row["cpu_s"][attack] = time.process_time() - begin
        row[library][attack] = adversarial_accuracy(network, images, found, labels, epsilon, norm=norm)
        print(name, norm, library, attack, row[library][attack], round(row["cpu_s"][attack], 1), flush=True)
    return row


def main() -> None:
    """Measures the networks named, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REFERENCES))
    parser.add_argument("--norms", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    for norm in arguments.norms:
        for name in arguments.names:
            row = measure(name, norm)
            record = json.loads(FILE.read_text()) if FILE.exists() else {}
            record["versions"] = {package: version(package) for package in ("torch", "torchattacks", "foolbox", "jax")}
            record["versions"]["python"] = platform.python_version()
            record["budget"] = {"num_steps": NUM_STEPS, "num_targets": NUM_TARGETS, "num_queries": NUM_QUERIES}
            record["budget"] |= {"pgd_steps": PGD_STEPS, "pgd_relative_step": PGD_RELATIVE_STEP}
            record.setdefault(SECTIONS[norm], {})[name] = row
            FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
