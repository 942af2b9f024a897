r"""Forward linear bounds: every quantity as a linear function of the input's perturbation plus independent errors.

$h = c + G \delta + E e ± \rho$ with $\delta$ in the ball, $e ∈ [-1, 1]^p$ and a remainder $\rho$ that forgets where it
came from. Affine layers map it exactly; an activation becomes the middle between two parallel lines, and the half
distance between them a new error symbol (DeepZ). Rounding goes into the remainder.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_robust.attacks import AbstractPerturbationSet
from ntk_robust.certify._interval import AbstractBound, finite_or, propagate
from ntk_robust.certify._network import AbstractLinear, Add, Graph, Network, Nonlinearity, graph_of
from ntk_robust.certify._reach import Reach, reach, support
from ntk_robust.certify._relaxation import Slopes, lines, tightest_slopes
from ntk_robust.certify._rounding import magnitude, slack_factor, underflow
from ntk_robust.certify._shapes import Interval
from ntk_robust.models import AbstractActivation

_HIGHEST = jax.lax.Precision.HIGHEST


class _Form(NamedTuple):
    """A center, one generator for each input coordinate and error symbol, and a remainder.

    The generators of error symbols stand under the node that made them: branches that meet share symbols by name.
    """

    center: Float[Array, "*dims"]
    inputs: Float[Array, "d *dims"]
    errors: dict[int, Float[Array, "p *dims"]]
    remainder: Float[Array, "*dims"]


class Zonotope(AbstractBound):
    """Forward bounds by zonotopes (DeepZ), intersected with interval bounds before every activation.

    One pass gives the bounds of all layers, where `Crown` goes back from each. Both lines of an activation share a
    slope, so bounds are usually looser. Memory is one copy of each layer for every input and every neuron before it.

    References:
        Singh et al., Fast and effective robustness certification, NeurIPS 2018.
    """

    def lower(
        self,
        network: Network,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        specification: Float[Array, "rows k"],
    ) -> Float[Array, " rows"]:
        """Lower bounds of the rows of $C f(x')$.

        Raises:
            ValueError: If the network has paired neurons, whose joint bounds need two slopes; use `Crown`.
        """
        graph, around = graph_of(network), reach(perturbations, x)
        known = propagate(graph, around)
        size = math.prod(graph.nodes[0].shape)
        shape = graph.nodes[0].shape
        forms = [
            _Form(
                x,
                jnp.eye(size, dtype=graph.dtype).reshape(size, *shape),
                {},
                jnp.zeros(shape, graph.dtype),
            )
        ]
        for index, node in enumerate(graph.nodes[1:], start=1):
            forms.append(_advance(graph, index, [forms[parent] for parent in node.parents], around, known))
        last = forms[-1]
        flat = specification.reshape(specification.shape[0], -1)
        g = slack_factor(flat.shape[1] + len(graph.nodes), graph.dtype)

        def project(values: Array) -> Array:
            return jnp.matmul(flat, values.reshape(values.shape[0], -1).T, precision=_HIGHEST)

        inputs = project(last.inputs)
        spread = sum(
            (jnp.sum(jnp.abs(project(part)), axis=1) for part in last.errors.values()), jnp.zeros_like(inputs[:, 0])
        )
        down = jax.vmap(lambda row: support(around, -row.reshape(shape)))(inputs)
        sizes = _sizes(last, around)
        absolute = jnp.abs(flat)
        slack = jnp.matmul(absolute, (last.remainder + g * sizes).ravel(), precision=_HIGHEST)
        center = jnp.matmul(flat, last.center.ravel(), precision=_HIGHEST)
        return finite_or(center - down - spread - (1.0 + g) * slack, -jnp.inf)


def _advance(graph: Graph, index: int, parents: list[_Form], around: Reach, known: list[Interval]) -> _Form:
    node = graph.nodes[index]
    match node.layer:
        case AbstractLinear():
            layer, form = node.layer, parents[0]
            terms = layer.num_terms()
            g = slack_factor(terms, graph.dtype) if terms else 0.0
            lost = layer.absolute((1.0 + g) * form.remainder + g * _sizes(form, around))
            offset = layer.offset()
            if offset is not None:
                lost = lost + jnp.broadcast_to(g * jnp.abs(offset), lost.shape)
            inputs, errors = jax.tree.map(jax.vmap(layer.linear), (form.inputs, form.errors))
            return _Form(layer(form.center), inputs, errors, lost + (underflow(terms, graph.dtype) if terms else 0.0))
        case Nonlinearity():
            return _activate(node.layer.activation, index, parents[0], known[node.parents[0]], around)
        case Add():
            eps = float(jnp.finfo(graph.dtype).eps)
            total = parents[0]
            for form in parents[1:]:
                rounding = 2.0 * eps * (_sizes(total, around) + _sizes(form, around))
                errors = dict(total.errors)
                for source, part in form.errors.items():
                    errors[source] = errors[source] + part if source in errors else part
                total = _Form(
                    total.center + form.center,
                    total.inputs + form.inputs,
                    errors,
                    total.remainder + form.remainder + rounding,
                )
            return total
    raise ValueError("Zonotope has no form for paired neurons, whose lines have no common slope; use Crown")


def _activate(sigma: AbstractActivation, index: int, form: _Form, known: Interval, around: Reach) -> _Form:
    at = _concretize(form, around)
    at = Interval(jnp.maximum(at.lower, known.lower), jnp.minimum(at.upper, known.upper))
    # the line above a convex function and below a concave one is its chord, which is DeepZ's slope
    chosen = tightest_slopes(sigma, *at)
    candidates = [lines(sigma, *at, Slopes(slope, slope)) for slope in chosen]
    narrow = [found.upper_offset - found.lower_offset for found in candidates]
    pick = narrow[1] <= narrow[0]
    slope, low, high = (jnp.where(pick, candidates[1][part], candidates[0][part]) for part in (0, 1, 3))
    size = form.center.size
    half = 0.5 * (high - low)
    new = jnp.diag(half.ravel()).reshape(size, *form.center.shape)
    eps = float(jnp.finfo(half.dtype).eps)
    sizes = jnp.abs(slope) * _sizes(form, around) + magnitude(low, high)
    return _Form(
        slope * form.center + 0.5 * (low + high),
        slope[None] * form.inputs,
        {**{source: slope[None] * part for source, part in form.errors.items()}, index: new},
        jnp.abs(slope) * form.remainder + 4.0 * eps * sizes,
    )


def _sizes(form: _Form, around: Reach) -> Array:
    """Bound of the absolute values of everything summed in the form."""
    shape = (-1,) + (1,) * (form.inputs.ndim - 1)
    moved = jnp.sum(jnp.abs(form.inputs) * magnitude(around.down, around.up).reshape(shape), axis=0)
    return (jnp.abs(form.center) + moved + _spread(form) + form.remainder) * 1.01


def _spread(form: _Form) -> Array:
    """How far the error symbols move each coordinate."""
    return sum((jnp.sum(jnp.abs(part), axis=0) for part in form.errors.values()), jnp.zeros_like(form.center))


def _concretize(form: _Form, around: Reach) -> Interval:
    size = form.center.size
    rows = form.inputs.reshape(form.inputs.shape[0], size).T
    shape = form.center.shape
    up, down = (
        jax.vmap(lambda row, s=s: support(around, s * row.reshape(around.x.shape)))(rows).reshape(shape)
        for s in (1.0, -1.0)
    )
    num_symbols = sum(part.shape[0] for part in form.errors.values())
    g = slack_factor(num_symbols + form.inputs.shape[0], form.center.dtype)
    spread = _spread(form) + form.remainder + g * _sizes(form, around)
    return Interval(form.center - down - spread, form.center + up + spread)
