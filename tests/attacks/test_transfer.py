"""Points made for a kernel predictor and graded on a finite network."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ntk_robust import kernels, models
from ntk_robust.attacks import PGD, L2Ball, transfer
from ntk_robust.losses import Margin


@pytest.mark.slow
def test_points_made_for_a_kernel_predictor_are_graded_on_a_finite_network(key):
    model = models.FullyConnected(input_dim=4, width=32, num_hidden_layers=1, num_outputs="scalar")
    params, kernel = model.init(key=key), kernels.analytic_ntk(model)
    xs = jr.normal(jr.fold_in(key, 1), (24, 4))
    target = jax.jit(jax.vmap(lambda x: model.apply(params, x)))
    ys = jnp.sign(target(xs))
    fitted = kernels.kernel_regression(kernel.gram(xs), ys[:, None], ridge=1e-3)
    predictor = kernels.KernelPredictor(kernel, xs, jnp.asarray(fitted.dual[:, 0]))
    found = transfer(
        (kernels.KernelPredictor.__call__, predictor), (model.apply, params), xs, ys,
        attack=PGD(8, 0.3, random_start=False), perturbations=L2Ball(1.0), loss=Margin(), key=key,
    )  # fmt: skip
    assert found.target_natural_accuracy == 1.0  # its own labels
    still_right = np.asarray(ys * target(found.x_adv)) > 0
    assert found.target_accuracy == still_right.mean()
    # What fools the kernel predictor fools, more often than not, the network whose labels it has learned.
    assert found.source_accuracy <= found.target_accuracy < 0.5
    assert np.linalg.norm(np.asarray(found.x_adv - xs), axis=1).max() <= 1 + 1e-12
