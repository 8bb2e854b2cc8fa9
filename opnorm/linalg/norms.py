"""Lp norms of batches, and the maps between an Lp space and its dual.

The leading axis of an array is the batch; the rest of each example is one vector.
"""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.typed import jit


def check_exponent(name: str, p: object) -> float:
    """Returns ``p`` as a float, or raises ValueError unless it is in [1, inf].

    Args:
      name: the name of the argument in the error.
      p: a number of Python or NumPy, not an array; exponents are static under
        ``jit``.
    """
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not float(p) >= 1:
        raise ValueError(f"{name} is {p!r}; it must be a number in [1, inf].")
    return float(p)


def check_length(name: str, value: object, *, positive: bool = False) -> None:
    """Raises ValueError unless every length is finite and at least 0.

    With ``positive``, zero is refused and infinity is allowed, since a step may have
    any length. A traced value is not known yet, and is not checked.

    Args:
      name: the name of the argument in the error.
      value: a number or an array.
      positive: whether zero is refused.
    """
    if isinstance(value, jax.core.Tracer):
        return
    lengths = np.asarray(value)
    if lengths.dtype.kind in "OSU":
        raise ValueError(f"{name} is {value!r}; it must be a number or an array.")
    good = lengths > 0 if positive else (lengths >= 0) & np.isfinite(lengths)
    if not np.all(good):
        allowed = "positive" if positive else "finite and at least 0"
        raise ValueError(f"{name} is {value}; it must be {allowed}.")


def conjugate_exponent(p: float) -> float:
    """Computes the Hölder conjugate p* with ``1/p + 1/p* = 1``.

    Args:
      p: exponent in [1, inf].

    Returns:
      The conjugate: inf for 1, 1 for inf, 2 for 2.

    Raises:
      ValueError: for p outside [1, inf].
    """
    p = check_exponent("p", p)
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies each example by its own factor.

    Args:
      x: ``(B, ...)`` float.
      factor: ``(B,)`` or scalar.

    Returns:
      An array with the shape and dtype of ``x``.
    """
    factor = jnp.asarray(factor)
    if factor.ndim:
        factor = factor.reshape(factor.shape + (1,) * (x.ndim - 1))
    # A factor may be wider than x also where JAX refuses implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        return (x * factor).astype(x.dtype)


def rescale(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Divides by the largest modulus along some axes, and returns the divisor, too.

    Squares of the entries then neither overflow nor vanish. The divisor carries no
    gradient.

    Args:
      x: a float array.
      axes: axes of ``x``.

    Returns:
      The quotient, and the divisor with size 1 along the axes. The divisor is 1 where
      all entries are zero or some are not finite.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    size = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return x / size, size


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the inner product ``<x_i, y_i>`` of each pair of examples.

    Args:
      x: ``(B, ...)`` float.
      y: an array with the shape of ``x``.

    Returns:
      ``(B,)``, accumulated in at least float32.

    Raises:
      ValueError: for different shapes.
    """
    if x.shape != y.shape:
        raise ValueError(f"y has shape {y.shape}; it must have that of x, {x.shape}.")
    flat_x, flat_y = _flatten(x), _flatten(y)
    return jnp.sum(flat_x * flat_y, axis=1)


def norm(x: jax.Array, p: float = 2.0) -> jax.Array:
    """Computes the Lp norm of each example, ``||x_i||_p``.

    Examples are scaled by their largest entry, so that squares neither overflow nor
    vanish. The gradient is ``T_p(x)`` (:func:`dual_map`), and zero at zero.

    Args:
      x: ``(B, ...)`` float.
      p: exponent in [1, inf].

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for p outside [1, inf], no batch axis, or a dtype that is not float.

    Source: Roth et al. 2020, Eqs. 28-29 for the gradient.
    """
    return _compiled_norm(_flatten(x), check_exponent("p", p))


