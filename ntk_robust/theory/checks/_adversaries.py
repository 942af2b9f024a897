"""What the theorems allow: any attack, and plain gradient steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Float, Key, PyTree, ScalarLike

from ntk_robust.attacks import AbstractAttack, AbstractPerturbationSet, AttackResult, SphereSlice
from ntk_robust.attacks._attack import Objective


class RandomPoint(AbstractAttack):
    """The projection on B(x) of x plus Gaussian noise of standard deviation ε, whatever the objective.

    In high dimension that is a random point of the rim; it costs less to compile than a uniform sample of a cap.
    """

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: Key[Array, ""],
    ) -> AttackResult:
        """The point; see `AbstractAttack`."""
        noise = perturbations.epsilon * jr.normal(key, x.shape, x.dtype)
        return _result(objective, perturbations.project(x, x + noise))


class Weakest(AbstractAttack):
    """What `attack` finds for the negative objective: an adversary that helps.

    Attributes:
        attack: The attack that it misuses.
    """

    attack: AbstractAttack

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: Key[Array, ""],
    ) -> AttackResult:
        """The point; see `AbstractAttack`."""
        return _result(objective, self.attack(lambda point: -objective(point), x, perturbations, key=key).x_adv)


class Strongest(AbstractAttack):
    """The largest value that any of `attacks` finds.

    Attributes:
        attacks: What it tries.
    """

    attacks: tuple[AbstractAttack, ...]

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: Key[Array, ""],
    ) -> AttackResult:
        """The point; see `AbstractAttack`."""
        results = [attack(objective, x, perturbations, key=key) for attack in self.attacks]
        best = jnp.argmax(jnp.stack([result.value for result in results]))
        return _result(objective, jnp.stack([result.x_adv for result in results])[best])


class Mixture(AbstractAttack):
    """One of `attacks`, drawn anew for each example and step: discontinuous in W and in time.

    Attributes:
        attacks: What it chooses from; all of them are run.
        shares: With which probabilities; 1 and zeros make it one of them.
    """

    attacks: tuple[AbstractAttack, ...]
    shares: Float[Array, " attacks"]

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: Key[Array, ""],
    ) -> AttackResult:
        """The point; see `AbstractAttack`."""
        choice_key, attack_key = jr.split(key)
        found = jnp.stack([attack(objective, x, perturbations, key=attack_key).x_adv for attack in self.attacks])
        chosen = jnp.sum(jr.uniform(choice_key, (), self.shares.dtype) >= jnp.cumsum(self.shares))
        return _result(objective, found[chosen])


def each_and_switching(attacks: dict[str, AbstractAttack]) -> dict[str, Mixture]:
    """Each attack alone and, as "switching", one of them at random; the same program runs them all."""
    pool, count = tuple(attacks.values()), len(attacks)
    alone = {name: Mixture(pool, jnp.eye(count)[index]) for index, name in enumerate(attacks)}
    return {**alone, "switching": Mixture(pool, jnp.eye(count).mean(axis=0))}


ARC_CHOICES = ("oracle", "weakest", "random", "identity")


class ArcAttack(AbstractAttack):
    r"""A point of a grid of the arc B(x) of a circle, ends and center included.

    Which one is drawn anew for each example and step: the one with the largest objective, that with the smallest, a
    random one, or x itself. The grid is evaluated once, so that all of these are one small program. Between neighbors
    of the grid, $h$ apart in angle, a function is at most $h^2/8 \sup|g''|$ above the larger of them.

    Attributes:
        num_points: Points of the grid, an odd number.
        shares: Probabilities of the four choices, in the order of `ARC_CHOICES`.
    """

    num_points: int = eqx.field(static=True)
    shares: Float[Array, " choices"]

    def __call__(
        self,
        objective: Objective,
        x: Float[Array, "*dims"],
        perturbations: AbstractPerturbationSet,
        *,
        key: Key[Array, ""],
    ) -> AttackResult:
        """The point; see `AbstractAttack`."""
        assert isinstance(perturbations, SphereSlice)
        choice_key, point_key = jr.split(key)
        grid = arc_grid(x, perturbations, self.num_points)
        values = lax.stop_gradient(jax.vmap(objective)(grid))
        random = jr.randint(point_key, (), 0, self.num_points)
        places = jnp.stack([jnp.argmax(values), jnp.argmin(values), random, jnp.asarray(self.num_points // 2)])
        place = places[jnp.sum(jr.uniform(choice_key, (), self.shares.dtype) >= jnp.cumsum(self.shares))]
        return AttackResult(
            x_adv=grid[place], value=values[place], values=values[place][None], zero_gradients=jnp.asarray(0)
        )


def arc_attacks(num_points: int, names: tuple[str, ...]) -> dict[str, ArcAttack]:
    """The named choices, each alone; "switching" is the first three by turns. One program runs them all."""
    count = len(ARC_CHOICES)
    alone = {name: jnp.eye(count)[index] for index, name in enumerate(ARC_CHOICES)}
    shares = alone | {"switching": jnp.array([1.0, 1.0, 1.0, 0.0]) / 3.0}
    return {name: ArcAttack(num_points, shares[name]) for name in names}


def arc_grid(x: Float[Array, " 3"], perturbations: SphereSlice, num_points: int) -> Float[Array, "points 3"]:
    """Points of the arc around x at equal angles, from end to end."""
    angles = jnp.linspace(-1.0, 1.0, num_points) * perturbations.max_angle(x)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([cos * x[0] - sin * x[1], sin * x[0] + cos * x[1], jnp.full_like(angles, x[2])], axis=1)


def gradient_steps(step_size: float) -> optax.GradientTransformation:
    """W − α g, like `optax.sgd(α)`; α is a number of the compiled program, which serves every α (ascent below 0)."""
    return optax.GradientTransformation(_no_state, jax.tree_util.Partial(_descend, step_size))


def _no_state(params: PyTree) -> tuple[()]:
    del params
    return ()


def _descend(step_size: ScalarLike, gradient: PyTree, state: tuple[()], params: PyTree) -> tuple[PyTree, tuple[()]]:
    del params
    return optax.tree.scale(-jnp.asarray(step_size), gradient), state


def _result(objective: Objective, point: Float[Array, "*dims"]) -> AttackResult:
    value = lax.stop_gradient(objective(point))
    return AttackResult(x_adv=point, value=value, values=value[None], zero_gradients=jnp.asarray(0))
