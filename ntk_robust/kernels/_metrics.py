"""How much kernel matrices differ, how fast they change, and how many directions they have."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def kernel_drift(k_t: Float[Array, "n1 n2"], k_0: Float[Array, "n1 n2"]) -> Float[Array, ""]:
    r"""Relative change of a kernel matrix, $\|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$.

    Args:
        k_t: $\Theta_t$.
        k_0: $\Theta_0$ on the same examples.

    Returns:
        A number of at least 0; nan where $\Theta_0$ is zero.

    Raises:
        ValueError: If the shapes differ or an entry is not finite.
    """
    _check(k_t=k_t, k_0=k_0)
    return jnp.linalg.norm(k_t - k_0) / jnp.linalg.norm(k_0)


def kernel_velocity(kernels: Float[Array, "t n1 n2"], times: Float[Array, " t"]) -> Float[Array, " t-1"]:
    r"""Relative rate of change between recorded kernels.

    $\|\Theta_{i+1} - \Theta_i\|_F / ((t_{i+1} - t_i) \|\Theta_i\|_F)$.

    Args:
        kernels: $\Theta_i$ on the same examples.
        times: $t_i$, increasing, in any unit (steps, or steps times learning rate).

    Returns:
        Rates per unit of time, at least 0; nan where a kernel is zero. Between two records the kernel may have moved
        further and back: these are lower bounds of the mean rate.

    Raises:
        ValueError: If there is not one time for each kernel, the times do not increase, or an entry is not finite.
    """
    if kernels.ndim != 3 or times.shape != kernels.shape[:1]:
        raise ValueError(f"kernels has shape {kernels.shape} and times {times.shape}; give one time for each kernel")
    _check_finite(kernels=kernels, times=times)
    steps = times[1:] - times[:-1]
    if not isinstance(steps, jax.core.Tracer) and not np.all(np.asarray(steps) > 0):
        first = int(np.argmin(np.asarray(steps) > 0))
        raise ValueError(
            f"time {first + 1} is {times[first + 1]} after {times[first]}; give times that increase, and each once"
        )
    return jax.vmap(kernel_drift)(kernels[1:], kernels[:-1]) / steps


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

    Raises:
        ValueError: If the shapes differ or an entry is not finite.
    """
    _check(k_1=k_1, k_2=k_2)
    first, second = (_unit(k, centered) for k in (k_1, k_2))
    return jnp.sum(first * second)


def kernel_distance(
    k_1: Float[Array, "n1 n2"], k_2: Float[Array, "n1 n2"], *, centered: bool = False
) -> Float[Array, ""]:
    r"""Distance of normalized kernel matrices, $\|K_1/\|K_1\|_F - K_2/\|K_2\|_F\|_F$.

    It is $\sqrt{2 (1 - A)}$ with the alignment $A$, but keeps its digits where the matrices almost agree.

    Args:
        k_1: A kernel matrix.
        k_2: Another on the same examples.
        centered: Take row and column means out first.

    Returns:
        From 0 (equal up to a factor) to 2, for positive semi-definite matrices to √2; nan where a matrix is zero.

    Raises:
        ValueError: If the shapes differ or an entry is not finite.
    """
    _check(k_1=k_1, k_2=k_2)
    return jnp.linalg.norm(_unit(k_1, centered) - _unit(k_2, centered))


def kernel_angle(k_1: Float[Array, "n1 n2"], k_2: Float[Array, "n1 n2"], *, centered: bool = False) -> Float[Array, ""]:
    r"""Angle between kernel matrices, the arc cosine of their alignment, accurate at small angles too.

    Args:
        k_1: A kernel matrix.
        k_2: Another on the same examples.
        centered: Take row and column means out first.

    Returns:
        Radians from 0 to π, for positive semi-definite matrices to π/2; nan where a matrix is zero.

    Raises:
        ValueError: If the shapes differ or an entry is not finite.

    References:
        Kahan, "How futile are mindless assessments of roundoff", section 12, 2006.
    """
    _check(k_1=k_1, k_2=k_2)
    first, second = (_unit(k, centered) for k in (k_1, k_2))
    return 2.0 * jnp.arctan2(jnp.linalg.norm(first - second), jnp.linalg.norm(first + second))


