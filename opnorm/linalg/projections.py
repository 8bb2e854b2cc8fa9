"""linalg: Euclidean projections onto Lp balls and spheres, and uniform samples of them.

All about the origin, one per example. The leading axis is the batch.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from opnorm.linalg import norms

# Bisection halves the bracket each time: enough for float64's last bit.
_BISECTIONS = 64


def project_ball(x: jax.Array, p: float, radius: float | jax.Array) -> jax.Array:
    """Computes the Euclidean projection of each example onto ``||y||_p <= radius``.

    Exact for p = 1 (soft threshold, found by sorting), 2 (rescaling) and inf
    (clipping); for other p the KKT system ``y_i + mu p y_i^(p-1) = |x_i|``,
    ``||y||_p = radius`` is solved by nested bisection to the dtype's rounding.
    Differentiable; the derivative for general p is that of the solution (implicit
    function theorem).

    Args:
      x: ``(B, ...)`` float.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      Shape and dtype of ``x``; points inside are returned as they are.

    Raises:
      ValueError: for p outside [1, inf], a negative radius, or one of another shape.

    Source: Roth et al. 2020, Eqs. 71 and 80 for p = 2 and inf; Duchi et al. 2008 for 1.
    """
    p = norms.check_exponent("p", p)
    flat, limit = _prepare(x, radius)
    inside = norms.norm(lax.stop_gradient(flat), p)[:, None] <= limit
    if p == math.inf:
        projected = jnp.clip(flat, -limit, limit)
    elif p == 2:
        length = norms.norm(flat, 2.0)[:, None]
        projected = flat * (limit / jnp.where(inside, 1.0, length))
    elif p == 1:
        projected = _project_l1(flat, limit)
    else:
        projected = jnp.sign(flat) * _project_general(
            jnp.where(inside, 1.0, jnp.abs(flat)), jnp.where(inside, 0.5, limit), p
        )
    return _restore(jnp.where(inside, flat, projected), x)


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
      Shape and dtype of ``x``, of p-norm ``radius``.

    Raises:
      ValueError: for p outside [1, inf], a negative radius, or one of another shape.

    Source: Roth et al. 2020, Eqs. 9 and 11.
    """
    p = norms.check_exponent("p", p)
    flat, limit = _prepare(x, radius)
    size = norms.norm(flat, p)[:, None]
    outside = lax.stop_gradient(size) >= limit
    ball = project_ball(flat, p, limit[:, 0])
    return _restore(jnp.where(outside, ball, _push_out(flat, size, p, limit)), x)


def sample_ball(
    key: jax.Array, like: jax.Array, p: float, radius: float | jax.Array
) -> jax.Array:
    """Draws a point of the ball ``||y||_p <= radius`` uniformly for each example.

    Args:
      key: typed key.
      like: ``(B, ...)`` float; gives shape and dtype.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      Shape and dtype of ``like``.

    Raises:
      ValueError: as :func:`project_ball`.

    Source: Barthe, Guédon, Mendelson & Naor 2005 (generalised normal variables).
    """
    p = norms.check_exponent("p", p)
    flat, limit = _prepare(like, radius)
    direction_key, radius_key = jax.random.split(key)
    if p == math.inf:
        cube = jax.random.uniform(
            direction_key, flat.shape, flat.dtype, minval=-1.0, maxval=1.0
        )
        return _restore(limit * cube, like)
    direction = _cone_sample(direction_key, flat, p)
    depth = jax.random.uniform(radius_key, (len(flat), 1), flat.dtype)
    return _restore(limit * depth ** (1 / flat.shape[1]) * direction, like)


def sample_sphere(key: jax.Array, like: jax.Array, p: float) -> jax.Array:
    """Draws a point with ``||y||_p = 1`` for each example, by the cone measure.

    It is uniform for p = 1, 2 and inf.

    Args:
      key: typed key.
      like: ``(B, ...)`` float; gives shape and dtype.
      p: exponent in [1, inf].

    Returns:
      Shape and dtype of ``like``.

    Raises:
      ValueError: for p outside [1, inf].
    """
    p = norms.check_exponent("p", p)
    flat, _ = _prepare(like, 1.0)
    if p != math.inf:
        return _restore(_cone_sample(key, flat, p), like)
    cube_key, face_key = jax.random.split(key)
    cube = jax.random.uniform(cube_key, flat.shape, flat.dtype, minval=-1, maxval=1)
    face = jax.random.randint(face_key, (len(flat), 1), 0, flat.shape[1])
    on_face = jnp.arange(flat.shape[1])[None] == face
    return _restore(jnp.where(on_face, _sign(cube), cube), like)


def _cone_sample(key: jax.Array, flat: jax.Array, p: float) -> jax.Array:
    if p == 2:
        drawn = jax.random.normal(key, flat.shape, flat.dtype)
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


def _restore(flat: jax.Array, like: jax.Array) -> jax.Array:
    return flat.reshape(like.shape).astype(like.dtype)


def _sign(x: jax.Array) -> jax.Array:
    """The sign, with that of zero positive."""
    return jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)


