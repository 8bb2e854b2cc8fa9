"""Searches in a weighted norm, by a change of variables.

A perturbation whose length is ``||delta / scale||_p`` is searched for in the variables
``z = x / scale``. There the norm is the plain one, and the box is ``[low / scale, high
/ scale]``. An entry of scale 0 stays as it is: its box in z is one point.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.attacks import parts
from opnorm.attacks.checks import Bounds
from opnorm.attacks.stage import Problem

# Unit of length of each entry, broadcasting against one example, or None for 1.
Scale = np.ndarray | jax.Array | None


class Frame(NamedTuple):
    """A search in the variables z.

    Attributes:
      f: the network as a function of z, and of keys if it is randomised.
      problem: the rows, with x and start in these variables.
      leave: gives the inputs at points z.
    """

    f: linalg.Network
    problem: Problem
    leave: Callable[[jax.Array], jax.Array]


def read_scale(scale: object, mask: object) -> np.ndarray:
    """Returns the scale with 0 at the entries that must not change.

    Args:
      scale: a number or an array of at least 0; None for 1.
      mask: array of bool, True for entries that may change; None for all.

    Raises:
      ValueError: for other values, or no entry that may change.
    """
    values = np.asarray(1.0)
    if scale is not None:
        allowed = "it must be known numbers of at least 0, finite and not all zero"
        if isinstance(scale, jax.core.Tracer):
            raise ValueError(f"scale is traced; {allowed} (NumPy arrays).")
        given = np.asarray(scale)
        good = given.dtype.kind in "iuf" and given.size > 0
        good = good and bool(np.all((given >= 0) & np.isfinite(given)))
        if not (good and np.any(given > 0)):
            raise ValueError(f"scale is {scale!r}; {allowed}.")
        values = given.astype(float)
    if mask is None:
        return values
    allowed = "it must be a known array of bool, with an entry that may change"
    if isinstance(mask, jax.core.Tracer):
        raise ValueError(f"mask is traced; {allowed} (a NumPy array).")
    chosen = np.asarray(mask)
    if chosen.dtype != bool or not np.any(chosen):
        raise ValueError(f"mask is {mask!r}; {allowed}.")
    try:
        values = np.where(chosen, values, 0.0)
    except ValueError:
        raise ValueError(
            f"mask has shape {chosen.shape} and scale {values.shape}; they must fit "
            "together."
        ) from None
    if not np.any(values > 0):
        raise ValueError("mask and scale leave no entry that may change.")
    return values


def transform(scale: np.ndarray, bounds: Bounds) -> Bounds:
    """Returns the box in the variables z; None where it is unlimited everywhere."""
    moves = scale > 0
    if bounds is None and np.all(moves):
        return None
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    size = np.where(moves, scale, 1.0)
    scaled = (np.where(moves, np.asarray(end) / size, 0.0) for end in (low, high))
    least, most = np.broadcast_arrays(*scaled)
    return np.atleast_1d(least), np.atleast_1d(most)


def enter(
    scale: np.ndarray,
    bounds: Bounds,
    f: linalg.Network,
    problem: Problem,
    shift: jax.Array | None,
) -> Frame:
    """Returns a search in the variables z.

    Args:
      scale: from :func:`read_scale`.
      bounds: box (low, high) of x, or None.
      f: batch function.
      problem: rows.
      shift: by how much x lies outside the box, shape of x; None for nowhere.
    """
    x, dtype = problem.x, problem.x.dtype
    unit = jnp.asarray(parts.for_batch(scale, x), dtype)
    inside = x if shift is None else x - shift
    origin = parts.clip(divide(scale, inside), transform(scale, bounds))
    origin = origin.astype(dtype)
    # Points of the box, and x where it lies outside.
    least, most = parts.ends(bounds, x)
    low, high = jnp.minimum(least, x), jnp.maximum(most, x)

    def leave(z: jax.Array) -> jax.Array:
        point = x + unit * (z - origin)
        # Rounding may lead out of the box; the derivative is that of the point.
        return point + lax.stop_gradient(jnp.clip(point, low, high) - point)

    start = problem.start
    if start is not None:
        start = origin + divide(scale, start - x)

    def network(z: jax.Array, *keys: jax.Array) -> jax.Array:
        logits: jax.Array = f(leave(z), *keys)
        return logits

    return Frame(network, problem._replace(x=origin, start=start), leave)


def divide(scale: Scale, delta: jax.Array) -> jax.Array:
    """Returns ``delta / scale``, ``(B, ...)``, and 0 in the entries of scale 0."""
    if scale is None:
        return delta
    scale = jnp.asarray(scale, delta.dtype)
    scale = scale.reshape((1,) * (delta.ndim - scale.ndim) + scale.shape)
    moves = scale > 0
    unit = jnp.where(moves, scale, 1.0)
    return jnp.where(moves, delta / unit, 0.0)


def length(scale: Scale, delta: jax.Array, p: float) -> jax.Array:
    """Computes ``||delta / scale||_p`` over the entries that may change, ``(B,)``."""
    return linalg.norm(divide(scale, delta), p)


def within_budget(
    scale: Scale,
    distance: jax.Array,
    epsilon: float | jax.Array,
    x: jax.Array,
    p: float,
) -> jax.Array:
    """Whether weighted distances from x keep a budget up to rounding, ``(B,)`` bool."""
    return parts.within_budget(distance, epsilon, divide(scale, x), p)
