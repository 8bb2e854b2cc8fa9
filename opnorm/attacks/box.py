"""Faces of the box in a search by gradients.

:func:`unblocked` leaves out the gradient entries that point out of the box. The rest is
a fallback for attacks that look for the nearest point: a short walk to the corners of
the box, for the examples in which the search itself has found nothing. A step of the
walk evaluates one point and one gradient, so an attack takes it with the forward and
backward pass of its own step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.attacks import checks, losses, parts
from opnorm.attacks.checks import Bound, Bounds
from opnorm.attacks.parts import like

# x + (high - x) may round to the inside of the box by this many units of epsilon.
_ROUNDING = 2
# Classes that the walk steers to from x, other points that it then begins at, points
# that it tries after each beginning, and halvings of the way from x to what it finds.
_TARGETS = 9
_BEGINNINGS = 3
_POINTS = 5
_HALVINGS = 10
_WALK_STEPS = (_TARGETS + _BEGINNINGS) * (_POINTS + 1) + _HALVINGS


class Walk(NamedTuple):
    """The state of a walk, one row for each example.

    Attributes:
      targets: ``(B, T)`` int32, the classes that it steers to from x.
      point: ``(B, ...)`` float, the point to evaluate next.
      right: ``(B, ...)`` float, the nearest point known that does not succeed.
      round: ``(B,)`` int32, how many beginnings are over.
      tried: ``(B,)`` int32, how many points were evaluated since the last beginning.
      halvings: ``(B,)`` int32, how often the way from x was halved.
    """

    targets: jax.Array
    point: jax.Array
    right: jax.Array
    round: jax.Array
    tried: jax.Array
    halvings: jax.Array


def unblocked(x: jax.Array, ascent: jax.Array, bounds: Bounds) -> jax.Array:
    """Leaves out the entries of a direction that point out of the box at a face.

    A step that is normalised spends its length on these entries, and clipping takes it
    away again: where they are the largest, the search stands still.

    Args:
      x: ``(B, ...)`` float, points of the box; at a face up to rounding counts.
      ascent: shape of ``x``, the direction that the search is about to follow.
      bounds: box (low, high), for all entries or for each, or None.

    Returns:
      Shape and dtype of ``ascent``: zero at the entries left out, otherwise unchanged.
    """
    if bounds is None:
        return ascent
    low, high = parts.ends(bounds, x)
    slack = _ROUNDING * linalg.machine_epsilon(x.dtype) * _size(bounds, x)
    below = (ascent < 0) & (x <= low + slack)
    above = (ascent > 0) & (x >= high - slack)
    return jnp.where(below | above, 0.0, ascent)


def _size(bounds: tuple[Bound, Bound], x: jax.Array) -> float | jax.Array:
    """The larger modulus of the ends of the box, infinite ones left out."""
    sizes = np.abs(np.stack(np.broadcast_arrays(*bounds)))
    size = np.max(np.where(np.isfinite(sizes), sizes, 0.0), axis=0)
    return jnp.asarray(parts.for_batch(size, x), x.dtype) if size.ndim else float(size)


def walk_steps(bounds: Bounds) -> int:
    """Returns how many steps the walk takes at most: 0 without a finite box."""
    return _WALK_STEPS if checks.is_finite(bounds) else 0


def begin_walk(
    x: jax.Array, logits: jax.Array, labels: jax.Array, rounds: int = _TARGETS
) -> Walk:
    """Returns the state of a walk that has not begun, one row per example.

    Args:
      x: ``(B, ...)`` float, the clean inputs.
      logits: ``(B, K)``, of x.
      labels: ``(B,)`` int.
      rounds: how many classes it steers to at most.
    """
    targets, _ = parts.other_classes(logits, labels, min(rounds, _TARGETS))
    zero = jnp.zeros_like(labels, dtype=jnp.int32)
    return Walk(targets, point=x, right=x, round=zero, tried=zero, halvings=zero)


def walk_objective(
    walk: Walk,
    logits: jax.Array,
    labels: jax.Array,
    targeted: bool = False,
) -> jax.Array:
    """Computes the objective of the walk, ``(B,)``: the lead of a class over the label.

    From x it is the lead of one class after another, and from elsewhere the lead of the
    class of the largest logit.
    """
    margin = losses.margin(logits, labels)
    if targeted:
        return -margin
    count = walk.targets.shape[1]
    number = jnp.minimum(walk.round, count - 1)
    target = jnp.take_along_axis(walk.targets, number[:, None], axis=1)
    at = jnp.arange(logits.shape[1])[None]
    lead = jnp.where(at == target, logits, 0.0)
    lead = jnp.sum(lead - jnp.where(at == labels[:, None], logits, 0.0), axis=1)
    return jnp.where(walk.round < count, lead.astype(margin.dtype), margin)


def advance_walk(
    walk: Walk,
    walks: jax.Array,
    x: jax.Array,
    best: jax.Array,
    found: jax.Array,
    hit: jax.Array,
    ascent: jax.Array,
    bounds: Bounds,
) -> tuple[Walk, jax.Array]:
    """Chooses the next point of the rows that walk, after their last was evaluated.

    For each class, in the order of the clean logits, it goes from x to the corner of
    the box that the signs of the gradient point to, and on from there along the signs
    of the gradient by a half, a quarter, ... of the width of the box. The last three
    times it begins at other corners: the farthest from x, the lowest and the highest,
    where a gradient may lead on that is zero at x. Once a point succeeds, the way from
    x to it is halved.

    Args:
      walk: state, whose ``point`` was evaluated in the rows that walk.
      walks: ``(B,)`` bool or a scalar, which rows these are; the others stay.
      x: ``(B, ...)`` float, the clean inputs.
      best: shape of ``x``, the nearest point that succeeds, where there is one.
      found: ``(B,)`` bool, where there is one, this one included.
      hit: ``(B,)`` bool, whether ``point`` succeeds.
      ascent: shape of ``x``, gradient of :func:`walk_objective` at ``point``.
      bounds: finite box (low, high).

    Returns:
      The state, and ``(B,)`` bool, whether the walk of a row is over.
    """
    if walk_steps(bounds) == 0:
        return walk, found | walks
    low, high = parts.ends(bounds, x)
    length = (high - low) * like(0.5 ** walk.tried.astype(x.dtype), x)
    ahead = walk.point + length * jnp.sign(ascent).astype(x.dtype)
    ahead = parts.clip(ahead, bounds)
    tried = walk.tried + 1
    over = tried > _POINTS
    right = jnp.where(like(found & ~hit, x), walk.point, walk.right)
    middle = right + (best - right) / 2
    halvings = parts.count(walk.halvings, found)
    rounds = parts.count(walk.round, over & ~found)
    beyond = rounds - walk.targets.shape[1]
    far = jnp.where(x > (low + high) / 2, low, high)
    begin = jnp.where(like(beyond == 0, x), far, x)
    extreme = jnp.where(like(beyond == 1, x), low, high)
    begin = jnp.where(like(beyond > 0, x), extreme, begin)
    ahead = jnp.where(like(over, x), begin.astype(x.dtype), ahead)
    ended = (halvings > _HALVINGS) | (beyond >= _BEGINNINGS)
    new = Walk(
        walk.targets,
        point=jnp.where(like(found, x), middle, ahead),
        right=right,
        round=rounds,
        tried=jnp.where(over, 0, tried),
        halvings=halvings,
    )
    return parts.select(walks, new, walk), walks & ended
