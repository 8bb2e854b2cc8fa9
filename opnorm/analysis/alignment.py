"""Alignment of perturbations with directions, such as singular vectors."""

import math

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.linalg.dtypes import at_least_single


def alignment(perturbation: jax.Array, direction: jax.Array) -> jax.Array:
    """Computes ``|<delta, v>| / (||delta||_2 ||v||_2)`` of each example.

    The sign is dropped, since the sign of a singular vector is arbitrary.

    Args:
      perturbation: ``(B, ...)`` float.
      direction: shape of ``perturbation``.

    Returns:
      ``(B,)`` in [0, 1], at least float32; 0 where either is zero.

    Raises:
      ValueError: for different shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import analysis
      >>> moved, direction = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, -2.0]])
      >>> round(float(analysis.alignment(moved, direction)[0]), 3)
      0.8

    Source: Roth et al. 2020, Figs. 2 and 8.
    """
    first = linalg.dual_map(_wide(perturbation), 2.0)
    second = linalg.dual_map(_wide(direction), 2.0)
    return jnp.minimum(jnp.abs(linalg.inner(first, second)), 1.0)


def pearson_alignment(perturbation: jax.Array, direction: jax.Array) -> jax.Array:
    """Computes the absolute Pearson correlation of the entries of each example.

    The released code of Roth et al. 2020 plots this where the paper says cosine. The
    two differ by the means of the vectors.

    Args:
      perturbation: ``(B, ...)`` float.
      direction: shape of ``perturbation``.

    Returns:
      ``(B,)`` in [0, 1]; 0 where either is constant.

    Raises:
      ValueError: for different shapes.
    """
    centred = []
    for array in (perturbation, direction):
        wide = _wide(array)
        axes = tuple(range(1, wide.ndim))
        varies = jnp.ptp(wide, axis=axes, keepdims=True) > 0
        # The rest of a constant after rounding is no direction.
        mean = jnp.mean(wide, axis=axes, keepdims=True)
        centred.append(jnp.where(varies, wide - mean, 0.0))
    return alignment(*centred)


def expected_random_alignment(size: int) -> float:
    """Computes the mean alignment of a random direction in ``size`` dimensions.

    With n dimensions it is::

        E |cos| = Gamma(n/2) / (sqrt(pi) Gamma((n+1)/2)),  about  sqrt(2 / (pi n))

    Args:
      size: n, at least 1.

    Raises:
      ValueError: for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1.")
    log_ratio = math.lgamma(size / 2) - math.lgamma((size + 1) / 2)
    return math.exp(log_ratio) / math.sqrt(math.pi)


def _wide(array: jax.Array) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(at_least_single(array.dtype))
