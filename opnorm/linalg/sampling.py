"""Uniform samples of Lp balls and spheres about the origin, one per example."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from opnorm.linalg import checks, norms
from opnorm.linalg.projections import prepare, restore, sign
from opnorm.linalg.typed import jit


def draw(
    sampler: Callable[..., jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """Draws independent entries of an array by a program that compiles fast.

    The entries are drawn flat and then shaped, and are those of ``sampler(key, shape,
    dtype)``. XLA unrolls the counters of several short axes on CPU, which takes three
    quarters of the compile time.

    Args:
      sampler: ``(key, shape, dtype) -> array`` of independent entries, such as
        ``jax.random.normal``.
      key: typed key.
      shape: shape of the array.
      dtype: dtype of the array.
    """
    return sampler(key, (math.prod(shape),), dtype).reshape(shape)


def sample_ball(
    key: jax.Array, like: jax.Array, p: float, radius: float | jax.Array
) -> jax.Array:
    """Draws a point of the ball ``||y||_p <= radius`` uniformly for each example.

    Args:
      key: typed key, or ``(B,)`` keys, one for each example.
      like: ``(B, ...)`` float; the samples have its shape and dtype.
      p: exponent in [1, inf].
      radius: scalar or ``(B,)``, at least 0.

    Returns:
      An array with the shape and dtype of ``like``.

    Raises:
      ValueError: for p outside [1, inf], a negative radius or one of another shape, or
        a key that is not typed or of another shape.

    Source: Barthe, Guédon, Mendelson & Naor 2005 (generalised normal variables).
    """
    p = norms.check_exponent("p", p)
    flat, limit = prepare(like, radius)
    checks.check_key(key, len(like))
    if key.ndim == 1:

        def draw(key: jax.Array, row: jax.Array, radius: jax.Array) -> jax.Array:
            return sample_ball(key, row[None], p, radius)[0]

        return restore(jax.vmap(draw)(key, flat, limit[:, 0]), like)
    return restore(_sample_ball(key, flat, limit, p), like)


def sample_sphere(key: jax.Array, like: jax.Array, p: float) -> jax.Array:
    """Draws a point with ``||y||_p = 1`` for each example by the cone measure.

    The cone measure is uniform on the sphere for p = 1, 2 and inf.

    Args:
      key: typed key, or ``(B,)`` keys, one for each example.
      like: ``(B, ...)`` float; the samples have its shape and dtype.
      p: exponent in [1, inf].

    Returns:
      An array with the shape and dtype of ``like``.

    Raises:
      ValueError: for p outside [1, inf], or a key that is not typed or of another
        shape.
    """
    p = norms.check_exponent("p", p)
    flat, _ = prepare(like, 1.0)
    checks.check_key(key, len(like))
    if key.ndim == 1:

        def draw(key: jax.Array, row: jax.Array) -> jax.Array:
            return sample_sphere(key, row[None], p)[0]

        return restore(jax.vmap(draw)(key, flat), like)
    return restore(_sample_sphere(key, flat, p), like)


@jit(static_argnums=3)
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


@jit(static_argnums=2)
def _sample_sphere(key: jax.Array, flat: jax.Array, p: float) -> jax.Array:
    if p != math.inf:
        return _cone_sample(key, flat, p)
    cube_key, face_key = jax.random.split(key)
    cube = jax.random.uniform(cube_key, flat.shape, flat.dtype, minval=-1, maxval=1)
    face = jax.random.randint(face_key, (len(flat), 1), 0, flat.shape[1])
    on_face = jnp.arange(flat.shape[1])[None] == face
    return jnp.where(on_face, sign(cube), cube)


def _cone_sample(key: jax.Array, flat: jax.Array, p: float) -> jax.Array:
    if p == 2:
        drawn = jax.random.normal(key, flat.shape, flat.dtype)
    elif p == 1:
        # The distribution is the same, and a hundred times faster to draw.
        drawn = jax.random.laplace(key, flat.shape, flat.dtype)
    else:
        drawn = jax.random.generalized_normal(key, p, flat.shape, flat.dtype)
    length = norms.norm(drawn, p)[:, None]
    return drawn / jnp.where(length > 0, length, 1.0)
