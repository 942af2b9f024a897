"""The layerwise empirical NTK needs the memory of activations, deltas and the matrix, and no Jacobian."""

import jax
import jax.numpy as jnp
import pytest

from ntk_robust.kernels import empirical_ntk
from ntk_robust.models import FullyConnected


def peak_bytes(model, num_rows, method):
    """Temporaries and result of the compiled program, by XLA's own accounting; nothing is run."""
    params = jax.eval_shape(lambda: model.init(key=jax.random.key(0), dtype=jnp.float32))
    x = jax.ShapeDtypeStruct((num_rows, model.input_dim), jnp.float32)
    kernel = jax.jit(lambda params, x: empirical_ntk(model.apply, params, x, method=method))
    memory = kernel.lower(params, x).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def activations_deltas_and_matrix(model, num_rows):
    """Bytes of inputs and features, of the signals of every hidden layer and output, and of the kernel."""
    features = model.input_dim + model.num_hidden_layers * model.width
    signals = model.num_hidden_layers * model.num_outputs * model.width
    return 4 * (num_rows * (features + signals) + num_rows**2)


DEEP, MANY_OUTPUTS = FullyConnected(784, 2048, 4, 1), FullyConnected(784, 512, 2, 10)


@pytest.mark.parametrize(
    "model",
    [
        DEEP,
        MANY_OUTPUTS,
        FullyConnected(784, 512, 4, 10),
        FullyConnected(784, 2048, 2, 10),
        FullyConnected(784, 2048, 4, 10),
    ],
    ids=lambda model: f"{model.num_hidden_layers} layers of {model.width}, {model.num_outputs} outputs",
)
def test_peak_memory_is_at_most_that_of_activations_deltas_and_matrix(model):
    assert peak_bytes(model, 512, "layerwise") <= activations_deltas_and_matrix(model, 512)


def test_a_jacobian_would_break_the_bound():
    assert peak_bytes(MANY_OUTPUTS, 512, "jacobian_contraction") > 100 * activations_deltas_and_matrix(
        MANY_OUTPUTS, 512
    )
