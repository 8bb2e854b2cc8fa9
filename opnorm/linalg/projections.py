"""Euclidean projections onto Lp balls and spheres about the origin, one per example.

The leading axis is the batch.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from opnorm.linalg import norms
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.typed import jit, smallest_normal

# In float32, for p from 1.01 to 500 and radii from 1e-30 to 0.999999 of the norm, more
# than 26 steps for the multiplier or 8 steps for its entries gave no better result.
_MULTIPLIER_STEPS = 32
_ENTRY_STEPS = 12


def project_ball(x: jax.Array, p: float, radius: float | jax.Array) -> jax.Array:
    """Computes the Euclidean projection of each example onto ``||y||_p <= radius``.

    The projection is exact for p = 1 (soft threshold, found by sorting), 2 (rescaling)
    and inf (clipping). For other p the KKT system

        y_i + mu p y_i^(p-1) = |x_i|,    ||y||_p = radius

    is solved by a safeguarded Newton method, up to the rounding of the dtype. The
    projection is differentiable; for other p its derivative follows from the implicit
    function theorem.

    Args:
      x: ``(B, ...)`` float.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      An array with the shape and dtype of ``x``; points inside the ball are returned
      unchanged. An example with NaN keeps NaN.

    Raises:
      ValueError: for p outside [1, inf], a negative radius, or one of another shape.

    Source: Roth et al. 2020, Eqs. 71 and 80 for p = 2 and inf; Duchi et al. 2008 for 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import linalg
      >>> x = jnp.array([[3.0, -4.0]])
      >>> for p in (1, 2, jnp.inf):
      ...     print(linalg.project_ball(x, p, radius=2.5))
      [[ 0.75 -1.75]]
      [[ 1.5 -2. ]]
      [[ 2.5 -2.5]]
    """
    p = norms.check_exponent("p", p)
    flat, limit = prepare(x, radius)
    return restore(_project_ball(flat, limit, p), x)


def project_sphere(
    x: jax.Array, p: float, radius: float | jax.Array = 1.0
) -> jax.Array:
    """Computes the Euclidean projection of each example onto ``||y||_p = radius``.

    Outside the ball the projection is :func:`project_ball`. Inside, the set to project
    onto is not convex, and the projection is

    - p = 2: the rescaled point;
    - p = inf: the point whose entry of largest modulus is moved to the radius;
    - p = 1: the point in which all entries share the slack ``radius - ||x||_1``
      equally, which is a nearest point;
    - other p: either the rescaled point or the point whose entry of largest modulus is
      moved outwards, whichever is nearer. It lies on the sphere, and is in general only
      near the nearest point.

    Zero entries count as positive, and zero is projected onto a fixed point.

    Args:
      x: ``(B, ...)`` float.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      An array with the shape and dtype of ``x`` and p-norm ``radius``; NaN for an
      example with NaN.

    Raises:
      ValueError: for p outside [1, inf], a negative radius, or one of another shape.

    Source: Roth et al. 2020, Eqs. 9 and 11.
    """
    p = norms.check_exponent("p", p)
    flat, limit = prepare(x, radius)
    return restore(_project_sphere(flat, limit, p), x)


def prepare(x: jax.Array, radius: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x as ``(B, n)``, at least float32, and the radius as ``(B, 1)``."""
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be floating point "
            "with a leading batch axis."
        )
    norms.check_length("radius", radius)
    dtype = at_least_single(x.dtype)
    limit = jnp.asarray(radius, dtype)
    if limit.ndim > 1 or (limit.ndim == 1 and limit.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"radius has shape {limit.shape}; it must be a scalar or ({x.shape[0]},)."
        )
    flat = x.astype(dtype).reshape(x.shape[0], math.prod(x.shape[1:]))
    return flat, jnp.broadcast_to(limit.reshape(-1, 1), (x.shape[0], 1))


def restore(flat: jax.Array, like: jax.Array) -> jax.Array:
    """Returns ``(B, n)`` in the shape and dtype of ``like``."""
    return flat.reshape(like.shape).astype(like.dtype)


def sign(x: jax.Array) -> jax.Array:
    """Returns the sign of each entry; the sign of zero is 1."""
    return jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)


# An eager call runs one program, and within another program each of these functions is
# traced once for each shape.
@jit(static_argnums=2)
def _project_ball(flat: jax.Array, limit: jax.Array, p: float) -> jax.Array:
    inside = norms.norm(lax.stop_gradient(flat), p)[:, None] <= limit
    if p == math.inf:
        projected = jnp.clip(flat, -limit, limit)
    elif p == 2:
        projected = _direction(flat, 2.0) * limit
    elif p == 1:
        projected = _project_l1(flat, limit)
    else:
        modulus = jnp.where(inside, 1.0, flat * sign(flat))
        projected = sign(flat) * _project_general(
            modulus, jnp.where(inside, 0.5, limit), p
        )
    return jnp.where(inside, flat, projected)


@jit(static_argnums=2)
def _project_sphere(flat: jax.Array, limit: jax.Array, p: float) -> jax.Array:
    size = norms.norm(flat, p)[:, None]
    # NaN counts as outside, since projections onto the ball keep NaN.
    outside = ~(lax.stop_gradient(size) < limit)
    ball = _project_ball(flat, limit, p)
    # The branch that is not selected must not put NaN into the gradient.
    inner, inner_size = jnp.where(outside, 0.0, flat), jnp.where(outside, 0.0, size)
    pushed = _push_out(inner, inner_size, p, limit)
    return jnp.where(outside, ball, pushed)


