"""Euclidean projections onto the intersection of an Lp ball and a box."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg import norms
from opnorm.linalg.projections import prepare, restore, sign
from opnorm.linalg.typed import jit

# The number of terms that reach their room between two neighbouring numbers is small.
_CLIMB_STEPS = 3


def project_ball_box(
    x: jax.Array,
    p: float,
    radius: float | jax.Array,
    low: jax.Array | float,
    high: jax.Array | float,
) -> jax.Array:
    """Computes the Euclidean projection onto an Lp ball and a box.

    The sets are ``||y||_p <= radius`` and ``low <= y <= high``. The box must contain
    zero. Projecting onto the ball and then clipping also gives a point of both sets,
    but for p = 1 and 2 it is not the nearest one: entries that the box limits leave
    more of the radius to the other entries. With a multiplier t, ``y_i`` is ``x_i``
    shrunk by t (p = 1) or multiplied by t (p = 2), and then clipped. Bisection over the
    numbers of the dtype finds the t with ``||y||_p = radius``.

    Args:
      x: ``(B, ...)`` float.
      p: 1, 2 or inf.
      radius: scalar or ``(B,)``, at least 0.
      low: scalar or an array with the shape of ``x``, at most 0.
      high: scalar or an array with the shape of ``x``, at least 0.

    Returns:
      An array with the shape and dtype of ``x``. Only the clipping is differentiated.

    Raises:
      ValueError: for another p, a radius as in :func:`project_ball`, or a box without
        zero. Traced bounds are not known yet, and are not checked.

    Source: Croce & Hein 2021, Proposition 2.1, for p = 1.
    """
    p = norms.check_exponent("p", p)
    if p not in (1, 2, math.inf):
        raise ValueError(f"p is {p:g}; it must be 1, 2 or inf.")
    _check_box(low, high)
    flat, limit = prepare(x, radius)
    lowest = prepare(jnp.broadcast_to(low, x.shape).astype(x.dtype), 0.0)[0]
    highest = prepare(jnp.broadcast_to(high, x.shape).astype(x.dtype), 0.0)[0]
    return restore(_project_ball_box(flat, limit, lowest, highest, p), x)


@jit(static_argnums=4)
def _project_ball_box(
    flat: jax.Array, limit: jax.Array, lowest: jax.Array, highest: jax.Array, p: float
) -> jax.Array:
    if p == math.inf:
        return jnp.clip(jnp.clip(flat, lowest, highest), -limit, limit)
    free = jnp.clip(flat, lowest, highest)
    inside = norms.norm(free, p)[:, None] <= limit
    modulus = jnp.abs(flat)
    room = jnp.where(flat < 0, -lowest, highest)
    project = _shrink if p == 1 else _scale_down
    shrunk = project(modulus, room, jnp.where(limit > 0, limit, 1.0))
    # The product with zero keeps NaN.
    shrunk = jnp.where(limit > 0, shrunk, 0.0 * modulus)
    found = jnp.clip(sign(flat) * shrunk, lowest, highest)
    return jnp.where(inside, free, found)


def _shrink(modulus: jax.Array, room: jax.Array, limit: jax.Array) -> jax.Array:
    """Solves ``sum min(max(modulus - t, 0), room) = limit`` for t; returns the terms.

    Near the largest entry, t has fewer digits than a small limit needs. So t is first
    enclosed by neighbouring numbers of its dtype, between which no further term starts.
    Then ``tight - t`` is computed. The sum is concave in it, so Newton's method ascends
    to the solution from below, with one step for each term that reaches its room.
    """

    fixed = lax.stop_gradient(modulus)

    def outside(t: jax.Array) -> jax.Array:
        terms = jnp.minimum(jnp.maximum(fixed - t, 0.0), room)
        return jnp.sum(terms, axis=1, keepdims=True) > limit

    top = jnp.max(fixed, axis=1, keepdims=True)
    loose, tight = _bisect(outside, jnp.zeros_like(limit), top)
    started = fixed > loose
    above = fixed - tight

    def climb(_: jax.Array, more: jax.Array) -> jax.Array:
        terms = jnp.where(started, jnp.minimum(above + more, room), 0.0)
        missing = limit - jnp.sum(terms, axis=1, keepdims=True)
        growing = started & (above + more < room)
        count = jnp.sum(growing, axis=1, keepdims=True).astype(limit.dtype)
        return more + jnp.maximum(missing, 0.0) / jnp.maximum(count, 1.0)

    more = lax.fori_loop(0, _CLIMB_STEPS, climb, jnp.zeros_like(limit))
    terms = jnp.minimum(modulus - tight + lax.stop_gradient(more), room)
    return jnp.where(started, terms, 0.0 * modulus)


def _scale_down(modulus: jax.Array, room: jax.Array, limit: jax.Array) -> jax.Array:
    """Solves ``||min(t modulus, room)||_2 = limit`` for t; returns the terms."""
    # Rows are scaled to length 1, so that t neither overflows nor vanishes.
    size = lax.stop_gradient(norms.norm(modulus, 2.0))[:, None]
    unit = modulus / jnp.where(size > 0, size, 1.0)

    def inside(t: jax.Array) -> jax.Array:
        ratio = jnp.minimum(t * lax.stop_gradient(unit), room) / limit
        return jnp.sum(ratio * ratio, axis=1, keepdims=True) <= 1

    # Where the box is not active, t is the limit.
    t, _ = _bisect(inside, limit, jnp.maximum(size, limit))
    return jnp.minimum(t * unit, room)


def _bisect(
    left: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Neighbouring numbers ``a < b`` of the dtype where ``left`` changes to false.

    Numbers of at least 0 have the same order as the integers with the same bits, so
    halving an interval of integers takes the same number of steps at every scale.

    Args:
      left: function of ``(B, 1)``, whether the change is to the right.
      low: ``(B, 1)``, at least 0.
      high: ``(B, 1)``, where ``left`` is false; it is b where nothing changes.
    """
    bits = jnp.int32 if low.dtype == jnp.float32 else jnp.int64

    def value(number: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(number, low.dtype)

    def halve(
        _: jax.Array, ends: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // 2
        further = left(value(middle))
        return jnp.where(further, middle, low), jnp.where(further, high, middle)

    ends = tuple(
        lax.bitcast_convert_type(lax.stop_gradient(end), bits) for end in (low, high)
    )
    low_bits, high_bits = lax.fori_loop(0, 8 * jnp.dtype(bits).itemsize, halve, ends)
    return value(low_bits), value(high_bits)


def _check_box(low: jax.Array | float, high: jax.Array | float) -> None:
    for name, bound, side, allowed in (
        ("low", low, 1, "at most 0"),
        ("high", high, -1, "at least 0"),
    ):
        if isinstance(bound, jax.core.Tracer):
            continue
        # An array that is spread over several hosts has no value on this host.
        if isinstance(bound, jax.Array) and not bound.is_fully_addressable:
            continue
        wrong = side * np.asarray(bound) > 0
        if np.any(wrong):
            value = np.asarray(bound)[wrong][0]
            raise ValueError(f"{name} is {value}; it must be {allowed} everywhere.")
