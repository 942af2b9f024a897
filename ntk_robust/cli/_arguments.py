"""What the commands take: records whose fields are the options.

Nothing here may import JAX or anything that does: this file is all that `--help` needs.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

Profile: TypeAlias = Literal["quick", "full"]
DataName: TypeAlias = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
DtypeName: TypeAlias = Literal["float32", "float64"]
KernelName: TypeAlias = Literal["analytic_ntk", "analytic_nngp", "empirical_ntk", "empirical_nngp"]
ActivationName: TypeAlias = Literal["relu", "erf", "gelu", "softplus", "tanh"]


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run the studies and every theorem check, and write a self-contained report.

    Exit code: 0 when every check is supported and every negative control violated, 1 when one is not, 3 when nothing is
    violated but something is inconclusive.

    Attributes:
        profile: "quick" ends within ten minutes on two CPU cores; "full" takes as long as it needs.
        out: Folder of the report: index.html, results.json and run.json. It is written after every finished part.
        seed: Seeds everything that is random.
        data: Data set of the studies. All but digits are read from the data directory.
        data_dir: Data directory with the official files; NTK_ROBUST_DATA where it is not given.
        train_batches: Training batches of CIFAR-10 to read; other data sets ignore it.
    """

    profile: Profile = "quick"
    out: Path = Path("report")
    seed: int = 0
    data: DataName = "digits"
    data_dir: Path | None = None
    train_batches: tuple[int, ...] = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Check:
    """Run theorem checks by the beginning of their names.

    Exit code: 0 when every check is supported and every negative control violated, 1 when one is not, 3 when nothing is
    violated but something is inconclusive.

    Attributes:
        patterns: Beginnings of names, for example gao2019; all checks where none is given.
        profile: "quick" takes seconds a check; "full" takes as long as it needs.
        json: Print one JSON list of records and nothing else.
        list_names: Print the names, one a line, and run nothing.
        seed: Seeds everything that is random.
    """

    patterns: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN ...")] = ()
    profile: Profile = "quick"
    json: bool = False
    list_names: Annotated[bool, tyro.conf.arg(name="list")] = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Study:
    """Run studies of training and kernels on real images by the beginning of their names, and write a report.

    Attributes:
        patterns: Beginnings of names, for example lazy; all studies where none is given.
        profile: "quick" takes one to five minutes a study; "full" takes as long as it needs.
        list_names: Print the names, one a line, and run nothing.
        out: Folder of the report: index.html, results.json and run.json. It is written after every finished study.
        seed: Seeds everything that is random.
        data: Data set. All but digits are read from the data directory.
        data_dir: Data directory with the official files; NTK_ROBUST_DATA where it is not given.
        train_batches: Training batches of CIFAR-10 to read; other data sets ignore it.
        dtype: Precision of weights and data.
    """

    patterns: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN ...")] = ()
    profile: Profile = "quick"
    list_names: Annotated[bool, tyro.conf.arg(name="list")] = False
    out: Path = Path("study")
    seed: int = 0
    data: DataName = "digits"
    data_dir: Path | None = None
    train_batches: tuple[int, ...] = (1, 2, 3, 4, 5)
    dtype: DtypeName = "float64"


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network adversarially and measure how far its weights and its kernel move.

    The loss is the cross-entropy. A run that was interrupted or killed goes on with --resume, to the same bits.

    Attributes:
        out: Folder of the results: params.npz, history.zarr with summary.json, checkpoints, and a report with figures;
            of linearized and centered dynamics also params_tangent.npz, the weights at which the tangent is taken.
        resume: Go on with the run in the folder, which must have been started with the same options.
        data: Data set. All but digits are read from the data directory.
        data_dir: Data directory with the official files; NTK_ROBUST_DATA where it is not given.
        train_batches: Training batches of CIFAR-10 to read; other data sets ignore it.
        num_train: Training examples, as many of each class.
        num_test: Test examples, as many of each class.
        network: Dense layers, or convolutions of 3 by 3 pixels and a dense readout of all of them.
        width: Neurons, or channels, per hidden layer.
        num_hidden_layers: Hidden layers.
        activation: Nonlinearity.
        parameterization: "ntk" scales layers in the forward pass, "standard" at initialization.
        trainable: Which layers train; "hidden" freezes the first and the last of a fully connected network.
        norm: Norm of the perturbations.
        epsilon: Radius of the perturbations, in units of the pixels, which lie in [0, 1].
        attack: Inner maximization; "none" is natural training, "fgsm-rs" one step of 1.25 epsilon from a random start.
        attack_steps: Steps of pgd.
        method: How a batch becomes a gradient: plain adversarial training, TRADES, MART, adversarial weight
            perturbation, or free adversarial training, which replays batches and has no inner attack of its own.
        method_parameter: β of trades (6 where it is not given), weight of mart (5), relative size of the weight
            perturbation of awp (0.01), replays of free (8).
        optimizer: Gradient descent without or with momentum, or Adam.
        learning_rate: Its step length.
        momentum: Of momentum, and the first decay rate of adam.
        schedule: Learning rate over the run: "cosine" decays to 0.
        num_steps: Steps of the optimizer.
        batch_size: Rows per step; all where it is not given.
        weight_radius: Radius of the set around the initialization to which the weights are projected after every step;
            no projection where it is not given.
        weight_set: Which set: a Frobenius ball for each layer, one for all weights, or a ball for each neuron.
        dynamics: What is trained: the network; its tangent in the weights ("linearized"), whose kernel never moves; or
            that tangent without its first output, so that it begins at zero ("centered").
        switch_at: Step up to which the network itself is trained, before linearized or centered dynamics go on from the
            weights reached, with the memory of the optimizer begun anew; where it is not given they hold from the
            start.
        probe_every: Steps between measurements; results are written after each.
        kernel_points: Training points on which the change of the empirical NTK is measured; 0 leaves it out.
        evaluation_steps: Steps of the stronger pgd of the evaluation at the end, which natural training meets too; 0
            leaves it out.
        dtype: Precision of weights and data.
        seed: Seeds everything that is random.
    """

    out: Path = Path("train")
    resume: bool = False
    data: DataName = "digits"
    data_dir: Path | None = None
    train_batches: tuple[int, ...] = (1, 2, 3, 4, 5)
    num_train: int = 500
    num_test: int = 200
    network: Literal["fully-connected", "convolutional"] = "fully-connected"
    width: int = 256
    num_hidden_layers: int = 2
    activation: ActivationName = "relu"
    parameterization: Literal["ntk", "standard"] = "ntk"
    trainable: Literal["all", "hidden"] = "all"
    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = 0.1
    attack: Literal["pgd", "fgsm", "fgsm-rs", "none"] = "pgd"
    attack_steps: int = 7
    method: Literal["adversarial", "trades", "mart", "awp", "free"] = "adversarial"
    method_parameter: float | None = None
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    learning_rate: float = 1.0
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    num_steps: int = 500
    batch_size: int | None = None
    weight_radius: float | None = None
    weight_set: Literal["layers", "all", "neurons"] = "layers"
    dynamics: Literal["network", "linearized", "centered"] = "network"
    switch_at: int | None = None
    probe_every: int = 50
    kernel_points: int = 40
    evaluation_steps: int = 20
    dtype: DtypeName = "float64"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Compute kernel matrices of a data set.

    Attributes:
        out: Folder of the results: k_train_train.npy, k_test_train.npy, summary.json, and a report with the spectrum.
        kernel: Which kernel; the empirical ones are of one random network, nngp as the mean over `width` outputs.
        data: Data set. All but digits are read from the data directory.
        data_dir: Data directory with the official files; NTK_ROBUST_DATA where it is not given.
        train_batches: Training batches of CIFAR-10 to read; other data sets ignore it.
        num_train: Training examples, as many of each class.
        num_test: Test examples, as many of each class.
        width: Neurons per hidden layer of the empirical kernels' network.
        num_hidden_layers: Hidden layers.
        activation: Nonlinearity.
        w_std: Scale of the weights at initialization; sqrt(2) keeps the norm of a ReLU network's layers.
        b_std: Scale of the biases; 0 means none.
        trainable: Layers that count; "hidden" leaves out the first and the last.
        ridge: Added to the diagonal for the kernel regression that the summary reports, in units of the kernel.
        dtype: Precision of the data and of the kernel.
        seed: Seeds the choice of examples and the random network.
    """

    out: Path = Path("kernel")
    kernel: KernelName = "analytic_ntk"
    data: DataName = "digits"
    data_dir: Path | None = None
    train_batches: tuple[int, ...] = (1, 2, 3, 4, 5)
    num_train: int = 500
    num_test: int = 200
    width: int = 1024
    num_hidden_layers: int = 2
    activation: ActivationName = "relu"
    w_std: float = 2**0.5
    b_std: float = 0.0
    trainable: Literal["all", "hidden"] = "all"
    ridge: float = 1e-6
    dtype: DtypeName = "float64"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Attack:
    """Attack a network that train saved, or a kernel regression, and bound its robust accuracy from both sides.

    Exit code: 0, 1 when the audit finds that the attack broke its contract, 4 when an attack and a certificate
    contradict each other.

    Attributes:
        out: Folder of the results: attack.json, a report with accuracy against radius, and examples.svg.
        run: Folder of a run of train: its last weights are attacked, on its test examples. Where it is not given, a
            kernel regression is fitted and attacked, and the options from kernel to dtype describe it.
        attack: Which attack; "auto" is the ensemble AutoAttack.
        loss: What fgsm, pgd and apgd maximize. Where it is not given, the cross-entropy of networks and the margin of
            regressions, whose outputs are no logits. The other attacks have objectives of their own.
        norm: Norm of the perturbations; pixels lie in [0, 1].
        radii: Radii, in increasing order.
        num_steps: Steps of the attack; queries of square. Where it is not given, each attack's own: pgd 40, deep-fool
            50, apgd, fab and auto 100, carlini-wagner 200, square 5000.
        num_examples: Test examples.
        minimum_radii: Look once for the nearest point that is classified wrongly, by fab at any radius; without this,
            only what the attack shows is known of distances.
        controls: Also attack by square (1000 queries) at each radius, which the attack must beat, and at radii that
            double from the largest one until nothing is right any more.
        certificate: Bound from below for networks; for kernels of ReLU networks without biases anything but "none" asks
            for the certificate of their kernel space.
        kernel: Kernel of the regression.
        data: Its data set. All but digits are read from the data directory.
        data_dir: Data directory with the official files; NTK_ROBUST_DATA where it is not given.
        train_batches: Training batches of CIFAR-10 to read; other data sets ignore it.
        num_train: Training examples, as many of each class.
        num_test: Test examples to choose from, as many of each class.
        num_hidden_layers: Hidden layers of the kernel's network.
        activation: Its nonlinearity.
        w_std: Scale of its weights.
        b_std: Scale of its biases; 0 means none.
        ridge: Ridge of the regression, relative to the mean of the kernel's diagonal.
        dtype: Precision of the regression.
        seed: Seeds everything that is random.
    """

    out: Path = Path("attack")
    run: Path | None = None
    attack: Literal["pgd", "apgd", "fgsm", "square", "fab", "deep-fool", "carlini-wagner", "auto"] = "pgd"
    loss: Literal["cross-entropy", "margin"] | None = None
    norm: Literal["linf", "l2"] = "linf"
    radii: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    num_steps: int | None = None
    num_examples: int = 100
    minimum_radii: bool = True
    controls: bool = True
    certificate: Literal["crown", "alpha-crown", "interval", "none"] = "crown"
    kernel: Literal["analytic_ntk", "analytic_nngp"] = "analytic_ntk"
    data: DataName = "digits"
    data_dir: Path | None = None
    train_batches: tuple[int, ...] = (1, 2, 3, 4, 5)
    num_train: int = 500
    num_test: int = 200
    num_hidden_layers: int = 2
    activation: ActivationName = "relu"
    w_std: float = 2**0.5
    b_std: float = 0.0
    ridge: float = 1e-4
    dtype: DtypeName = "float64"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Print versions, devices, precision, which data sets are found, and what an optional part would need.

    Attributes:
        data_dir: Data directory to look into; NTK_ROBUST_DATA where it is not given.
    """

    data_dir: Path | None = None


Command: TypeAlias = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Kernel, tyro.conf.subcommand("kernel")]
    | Annotated[Attack, tyro.conf.subcommand("attack")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)

DESCRIPTION = (
    "Adversarial robustness in the neural-tangent-kernel regime: kernels, adversarial training as a measuring "
    "instrument, and checks of published theory."
)


def parse(arguments: list[str] | None = None) -> Reproduce | Check | Study | Train | Kernel | Attack | Doctor:
    """The command that the arguments (those of the process where None) ask for.

    Raises:
        SystemExit: With code 0 after --help, and 2 after explaining what is wrong with the arguments.
    """
    return tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="ntk-robust",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
