r"""Certificates of kernel predictors $f(x) = \sum_i \alpha_i k(x, x_i)$ from the geometry of the kernel's space.

For the zonal kernels of bias-free ReLU networks $k(x, z) = s \|x\| \|z\| \kappa(\cos\theta)$. Three facts:

*Power series.* $\kappa(u) = \sum_k c_k u^k$ with $c_k ≥ 0$: duals of activations have Hermite coefficients squared, and
sums, products and compositions of such series are such series. So on [0, 1] $\kappa$ is nondecreasing and convex, and
$|\kappa^{(j)}(u)| ≤ \kappa^{(j)}(|u|)$.

*Distance.* With $w(v) = 1 - \kappa(1 - v)$, concave and nondecreasing on [0, 1] with $w(0) = 0$, and $v = 1 -
\cos\theta$,

$\|k_{x'} - k_x\|^2 = s ((\rho - r)^2 + 2 r \rho\, w(v))$ where $(\rho - r)^2 + 2 r \rho\, v = \|x' - x\|^2$,

$r = \|x\|$, $\rho = \|x'\|$. On a sphere it grows with the angle, so its supremum over a cap is at the rim. On the ball
put $a = |\rho - r|$: $P\,w(q / P)$ is nondecreasing in P (perspective of a concave function that vanishes at 0), and $P
= 2 r \rho$ is larger for $\rho = r + a$, so that the supremum is $\max_{0≤a≤\epsilon} a^2 + 2 r (r + a)\, w((\epsilon^2
- a^2) / (2 r (r + a)))$. For $a ∈ [a_1, a_2]$ this is at most its value with $a_2$ everywhere but in $\epsilon^2 -
a_1^2$: one evaluation for each cell of a grid, an upper bound that the grid makes as tight as one likes.

*Angle.* $f(x') = \|f\| \|k_{x'}\| \cos\angle(f, k_{x'})$ and angles obey the triangle inequality. For zonal kernels
$\cos\angle(k_x, k_{x'}) = \kappa(\cos\theta)$ whatever the norms, and in the ball $\cos\theta ≥ \sqrt{1 -
\epsilon^2/r^2}$. So f keeps its sign if $\angle(f, k_x) + \arccos\kappa(\sqrt{1 - \epsilon^2/r^2}) < \pi/2$, and no
function with this norm and this value at x allows more.

*Locally*, f is smooth away from the training points, and $f(x') ≥ f(x) - \sup(-\nabla f·\delta) - \frac{\epsilon^2}{2}
\sum_i |\alpha_i| \sup\|\nabla^2 k(·, x_i)\|$. The Hessian of $\rho\,\kappa(\cos\theta)$ has the eigenvalues 0, $(\kappa
- u\kappa' + (1 - u^2) \kappa'')/\rho$ and $(\kappa - u \kappa')/\rho$; with $U = \max|u|$ over the ball the power
series gives $|\kappa - u \kappa'| ≤ U\kappa'(U) - \kappa(U) + 2\kappa(0)$ and $|\kappa''| ≤ \kappa''(U)$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet, SphereSlice
from ntk_robust.certify._interval import Bounds
from ntk_robust.certify._reach import Reach, reach, support
from ntk_robust.certify._rounding import magnitude, slack_factor
from ntk_robust.kernels import AbstractKernel, ZonalKernel

_CELLS = 256
_HIGHEST = jax.lax.Precision.HIGHEST


class RkhsFunction(eqx.Module):
    r"""A kernel predictor $f(x) = \sum_i \alpha_i k(x, x_i)$, one output for each column of α, with its norms.

    Attributes:
        kernel: $k$.
        x_train: $x_i$.
        dual: $\alpha$, such as `kernel_regression(...).dual`.
        inner_products: $\alpha^\top K \alpha$: what the outputs are to each other in the kernel's space, from above by
            the rounding of its computation.
    """

    kernel: AbstractKernel
    x_train: Float[Array, "n d"]
    dual: Float[Array, "n k"]
    inner_products: Float[Array, "k k"]
    _rounding: Float[Array, ""]

    def __init__(self, kernel: AbstractKernel, x_train: Float[Array, "n d"], dual: Float[Array, "rows k"]):
        r"""The predictor; one Gram matrix of the training points is computed.

        Args:
            kernel: $k$.
            x_train: $x_i$, in float64 if the certificates are to be worth much: α is large.
            dual: $\alpha$.

        Raises:
            ValueError: If shapes or dtypes disagree.
        """
        if x_train.shape[0] != dual.shape[0] or x_train.dtype != dual.dtype:
            raise ValueError(
                f"x_train has shape {x_train.shape} in {x_train.dtype} and dual {dual.shape} in {dual.dtype}; give one "
                "row of dual for each training point, in the same dtype"
            )
        self.kernel, self.x_train, self.dual = kernel, x_train, dual
        gram = kernel.gram(x_train)
        self.inner_products = jnp.matmul(dual.T, jnp.matmul(gram, dual, precision=_HIGHEST), precision=_HIGHEST)
        sizes = jnp.sum(jnp.abs(dual) * jnp.sqrt(kernel.diagonal(x_train))[:, None], axis=0)
        self._rounding = slack_factor(2 * len(dual) + x_train.shape[1] + 64, dual.dtype) * jnp.max(sizes) ** 2

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " k"]:
        """The outputs at one point."""
        # pair by pair: matrices take cosines from a product, which rounds more where points almost coincide
        return jnp.matmul(jax.vmap(self.kernel, (None, 0))(x, self.x_train), self.dual, precision=_HIGHEST)

    def norm(self, row: Float[Array, " k"]) -> Float[Array, ""]:
        r"""$\|c · f\|$ in the kernel's space, from above."""
        weight = jnp.sum(jnp.abs(row))
        return jnp.sqrt(jnp.maximum(row @ self.inner_products @ row, 0.0) + weight**2 * self._rounding)