def _project_l1(flat: jax.Array, limit: jax.Array) -> jax.Array:
    # optax's projection takes one whole tree, has a scalar radius that may not be
    # zero, and returns NaN in the degenerate cases; batched it would be this sort.
    modulus = jnp.abs(flat)
    # Entries below largest - radius are zero in the answer; taking the largest off
    # first keeps the partial sums small, and so exact for huge inputs.
    largest = jnp.max(modulus, axis=1, keepdims=True, initial=0.0)
    excess = modulus - largest
    ordered = -jnp.sort(-excess, axis=1)
    count = jnp.arange(1, flat.shape[1] + 1, dtype=flat.dtype)
    thresholds = (jnp.cumsum(ordered, axis=1) - limit) / count
    support = jnp.sum(ordered > thresholds, axis=1, keepdims=True)
    threshold = jnp.take_along_axis(thresholds, jnp.maximum(support - 1, 0), axis=1)
    return jnp.sign(flat) * jnp.maximum(excess - threshold, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _project_general(modulus: jax.Array, limit: jax.Array, p: float) -> jax.Array:
    """Projects nonnegative rows outside the ball; solves for the multiplier mu."""
    scale = jnp.max(modulus, axis=1, keepdims=True)
    safe = jnp.where(scale > 0, scale, 1.0)
    a, r = modulus / safe, limit / safe

    def norm_at(log_mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = _shrink(a, jnp.exp(log_mu), p)
        return y, norms.norm(y, p)[:, None]

    def halve(_: Any, bracket: Any) -> Any:
        low, high = bracket
        middle = 0.5 * (low + high)
        _, size = norm_at(middle)
        return jnp.where(size > r, middle, low), jnp.where(size > r, high, middle)

    # In logs, since mu ranges over many orders of magnitude.
    wide = 60.0 if a.dtype == jnp.float32 else 300.0
    bracket = (jnp.full_like(r, -wide), jnp.full_like(r, wide))
    low, high = lax.fori_loop(0, _BISECTIONS, halve, bracket)
    y, size = norm_at(0.5 * (low + high))
    # The bracket's rounding goes into the last digit of the norm, not of the budget.
    y = y * jnp.minimum(1.0, r / jnp.where(size > 0, size, 1.0))
    return safe * y


def _shrink(a: jax.Array, mu: jax.Array, p: float) -> jax.Array:
    """Solves y + mu p y^(p-1) = a for y in [0, a], entry by entry, by bisection."""

    def halve(_: Any, bracket: Any) -> Any:
        low, high = bracket
        middle = 0.5 * (low + high)
        over = middle + mu * p * middle ** (p - 1) > a
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    low, high = lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(a), a))
    return 0.5 * (low + high)


@_project_general.defjvp
def _project_general_jvp(p: float, primals: Any, tangents: Any) -> Any:
    modulus, limit = primals
    d_modulus, d_limit = tangents
    y = _project_general(modulus, limit, p)
    safe = jnp.where(y > 0, y, 1.0)
    # With m = mu p and g_i = y_i^(p-1) / scale: y + m g = |x|, <g, dy> = dnorm.
    top = jnp.max(safe * (y > 0), axis=1, keepdims=True)
    top = jnp.where(top > 0, top, 1.0)
    g = jnp.where(y > 0, (safe / top) ** (p - 1), 0.0)
    multiplier = jnp.sum(g * (modulus - y), axis=1, keepdims=True) / jnp.maximum(
        jnp.sum(g * g, axis=1, keepdims=True), jnp.finfo(y.dtype).tiny
    )
    curvature = 1 + multiplier * (p - 1) * jnp.where(y > 0, g / safe, 0.0)
    inverse = jnp.where(y > 0, 1 / curvature, 0.0)
    weight = jnp.sum(g * g * inverse, axis=1, keepdims=True)
    weight = jnp.where(weight > 0, weight, 1.0)
    # ||y||_p = limit, so <g, dy> = (limit / top)^(p-1) d limit.
    target = (limit / top) ** (p - 1) * d_limit
    moved = jnp.sum(g * inverse * d_modulus, axis=1, keepdims=True)
    d_multiplier = (moved - target) / weight
    return y, inverse * (d_modulus - d_multiplier * g)


def _push_out(
    flat: jax.Array, size: jax.Array, p: float, limit: jax.Array
) -> jax.Array:
    n = flat.shape[1]
    safe = jnp.where(lax.stop_gradient(size) > 0, size, 1.0)
    fixed = n ** (-1 / p) if p != math.inf else 1.0
    rescaled = jnp.where(lax.stop_gradient(size) > 0, flat / safe, fixed) * limit
    if p == 2:
        return rescaled
    if p == 1:
        return flat + _sign(flat) * (limit - size) / n
    first = jnp.argmax(jnp.abs(flat), axis=1, keepdims=True)
    at_first = jnp.arange(n)[None] == first
    if p == math.inf:
        return jnp.where(at_first, _sign(flat) * limit, flat)
    rest = norms.norm(jnp.where(at_first, 0.0, flat), p)[:, None]
    room = jnp.maximum(1 - (rest / jnp.where(limit > 0, limit, 1.0)) ** p, 0.0)
    height = limit * jnp.where(room > 0, room, 1.0) ** (1 / p)
    pushed = jnp.where(at_first, _sign(flat) * height, flat)
    near = jnp.sum((pushed - flat) ** 2, axis=1) < jnp.sum((rescaled - flat) ** 2, 1)
    return jnp.where(near[:, None], pushed, rescaled)