def _project_l1(flat: jax.Array, limit: jax.Array) -> jax.Array:
    """Projects rows that are outside the ball by a soft threshold, found by sorting.

    All entries are measured from the largest modulus downwards:

        y_i = max(h - d_i, 0),    d_i = max |x| - |x_i|.

    The k entries that remain satisfy ``k h = radius + d_1 + ... + d_k``. In this form a
    small radius is not lost in the rounding of large entries.
    """
    modulus = jnp.abs(flat)
    top = lax.stop_gradient(jnp.max(modulus, axis=1, keepdims=True))
    depth = top - modulus
    # An entry that is a radius or more below the largest becomes zero.
    capped = jnp.minimum(lax.stop_gradient(depth), limit)
    sorted_depth = jnp.sort(lax.stop_gradient(capped), axis=1)
    counts = jnp.arange(1, flat.shape[1] + 1, dtype=flat.dtype)[None]
    height = (limit + jnp.cumsum(sorted_depth, axis=1)) / counts
    place = jnp.sum(height > sorted_depth, axis=1, keepdims=True)
    last = jnp.take_along_axis(sorted_depth, jnp.maximum(place - 1, 0), axis=1)
    remains = lax.stop_gradient((capped <= last) & (capped < limit))
    total = jnp.sum(jnp.where(remains, depth, 0.0), axis=1, keepdims=True)
    count = jnp.maximum(jnp.sum(remains, axis=1, keepdims=True), 1)
    height = (limit + total) / count.astype(flat.dtype)
    kept = jnp.where(remains, jnp.maximum(height - depth, 0.0), 0.0 * flat)
    return jnp.where(limit > 0, sign(flat) * kept, 0.0)


def _direction(flat: jax.Array, p: float) -> jax.Array:
    """Rows divided by their p-norms; a zero row becomes a fixed direction."""
    # Rows are scaled first, since the derivative of x / ||x|| divides by ||x||^2, which
    # may underflow.
    scale = lax.stop_gradient(norms.norm(flat, math.inf))[:, None]
    # NaN != 0 is true, so that NaN stays.
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

    Here ``a = modulus / largest`` and ``r = limit / largest`` are in units of the
    largest entry. Since ``k = ||a - r t||_{p*}``, k is between 0 and ``||a||_{p*}`` at
    every scale.
    """
    largest = jnp.max(modulus, axis=1, keepdims=True)
    safe = jnp.where(largest > 0, largest, 1.0)
    a, r = modulus / safe, limit / safe

    def improve(
        _: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    """Solves ``r t + k t^(p-1) = a`` for each ``t >= 0``."""
    # With z = t, or z = t^(p-1) for p < 2, the equation is c z + e z^m = a with m >= 1.
    # Its left side is convex and increasing, so Newton's method descends to the root
    # from any point above.
    c, e, m = (r, k, p - 1) if p >= 2 else (k, r, 1 / (p - 1))
    tiny = smallest_normal(a.dtype)
    above = jnp.minimum(a / jnp.maximum(c, tiny), (a / jnp.maximum(e, tiny)) ** (1 / m))

    def descend(_: jax.Array, z: jax.Array) -> jax.Array:
        power = e * z ** (m - 1)
        slope = jnp.maximum(c + m * power, tiny)
        return jnp.maximum(z - ((c + power) * z - a) / slope, 0.0)

    z: jax.Array = lax.fori_loop(0, _ENTRY_STEPS, descend, above)
    return z if p >= 2 else z**m


def _response(t: jax.Array, r: jax.Array, k: jax.Array, p: float) -> jax.Array:
    """The derivative ``dt/da = 1 / (r + k (p-1) t^(p-2))`` of the entries."""
    alive = t > 0
    bend = k * (p - 1) * jnp.where(alive, t, 1.0) ** (p - 2)
    slope = jnp.maximum(r + jnp.where(alive, bend, 0.0), smallest_normal(t.dtype))
    return jnp.where(alive | (p >= 2), 1 / slope, 0.0)


@_project_general.defjvp
def _project_general_jvp(
    p: float,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    modulus, limit = primals
    d_modulus, d_limit = tangents
    t, r, k = _solve(modulus, limit, p)
    # The derivative solves
    #     dy + (k / r) (p-1) t^(p-2) dy + t^(p-1) dk = d|x|,    <t^(p-1), dy> = dlimit.
    # The terms are written without a division by r, which may be zero.
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
        return flat + sign(flat) * (limit - size) / n
    at_first = jnp.arange(n)[None] == jnp.argmax(jnp.abs(flat), axis=1, keepdims=True)
    if p == math.inf:
        return jnp.where(at_first, sign(flat) * limit, flat)
    rescaled = _direction(flat, p) * limit
    # Lengths are in units of the radius, since powers of it may underflow.
    unit = lax.stop_gradient(jnp.where(limit > 0, limit, 1.0))
    fill = limit / unit
    rest = norms.norm(jnp.where(at_first, 0.0, flat / unit), p)[:, None]
    room = jnp.maximum(fill**p - rest**p, 0.0)
    height = unit * jnp.where(room > 0, room, 1.0) ** (1 / p)
    pushed = jnp.where(at_first, sign(flat) * height, flat)

    def distance(y: jax.Array) -> jax.Array:
        return norms.norm(lax.stop_gradient(y - flat), 2.0)[:, None]

    near = (room > 0) & (distance(pushed) < distance(rescaled))
    return jnp.where(near, pushed, rescaled)
