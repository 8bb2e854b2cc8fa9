"""linalg: what Lanczos and Golub-Kahan share, growing an orthonormal basis."""

from typing import Any

import jax
import jax.numpy as jnp

from opnorm.linalg import checks, norms

# What the rounding of a product with the map may hide, in units of its norm.
ROUNDING = 20.0


def start(
    init: jax.Array | None, key: jax.Array | None, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Returns the vectors that a process starts from: the given ones, or random ones.

    Args:
      init: of this shape, or None.
      key: typed key; may be None where there is an init.
      shape: ``(B, ...)``.
      dtype: of random vectors.

    Raises:
      ValueError: if neither is given, for a key that is not typed, or if init has
        another shape.
    """
    if key is not None:
        checks.check_key(key)
    if init is not None:
        if init.shape != shape:
            raise ValueError(f"init has shape {init.shape}; it must be {shape}.")
        return init
    if key is None:
        raise ValueError("init and key are None; one of them must give the start.")
    return jax.random.normal(key, shape, dtype)


def check_tolerance(tolerance: float | None) -> None:
    """Raises a ValueError unless ``tolerance`` is positive or None."""
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be positive or None.")


def extend(
    x: jax.Array, basis: jax.Array, size: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes the next vector of a basis out of a product with the map.

    Args:
      x: ``(B, n)``.
      basis: ``(B, m, n)``, its rows orthonormal or zero.
      size: ``(B,)`` or scalar, the norm of the map as far as it is known.
      key: typed key of the vector that goes on where the space is exhausted, that is,
        where nothing but rounding is left of x.

    Returns:
      A unit vector ``(B, n)`` orthogonal to the basis (zero where the basis spans
      everything), what was left of x, ``(B,)``, 0 where that is rounding, and what x
      had along the rows of the basis, ``(B, m)``.
    """
    left, along = orthogonalize(x, basis)
    unit, length = normalize(left, size)
    fresh = jax.random.normal(key, x.shape, x.dtype)
    fresh = fresh / jnp.linalg.norm(fresh, axis=1, keepdims=True)
    # What is left of a unit vector in an exhausted space is rounding.
    fresh, _ = orthogonalize(fresh, basis)
    fresh, _ = normalize(fresh, jnp.full_like(length, 10.0))
    return jnp.where((length > 0)[:, None], unit, fresh), length, along


def orthogonalize(x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x without its components in the rows of the basis, and those components."""
    total = jnp.zeros(basis.shape[:2], x.dtype)
    # Twice is enough; at the reduced default precision of some accelerators it would
    # not be.
    for _ in range(2):
        along = jnp.einsum("bin,bn->bi", basis, x, precision="highest")
        x = x - jnp.einsum("bi,bin->bn", along, basis, precision="highest")
        total = total + along
    return x, total


def removed(along: jax.Array, *known: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Bound of what a column of the small matrix is wrong by.

    That is what orthogonalisation took out of a product and the matrix does not hold:
    rounding for a symmetric map, or for a map and its adjoint. It is counted twice,
    since it shows above the diagonal alone: below, it cannot be told from the map.

    Args:
      along: ``(B, m)``, the components that were taken out.
      *known: pairs of a row of the basis, an int32 scalar, and the component along it
        that the small matrix holds, ``(B,)``; a row of -1 is none.

    Returns:
      ``(B,)``.
    """
    rows = jnp.arange(along.shape[1])
    for row, component in known:
        along = along - jnp.where(rows == row, component[:, None], 0.0)
    return 2 * norms.norm(along, 2.0)


def narrowing(wide: Any, narrow: Any) -> float:
    """Relative error of products from casting vectors to a map's narrower dtype."""
    narrower = jnp.finfo(narrow).bits < jnp.finfo(wide).bits
    return float(jnp.finfo(narrow).eps) if narrower else 0.0


def normalize(x: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x normalised and its norm, both zero where it is rounding beside ``size``."""
    length = norms.norm(x, 2.0)
    # <=, so that a zero map, whose size is zero, breaks down too.
    noise = 10 * jnp.finfo(x.dtype).eps * size
    alive = (length > noise) & jnp.isfinite(length)
    scaled = x / jnp.where(alive, length, 1.0)[:, None]
    return jnp.where(alive[:, None], scaled, 0.0), jnp.where(alive, length, 0.0)