def rkhs_distance_bound(
    kernel: AbstractKernel, x: Float[Array, " d"], perturbations: AbstractPerturbationSet
) -> Float[Array, ""]:
    r"""Upper bound of $\sup_{x' ∈ B(x)} \|k_{x'} - k_x\|$ in the kernel's space.

    On a `SphereSlice` it is the distance to the rim, exactly; on l2 balls without box the supremum up to a grid of 256
    cells; other sets are put into the smallest l2 ball around x. Then $|f(x') - f(x)| ≤ \|f\|$ times this for every f.

    Args:
        kernel: A `ZonalKernel`; on a sphere slice any kernel of `analytic_ntk` and `analytic_nngp`.
        x: Center.
        perturbations: The set.

    Returns:
        The bound, in the square root of the kernel's unit.

    Raises:
        TypeError: For a kernel of which the monotonicity is not known.

    References:
        docs/certificates.md.
    """
    return jnp.sqrt(_distance_squared(kernel, x, reach(perturbations, x), isinstance(perturbations, SphereSlice)))


def rkhs_bounds(
    function: RkhsFunction,
    x: Float[Array, " d"],
    perturbations: AbstractPerturbationSet,
    specification: Float[Array, "rows k"] | None = None,
) -> Bounds:
    r"""Bounds of $C f(x')$ on the set from the norm of f: the better of distance and angle.

    Tight for the worst f of this norm and value; for a given f, `local_kernel_bounds` is usually far better at small
    radii.

    Args:
        function: The predictor, of a `ZonalKernel`.
        x: Center; callers `jax.vmap`.
        perturbations: The set.
        specification: $C$, such as `margin_specification`; None asks for the outputs.

    Returns:
        One pair for each row.

    Raises:
        TypeError: For another kernel than a `ZonalKernel`.
    """
    kernel = _zonal(function.kernel)
    rows = _rows(function, specification)
    around = reach(perturbations, x)
    far = jnp.sqrt(_distance_squared(kernel, x, around, isinstance(perturbations, SphereSlice)))
    norms = jax.vmap(function.norm)(rows)
    center = jnp.matmul(rows, function(x), precision=_HIGHEST)
    slack = _evaluation_slack(function, rows, x, around)
    r, radius = jnp.linalg.norm(x), _euclidean(around)
    shortest, longest = _norms(perturbations, r, radius)
    spread = _max_angle(kernel, perturbations, r, radius)
    unit = norms * jnp.sqrt(jnp.asarray(kernel.scale, x.dtype))

    def lowest(values: Array) -> Array:
        size = jnp.where(unit * r > 0.0, unit * r, 1.0)
        angle = jnp.arccos(jnp.clip((values - slack) / size, -1.0, 1.0)) + spread
        cosine = jnp.cos(jnp.minimum(angle, math.pi))
        by_angle = jnp.where(cosine > 0.0, shortest, longest) * unit * cosine
        return jnp.maximum(values - norms * far, by_angle) - slack

    return Bounds(lowest(center), -lowest(-center))


