"""Nearest points by steps of decoupled direction and length: DDN and FMN."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import box, checks, losses, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Nearest, like
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction

# An estimate that is exact ends on the boundary itself, where nothing is decided.
_BEYOND = 1.01


@registry.register
def decoupled_direction(
    *,
    num_steps: int = 100,
    gamma: float = 0.05,
    initial_epsilon: float = 1.0,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the decoupled direction and norm attack (DDN): the nearest point in L2.

    A step of length ``a_i``, falling from 1 to 0.01 along a cosine, goes along the
    normalised gradient of the cross-entropy; the perturbation is then rescaled to
    length epsilon, which shrinks by ``1 - gamma`` after a misclassified point and grows
    by ``1 + gamma`` after another. Gradient entries that point out of the box at a face
    are left out; where none is left the direction is random, if there is a key. A step
    costs one forward and one backward pass. For examples without a misclassified point
    in the end, a walk to the corners of the box is tried.

    Args:
      num_steps: steps, at least 1; the last point is judged too.
      gamma: change of the length, in (0, 1).
      initial_epsilon: first length, positive.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Rony et al. 2019, Algorithm 1, without its rounding to 256 levels.

    Example:
      A linear network gives the larger coordinate; the nearest point of the
      other class is at distance 0.2 / sqrt(2).

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> attack = attacks.decoupled_direction(num_steps=30)
      >>> found = attack.run(lambda x: x, x, labels)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.192
    """
    linalg.check_count("num_steps", num_steps, 1)
    _check_fraction("gamma", gamma)
    linalg.check_length("initial_epsilon", initial_epsilon, positive=True)
    bounds = checks.check_bounds(bounds)
    search = _Search(2.0, num_steps, targeted, bounds, losses.cross_entropy)

    def init(f: BatchFunction, problem: Problem) -> _State:
        largest = _largest(problem.x, 2.0, bounds)
        epsilon = jnp.minimum(initial_epsilon, largest).astype(largest.dtype)
        return _initial_state(f, problem, search, epsilon)

    def step(f: BatchFunction, problem: Problem, state: _State, i: jax.Array) -> _State:
        x = problem.x
        new, _, gradient, hit = _evaluate(f, problem, state, i, search)
        direction = linalg.dual_map(gradient, 2.0)
        if problem.keys is not None:
            keys = parts.fold_in(problem.keys, i)
            random = parts.sample_sphere(keys, x, 2.0, bounds)
            zero = linalg.norm(gradient, math.inf) == 0
            direction = jnp.where(like(zero, x), random, direction)
        size = _cosine(i, num_steps, 1.0, 0.01).astype(x.dtype)
        moved = state.delta + size * direction
        epsilon = state.epsilon * jnp.where(hit, 1 - gamma, 1 + gamma)
        epsilon = jnp.minimum(epsilon, _largest(x, 2.0, bounds))
        length = linalg.norm(moved, 2.0)
        moved = linalg.scale(moved, epsilon / parts.positive(length))
        moved = parts.clip(x + moved, bounds) - x
        return new._replace(delta=moved, epsilon=epsilon)

    return _attack("decoupled_direction", search, init, step)