def dual_map(z: jax.Array, s: float) -> jax.Array:
    """Computes the dual map ``T_s`` of each example.

        T_s(z) = sign(z) |z|^(s-1) / ||z||_s^(s-1)

    With ``s = p*`` this is the steepest direction in Lp: the v that maximises
    ``<v, z>`` over ``||v||_p <= 1``. It has ``||v||_p = 1`` and
    ``<v, z> = ||z||_{p*}``. T_2 normalises, T_1 is the sign, and T_inf divides 1
    equally between the entries with the largest modulus (to 1e-12 relative in float64,
    1e-6 otherwise).

    Args:
      z: ``(B, ...)`` float.
      s: exponent in [1, inf].

    Returns:
      An array with the shape and dtype of ``z``; zero for an example that is zero or
      not finite. Derivatives are finite, and zero at zero.

    Raises:
      ValueError: for s outside [1, inf], no batch axis, or a dtype that is not float.

    Source: Roth et al. 2020, Lemma 1 (Eqs. 16 and 35).

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import linalg
      >>> z = jnp.array([[3.0, -4.0]])
      >>> for s in (1, 2, jnp.inf):
      ...     print(linalg.dual_map(z, s))
      [[ 1. -1.]]
      [[ 0.6 -0.8]]
      [[ 0. -1.]]
    """
    s = check_exponent("s", s)
    return _compiled_dual_map(_flatten(z), s).reshape(z.shape).astype(z.dtype)


def _flatten(x: jax.Array) -> jax.Array:
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"an array of shape {x.shape} and dtype {x.dtype} was given; it must be "
            "floating point with a leading batch axis."
        )
    wide = at_least_single(x.dtype)
    return x.astype(wide).reshape(x.shape[0], math.prod(x.shape[1:]))


def _largest(flat: jax.Array) -> jax.Array:
    """The largest modulus of each row, ``(B, 1)``; 0 for empty rows."""
    return jnp.max(jnp.abs(flat), axis=1, keepdims=True, initial=0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm(flat: jax.Array, p: float) -> jax.Array:
    largest = _largest(flat)
    if p == math.inf:
        return largest[:, 0]
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    ratio = jnp.abs(flat) / safe
    if p == 1:
        return safe[:, 0] * jnp.sum(ratio, axis=1)
    if p == 2:
        return safe[:, 0] * jnp.sqrt(jnp.sum(ratio * ratio, axis=1))
    return safe[:, 0] * jnp.sum(ratio**p, axis=1) ** (1 / p)


@_norm.defjvp
def _norm_jvp(
    p: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (flat,), (tangent,) = primals, tangents
    return _norm(flat, p), jnp.sum(_dual_map(flat, p) * tangent, axis=1)


def _dual_map(flat: jax.Array, s: float) -> jax.Array:
    largest = _largest(flat)
    usable = (largest > 0) & jnp.isfinite(largest)
    ratio = jnp.where(usable, flat, 0.0) / jnp.where(usable, largest, 1.0)
    if s == 1:
        return jnp.sign(ratio)
    if s == math.inf:
        tolerance = 1e-12 if flat.dtype == jnp.float64 else 1e-6
        winners = usable & (jnp.abs(ratio) >= 1 - tolerance)
        count = jnp.maximum(jnp.sum(winners, axis=1, keepdims=True), 1)
        return jnp.where(winners, jnp.sign(ratio), 0.0) / count.astype(flat.dtype)
    if s == 2:
        squares = jnp.sum(ratio * ratio, axis=1, keepdims=True)
        # The derivative must be finite where no entry is usable.
        return ratio / jnp.sqrt(jnp.where(usable, squares, 1.0))
    modulus = jnp.abs(ratio)
    # For s < 2 the slope at zero is infinite. It is set to zero.
    base = jnp.where(modulus > 0, modulus, 1.0)
    power = base ** (s - 1)
    total = jnp.sum(base**s, axis=1, keepdims=True, where=modulus > 0)
    length = jnp.where(usable, total, 1.0) ** ((s - 1) / s)
    return jnp.sign(ratio) * power / length


# An eager call runs one program instead of ten, and a trace is kept for each shape.
_compiled_norm = jit(static_argnums=1)(_norm)
_compiled_dual_map = jit(static_argnums=1)(_dual_map)
