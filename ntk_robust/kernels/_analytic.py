"""Kernels of infinitely wide networks, from the description of the network."""

from ntk_robust.kernels._base import AbstractKernel
from ntk_robust.kernels._dense import DenseKernel
from ntk_robust.kernels._duals import PiecewiseLinearDual, dual_of
from ntk_robust.kernels._through_neural_tangents import NeuralTangentsKernel
from ntk_robust.kernels._zonal import ZonalKernel
from ntk_robust.models import AbstractModel, Attention, Convolutional, DeepReluNet, FullyConnected, PairedTwoLayerNet

# Deeper, the polynomials of the zonal form need so many coefficients that their rounding shows.
_MAX_ZONAL_LAYERS = 24


def analytic_ntk(model: AbstractModel) -> AbstractKernel:
    r"""The NTK that the empirical one of `model` approaches in width, $E \langle \nabla_W f(x), \nabla_W f(z)
    \rangle$, per output.

    Only the layers that train count (`FullyConnected.trainable`, the hidden layers of `DeepReluNet`, both halves of
    `PairedTwoLayerNet`). In NTK parameterization the limit is finite. In standard parameterization and for
    `DeepReluNet` the NTK grows in proportion to the width; the kernel is the leading term at the width of the
    description, so that empirical over analytic goes to 1. For `DeepReluNet` divide by `width` for the limit of
    $\|\nabla f\|^2 / m$.

    Args:
        model: A network description.

    Returns:
        A `ZonalKernel` for fully connected networks without biases whose activation is piecewise linear, a
        `DenseKernel` for other fully connected ones, a `NeuralTangentsKernel` for convolutional and attention
        networks.

    Raises:
        ValueError: If no layer of `model` trains.
        TypeError: For other models.

    Examples:
        >>> from ntk_robust.models import FullyConnected
        >>> kernel = analytic_ntk(FullyConnected(input_dim=784, width=512, num_hidden_layers=3, num_outputs=10))
        >>> kernel.layer_weights
        (2.0, 2.0, 2.0, 2.0)

    References:
        Jacot et al., NeurIPS 2018; Lee et al., NeurIPS 2019; docs/theory/gao2019.md for the deep ReLU network.
    """
    match model:
        case FullyConnected():
            standard = model.parameterization == "standard"
            if not any(model.layer_trainable):
                raise ValueError(f"no layer trains (trainable={model.trainable!r}), so the NTK is 0; let one train")
            trains = [float(layer) for layer in model.layer_trainable]
            weights = [(n if standard else model.w_std**2) * t for n, t in zip(model.fan_ins, trains, strict=True)]
            bias = 0.0 if model.b_std == 0.0 else 1.0 if standard else model.b_std**2
            return _fully_connected(model, tuple(weights), tuple(bias * t for t in trains))
        case DeepReluNet():
            # (m/2) Σ_h <x^(h-1), z^(h-1)> Π κ̇ with ‖x^(0)‖² = ‖x‖², twice that without an activation after A
            layers = (1.0,) * model.num_hidden_layers
            if model.first_activation:
                return ZonalKernel(
                    0.5 * model.width * model.num_hidden_layers, (0.0, *layers, 0.0), input_dim=model.input_dim
                )
            return ZonalKernel(1.0 * model.width * model.num_hidden_layers, (*layers, 0.0), input_dim=model.input_dim)
        case PairedTwoLayerNet():
            dual = dual_of(model.activation)
            return DenseKernel(
                dual,
                input_scale=1.0,
                w_std=1.0,
                b_std=0.0,
                weight_terms=(1.0, 0.0),
                bias_terms=(0.0, 0.0),
                input_dim=model.input_dim,
            )
        case Convolutional() | Attention():
            return NeuralTangentsKernel(model, "ntk")
    raise TypeError(
        f"no analytic NTK for a {type(model).__name__}; give a FullyConnected, Convolutional, Attention, "
        "DeepReluNet or PairedTwoLayerNet, or build the kernel with load_neural_tangents().stax"
    )


def analytic_nngp(model: AbstractModel) -> AbstractKernel:
    r"""Covariance $E[f(x) f(z)]$ of one output over the initialization, in the limit of infinite width.

    The same in NTK and standard parameterization.

    Args:
        model: A network description.

    Returns:
        A `ZonalKernel` for fully connected networks without biases whose activation is piecewise linear, a
        `DenseKernel` for other fully connected ones, a `NeuralTangentsKernel` for convolutional and attention
        networks.

    Raises:
        ValueError: For `PairedTwoLayerNet`, whose output at initialization is exactly 0.
        TypeError: For other models.

    References:
        Lee et al., ICLR 2018.
    """
    match model:
        case FullyConnected():
            before = (0.0,) * model.num_hidden_layers
            return _fully_connected(model, (*before, model.w_std**2), (*before, model.b_std**2))
        case DeepReluNet():
            frozen = (0.0,) * model.num_hidden_layers
            if model.first_activation:
                return ZonalKernel(1.0, (0.0, *frozen, 1.0), input_dim=model.input_dim)
            return ZonalKernel(2.0, (*frozen, 1.0), input_dim=model.input_dim)
        case PairedTwoLayerNet():
            raise ValueError("the paired network's output at initialization is 0, so it has no NNGP; use analytic_ntk")
        case Convolutional() | Attention():
            return NeuralTangentsKernel(model, "nngp")
    raise TypeError(
        f"no analytic NNGP for a {type(model).__name__}; give a FullyConnected, Convolutional, Attention or "
        "DeepReluNet, or build the kernel with load_neural_tangents().stax"
    )


def _fully_connected(
    model: FullyConnected, weight_terms: tuple[float, ...], bias_terms: tuple[float, ...]
) -> AbstractKernel:
    if model.w_std == 0.0:
        raise ValueError("w_std is 0, so the output does not depend on the input; give a positive w_std")
    dual = dual_of(model.activation)
    shallow = model.num_hidden_layers <= _MAX_ZONAL_LAYERS
    if isinstance(dual, PiecewiseLinearDual) and model.b_std == 0.0 and shallow:
        gain = (model.w_std**2 * dual.moment) ** model.num_hidden_layers
        return ZonalKernel(
            sum(weight_terms) * gain / model.input_dim, weight_terms, dual.kink, input_dim=model.input_dim
        )
    scale, terms = 1.0 / model.input_dim, (weight_terms, bias_terms)
    return DenseKernel(dual, scale, model.w_std, model.b_std, *terms, input_dim=model.input_dim)