@registry.register
def fast_minimum_norm(
    *,
    p: float,
    num_steps: int = 100,
    gamma: float = 0.05,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the fast minimum-norm attack (FMN) for the nearest point in Lp.

    Steps go along the L2-normalised gradient of the margin, with lengths that fall from
    1 to 0.01 along a cosine, and end with a projection on the Lp ball of radius
    epsilon. Before the first misclassified point, epsilon is the distance of the
    linearised boundary and a hundredth of what is left; then it shrinks by ``1 -
    gamma`` after a misclassified point, at least to the smallest distance so far, and
    grows by ``1 + gamma`` after another; gamma falls to a fiftieth along a cosine.
    Gradient entries that point out of the box at a face are left out. A step costs one
    forward and one backward pass. For examples without a misclassified point in the
    end, a walk to the corners of the box is tried.

    Args:
      p: exponent of the norm: 1, 2 or inf.
      num_steps: steps, at least 1; the last point is judged too.
      gamma: first change of the radius, in (0, 1).
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Pintor et al. 2021, Algorithm 1.

    Example:
      A linear network gives the larger coordinate; the nearest point of the
      other class is at distance 0.2 / sqrt(2).

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> attack = attacks.fast_minimum_norm(p=2, num_steps=30)
      >>> found = attack.run(lambda x: x, x, labels)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.141
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    linalg.check_count("num_steps", num_steps, 1)
    _check_fraction("gamma", gamma)
    bounds = checks.check_bounds(bounds)
    conjugate = linalg.conjugate_exponent(p)
    search = _Search(p, num_steps, targeted, bounds, losses.margin)

    def init(f: BatchFunction, problem: Problem) -> _State:
        x = problem.x
        epsilon = jnp.full_like(problem.labels, jnp.inf, dtype=parts.wide(x))
        return _initial_state(f, problem, search, epsilon)

    def step(f: BatchFunction, problem: Problem, state: _State, i: jax.Array) -> _State:
        x, delta = problem.x, state.delta
        new, value, gradient, hit = _evaluate(f, problem, state, i, search)
        slope = linalg.norm(gradient, conjugate)
        gap = jnp.where(jnp.isfinite(value), jnp.abs(value), 0.0)
        ahead = _BEYOND * gap / parts.positive(slope)
        linear = linalg.norm(delta, p) + jnp.where(slope > 0, ahead, 0.0)
        change = _cosine(i, num_steps, gamma, gamma / 50)
        less, more = (
            state.epsilon * factor.astype(state.epsilon.dtype)
            for factor in (1 - change, 1 + change)
        )
        shrunk = jnp.minimum(less, new.nearest.distance)
        grown = jnp.where(state.nearest.found, more, linear)
        epsilon = jnp.where(hit, shrunk, grown)
        epsilon = jnp.minimum(epsilon, _largest(x, p, bounds)).astype(slope.dtype)
        size = _cosine(i, num_steps, 1.0, 0.01).astype(x.dtype)
        moved = delta + size * linalg.dual_map(gradient, 2.0)
        moved = parts.confine(x, moved, p, epsilon, bounds)
        return new._replace(delta=moved, epsilon=epsilon)

    return _attack("fast_minimum_norm", search, init, step)


class _Search(NamedTuple):
    """The options that DDN and FMN share.

    Attributes:
      p: exponent of the norm.
      num_steps: steps before the walk to the corners.
      targeted: whether the labels are to be reached.
      bounds: box (low, high), for all entries or for each, or None.
      loss: the objective, to maximise or, if targeted, to minimise.
    """

    p: float
    num_steps: int
    targeted: bool
    bounds: Bounds
    loss: losses.Loss


class _State(NamedTuple):
    """The search, one row for each example.

    Attributes:
      delta: ``(B, ...)``, the perturbation to evaluate next.
      epsilon: ``(B,)``, its length, or the radius of its ball.
      nearest: the nearest point that succeeds.
      done: ``(B,)`` bool.
      walk: the walk to the corners.
    """

    delta: jax.Array
    epsilon: jax.Array
    nearest: Nearest
    done: jax.Array
    walk: box.Walk


def _attack(
    name: str,
    search: _Search,
    init: Callable[[BatchFunction, Problem], _State],
    step: Callable[[BatchFunction, Problem, _State, jax.Array], _State],
) -> Attack:
    stage = Stage(
        name=name,
        num_steps=search.num_steps + 1 + box.walk_steps(search.bounds),
        bounds=search.bounds,
        init=init,
        step=step,
        finish=lambda problem, state: state.nearest.point,
        done=lambda state: state.done,
        targeted=search.targeted,
        takes_start=True,
    )
    return Attack(name=name, p=search.p, stages=(stage,), budget=False)


def _initial_state(
    f: BatchFunction, problem: Problem, search: _Search, epsilon: jax.Array
) -> _State:
    x, targeted = problem.x, search.targeted
    start = x if problem.start is None else problem.start
    start = parts.clip(start, search.bounds)
    logits = f(x)
    at_input = parts.decided(logits, problem.labels, targeted)
    # One class is to be reached, or all others are tried.
    rounds = 1 if targeted else logits.shape[1]
    return _State(
        delta=start - x,
        epsilon=epsilon,
        nearest=parts.begin_nearest(x, at_input),
        done=at_input,
        walk=box.begin_walk(x, logits, problem.labels, rounds),
    )


def _evaluate(
    f: BatchFunction, problem: Problem, state: _State, i: jax.Array, search: _Search
) -> tuple[_State, jax.Array, jax.Array, jax.Array]:
    """Evaluates the point of a step, and keeps it if it is the nearest that succeeds.

    After the last step of the search, that is the point of the walk to the corners.

    Returns:
      The state, the objective ``(B,)``, its gradient without the entries that the box
      blocks, and ``(B,)`` bool, whether the point succeeds.
    """
    x, labels, walk, bounds = problem.x, problem.labels, state.walk, search.bounds
    targeted = search.targeted
    walks = i > search.num_steps
    point = parts.clip(x + state.delta, bounds)
    point = jnp.where(walks, walk.point, point)

    def objective(logits: jax.Array) -> jax.Array:
        lead = box.walk_objective(walk, logits, labels, targeted)
        value = search.loss(logits, labels)
        value = -value if targeted else value
        return jnp.where(walks, lead.astype(value.dtype), value)

    value, logits, gradient = parts.value_and_gradient(f, objective, point)
    hit = parts.decided(logits, labels, targeted)
    distance = linalg.norm(point - x, search.p)
    nearest = parts.keep_nearest(state.nearest, point, distance, hit)
    walk, ended = box.advance_walk(
        walk, walks, x, nearest.point, nearest.found, hit, gradient, bounds
    )
    over = (i == search.num_steps) & nearest.found
    done = jnp.where(walks, ended, state.done | over)
    new = state._replace(nearest=nearest, walk=walk, done=done)
    return new, value, box.unblocked(point, gradient, bounds), hit


def _largest(x: jax.Array, p: float, bounds: Bounds) -> jax.Array:
    """Computes the length of the longest perturbation inside the box, ``(B,)``."""
    if bounds is None:
        return jnp.full(len(x), jnp.inf, parts.wide(x))
    low, high = parts.ends(bounds, x)
    return linalg.norm(jnp.maximum(x - low, high - x), p)


def _cosine(i: jax.Array, num_steps: int, first: float, last: float) -> jax.Array:
    """Goes from first to last along half a cosine."""
    angle = math.pi * i.astype(float) / num_steps
    return last + (first - last) * (1 + jnp.cos(angle)) / 2


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be in (0, 1).")