def local_kernel_bounds(
    function: RkhsFunction,
    x: Float[Array, " d"],
    perturbations: AbstractPerturbationSet,
    specification: Float[Array, "rows k"] | None = None,
) -> Bounds:
    r"""Bounds of $C f(x')$ on the set from the gradient at x and a bound of all Hessians on the set.

    The gradient's part is exact for the set with its box; the remainder grows with $\epsilon^2 \sum_i |\alpha_i|$. The
    kernel has a cusp at training points: where one is in a direction that the set reaches, the bounds are infinite.

    Args:
        function: The predictor, of a `ZonalKernel`.
        x: Center; callers `jax.vmap`.
        perturbations: The set.
        specification: $C$; None asks for the outputs.

    Returns:
        One pair for each row.

    Raises:
        TypeError: For another kernel than a `ZonalKernel`.
    """
    kernel = _zonal(function.kernel)
    rows = _rows(function, specification)
    around = reach(perturbations, x)
    radius, r = _euclidean(around), jnp.linalg.norm(x)
    center, pull = jax.vjp(function, x)
    center = jnp.matmul(rows, center, precision=_HIGHEST)
    gradients = jax.vmap(lambda row: pull(row)[0])(rows)
    lengths = jnp.linalg.norm(function.x_train, axis=1)
    products = jnp.matmul(function.x_train, x, precision=_HIGHEST)
    cosines = jnp.clip(products / jnp.where(lengths * r > 0.0, lengths * r, 1.0), -1.0, 1.0)
    angles = jnp.arccos(cosines)
    # the arccos of a rounded cosine near 1 is off by the root of the machine epsilon
    spread = jnp.arcsin(jnp.minimum(radius / r, 1.0)) * 1.0001 + 4.0 * float(jnp.finfo(x.dtype).eps) ** 0.5
    nearest, farthest = angles - spread, angles + spread
    reached = (nearest <= 0.0) | (farthest >= math.pi) | (radius >= r)
    first, last = jnp.cos(jnp.maximum(nearest, 0.0)), jnp.cos(jnp.minimum(farthest, math.pi))
    largest = jnp.where(reached, 0.0, jnp.maximum(jnp.abs(first), jnp.abs(last)))
    smallest = jnp.where(first * last <= 0.0, 0.0, jnp.minimum(jnp.abs(first), jnp.abs(last)))
    kappa = _normalized(kernel)
    value, slope = jax.vmap(kappa)(largest), jax.vmap(jax.grad(kappa))(largest)
    bend = jax.vmap(jax.grad(jax.grad(kappa)))(largest)
    across = largest * slope - value + 2.0 * kappa(jnp.zeros((), x.dtype))
    hessians = jnp.asarray(kernel.scale, x.dtype) * lengths * (across + (1.0 - smallest**2) * bend) / (r - radius)
    hessians = jnp.where(reached, jnp.inf, hessians)
    duals = jnp.abs(jnp.matmul(function.dual, rows.T, precision=_HIGHEST))
    weighted = jnp.where(duals > 0.0, duals * hessians[:, None], 0.0)
    remainder = 0.5 * radius**2 * jnp.sum(weighted, axis=0)
    slack = _evaluation_slack(function, rows, x, around) * (1.0 + radius / r) + 1e-6 * remainder
    up = jax.vmap(lambda g: support(around, g))(gradients)
    down = jax.vmap(lambda g: support(around, -g))(gradients)
    return Bounds(center - down - remainder - slack, center + up + remainder + slack)


