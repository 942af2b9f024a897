"""How much a kernel matrix changed, and how many directions it has."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def kernel_drift(k_t: Float[Array, "n1 n2"], k_0: Float[Array, "n1 n2"]) -> Float[Array, ""]:
    r"""Relative change of a kernel matrix, $\|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$.

    Args:
        k_t: $\Theta_t$.
        k_0: $\Theta_0$ on the same examples.

    Returns:
        A number of at least 0; nan where $\Theta_0$ is zero.
    """
    return jnp.linalg.norm(k_t - k_0) / jnp.linalg.norm(k_0)


def kernel_alignment(
    k_1: Float[Array, "n1 n2"], k_2: Float[Array, "n1 n2"], *, centered: bool = False
) -> Float[Array, ""]:
    r"""Cosine between two kernel matrices, $\langle K_1, K_2 \rangle_F / (\|K_1\|_F \|K_2\|_F)$.

    Args:
        k_1: A kernel matrix.
        k_2: Another on the same examples.
        centered: Take row and column means out first (Cortes et al., 2012), so that a common constant does not align.

    Returns:
        From -1 to 1, for positive semi-definite matrices from 0; nan where a (centered) matrix is zero.
    """
    first, second = (_centered(k) for k in (k_1, k_2)) if centered else (k_1, k_2)
    return jnp.vdot(first, second) / (jnp.linalg.norm(first) * jnp.linalg.norm(second))


def effective_rank(gram: Float[Array, "n n"]) -> Float[Array, ""]:
    r"""Participation ratio of the eigenvalues, $(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2$, without computing them.

    Args:
        gram: Symmetric positive semi-definite.

    Returns:
        From 1 (rank one) to n (a multiple of the identity); nan for a zero matrix.
    """
    return jnp.trace(gram) ** 2 / jnp.sum(gram * gram)


def _centered(k: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
    rows = k - jnp.mean(k, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)
