"""FAB, which follows the linearised decision boundary towards the input."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import box, checks, criteria, meshes, parts, registry, repeats
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Nearest
from opnorm.attacks.repeats import Targets
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction

# Croce & Hein 2020 (FAB), section 4: largest pull to the input, overshoot, way back.
_LARGEST_PULL = 0.1
_OVERSHOOT = 1.05
_WAY_BACK = 0.9
# The overshoot of a targeted search that has missed its target several times.
_LARGEST_OVERSHOOT = 1.9
# Newton's method on a concave piecewise linear function ends after as many steps as it
# meets kinks, in practice under ten; bisection to float32's last digits.
_NEWTON_STEPS = 20
_BISECTIONS = 32


@registry.register
def fab(
    *,
    p: float,
    epsilon: float | jax.Array | None = None,
    num_steps: int = 100,
    num_targets: int = 9,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the targeted fast adaptive boundary attack (FAB-T).

    For each of the classes with the largest clean logits, the label excepted, it
    linearises that class's boundary at the current point, projects both that point and
    x on the boundary inside the box, and moves to a mixture of the two projections, a
    little beyond. A misclassified point is recorded if it is the nearest so far, and
    the search goes a tenth of the way back to x. With ``targeted`` the boundary is that
    of the target with the best other class. Until a point succeeds there, the overshoot
    grows from step to step and x does not pull. Deterministic: it starts at x. A step
    costs a forward and a backward pass, and a forward pass more. Without an epsilon,
    a walk to the corners of the box is tried for examples without a misclassified point
    in the end.

    Args:
      p: exponent of the norm: 1, 2 or inf.
      epsilon: the example is done once a misclassified point is as near as this, in
        pixel units; scalar or ``(B,)``, may be traced. None to look for the nearest
        one, without a budget.
      num_steps: steps for each target, at least 1.
      num_targets: how many classes to try, at least 1; of K classes at most K - 1, and
        with ``targeted`` the label alone.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Croce & Hein 2020, "Minimally distorted adversarial examples with a fast
    adaptive boundary attack", Algorithm 1; targets as in their AutoAttack.

    Example:
      A linear network gives the larger coordinate; the nearest point of the
      other class is at distance 0.2 / sqrt(2).

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> attack = attacks.fab(p=2, num_steps=5)
      >>> found = attack.run(lambda x: x, x, labels)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.142
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    if epsilon is not None:
        linalg.check_length("epsilon", epsilon)
        epsilon = lax.stop_gradient(epsilon)
    linalg.check_count("num_steps", num_steps, 1)
    linalg.check_count("num_targets", num_targets, 1)
    bounds = checks.check_bounds(bounds)
    walk_steps = box.walk_steps(bounds) if epsilon is None else 0
    schedule = repeats.Schedule(num_steps, num_targets=num_targets)
    options = _Options(p, epsilon, schedule, bounds, targeted)
    stage = Stage(
        name="fab_t",
        num_steps=schedule.total + walk_steps,
        bounds=bounds,
        epsilon=epsilon,
        init=functools.partial(_init, options),
        step=functools.partial(_step, options),
        finish=functools.partial(_finish, options),
        done=lambda state: state.done,
    )
    if targeted:
        stage = criteria.reaching(stage)
    return Attack(name="fab_t", p=p, stages=(stage,), budget=epsilon is not None)


class _Options(NamedTuple):
    """The options of :func:`fab`."""

    p: float
    epsilon: float | jax.Array | None
    schedule: repeats.Schedule
    bounds: Bounds
    targeted: bool


class _State(NamedTuple):
    """The search, one row for each example.

    Attributes:
      x: ``(B, ...)``, the point to linearise at.
      nearest: the nearest misclassified point.
      targets: the classes that the runs steer to.
      done: ``(B,)`` bool.
      walk: the walk to the corners; None with a budget.
      misses: ``(B,)`` int32, points since the last success; None if untargeted.
    """

    x: jax.Array
    nearest: Nearest
    targets: Targets
    done: jax.Array
    walk: box.Walk | None
    misses: jax.Array | None


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    x, labels = problem.x, problem.labels
    logits = f(x)
    targets = options.schedule.targets(logits, labels)
    wrong = parts.decided(logits, labels)
    walk = None
    if options.epsilon is None:
        rounds = targets.classes.shape[1]
        walk = box.begin_walk(x, logits, labels, rounds)
    return _State(
        x=x,
        nearest=parts.begin_nearest(x, wrong),
        targets=targets,
        done=wrong | (targets.candidates == 0),
        walk=walk,
        misses=jnp.zeros_like(labels, dtype=jnp.int32) if options.targeted else None,
    )


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    i: jax.Array,
) -> _State:
    x, labels, walk, bounds = problem.x, problem.labels, state.walk, options.bounds
    schedule, targets = options.schedule, state.targets
    turn = schedule.turn(i, targets)
    assert turn.target is not None
    target = turn.target
    current = jnp.where(turn.step == 0, x, state.x)
    walks = i >= targets.classes.shape[1] * schedule.num_steps
    if walk is not None:
        current = jnp.where(walks, walk.point, current)

    def difference(logits: jax.Array) -> jax.Array:
        lead = parts.pick(logits, target) - parts.pick(logits, labels)
        if walk is None:
            return lead
        value = box.walk_objective(walk, logits, labels)
        return jnp.where(walks, value.astype(lead.dtype), lead)

    gap, logits, gradient = parts.value_and_gradient(f, difference, current)
    point = _mixture(options, x, current, gap, gradient, state.misses)
    if not checks.is_finite(bounds):
        # Without a box a small gradient may lead beyond the largest number.
        point = parts.select(parts.all_finite(point), point, current)
    hit = parts.decided(f(point), labels)
    if walk is not None:
        # The walk judges the point that it has chosen the step before.
        at_current = parts.decided(logits, labels)
        hit = jnp.where(walks, at_current, hit)
        point = jnp.where(walks, current, point)
    distance = linalg.norm(point - x, options.p)
    nearest = parts.keep_nearest(state.nearest, point, distance, hit)
    done = schedule.is_last(i, targets)
    if options.epsilon is not None:
        done |= nearest.distance <= meshes.constant(options.epsilon)
    if walk is not None:
        walk, ended = box.advance_walk(
            walk, walks, x, nearest.point, nearest.found, hit, gradient, bounds
        )
        done = jnp.where(walks, ended, done & nearest.found)
    back = x + _WAY_BACK * (point - x)
    misses = state.misses
    if misses is not None:
        misses = jnp.where(hit, 0, misses + 1)
    return _State(parts.select(hit, back, point), nearest, targets, done, walk, misses)


def _mixture(
    options: _Options,
    x: jax.Array,
    current: jax.Array,
    gap: jax.Array,
    gradient: jax.Array,
    misses: jax.Array | None,
) -> jax.Array:
    """Mixes the projections of two points on the linearised boundary.

    Args:
      options: of the attack.
      x: ``(B, ...)``, the clean inputs.
      current: shape of ``x``, the point where the boundary is linearised.
      gap: ``(B,)``, the lead of the target over the label there.
      gradient: shape of ``x``, of that lead.
      misses: ``(B,)`` int32, points since the last success; None if untargeted.

    Returns:
      Shape of ``x``: points of the box a little beyond the linearised boundary.
    """
    p, bounds = options.p, options.bounds
    gap = jnp.where(jnp.isfinite(gap), gap, 0.0)
    # The linearised difference at x, without a constant in which digits cancel.
    gap_at_x = gap + linalg.inner(gradient, x - current)
    to_boundary = project_hyperplane(current, gradient, gap, p, bounds) - current
    from_x = project_hyperplane(x, gradient, gap_at_x, p, bounds) - x
    near, far = linalg.norm(to_boundary, p), linalg.norm(from_x, p)
    near, far = jnp.maximum(near, 1e-8), jnp.maximum(far, 1e-8)
    pull = jnp.minimum(near / (near + far), _LARGEST_PULL)
    if misses is None:
        ahead, beside = _OVERSHOOT * to_boundary, _OVERSHOOT * from_x
    else:
        # Where three classes meet, projections on one boundary and another come ever
        # nearer to their corner. A growing overshoot crosses it.
        growth = _OVERSHOOT ** (misses + 1).astype(near.dtype)
        over = jnp.minimum(growth, _LARGEST_OVERSHOOT)
        ahead, beside = linalg.scale(to_boundary, over), linalg.scale(from_x, over)
        pull = jnp.where(misses > 0, 0.0, pull)
    mixed = linalg.scale(current + ahead, 1 - pull)
    mixed += linalg.scale(x + beside, pull)
    return parts.clip(mixed, bounds).astype(x.dtype)


def _finish(options: _Options, problem: Problem, state: _State) -> jax.Array:
    found = state.nearest.found
    if options.epsilon is not None:
        found &= state.nearest.distance <= meshes.constant(options.epsilon)
    return parts.select(found, state.nearest.point, problem.x)


def project_hyperplane(
    x: jax.Array, normal: jax.Array, offset: jax.Array, p: float, bounds: Bounds
) -> jax.Array:
    """Computes the point of a hyperplane inside the box that is nearest in the Lp norm.

    ``argmin ||y - x||_p`` over ``<normal, y - x> + offset = 0`` and y in the box; if
    they do not meet, the corner of the box that comes nearest to the hyperplane. An
    entry moves against its normal as far as the box leaves room: p = inf moves all
    equally far, p = 2 in proportion to the normal, p = 1 the largest first.

    Args:
      x: ``(B, ...)`` float, inside the box.
      normal: shape of ``x``; where it is zero, x is returned.
      offset: ``(B,)``, the value of the linear function at x.
      p: 1, 2 or inf.
      bounds: box (low, high), for all entries or for each, or None.

    Returns:
      Shape and dtype of ``x``.

    Source: Croce & Hein 2020 (FAB), section 3.1.
    """
    flat = x.reshape(len(x), -1)
    w = normal.reshape(flat.shape)
    scale = linalg.norm(w, math.inf)[:, None]
    alive = scale > 0
    scale = jnp.where(alive, scale, 1.0)
    w = w / scale * jnp.where(offset >= 0, 1.0, -1.0)[:, None]
    way = jnp.where(alive, jnp.abs(offset)[:, None] / scale, 0.0)
    low, high = (
        jnp.broadcast_to(end, x.shape).reshape(flat.shape)
        if isinstance(end, jax.Array)
        else end
        for end in parts.ends(bounds, x)
    )
    room = jnp.where(w > 0, flat - low, high - flat)
    room = jnp.where(w == 0, 0.0, jnp.maximum(room, 0.0))
    size = jnp.abs(w)
    if p == 1:
        moved = _move_largest(size, room, way)
    else:
        moved = _move_together(size, room, way, 1.0 if p == math.inf else size)
    moved = flat - jnp.sign(w) * moved
    moved = parts.clip(moved.reshape(x.shape), bounds)
    return moved.astype(x.dtype)


def _move_together(
    size: jax.Array, room: jax.Array, way: jax.Array, rate: float | jax.Array
) -> jax.Array:
    """Moves ``min(t rate, room)`` with t such that ``sum(size * moved) = way``."""

    def gained(t: jax.Array) -> jax.Array:
        return jnp.sum(size * jnp.minimum(t * rate, room), axis=1, keepdims=True)

    def improve(_: jax.Array, t: jax.Array) -> jax.Array:
        free = t * rate < room
        slope = jnp.sum(jnp.where(free, size * rate, 0.0), axis=1, keepdims=True)
        # The function is concave, so Newton's method comes from below and never passes.
        more = jnp.maximum(way - gained(t), 0.0) / jnp.where(slope > 0, slope, 1.0)
        return jnp.where(slope > 0, t + more, t)

    t = lax.fori_loop(0, _NEWTON_STEPS, improve, jnp.zeros_like(way))
    # Out of reach, every entry goes as far as it can.
    short = jnp.sum(size * room, axis=1, keepdims=True) <= way
    return jnp.where(short, room, jnp.minimum(t * rate, room))


def _move_largest(size: jax.Array, room: jax.Array, way: jax.Array) -> jax.Array:
    """Moves the entries of largest size first, each as far as there is room."""
    # Without a box one entry can go the whole way.
    room = jnp.minimum(room, way / jnp.where(size > 0, size, 1.0))
    gain = size * room

    def halve(
        _: jax.Array, ends: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        above = jnp.sum(jnp.where(size > middle, gain, 0.0), axis=1, keepdims=True)
        return jnp.where(above > way, middle, low), jnp.where(above > way, high, middle)

    ends = (jnp.full_like(way, -1.0), jnp.ones_like(way))
    low, high = lax.fori_loop(0, _BISECTIONS, halve, ends)
    whole = size > high
    partly = (size > low) & ~whole
    rest = way - jnp.sum(jnp.where(whole, gain, 0.0), axis=1, keepdims=True)
    shared = jnp.sum(jnp.where(partly, gain, 0.0), axis=1, keepdims=True)
    share = jnp.clip(rest / jnp.where(shared > 0, shared, 1.0), 0.0, 1.0)
    return jnp.where(whole, room, jnp.where(partly, share * room, 0.0))