def certified_kernel_radius(
    function: RkhsFunction,
    x: Float[Array, " d"],
    specification: Float[Array, "rows k"],
    perturbations: AbstractPerturbationSet,
    *,
    num_halvings: int = 30,
) -> Float[Array, ""]:
    r"""A radius up to which all rows of $C f$ are proven to be positive, the better of both kernel bounds.

    Args:
        function: The predictor, of a `ZonalKernel`.
        x: Center; callers `jax.vmap`.
        specification: $C$, such as `margin_specification`.
        perturbations: The kind of set; its `epsilon` is the largest radius to try.
        num_halvings: Rounds of bisection.

    Returns:
        The radius, at most `perturbations.epsilon`; 0 where the example is not classified right. A lower bound of the
        distance to the decision boundary.
    """

    def certified(epsilon: Array) -> Array:
        around = perturbations.with_epsilon(epsilon)
        by_norm = rkhs_bounds(function, x, around, specification).lower
        by_slope = local_kernel_bounds(function, x, around, specification).lower
        return jnp.all(jnp.maximum(by_norm, jnp.where(jnp.isnan(by_slope), -jnp.inf, by_slope)) > 0.0)

    largest = perturbations.epsilon.astype(x.dtype)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        proven, open_ = bracket
        # radii matter by their order of magnitude
        middle = jnp.where(proven > 0.0, 0.5 * (proven + open_), open_ * 2.0**-3)
        good = certified(middle)
        return jnp.where(good, middle, proven), jnp.where(good, open_, middle)

    proven, _ = jax.lax.fori_loop(0, num_halvings, halve, (jnp.zeros_like(largest), largest))
    return jnp.where(certified(largest), largest, proven)


def _zonal(kernel: AbstractKernel) -> ZonalKernel:
    if not isinstance(kernel, ZonalKernel):
        raise TypeError(
            f"bounds are known for ZonalKernel (ReLU networks without biases), not for {type(kernel).__name__}; "
            "rkhs_distance_bound takes more kernels on a SphereSlice"
        )
    return kernel


def _rows(function: RkhsFunction, specification: Array | None) -> Array:
    return jnp.eye(function.dual.shape[1], dtype=function.dual.dtype) if specification is None else specification


def _euclidean(around: Reach) -> Array:
    """Radius of an l2 ball around x that holds the set."""
    corner = jnp.linalg.norm(magnitude(around.down, around.up).ravel())
    within = corner if around.norm == "linf" else jnp.minimum(corner, around.radius)
    return within * (1.0 + slack_factor(around.x.size, around.x.dtype))


def _norms(perturbations: AbstractPerturbationSet, r: Array, radius: Array) -> tuple[Array, Array]:
    """Smallest and largest norm of points of the set."""
    if isinstance(perturbations, SphereSlice):
        room = 16.0 * jnp.finfo(r.dtype).eps * r
        return r - room, r + room
    return jnp.maximum(r - radius, 0.0), r + radius


