"""What the faces of the box mean for a search by gradients.

:func:`unblocked` leaves out the gradient entries that point out of the box. The rest is
a fallback for attacks that look for the nearest point: a short walk to the corners of
the box, for the examples for which the search itself has found nothing. It evaluates
one point and one gradient a step, so an attack takes these steps with the forward and
backward pass that its own step has anyway.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from opnorm.attacks import attack as attack_lib
from opnorm.attacks import losses
from opnorm.attacks.attack import like
from opnorm.attacks.checks import Bounds

# x + (high - x) may round to the inside of the box by this many units of epsilon.
_ROUNDING = 2
# Classes that the walk steers to, points that it tries for each, and halvings of the
# way from x to the point that it finds.
_TARGETS = 9
_POINTS = 5
_HALVINGS = 10
_WALK_STEPS = _TARGETS * (_POINTS + 1) + _HALVINGS


def unblocked(x: jax.Array, ascent: jax.Array, bounds: Bounds) -> jax.Array:
    """Leaves out the entries of a direction that point out of the box at a face.

    A step that is normalised spends its length on these entries, and clipping takes it
    away again: where they are the largest, the search stands still.

    Args:
      x: ``(B, ...)`` float, points of the box; at a face up to rounding counts.
      ascent: shape of ``x``, the direction that the search is about to follow.
      bounds: box (low, high), or None.

    Returns:
      Shape and dtype of ``ascent``: zero at the entries left out, otherwise unchanged.
    """
    if bounds is None:
        return ascent
    low, high = bounds
    size = max([abs(end) for end in bounds if math.isfinite(end)], default=0.0)
    slack = _ROUNDING * float(jnp.finfo(x.dtype).eps) * size
    below = (ascent < 0) & (x <= low + slack)
    above = (ascent > 0) & (x >= high - slack)
    return jnp.where(below | above, 0.0, ascent)


def walk_steps(bounds: Bounds) -> int:
    """Steps that the walk takes at most: none without a finite box."""
    finite = bounds is not None and all(map(math.isfinite, bounds))
    return _WALK_STEPS if finite else 0


def begin_walk(
    x: jax.Array, logits: jax.Array, labels: jax.Array, rounds: int = _TARGETS
) -> dict[str, jax.Array]:
    """Returns the state of a walk that has not begun, one row per example.

    Args:
      x: ``(B, ...)`` float, the clean inputs.
      logits: ``(B, K)``, of x.
      labels: ``(B,)`` int.
      rounds: how many classes it steers to at most.
    """
    classes = logits.shape[1]
    hit = jnp.arange(classes)[None] == labels[:, None]
    others = jnp.where(hit | jnp.isnan(logits), -jnp.inf, logits)
    rounds = max(1, min(rounds, _TARGETS, classes - 1))
    zero = jnp.zeros_like(labels, dtype=jnp.int32)
    return {
        "targets": lax.top_k(others, rounds)[1],
        "point": x,
        "right": x,
        "round": zero,
        "tried": zero,
        "halvings": zero,
    }


def walk_objective(
    walk: dict[str, jax.Array],
    logits: jax.Array,
    labels: jax.Array,
    targeted: bool = False,
) -> jax.Array:
    """What the walk ascends, ``(B,)``: the lead of its target over the label."""
    if targeted:
        return -losses.margin(logits, labels)
    at = jnp.arange(logits.shape[1])[None]
    lead = jnp.where(at == current_target(walk)[:, None], logits, 0.0)
    return jnp.sum(lead - jnp.where(at == labels[:, None], logits, 0.0), axis=1)


def current_target(walk: dict[str, jax.Array]) -> jax.Array:
    """The class that each row of the walk steers to, ``(B,)`` int32."""
    number = jnp.minimum(walk["round"], walk["targets"].shape[1] - 1)
    return jnp.take_along_axis(walk["targets"], number[:, None], axis=1)[:, 0]


def advance_walk(
    walk: dict[str, jax.Array],
    x: jax.Array,
    best: jax.Array,
    found: jax.Array,
    hit: jax.Array,
    ascent: jax.Array,
    bounds: Bounds,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Chooses the next point of the walk, after its last one was evaluated.

    For each class, in the order of the clean logits, it goes from x to the corner of
    the box that the signs of the gradient point to, and on from there along the signs
    of the gradient by a half, a quarter, ... of the width of the box. Once a point
    succeeds, the way from x to it is halved.

    Args:
      walk: state, whose ``point`` was evaluated.
      x: ``(B, ...)`` float, the clean inputs.
      best: shape of ``x``, the nearest point that succeeds, where there is one.
      found: ``(B,)`` bool, where there is one, this one included.
      hit: ``(B,)`` bool, whether ``point`` succeeds.
      ascent: shape of ``x``, gradient of :func:`walk_objective` at ``point``.
      bounds: finite box (low, high).

    Returns:
      The state, and ``(B,)`` bool, whether the walk is over.
    """
    if walk_steps(bounds) == 0:
        return walk, jnp.ones_like(found)
    assert bounds is not None
    low, high = bounds
    length = (high - low) * 0.5 ** walk["tried"].astype(x.dtype)
    ahead = walk["point"] + like(length, x) * jnp.sign(ascent).astype(x.dtype)
    ahead = attack_lib.clip(ahead, bounds)
    tried = walk["tried"] + 1
    over = tried > _POINTS
    right = jnp.where(like(found & ~hit, x), walk["point"], walk["right"])
    middle = right + (best - right) / 2
    ahead = jnp.where(like(over, x), x, ahead)
    halvings = walk["halvings"] + found
    rounds = walk["round"] + (over & ~found)
    ended = (halvings > _HALVINGS) | (rounds >= walk["targets"].shape[1])
    new = {
        **walk,
        "point": jnp.where(like(found, x), middle, ahead),
        "right": right,
        "round": rounds,
        "tried": jnp.where(over, 0, tried),
        "halvings": halvings,
    }
    return new, ended
