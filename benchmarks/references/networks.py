"""The reference networks: trains them, saves them small, and loads them again.

    NTK_ROBUST_DATA=... python benchmarks/references/networks.py [NAME ...]

Each is an MLP or a small convolutional network for MNIST or CIFAR-10, trained here by `training.fit`,
naturally or adversarially. Weights are kept in float16, and are evaluated, by us and by our peers, as exactly these
numbers in float32. Beside the weights stand the hundred test examples of each data set on which attacks are compared,
as bytes.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.random as jr
import numpy as np
import optax

from ntk_robust.attacks import FGSM, PGD, AbstractAttack, AbstractPerturbationSet, Box, Identity, L2Ball, LinfBall
from ntk_robust.data import load_dataset, subset
from ntk_robust.losses import CrossEntropy
from ntk_robust.models import Convolutional, FullyConnected
from ntk_robust.training import fit

FOLDER = Path(__file__).parent / "networks"
NUM_EXAMPLES = 100
_PGD = PGD(num_steps=5, relative_step=0.5)
Norm: TypeAlias = Literal["linf", "l2"]
IMAGE_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A network to attack.

    Attributes:
        data: Data set.
        architecture: "mlp" or "cnn".
        training: "natural", or "adversarial" by PGD at `training_epsilon`.
        training_epsilon: Radius of the training in pixel units.
        epsilon: l∞ radius at which it is attacked.
        epsilon_l2: l2 radius at which it is attacked.
        num_steps: Steps of Adam.
        attack: Inner attack of the training.
    """

    data: Literal["mnist", "cifar10"]
    architecture: Literal["mlp", "cnn"]
    training: Literal["natural", "adversarial"]
    training_epsilon: float
    epsilon: float
    epsilon_l2: float
    num_steps: int
    attack: AbstractAttack = _PGD

    @property
    def model(self) -> FullyConnected | Convolutional:
        """The description of the network."""
        shape = IMAGE_SHAPES[self.data]
        if self.architecture == "cnn":
            return Convolutional(shape, num_channels=6, num_hidden_layers=2, num_outputs=10, b_std=0.1)
        width = {"mnist": 128, "cifar10": 40}[self.data]
        return FullyConnected(int(np.prod(shape)), width, 2, 10, parameterization="standard", b_std=0.01)

    def perturbations(self, norm: Norm) -> AbstractPerturbationSet:
        """The ball in which it is attacked, with the box of pixels."""
        ball, epsilon = (LinfBall, self.epsilon) if norm == "linf" else (L2Ball, self.epsilon_l2)
        return ball(epsilon, Box(0.0, 1.0))


REFERENCES = {
    "mnist_mlp_natural": Reference("mnist", "mlp", "natural", 0.0, 0.03, 0.7, 2000),
    "mnist_mlp_adversarial": Reference("mnist", "mlp", "adversarial", 0.1, 0.1, 1.5, 2000),
    "mnist_cnn_natural": Reference("mnist", "cnn", "natural", 0.0, 0.03, 0.7, 600),
    "mnist_cnn_adversarial": Reference("mnist", "cnn", "adversarial", 0.1, 0.1, 1.0, 250, FGSM(random_start=True)),
    "cifar10_mlp_natural": Reference("cifar10", "mlp", "natural", 0.0, 1 / 255, 0.5, 2000),
    "cifar10_mlp_adversarial": Reference("cifar10", "mlp", "adversarial", 2 / 255, 2 / 255, 0.5, 2000),
    "cifar10_cnn_natural": Reference("cifar10", "cnn", "natural", 0.0, 1 / 255, 0.2, 600),
    "cifar10_cnn_adversarial": Reference(
        "cifar10", "cnn", "adversarial", 2 / 255, 2 / 255, 0.2, 250, FGSM(random_start=True)
    ),
}


def load_network(name: str) -> tuple[FullyConnected | Convolutional, Any]:
    """A network and its weights, in float32."""
    model = REFERENCES[name].model
    tree = jax.tree.structure(jax.eval_shape(lambda: model.init(key=jr.key(0), dtype=np.float32)))
    with np.load(FOLDER / f"{name}.npz") as stored:
        return model, jax.tree.unflatten(tree, [stored[key].astype(np.float32) for key in stored])


def load_examples(data: str) -> tuple[np.ndarray, np.ndarray]:
    """The test examples, flat, with pixels in [0, 1] in float32, and their labels."""
    with np.load(FOLDER / f"{data}_examples.npz") as stored:
        return stored["pixels"].astype(np.float32) / np.float32(255), stored["labels"]


def train(name: str) -> Any:
    """Weights of the reference of this name."""
    reference = REFERENCES[name]
    batches = (1,) if reference.data == "cifar10" else (1, 2, 3, 4, 5)
    data = load_dataset(reference.data, dtype=np.float32, train_batches=batches)
    attack = Identity() if reference.training == "natural" else reference.attack
    # In NTK parameterization weights are of order one, and so are their steps.
    rate = {"mlp": {"mnist": 2e-3, "cifar10": 3e-4}, "cnn": {"mnist": 5e-3, "cifar10": 5e-3}}
    rate = rate[reference.architecture][reference.data]
    if reference.training == "natural":
        start = reference.model.init(key=jr.key(0), dtype=np.float32)
    else:  # on CIFAR-10 adversarial training from scratch does not get these small networks off the ground
        _, start = load_network(name.replace("adversarial", "natural"))
        rate *= 0.4
    result = fit(
        reference.model.apply,
        start,
        data.x_train,
        data.y_train,
        loss=CrossEntropy(),
        attack=attack,
        perturbations=LinfBall(reference.training_epsilon, Box(0.0, 1.0)),
        optimizer=optax.adam(optax.cosine_decay_schedule(rate, reference.num_steps)),
        num_steps=reference.num_steps,
        batch_size=64,
        key=jr.key(1),
    )
    logits = jax.vmap(reference.model.apply, (None, 0))(result.params, data.x_test[:2000])
    print(f"{name}: natural accuracy {np.mean(np.argmax(logits, axis=1) == data.y_test[:2000]):.3f}")
    return result.params


def save_examples(name: str) -> None:
    """The examples of a data set, as bytes: pixels are multiples of 1/255."""
    part = subset(load_dataset(name, dtype=np.float32, train_batches=(1,)), 10, NUM_EXAMPLES, key=jr.key(0))
    pixels = np.round(np.asarray(part.x_test) * 255).astype(np.uint8)
    np.savez_compressed(FOLDER / f"{name}_examples.npz", pixels=pixels, labels=np.asarray(part.y_test))


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REFERENCES))
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        weights = [np.asarray(leaf, np.float16) for leaf in jax.tree.leaves(train(name))]
        np.savez_compressed(FOLDER / f"{name}.npz", **{str(i): leaf for i, leaf in enumerate(weights)})
        save_examples(REFERENCES[name].data)


if __name__ == "__main__":
    main()