def _max_angle(kernel: ZonalKernel, perturbations: AbstractPerturbationSet, r: Array, radius: Array) -> Array:
    r"""Largest $\angle(k_x, k_{x'})$, from the chord of the normalized features: $2 \arcsin(\|·\| / 2)$."""
    ratio = radius / r
    if isinstance(perturbations, SphereSlice):
        sine, cosine = ratio * jnp.sqrt(jnp.maximum(1.0 - ratio**2 / 4.0, 0.0)), 1.0 - ratio**2 / 2.0
    else:
        sine, cosine = ratio, jnp.sqrt(jnp.maximum(1.0 - ratio**2, 0.0))
    one, zero = jnp.ones_like(r), jnp.zeros_like(r)
    squared = kernel.distance_squared(jnp.stack([one, zero]), jnp.stack([cosine, sine])) / kernel.scale
    squared = squared * (1.0 + _kernel_slack(r.dtype))
    inside = (ratio < 1.0) & (cosine >= 0.0)
    return jnp.where(inside, 2.0 * jnp.arcsin(jnp.minimum(0.5 * jnp.sqrt(squared), 1.0)), math.pi)


def _distance_squared(kernel: AbstractKernel, x: Array, around: Reach, on_sphere: bool) -> Array:
    r, radius = jnp.linalg.norm(x), _euclidean(around)
    here = jnp.stack([r, jnp.zeros_like(r)])
    if not on_sphere:
        _zonal(kernel)
    if on_sphere:
        v = radius**2 / (2.0 * r**2)
        there = r * jnp.stack([1.0 - v, jnp.sqrt(jnp.maximum(v * (2.0 - v), 0.0))])
        squared = kernel.distance_squared(here, there)
        widest = 4.0 * kernel.diagonal(here[None])[0]
    else:
        nodes = radius * jnp.arange(_CELLS + 1, dtype=x.dtype) / _CELLS
        rho = r + nodes[1:]
        v = (radius**2 - nodes[:-1] ** 2) / (2.0 * r * rho)
        there = rho[:, None] * jnp.stack([1.0 - v, jnp.sqrt(jnp.maximum(v * (2.0 - v), 0.0))], axis=1)
        squared = jnp.max(jax.vmap(kernel.distance_squared, (None, 0))(here, there))
        v = v[0]
        longest = r + radius
        # both norms at once, where the angle may exceed a right one
        widest = kernel.diagonal(jnp.stack([r + longest, jnp.zeros_like(r)])[None])[0]
    squared = jnp.where(v < 1.0, squared, widest)
    return squared * (1.0 + _kernel_slack(x.dtype))


def _kernel_slack(dtype: np.dtype) -> float:
    """Relative error of kernel values, which is measured (`ZonalFit.error`) and not proven; generous."""
    return 1e4 * float(np.finfo(dtype).eps)


def _evaluation_slack(function: RkhsFunction, rows: Array, x: Array, around: Reach) -> Array:
    """What rounding may do to computed predictions: sums of n terms, of kernel values that are off by a few ulp."""
    longest = jnp.linalg.norm(x) + _euclidean(around)
    at = jnp.zeros_like(x).at[0].set(longest)
    largest = jnp.sqrt(function.kernel.diagonal(at[None])[0])
    sizes = jnp.sum(jnp.abs(function.dual) * jnp.sqrt(function.kernel.diagonal(function.x_train))[:, None], axis=0)
    terms = function.dual.shape[0] + x.shape[0] + 64
    return slack_factor(terms, x.dtype) * largest * jnp.matmul(jnp.abs(rows), sizes, precision=_HIGHEST)


def _normalized(kernel: ZonalKernel):
    r"""$\kappa$ by its recursion, for derivatives at $|u| < 1$, where nothing is singular."""
    total = sum(kernel.layer_weights)

    def kappa(u: Float[Array, ""]) -> Float[Array, ""]:
        theta = jnp.zeros_like(u)
        for layer, weight in enumerate(kernel.layer_weights):
            if layer > 0:
                angle = jnp.arccos(u)
                theta = (1.0 - kernel.kink * angle / math.pi) * theta
                u = u + kernel.kink * (jnp.sin(angle) - angle * u) / math.pi
            theta = theta + weight / total * u
        return theta

    return kappa
