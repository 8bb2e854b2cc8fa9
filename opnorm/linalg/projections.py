"""linalg: Euclidean projections onto Lp balls and spheres, and uniform samples of them.

All about the origin, one per example. The leading axis is the batch.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg import checks, norms

# Terms that reach their room between two neighbouring numbers are few.
_CLIMB_STEPS = 3
# In float32, over p from 1.01 to 500 and radii from 1e-30 to 0.999999 of the norm, more
# than 26 steps for the multiplier or 8 for its entries improved nothing any further.
_MULTIPLIER_STEPS = 32
_ENTRY_STEPS = 12


def project_ball(x: jax.Array, p: float, radius: float | jax.Array) -> jax.Array:
    """Computes the Euclidean projection of each example onto ``||y||_p <= radius``.

    Exact for p = 1 (soft threshold, found by sorting), 2 (rescaling) and inf
    (clipping); for other p the KKT system ``y_i + mu p y_i^(p-1) = |x_i|``,
    ``||y||_p = radius`` is solved by a safeguarded Newton method to the dtype's
    rounding. Differentiable; the derivative for general p is that of the solution
    (implicit function theorem).

    Args:
      x: ``(B, ...)`` float.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      Shape and dtype of ``x``; points inside are returned as they are. An example
      with NaN keeps NaN.

    Raises:
      ValueError: for p outside [1, inf], a negative radius, or one of another shape.

    Source: Roth et al. 2020, Eqs. 71 and 80 for p = 2 and inf; Duchi et al. 2008 for 1.
    """
    p = norms.check_exponent("p", p)
    flat, limit = _prepare(x, radius)
    return _restore(_project_ball(flat, limit, p), x)


def project_ball_box(
    x: jax.Array,
    p: float,
    radius: float | jax.Array,
    low: jax.Array | float,
    high: jax.Array | float,
) -> jax.Array:
    """Computes the Euclidean projection on ``||y||_p <= radius``, ``low <= y <= high``.

    The box must hold zero. Projecting on the ball and then clipping ends in both sets
    too, but not at the nearest point for p = 1 and 2, where the entries that the box
    holds back leave radius to the others. With the multiplier t, ``y_i`` is ``x_i``
    shrunk by t (p = 1) or times t (p = 2) and then clipped; t solves ``||y||_p =
    radius`` by bisection over the numbers of the dtype.

    Args:
      x: ``(B, ...)`` float.
      p: 1, 2 or inf.
      radius: scalar or ``(B,)``, at least 0.
      low: shape of ``x`` or scalar, at most 0.
      high: shape of ``x`` or scalar, at least 0.

    Returns:
      Shape and dtype of ``x``. Not differentiable beyond the clipping.

    Raises:
      ValueError: for another p, a radius as in :func:`project_ball`, or a box without
        zero; traced bounds are not known yet, and are not checked.

    Source: Croce & Hein 2021, Proposition 2.1, for p = 1.
    """
    p = norms.check_exponent("p", p)
    if p not in (1, 2, math.inf):
        raise ValueError(f"p is {p:g}; it must be 1, 2 or inf.")
    _check_box(low, high)
    flat, limit = _prepare(x, radius)
    lowest = _prepare(jnp.broadcast_to(low, x.shape).astype(x.dtype), 0.0)[0]
    highest = _prepare(jnp.broadcast_to(high, x.shape).astype(x.dtype), 0.0)[0]
    return _restore(_project_ball_box(flat, limit, lowest, highest, p), x)


@functools.partial(jax.jit, static_argnums=4)
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
    # Products with zero, so that NaN stays.
    shrunk = jnp.where(limit > 0, shrunk, 0.0 * modulus)
    found = jnp.clip(_sign(flat) * shrunk, lowest, highest)
    return jnp.where(inside, free, found)


def _shrink(modulus: jax.Array, room: jax.Array, limit: jax.Array) -> jax.Array:
    """Solves ``sum min(max(modulus - t, 0), room) = limit`` for t; returns the terms.

    Near the largest entry t itself has fewer digits than a small limit asks for. So it
    is bracketed by neighbouring numbers of its dtype, between which no further term
    begins, and then ``tight - t`` is found: the sum is concave there, so that Newton's
    method ascends to the solution from below, in as many steps as terms reach their
    room.
    """

    fixed = lax.stop_gradient(modulus)

    def outside(t: jax.Array) -> jax.Array:
        terms = jnp.minimum(jnp.maximum(fixed - t, 0.0), room)
        return jnp.sum(terms, axis=1, keepdims=True) > limit

    top = jnp.max(fixed, axis=1, keepdims=True)
    loose, tight = _bisect(outside, jnp.zeros_like(limit), top)
    started = fixed > loose
    above = fixed - tight

    def climb(_: Any, more: jax.Array) -> jax.Array:
        terms = jnp.where(started, jnp.minimum(above + more, room), 0.0)
        missing = limit - jnp.sum(terms, axis=1, keepdims=True)
        growing = started & (above + more < room)
        count = jnp.sum(growing, axis=1, keepdims=True)
        return more + jnp.maximum(missing, 0.0) / jnp.maximum(count, 1)

    more = lax.fori_loop(0, _CLIMB_STEPS, climb, jnp.zeros_like(limit))
    terms = jnp.minimum(modulus - tight + lax.stop_gradient(more), room)
    return jnp.where(started, terms, 0.0 * modulus)


def _scale_down(modulus: jax.Array, room: jax.Array, limit: jax.Array) -> jax.Array:
    """Solves ``||min(t modulus, room)||_2 = limit`` for t; returns the terms."""
    # Length 1, so that t neither overflows nor vanishes.
    size = lax.stop_gradient(norms.norm(modulus, 2.0))[:, None]
    unit = modulus / jnp.where(size > 0, size, 1.0)

    def inside(t: jax.Array) -> jax.Array:
        ratio = jnp.minimum(t * lax.stop_gradient(unit), room) / limit
        return jnp.sum(ratio * ratio, axis=1, keepdims=True) <= 1

    # Where the box is not active, t is the limit itself.
    t, _ = _bisect(inside, limit, jnp.maximum(size, limit))
    return jnp.minimum(t * unit, room)


def _bisect(
    left: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Neighbouring numbers ``a < b`` of the dtype where ``left`` changes to false.

    Numbers of at least 0 are ordered as the integers of their bits are, so that
    halving the interval of integers takes as many steps at every scale.

    Args:
      left: of ``(B, 1)``, whether the change is to the right.
      low: ``(B, 1)``, at least 0.
      high: ``(B, 1)``, at which ``left`` is false, or b where there is no change.
    """
    bits = jnp.int32 if low.dtype == jnp.float32 else jnp.int64

    def value(number: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(number, low.dtype)

    def halve(_: Any, ends: Any) -> Any:
        low, high = ends
        middle = low + (high - low) // 2
        further = left(value(middle))
        return jnp.where(further, middle, low), jnp.where(further, high, middle)

    ends = tuple(
        lax.bitcast_convert_type(lax.stop_gradient(end), bits) for end in (low, high)
    )
    low_bits, high_bits = lax.fori_loop(0, jnp.iinfo(bits).bits, halve, ends)
    return value(low_bits), value(high_bits)


def project_sphere(
    x: jax.Array, p: float, radius: float | jax.Array = 1.0
) -> jax.Array:
    """Computes the Euclidean projection of each example onto ``||y||_p = radius``.

    Outside the ball this is :func:`project_ball`. Inside, where the set to project on
    is not convex, it is: for p = 2 rescaling; for p = inf the entry of largest modulus
    pushed out to the radius; for p = 1 the slack ``radius - ||x||_1`` shared equally
    over all entries, which is nearest; for other p the nearest of the points reached
    by rescaling or by pushing out the entry of largest modulus alone, which lies on
    the sphere but is in general only near the nearest one. Zero entries count as
    positive, and zero goes to a fixed point.

    Args:
      x: ``(B, ...)`` float.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      Shape and dtype of ``x``, of p-norm ``radius``; NaN for an example with NaN.

    Raises:
      ValueError: for p outside [1, inf], a negative radius, or one of another shape.

    Source: Roth et al. 2020, Eqs. 9 and 11.
    """
    p = norms.check_exponent("p", p)
    flat, limit = _prepare(x, radius)
    return _restore(_project_sphere(flat, limit, p), x)


def sample_ball(
    key: jax.Array, like: jax.Array, p: float, radius: float | jax.Array
) -> jax.Array:
    """Draws a point of the ball ``||y||_p <= radius`` uniformly for each example.

    Args:
      key: typed key, or ``(B,)`` keys, one for each example.
      like: ``(B, ...)`` float; gives shape and dtype.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      Shape and dtype of ``like``.

    Raises:
      ValueError: as :func:`project_ball`, and for a key that is not typed or of another
        shape.

    Source: Barthe, Guédon, Mendelson & Naor 2005 (generalised normal variables).
    """
    p = norms.check_exponent("p", p)
    flat, limit = _prepare(like, radius)
    checks.check_key(key, len(like))
    if key.ndim == 1:
        draw = jax.vmap(lambda key, row, r: sample_ball(key, row[None], p, r)[0])
        return _restore(draw(key, flat, limit[:, 0]), like)
    return _restore(_sample_ball(key, flat, limit, p), like)


def sample_sphere(key: jax.Array, like: jax.Array, p: float) -> jax.Array:
    """Draws a point with ``||y||_p = 1`` for each example, by the cone measure.

    It is uniform for p = 1, 2 and inf.

    Args:
      key: typed key, or ``(B,)`` keys, one for each example.
      like: ``(B, ...)`` float; gives shape and dtype.
      p: exponent in [1, inf].

    Returns:
      Shape and dtype of ``like``.

    Raises:
      ValueError: for p outside [1, inf], or a key that is not typed or of another
        shape.
    """
    p = norms.check_exponent("p", p)
    flat, _ = _prepare(like, 1.0)
    checks.check_key(key, len(like))
    if key.ndim == 1:
        draw = jax.vmap(lambda key, row: sample_sphere(key, row[None], p)[0])
        return _restore(draw(key, flat), like)
    return _restore(_sample_sphere(key, flat, p), like)


# Compiled as wholes: called eagerly each is one program, and within another program it
# is traced once for each shape.
@functools.partial(jax.jit, static_argnums=2)
def _project_ball(flat: jax.Array, limit: jax.Array, p: float) -> jax.Array:
    inside = norms.norm(lax.stop_gradient(flat), p)[:, None] <= limit
    if p == math.inf:
        projected = jnp.clip(flat, -limit, limit)
    elif p == 2:
        projected = _direction(flat, 2.0) * limit
    elif p == 1:
        projected = _project_l1(flat, limit)
    else:
        modulus = jnp.where(inside, 1.0, flat * _sign(flat))
        projected = _sign(flat) * _project_general(
            modulus, jnp.where(inside, 0.5, limit), p
        )
    return jnp.where(inside, flat, projected)


@functools.partial(jax.jit, static_argnums=2)
def _project_sphere(flat: jax.Array, limit: jax.Array, p: float) -> jax.Array:
    size = norms.norm(flat, p)[:, None]
    # NaN counts as outside: clipped, it stays, where pushing out would replace it.
    outside = ~(lax.stop_gradient(size) < limit)
    ball = _project_ball(flat, limit, p)
    # What is not selected must not put NaN into the gradient.
    inner, inner_size = jnp.where(outside, 0.0, flat), jnp.where(outside, 0.0, size)
    pushed = _push_out(inner, inner_size, p, limit)
    return jnp.where(outside, ball, pushed)


@functools.partial(jax.jit, static_argnums=3)
def _sample_ball(
    key: jax.Array, flat: jax.Array, limit: jax.Array, p: float
) -> jax.Array:
    direction_key, radius_key = jax.random.split(key)
    if p == math.inf:
        return limit * jax.random.uniform(
            direction_key, flat.shape, flat.dtype, minval=-1.0, maxval=1.0
        )
    direction = _cone_sample(direction_key, flat, p)
    depth = jax.random.uniform(radius_key, (len(flat), 1), flat.dtype)
    return limit * depth ** (1 / flat.shape[1]) * direction


@functools.partial(jax.jit, static_argnums=2)
def _sample_sphere(key: jax.Array, flat: jax.Array, p: float) -> jax.Array:
    if p != math.inf:
        return _cone_sample(key, flat, p)
    cube_key, face_key = jax.random.split(key)
    cube = jax.random.uniform(cube_key, flat.shape, flat.dtype, minval=-1, maxval=1)
    face = jax.random.randint(face_key, (len(flat), 1), 0, flat.shape[1])
    on_face = jnp.arange(flat.shape[1])[None] == face
    return jnp.where(on_face, _sign(cube), cube)


def _cone_sample(key: jax.Array, flat: jax.Array, p: float) -> jax.Array:
    if p == 2:
        drawn = jax.random.normal(key, flat.shape, flat.dtype)
    elif p == 1:
        # The same distribution, a hundred times faster.
        drawn = jax.random.laplace(key, flat.shape, flat.dtype)
    else:
        drawn = jax.random.generalized_normal(key, p, flat.shape, flat.dtype)
    length = norms.norm(drawn, p)[:, None]
    return drawn / jnp.where(length > 0, length, 1.0)


def _prepare(x: jax.Array, radius: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as (B, n) of at least float32, and the radius as (B, 1) or (1, 1)."""
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be floating point "
            "with a leading batch axis."
        )
    norms.check_length("radius", radius)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    limit = jnp.asarray(radius, dtype)
    if limit.ndim > 1 or (limit.ndim == 1 and limit.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"radius has shape {limit.shape}; it must be a scalar or ({x.shape[0]},)."
        )
    flat = x.astype(dtype).reshape(x.shape[0], math.prod(x.shape[1:]))
    return flat, jnp.broadcast_to(limit.reshape(-1, 1), (x.shape[0], 1))


def _check_box(low: Any, high: Any) -> None:
    for name, bound, sign, allowed in (
        ("low", low, 1, "at most 0"),
        ("high", high, -1, "at least 0"),
    ):
        if isinstance(bound, jax.core.Tracer):
            continue
        # In pieces on several hosts, none of which knows the whole.
        if isinstance(bound, jax.Array) and not bound.is_fully_addressable:
            continue
        wrong = sign * np.asarray(bound) > 0
        if np.any(wrong):
            value = np.asarray(bound)[wrong][0]
            raise ValueError(f"{name} is {value}; it must be {allowed} everywhere.")


def _restore(flat: jax.Array, like: jax.Array) -> jax.Array:
    return flat.reshape(like.shape).astype(like.dtype)


def _sign(x: jax.Array) -> jax.Array:
    """The sign, with that of zero positive."""
    return jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)


def _project_l1(flat: jax.Array, limit: jax.Array) -> jax.Array:
    """Projects rows that are outside the ball: a soft threshold, found by sorting.

    Everything is measured from the largest modulus downwards, ``y_i = max(h - d_i, 0)``
    with ``d_i = max |x| - |x_i|``, so that a small radius is not lost in large entries:
    the k entries that remain have ``k h = radius + d_1 + ... + d_k``.
    """
    modulus = jnp.abs(flat)
    top = lax.stop_gradient(jnp.max(modulus, axis=1, keepdims=True))
    depth = top - modulus
    # An entry that is a radius or more below the largest becomes zero.
    capped = jnp.minimum(lax.stop_gradient(depth), limit)
    sorted_depth = jnp.sort(lax.stop_gradient(capped), axis=1)
    counts = jnp.arange(1, flat.shape[1] + 1)
    height = (limit + jnp.cumsum(sorted_depth, axis=1)) / counts
    place = jnp.sum(height > sorted_depth, axis=1, keepdims=True)
    last = jnp.take_along_axis(sorted_depth, jnp.maximum(place - 1, 0), axis=1)
    remains = lax.stop_gradient((capped <= last) & (capped < limit))
    total = jnp.sum(jnp.where(remains, depth, 0.0), axis=1, keepdims=True)
    count = jnp.maximum(jnp.sum(remains, axis=1, keepdims=True), 1)
    height = (limit + total) / count
    kept = jnp.where(remains, jnp.maximum(height - depth, 0.0), 0.0 * flat)
    return jnp.where(limit > 0, _sign(flat) * kept, 0.0)


def _direction(flat: jax.Array, p: float) -> jax.Array:
    """Rows divided by their p-norms, those of zero replaced by a fixed one."""
    # Scaled first: the derivative of x / ||x|| divides by ||x||^2, which may underflow.
    scale = lax.stop_gradient(norms.norm(flat, math.inf))[:, None]
    # Unlike > 0, it keeps NaN.
    alive = scale != 0
    ratio = jnp.where(alive, flat / jnp.where(alive, scale, 1.0), 1.0)
    return ratio / norms.norm(ratio, p)[:, None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _project_general(modulus: jax.Array, limit: jax.Array, p: float) -> jax.Array:
    """Projects nonnegative rows that are outside the ball."""
    return limit * _solve(modulus, limit, p)[0]


def _solve(
    modulus: jax.Array, limit: jax.Array, p: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Solves ``r t + k t^(p-1) = a``, ``||t||_p = 1`` for t and the multiplier k.

    In units of the largest entry: a = modulus / largest, r = limit / largest. Then
    ``k = ||a - r t||_{p*}``, so that 0 and ``||a||_{p*}`` enclose it at every scale.
    """
    largest = jnp.max(modulus, axis=1, keepdims=True)
    safe = jnp.where(largest > 0, largest, 1.0)
    a, r = modulus / safe, limit / safe

    def improve(_: Any, state: Any) -> Any:
        low, high, k = state
        t = _entries(a, r, k, p)
        size = norms.norm(t, p)[:, None]
        low, high = jnp.where(size > 1, k, low), jnp.where(size > 1, high, k)
        # Newton's step for ||t||^(1-p) = 1, which is linear in k for small radii.
        slope = (p - 1) * jnp.sum(
            norms.dual_map(t, p) * t ** (p - 1) * _response(t, r, k, p),
            axis=1,
            keepdims=True,
        )
        newton = k + (size**p - size) / slope
        usable = (newton >= low) & (newton <= high)
        return low, high, jnp.where(usable, newton, 0.5 * (low + high))

    top = norms.norm(a, norms.conjugate_exponent(p))[:, None]
    start = (jnp.zeros_like(top), top, top)
    *_, k = lax.fori_loop(0, _MULTIPLIER_STEPS, improve, start)
    t = _entries(a, r, k, p)
    return t / norms.norm(t, p)[:, None], r, k


def _entries(a: jax.Array, r: jax.Array, k: jax.Array, p: float) -> jax.Array:
    """Solves r t + k t^(p-1) = a for each t >= 0."""
    # In z = t, or t^(p-1) for p < 2, it is c z + e z^m = a with m >= 1: convex and
    # increasing, so that Newton's method descends to the root from any point above.
    c, e, m = (r, k, p - 1) if p >= 2 else (k, r, 1 / (p - 1))
    tiny = jnp.finfo(a.dtype).tiny
    above = jnp.minimum(a / jnp.maximum(c, tiny), (a / jnp.maximum(e, tiny)) ** (1 / m))

    def descend(_: Any, z: jax.Array) -> jax.Array:
        power = e * z ** (m - 1)
        slope = jnp.maximum(c + m * power, tiny)
        return jnp.maximum(z - ((c + power) * z - a) / slope, 0.0)

    z = lax.fori_loop(0, _ENTRY_STEPS, descend, above)
    return z if p >= 2 else z**m


def _response(t: jax.Array, r: jax.Array, k: jax.Array, p: float) -> jax.Array:
    """dt/da = 1 / (r + k (p-1) t^(p-2)), the entries' answer to their right side."""
    alive = t > 0
    bend = k * (p - 1) * jnp.where(alive, t, 1.0) ** (p - 2)
    slope = jnp.maximum(r + jnp.where(alive, bend, 0.0), jnp.finfo(t.dtype).tiny)
    return jnp.where(alive | (p >= 2), 1 / slope, 0.0)


@_project_general.defjvp
def _project_general_jvp(p: float, primals: Any, tangents: Any) -> Any:
    modulus, limit = primals
    d_modulus, d_limit = tangents
    t, r, k = _solve(modulus, limit, p)
    # From dy + (k / r) (p-1) t^(p-2) dy + t^(p-1) dk = d|x|, <t^(p-1), dy> = dlimit;
    # written so that nothing is divided by r, which may be zero.
    g, response = t ** (p - 1), _response(t, r, k, p)
    total = jnp.sum(g * g * response, axis=1, keepdims=True)
    moved = jnp.sum(g * response * d_modulus, axis=1, keepdims=True) / total
    along = r * response * (d_modulus - moved * g)
    return limit * t, along + response * g * (d_limit / total)


def _push_out(
    flat: jax.Array, size: jax.Array, p: float, limit: jax.Array
) -> jax.Array:
    n = flat.shape[1]
    if p == 2:
        return _direction(flat, p) * limit
    if p == 1:
        return flat + _sign(flat) * (limit - size) / n
    at_first = jnp.arange(n)[None] == jnp.argmax(jnp.abs(flat), axis=1, keepdims=True)
    if p == math.inf:
        return jnp.where(at_first, _sign(flat) * limit, flat)
    rescaled = _direction(flat, p) * limit
    # In units of the radius, whose square may underflow.
    unit = lax.stop_gradient(jnp.where(limit > 0, limit, 1.0))
    fill = limit / unit
    rest = norms.norm(jnp.where(at_first, 0.0, flat / unit), p)[:, None]
    room = jnp.maximum(fill**p - rest**p, 0.0)
    height = unit * jnp.where(room > 0, room, 1.0) ** (1 / p)
    pushed = jnp.where(at_first, _sign(flat) * height, flat)

    def distance(y: jax.Array) -> jax.Array:
        return norms.norm(lax.stop_gradient(y - flat), 2.0)[:, None]

    near = (room > 0) & (distance(pushed) < distance(rescaled))
    return jnp.where(near, pushed, rescaled)
