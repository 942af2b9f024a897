"""Networks as descriptions: from one of them come the weights, the function, and the analytic kernel."""

from ntk_robust.models._activations import (
    Abs,
    AbstractActivation,
    Cos,
    Erf,
    Gelu,
    Identity,
    LeakyRelu,
    Monomial,
    QuadraticRelu,
    Relu,
    Sin,
    Softplus,
    Tanh,
)
from ntk_robust.models._attention import Attention, AttentionLayer, AttentionParams
from ntk_robust.models._convolutional import Convolutional
from ntk_robust.models._deep_relu import DeepReluNet, DeepReluParams
from ntk_robust.models._fully_connected import Dense, FullyConnected
from ntk_robust.models._model import AbstractModel
from ntk_robust.models._paired_two_layer import PairedParams, PairedTwoLayerNet

__all__ = [
    "Abs",
    "AbstractActivation",
    "AbstractModel",
    "Attention",
    "AttentionLayer",
    "AttentionParams",
    "Convolutional",
    "Cos",
    "DeepReluNet",
    "DeepReluParams",
    "Dense",
    "Erf",
    "FullyConnected",
    "Gelu",
    "Identity",
    "LeakyRelu",
    "Monomial",
    "PairedParams",
    "PairedTwoLayerNet",
    "QuadraticRelu",
    "Relu",
    "Sin",
    "Softplus",
    "Tanh",
]