def bures_distance(k_1: Float[Array, "n n"], k_2: Float[Array, "n n"]) -> Float[Array, ""]:
    r"""Bures-Wasserstein distance of two kernel matrices.

    $(\mathrm{tr} K_1 + \mathrm{tr} K_2 - 2 \mathrm{tr} (K_1^{1/2} K_2 K_1^{1/2})^{1/2})^{1/2}$: the Wasserstein
    distance of Gaussian processes with these covariances, and the distance of the features
    $\min_{Q} \|\Phi_1 - \Phi_2 Q\|_F$ over rotations; finite for singular matrices too.

    Args:
        k_1: Symmetric positive semi-definite.
        k_2: Another on the same examples.

    Returns:
        A number of at least 0, in √(unit of the kernel). Eigenvalues that rounding made negative count as 0.

    Raises:
        ValueError: If a matrix is not square, the shapes differ, or an entry is not finite.

    References:
        Bhatia, Jain, Lim, Expositiones Mathematicae 2019.
    """
    _check_square(k_1=k_1, k_2=k_2)
    roots = [_root(k) for k in (k_1, k_2)]
    left, _, right = jnp.linalg.svd(jnp.matmul(roots[0], roots[1], precision=jax.lax.Precision.HIGHEST))
    # the best rotation of one root onto the other, and then a difference instead of a difference of traces
    rotation = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
    return jnp.linalg.norm(roots[0] - jnp.matmul(rotation, roots[1], precision=jax.lax.Precision.HIGHEST))


def effective_rank(gram: Float[Array, "n n"]) -> Float[Array, ""]:
    r"""Participation ratio of the eigenvalues, $(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2$, without computing them.

    Args:
        gram: Symmetric positive semi-definite.

    Returns:
        From 1 (rank one) to n (a multiple of the identity); nan for a zero matrix.

    Raises:
        ValueError: If the matrix is not square or an entry is not finite.
    """
    _check_square(gram=gram)
    return jnp.trace(gram) ** 2 / jnp.sum(gram * gram)


def top_mass(gram: Float[Array, "n n"], num: int) -> Float[Array, ""]:
    r"""Share of the `num` largest eigenvalues in the trace.

    Args:
        gram: Symmetric positive semi-definite.
        num: From 1 to n.

    Returns:
        From num/n to 1; nan for a zero matrix.

    Raises:
        ValueError: If `num` is not from 1 to n, the matrix is not square, or an entry is not finite.
    """
    _check_square(gram=gram)
    _check_num(num, gram.shape[0])
    return jnp.sum(jnp.linalg.eigvalsh(gram)[-num:]) / jnp.trace(gram)


def eigenspace_overlap(k_1: Float[Array, "n n"], k_2: Float[Array, "n n"], num: int) -> Float[Array, " num"]:
    r"""Cosines of the principal angles between the spaces of the `num` leading eigenvectors of two kernel matrices.

    Their mean square is the share of one space that lies in the other.

    Args:
        k_1: Symmetric.
        k_2: Another on the same examples.
        num: From 1 to n. Where eigenvalues number `num` and `num` + 1 coincide the space is not defined, and the result
            is that of one choice.

    Returns:
        From 1 (a common direction) to 0 (an orthogonal one), descending.

    Raises:
        ValueError: If `num` is not from 1 to n, a matrix is not square, the shapes differ, or an entry is not finite.

    References:
        Björck and Golub, Mathematics of Computation 1973.
    """
    _check_square(k_1=k_1, k_2=k_2)
    _check_num(num, k_1.shape[0])
    first, second = (jnp.linalg.eigh(k)[1][:, -num:] for k in (k_1, k_2))
    cosines = jnp.linalg.svd(jnp.matmul(first.T, second, precision=jax.lax.Precision.HIGHEST), compute_uv=False)
    return jnp.minimum(cosines, 1.0)


def _unit(k: Float[Array, "n1 n2"], centered: bool) -> Float[Array, "n1 n2"]:
    if centered:
        rows = k - jnp.mean(k, axis=0, keepdims=True)
        k = rows - jnp.mean(rows, axis=1, keepdims=True)
    return k / jnp.linalg.norm(k)


def _root(k: Float[Array, "n n"]) -> Float[Array, "n n"]:
    values, vectors = jnp.linalg.eigh(k)
    scaled = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]
    return jnp.matmul(scaled, vectors.T, precision=jax.lax.Precision.HIGHEST)


def _check(**matrices: Any) -> None:
    """Refuses matrices of different shapes, which would broadcast, and entries that are not finite."""
    (first, a), *others = matrices.items()
    for name, b in others:
        if a.shape != b.shape:
            raise ValueError(f"{first} has shape {a.shape} and {name} {b.shape}; give matrices of the same examples")
    _check_finite(**matrices)


def _check_square(**matrices: Any) -> None:
    for name, k in matrices.items():
        if k.ndim != 2 or k.shape[0] != k.shape[1]:
            raise ValueError(f"{name} has shape {k.shape}; give the square matrix of examples with themselves")
    _check(**matrices)


def _check_finite(**arrays: Any) -> None:
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):  # inside of jit nan goes through
            continue
        finite = np.isfinite(np.asarray(array))  # by NumPy: under jit operations on constants are traced
        if not finite.all():
            where = tuple(map(int, np.unravel_index(int(np.argmin(finite)), finite.shape)))
            raise ValueError(f"{name} is {array[where]} at {where}; find out where it comes from")


def _check_num(num: int, n: int) -> None:
    if not 1 <= num <= n:
        raise ValueError(f"num is {num} for {n} eigenvalues; give a number from 1 to {n}")
